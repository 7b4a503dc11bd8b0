"""Bad input as a user meets it: one sentence and exit code 2, or a row in quarantine and exit code 0."""

import json
import os
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from upath import UPath

from engine.artifacts import read_dataset
from jobs.cli import main

GOOD = '{"text": "a fine line"}\n'


def _call(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["headrace", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return ended.value.code, out, err


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    return tmp_path


def _recipe(folder, source="in", **keys):
    keys = {"name": "a", "source": {"paths": [source]}, **keys}
    (folder / "r.yaml").write_text(json.dumps(keys))
    return "r.yaml"


def _missing_column(folder):
    pq.write_table(pa.table({"body": ["x"]}), folder / "in" / "a.parquet")


def _wrong_type(folder):
    pq.write_table(pa.table({"text": [1, 2]}), folder / "in" / "a.parquet")


def _truncated(folder):
    pq.write_table(pa.table({"text": ["x" * 1000] * 100}), folder / "in" / "a.parquet")
    body = (folder / "in" / "a.parquet").read_bytes()
    (folder / "in" / "a.parquet").write_bytes(body[: len(body) // 2])


def _empty_dataset(folder):
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), folder / "in" / "a.parquet")


def _mixture(folder):
    (folder / "in" / "a.jsonl").write_text(GOOD)
    (folder / "in" / "b.html").write_text("<p>x</p>")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda folder: (folder / "in" / "a.jsonl").write_text(""), "holds no rows"),
        (lambda folder: (folder / "in" / "a.parquet").write_text(""), "a.parquet"),
        (lambda folder: None, "in"),
        (_empty_dataset, "holds no rows"),
        (_missing_column, "no column 'text'; it has body"),
        (_wrong_type, "where text is needed"),
        (_truncated, "not a whole Parquet file"),
        (_mixture, "format"),
        (lambda folder: (folder / "in" / "a.jsonl.gz").write_bytes(b"\x1f\x8b\x08nonsense"), "a.jsonl.gz"),
    ],
    ids=["empty", "empty-parquet", "no-files", "no-rows", "column", "type", "truncated", "mixture", "gzip"],
)
def test_an_input_that_cannot_be_read_is_one_sentence(folder, monkeypatch, capsys, make, says):
    make(folder)
    code, _, err = _call(monkeypatch, capsys, "corpus", _recipe(folder))
    assert code == 2
    assert says in err
    assert err.count("\n") == 1
    assert not (folder / "runs").exists()


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("http://example.org/x.jsonl", "not allowed"),
        ("/etc/hostname", "outside the roots"),
        ("s3://key:hunter2@bucket/x", "carries credentials"),
        ("nowhere", "nowhere"),
    ],
)
def test_a_source_that_may_not_be_read_is_one_sentence(folder, monkeypatch, capsys, source, says):
    code, _, err = _call(monkeypatch, capsys, "corpus", _recipe(folder, source))
    assert code == 2
    assert says in err
    assert "hunter2" not in err


def test_an_output_that_cannot_be_written_is_one_sentence(folder, monkeypatch, capsys):
    (folder / "in" / "a.jsonl").write_text(GOOD)
    (folder / "file").write_text("")
    code, _, err = _call(monkeypatch, capsys, "corpus", _recipe(folder, runs="file/runs"))
    assert code == 2
    assert "Cannot write" in err


@pytest.fixture
def on_head(head, monkeypatch):
    """Jobs called in process run on the shared head."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(head.token))
    return ["--address", head.address]


def test_poison_rows_are_counted_and_kept_apart_up_to_the_limit(folder, monkeypatch, capsys, on_head):
    lines = [GOOD.encode()] * 50 + [b'{"text": "\xff"}\n', b"{broken\n", b'{"text": 3}\n', b'{"other": 1}\n']
    lines.append(b'{"text": "' + b"x" * 50_000_000 + b'"}\n')
    (folder / "in" / "a.jsonl").write_bytes(b"".join(lines))
    code, _, _ = _call(monkeypatch, capsys, "corpus", _recipe(folder), *on_head)
    assert code == 0
    dataset = read_dataset(UPath(folder / "runs" / "corpus" / "a" / "dataset"))
    assert (dataset.rows, dataset.manifest.counts["read"], dataset.manifest.counts["quarantined"]) == (50, 55, 5)
    notes = [pq.read_table(file) for file in (folder / "runs" / "corpus" / "a").glob("quarantine/**/*.parquet")]
    assert sum(table.num_rows for table in notes) == 5

    (folder / "in" / "b.jsonl").write_bytes(b"{broken\n" * 20)
    code, _, err = _call(monkeypatch, capsys, "corpus", _recipe(folder), "name=b", *on_head)
    assert code == 2
    assert "25 rows are in quarantine" in err
    code, _, _ = _call(monkeypatch, capsys, "corpus", _recipe(folder), "name=b", "max_quarantine=0.5", *on_head)
    assert code == 0, "raising the limit resumes"


def test_a_changed_input_is_refused_and_named(folder, monkeypatch, capsys, on_head):
    (folder / "in" / "a.jsonl").write_text(GOOD * 3)
    assert _call(monkeypatch, capsys, "corpus", _recipe(folder), *on_head)[0] == 0
    before = (folder / "runs" / "corpus" / "a" / "dataset" / "manifest.json").read_bytes()
    (folder / "in" / "a.jsonl").write_text(GOOD * 4)
    code, _, err = _call(monkeypatch, capsys, "corpus", _recipe(folder), *on_head)
    assert code == 2
    assert "another input" in err
    assert (folder / "runs" / "corpus" / "a" / "dataset" / "manifest.json").read_bytes() == before
    assert _call(monkeypatch, capsys, "corpus", _recipe(folder), "--fresh", *on_head)[0] == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_full_disk_is_one_sentence_and_resumes(folder, head):
    for number in range(6):
        rows = [{"text": os.urandom(40_000).hex()} for _ in range(5)]
        (folder / "in" / f"{number}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "runs").mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", "runs"], capture_output=True)
    if mount.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        program = os.path.join(os.path.dirname(sys.executable), "headrace")
        command = [program, "corpus", _recipe(folder), "source.shard_mb=0.3", "--address", head.address]
        full = subprocess.run(command, env=head.environment, capture_output=True, text=True, timeout=200)
        assert full.returncode == 2, full.stderr
        assert "the disk is full" in full.stderr
        subprocess.run(["mount", "-o", "remount,size=64m", "runs"], check=True)
        again = subprocess.run(command, env=head.environment, capture_output=True, text=True, timeout=200)
        assert again.returncode == 0, again.stderr
        assert read_dataset(UPath(folder / "runs" / "corpus" / "a" / "dataset")).rows == 30
    finally:
        subprocess.run(["umount", "-l", "runs"], check=True)
