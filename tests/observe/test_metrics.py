import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest
from upath import UPath

from engine.errors import StorageError
from engine.observe import MetricsWriter, read_metrics


def _scalars(run_dir):
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for file in sorted((run_dir / "tensorboard").iterdir()):
        data = file.read_bytes()
        while data:  # length, its checksum, the event, its checksum
            size = int.from_bytes(data[:8], "little")
            event = Event.FromString(data[12 : 12 + size])
            found += [(event.step, value.tag, round(value.simple_value, 4)) for value in event.summary.value]
            data = data[16 + size :]
    return found


def test_each_step_is_one_line_and_one_tensorboard_event_per_metric(tmp_path):
    with MetricsWriter(UPath(tmp_path)) as metrics:
        metrics.log(1, loss=0.5, rows=3)
        metrics.log(2, **{"loss/held out": 0.25})
        assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2  # before the writer closes
    assert read_metrics(UPath(tmp_path)) == [{"step": 1, "loss": 0.5, "rows": 3}, {"step": 2, "loss/held out": 0.25}]
    assert sorted(_scalars(tmp_path))[:2] == [(1, "loss", 0.5), (1, "rows", 3.0)]


def test_resuming_continues_the_file_and_the_events(tmp_path):
    for step in (1, 2, 3):
        with MetricsWriter(UPath(tmp_path)) as metrics:
            metrics.log(step, loss=1.0)
    assert [entry["step"] for entry in read_metrics(UPath(tmp_path))] == [1, 2, 3]
    assert sorted(step for step, _, _ in _scalars(tmp_path)) == [1, 2, 3]


@pytest.mark.parametrize("tail", [b'{"step": 2, "lo', b'{"step": 2, "loss": 1.0', b"{", b"\0\0\0\n", b'\xff\n{"st'])
def test_a_half_written_line_is_passed_over_and_repaired(tmp_path, tail):
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b'{"step": 1, "loss": 2.0}\n' + tail)
    assert read_metrics(UPath(tmp_path)) == [{"step": 1, "loss": 2.0}]
    with MetricsWriter(UPath(tmp_path)) as metrics:
        metrics.log(2, loss=1.0)
    assert file.read_bytes() == b'{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n'


def test_a_whole_line_that_lacks_only_its_line_break_is_kept(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}')
    with MetricsWriter(UPath(tmp_path)) as metrics:
        metrics.log(2)
    assert [entry["step"] for entry in read_metrics(UPath(tmp_path))] == [1, 2]


def test_numbers_that_are_not_finite_are_null(tmp_path):
    with MetricsWriter(UPath(tmp_path)) as metrics:
        metrics.log(1, loss=float("nan"), norm=float("inf"))
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 1, "loss": None, "norm": None}


def test_what_was_logged_survives_a_kill(tmp_path):
    program = f"""
        import os, signal
        from upath import UPath
        from engine.observe import MetricsWriter
        with MetricsWriter(UPath({str(tmp_path)!r})) as metrics:
            for step in range(50):
                metrics.log(step, loss=1.0)
            os.kill(os.getpid(), signal.SIGKILL)
    """
    ended = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], cwd=os.getcwd(), check=False)
    assert ended.returncode == -signal.SIGKILL
    assert [entry["step"] for entry in read_metrics(UPath(tmp_path))] == list(range(50))


def test_an_object_store_holds_everything_at_the_end():
    run_dir = UPath("memory://runs/metrics-test")
    for step in (1, 2):
        with MetricsWriter(run_dir) as metrics:
            metrics.log(step, loss=1.0)
    assert [entry["step"] for entry in read_metrics(run_dir)] == [1, 2]


def test_no_file_is_no_metrics_and_a_bad_place_is_a_storage_error(tmp_path):
    assert read_metrics(UPath(tmp_path)) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError), MetricsWriter(UPath(tmp_path / "file" / "run")):
        pass


def test_the_newest_lines_are_read_without_the_others(tmp_path):
    with MetricsWriter(UPath(tmp_path)) as metrics:
        for step in range(1000):
            metrics.log(step, loss=0.5)
    every = read_metrics(UPath(tmp_path))
    some = read_metrics(UPath(tmp_path), newest=1000)
    assert 0 < len(some) < 50
    assert some == every[-len(some) :]
    assert read_metrics(UPath(tmp_path), newest=10**9) == every
    assert read_metrics(UPath(tmp_path / "none"), newest=10) == []
