"""What a hostile but honest user tries, through the command line: one sentence and exit code 2, or counted rows and 0.

In order: recipes, places, inputs, datasets, rows, disks, signals, and what reaches the terminal.
"""

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from upath import UPath

from engine import artifacts
from engine.cluster.driver import _uninterrupted, driver
from engine.errors import ClusterError
from jobs.cli import main

HEADRACE = str(Path(sys.executable).with_name("headrace"))
ROOT = Path(__file__).parents[1]
GOOD = '{"text": "a fine line"}\n'
OURS = re.compile(r"(corpus|lintseq|hash)  \d|\d\d:\d\d:\d\d \[")
"""Lines of progress and of our own log; whatever else stands on stderr has to be the one sentence."""


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The working directory of a call: one good file in `in/`, and nothing else."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_text(GOOD * 3)
    return tmp_path


@pytest.fixture
def call(home, monkeypatch, capsys):
    """Call the command line in this process: exit code and stderr."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["headrace", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        err = capsys.readouterr().err
        assert "Traceback" not in err
        return ended.value.code, err

    return run


@pytest.fixture
def on_head(head, monkeypatch):
    """Jobs called in this process run on the shared head."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(head.token))
    return ["--address", head.address]


def _recipe(home, text=None, **keys):
    recipe = {"name": "a", "source": {"paths": ["in"]}, **keys}
    (home / "r.yaml").write_bytes(json.dumps(recipe).encode() if text is None else text)
    return "r.yaml"


@pytest.mark.parametrize(
    ("text", "overrides", "says"),
    [
        (b": : [", [], "is not valid YAML at line 1"),
        (b"just words", [], "holds no `key: value` pairs"),
        (b"", [], "holds no `key: value` pairs"),
        (b"\xff\xfe\x00", [], "cannot be read"),
        (b"name: a\nname: b\n", [], "duplicate key"),
        (
            b"name: a\nsource: {pathes: [in]}\n",
            [],
            "unknown key 'source.pathes'; the nearest known key is 'source.paths'",
        ),
        (b"name: a\nsource: 5\n", [], "'source': should hold keys of its own"),
        (b"name: a\nsource: {paths: in}\n", [], "'source.paths': should be a list"),
        (b"name: ../a\nsource: {paths: [in]}\n", [], "'name'"),
        (None, ["seed=abc"], "'seed': should be a whole number (it is 'abc')"),
        (None, ["seed"], "not of the form key=value"),
        (None, ["seed=[1"], "not valid YAML"),
        (None, ["name.x=1"], "goes through name"),
        (None, ["source.paths.7=in"], "7 is no place in a list of 1"),
        (None, ["source.paths.x=in"], "x is no place in a list of 1"),
        (None, ["workers=0"], "'workers'"),
    ],
)
def test_a_wrong_recipe_is_one_sentence(home, call, text, overrides, says):
    code, err = call("corpus", _recipe(home, text), *overrides)
    _is_one_sentence(code, err, says)
    assert not (home / "runs").exists()


@pytest.mark.parametrize(
    ("stages", "says"),
    [
        ([], "at least 1 item"),
        ([{"job": "pipeline", "recipe": "r.yaml"}], "should be one of corpus"),
        ([{"job": "corpus", "recipe": "none.yaml"}], "There is no recipe none.yaml"),
        ([{"job": "corpus", "recipe": "r.yaml"}] * 2, "2 stages are called 'corpus'"),
        ([{"job": "corpus", "recipe": "r.yaml", "set": {"name.x": 1}}], "goes through name"),
        ([{"job": "corpus", "recipe": "r.yaml", "set": {"source.path": 1}}], "nearest known key is 'source.paths'"),
        ([{"job": "corpus", "recipe": "r.yaml", "inputs": {"source.paths": "x"}}], "no stage before it"),
        ([{"job": "corpus", "recipe": "r.yaml", "set": {"source.paths": ["/etc"]}}], "outside the roots"),
    ],
)
def test_a_wrong_pipeline_is_one_sentence(home, call, stages, says):
    _recipe(home)
    (home / "p.yaml").write_text(json.dumps({"name": "p", "stages": stages}))
    _is_one_sentence(*call("pipeline", "p.yaml"), says)
    assert not (home / "runs").exists()


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["source.paths=[in/link.jsonl]"], "outside the roots"),
        (['source.paths=["a\\0b"]'], "null character"),
        ([f"source.paths=[{'x' * 300}]"], "cannot be looked up"),
        (["source.paths=[pipe]"], "neither a file nor a directory"),
        (["source.paths=[code.py]"], "Set rows=instructions"),
        (["source.paths=[nowhere]"], "nowhere"),
        (["source.paths=[http://example.org/x.jsonl]"], "not allowed"),
        (["source.paths=[/etc/hostname]"], "outside the roots"),
        (["source.paths=[s3://key:hunter2@bucket/x]"], "carries credentials"),
        (["source.paths=[s3://bucket/x.parquet]"], "s3://bucket/x.parquet cannot be looked up"),
        (["runs=http://host/runs"], "'http://host/runs' is not allowed"),
        (["runs=s3://bucket/runs"], "Cannot reach s3://bucket/runs/corpus/a/dataset"),
        (["output=s3://bucket/out"], "Cannot reach s3://bucket/out"),
        (["runs=in/a.jsonl/runs"], "a part of the path is a file"),
        (["runs=/proc/headrace"], "Cannot write /proc/headrace"),
        ([f"name={'x' * 300}"], "file name too long"),
        (["output=in"], "holds the input a.jsonl"),
        (["output=in", "--fresh"], "holds the input a.jsonl"),
        (["output=runs/corpus/a"], "holds the run directory"),
        (["output=mine"], "exists already"),
        (["output=mine", "--fresh"], "exists already"),
        (["--address", "127.0.0.1:{port}"], "No Ray answers at 127.0.0.1:"),
        (["--address", "http://127.0.0.1:{port}"], "`headrace submit` takes it"),
        (["--address", "somewhere"], "is no address of a Ray cluster"),
    ],
)
def test_a_wrong_place_is_one_sentence_and_moves_nothing(home, call, closed_port, overrides, says):
    (home / "in" / "link.jsonl").symlink_to("/etc/hostname")
    os.mkfifo(home / "pipe")
    (home / "code.py").write_text("")
    (home / "mine").mkdir()
    (home / "mine" / "thesis").write_text("")
    words = [word.replace("{port}", str(closed_port)) for word in overrides]
    code, err = call("corpus", _recipe(home), *words)
    _is_one_sentence(code, err, says)
    assert "hunter2" not in err
    assert (home / "in" / "a.jsonl").exists()
    assert (home / "mine" / "thesis").exists()


def _empty(folder):
    (folder / "a.jsonl").write_text("")


def _empty_parquet(folder):
    (folder / "a.parquet").write_text("")


def _no_files(folder):
    """Left empty."""


def _no_rows(folder):
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), folder / "a.parquet")


def _missing_column(folder):
    pq.write_table(pa.table({"body": ["x"]}), folder / "a.parquet")


def _wrong_type(folder):
    pq.write_table(pa.table({"text": [1, 2]}), folder / "a.parquet")


def _truncated(folder):
    pq.write_table(pa.table({"text": ["x" * 1000] * 100}), folder / "a.parquet")
    body = (folder / "a.parquet").read_bytes()
    (folder / "a.parquet").write_bytes(body[: len(body) // 2])


def _mixture(folder):
    (folder / "a.jsonl").write_text(GOOD)
    (folder / "b.html").write_text("<p>x</p>")


def _no_gzip(folder):
    (folder / "a.jsonl.gz").write_bytes(b"\x1f\x8b\x08nonsense")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (_empty, "holds no rows"),
        (_empty_parquet, "a.parquet"),
        (_no_files, "in"),
        (_no_rows, "holds no rows"),
        (_missing_column, "no column 'text'; it has body"),
        (_wrong_type, "where text is needed"),
        (_truncated, "not a whole Parquet file"),
        (_mixture, "format"),
        (_no_gzip, "a.jsonl.gz"),
    ],
)
def test_an_input_that_cannot_be_read_is_one_sentence(home, call, make, says):
    (home / "in" / "a.jsonl").unlink()
    make(home / "in")
    _is_one_sentence(*call("corpus", _recipe(home)), says)
    assert not (home / "runs").exists()


def _whole(dataset):
    """Left as it is: the case is about the rows."""


def _unpublished(dataset):
    dataset.rename(dataset.with_name("programs.partial"))
    dataset.symlink_to("programs.partial")


def _cut_manifest(dataset):
    body = (dataset / "manifest.json").read_bytes()
    (dataset / "manifest.json").write_bytes(body[: len(body) // 2])


def _foreign_manifest(dataset):
    (dataset / "manifest.json").write_text('{"kind": "model"}')


def _climbing_part(dataset):
    body = (dataset / "manifest.json").read_text()
    (dataset / "manifest.json").write_text(body.replace("part-000000.x.parquet", "../r.yaml"))


def _no_part(dataset):
    (dataset / "part-000000.x.parquet").unlink()


def _cut_part(dataset):
    body = (dataset / "part-000000.x.parquet").read_bytes()
    (dataset / "part-000000.x.parquet").write_bytes(body[:-20])


@pytest.mark.parametrize(
    ("spoil", "columns", "says"),
    [
        (_unpublished, {"instruction": ["i"], "program": ["x = 1\n"]}, "is not published yet"),
        (_cut_manifest, {"instruction": ["i"], "program": ["x = 1\n"]}, "is damaged at its JSON"),
        (_foreign_manifest, {"instruction": ["i"], "program": ["x = 1\n"]}, "is damaged at kind"),
        (_climbing_part, {"instruction": ["i"], "program": ["x = 1\n"]}, "is damaged at parts.0.file"),
        (_no_part, {"instruction": ["i"], "program": ["x = 1\n"]}, "is no longer there"),
        (_cut_part, {"instruction": ["i"], "program": ["x = 1\n"]}, "is not a whole Parquet file"),
        (_whole, {"instruction": [], "program": []}, "was published without a single row"),
        (_whole, {"text": ["a"]}, "has no column 'instruction'"),
        (_whole, {"instruction": ["i"], "program": [3]}, "is int64, where text is needed"),
    ],
)
def test_a_spoilt_dataset_is_one_sentence(home, call, spoil, columns, says):
    _publish(home / "programs", columns)
    spoil(home / "programs")
    _is_one_sentence(*call("lintseq", _recipe(home), "source.paths=[programs]"), says)
    assert not (home / "runs").exists()


def _publish(folder, columns):
    folder.mkdir()
    table = pa.table(columns)
    file = folder / "part-000000.x.parquet"
    pq.write_table(table, file)
    part = artifacts.Part(
        name="part-000000", file=file.name, rows=len(table), bytes=file.stat().st_size, sha256="0" * 64
    )
    manifest = artifacts.Manifest(
        schema_name="instructions",
        columns={},
        rows=len(table),
        parts=(part,) if len(table) else (),
        parents=(),
        job="corpus",
        recipe={},
        recipe_fingerprint="",
        inputs_fingerprint="",
        code_version="",
        seed=0,
    )
    (folder / "manifest.json").write_text(manifest.model_dump_json())


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["lintseq.language=cobol"], "add linter: syntax"),
        (["lintseq.language=cobol", "lintseq.linter=syntax"], "Install it: pip install tree-sitter-cobol"),
        (["lintseq.linter=sintax"], "'fast', 'pylint' or 'syntax'"),
        (["lintseq.tokenizer=pkg:nothing"], "There is no packaged model pkg:nothing"),
        (["lintseq.tokenizer=in"], "in"),
        (["lintseq.max_edit_lines=0"], "'lintseq.max_edit_lines'"),
    ],
)
def test_a_wrong_lintseq_recipe_is_one_sentence(home, call, overrides, says):
    _publish(home / "programs", {"instruction": ["i"], "program": ["x = 1\n"]})
    _is_one_sentence(*call("lintseq", _recipe(home), "source.paths=[programs]", *overrides), says)
    assert not (home / "runs").exists()


@pytest.mark.parametrize("job", ["corpus", "lintseq"])
def test_a_dry_run_makes_nothing(home, call, job):
    _publish(home / "programs", {"instruction": ["i"], "program": ["x = 1\n"], "text": ["t"]})
    before = sorted(home.rglob("*"))
    code, err = call(job, _recipe(home), "source.paths=[programs]", "--dry-run")
    assert (code, err) == (0, "")
    assert sorted(home.rglob("*")) == sorted([*before, home / "r.yaml"])


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
@pytest.mark.parametrize("key", ["runs", "output"])
def test_a_read_only_disk_is_one_sentence(home, call, key):
    (home / "disk").mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", "disk"], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        _is_one_sentence(*call("corpus", _recipe(home), f"{key}=disk/x"), "the file system is read-only")
    finally:
        subprocess.run(["umount", "-l", "disk"], check=True)


def test_poison_rows_are_counted_and_kept_apart_up_to_the_limit(home, call, on_head):
    lines = [GOOD.encode()] * 50 + [b'{"text": "\xff"}\n', b"{broken\n", b'{"text": 3}\n', b'{"other": 1}\n']
    lines.append(b'{"text": "' + b"x" * 50_000_000 + b'"}\n')
    (home / "in" / "a.jsonl").write_bytes(b"".join(lines))
    assert call("corpus", _recipe(home), *on_head)[0] == 0
    run_dir = home / "runs" / "corpus" / "a"
    dataset = artifacts.read_dataset(UPath(run_dir / "dataset"))
    assert (dataset.rows, dataset.manifest.counts["read"], dataset.manifest.counts["quarantined"]) == (50, 55, 5)
    assert sum(pq.read_table(file).num_rows for file in run_dir.glob("quarantine/**/*.parquet")) == 5

    (home / "in" / "b.jsonl").write_bytes(b"{broken\n" * 20)
    code, err = call("corpus", _recipe(home), "name=b", *on_head)
    assert code == 2
    assert "25 rows are in quarantine" in err
    code, _ = call("corpus", _recipe(home), "name=b", "max_quarantine=0.5", *on_head)
    assert code == 0, "raising the limit resumes"


def test_a_changed_input_is_refused_and_named(home, call, on_head):
    assert call("corpus", _recipe(home), *on_head)[0] == 0
    manifest = home / "runs" / "corpus" / "a" / "dataset" / "manifest.json"
    before = manifest.read_bytes()
    (home / "in" / "a.jsonl").write_text(GOOD * 4)
    code, err = call("corpus", _recipe(home), *on_head)
    assert code == 2
    assert "another input" in err
    assert manifest.read_bytes() == before
    assert call("corpus", _recipe(home), "--fresh", *on_head)[0] == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_full_disk_is_one_sentence_and_resumes(home, head):
    (home / "in" / "a.jsonl").unlink()
    for number in range(6):
        rows = [{"text": os.urandom(40_000).hex()} for _ in range(5)]
        (home / "in" / f"{number}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (home / "runs").mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", "runs"], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        command = [HEADRACE, "corpus", _recipe(home), "source.shard_mb=0.3", "--address", head.address]
        full = subprocess.run(command, env=head.environment, capture_output=True, text=True, timeout=200)
        assert full.returncode == 2, full.stderr
        assert "the disk is full" in full.stderr
        subprocess.run(["mount", "-o", "remount,size=64m", "runs"], check=True)
        again = subprocess.run(command, env=head.environment, capture_output=True, text=True, timeout=200)
        assert again.returncode == 0, again.stderr
        assert artifacts.read_dataset(UPath(home / "runs" / "corpus" / "a" / "dataset")).rows == 30
    finally:
        subprocess.run(["umount", "-l", "runs"], check=True)


def test_damage_found_by_a_worker_and_in_the_ledger_is_one_sentence(home, head):
    rows = {"text": [os.urandom(30).hex() for _ in range(2000)]}
    pq.write_table(pa.table(rows), home / "in" / "b.parquet", compression="snappy")
    body = bytearray((home / "in" / "b.parquet").read_bytes())
    body[1000:3000] = bytes(2000)  # the footer is whole, so the plan sees nothing
    (home / "in" / "b.parquet").write_bytes(body)
    command = [HEADRACE, "corpus", _recipe(home), "source.paths=[in/b.parquet]", "--address", head.address]
    done = subprocess.run(command, env=head.environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 2, done.stderr
    assert re.fullmatch(r"Error: \S*b.parquet is not a whole Parquet file: .*\n", _beside_progress(done.stderr))
    (home / "runs" / "corpus" / "a" / "ledger" / "identity.json").write_bytes(b"")
    done = subprocess.run(command, env=head.environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 2, done.stderr
    assert re.fullmatch(r"Error: \S*identity.json is damaged. Move \S* away .*\n", done.stderr)


def test_programs_no_parser_takes_are_published_whole_and_the_terminal_stays_clean(home, head):
    programs = [
        "def f(:\n",
        "",
        "\0",
        "(" * 3000,
        "if 1:\n  x\n    y\n",
        "\f\r\n\tif x:\n\r",
        "'''open\n",
        "\ufeffx = 1\n",
    ]
    table = {"instruction": ["i"] * len(programs) + [None], "program": [*programs, None]}
    pq.write_table(pa.table(table), home / "in" / "p.parquet")
    # As a module: what `headrace submit` hands to a cluster is the same job.
    command = [sys.executable, "-m", "jobs.lintseq", home / _recipe(home), "--address", head.address]
    command += [f"source.paths=[{home}/in/p.parquet]", f"source.roots=[{home}]", f"runs={home}/runs"]
    done = subprocess.run(command, env=head.environment, capture_output=True, text=True, timeout=100, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert _beside_progress(done.stderr) == ""
    assert "raylet" not in done.stdout
    dataset = artifacts.read_dataset(UPath(home / "runs" / "lintseq" / "a" / "dataset"))
    assert dataset.manifest.counts["quarantined"] == 1
    (part,) = dataset.parts
    edits = pq.read_table(dataset.path / part.file).sort_by("source_row")["edits"].to_pylist()
    assert [len(each) for each in edits] == [int(bool(program)) for program in programs]


class Job:
    """One run of many small shards on the head: started, watched and signalled from outside."""

    def __init__(self, home, head):
        rows = [{"text": " ".join([f"{number}"] * 150)} for number in range(6000)]
        (home / "in" / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        self.rows = [row["text"] for row in rows]
        self.run_dir = home / "runs" / "corpus" / "a"
        self.head = head
        self.command = [HEADRACE, "corpus", _recipe(home), "source.shard_mb=0.03", "--address", head.address]

    def start(self):
        return subprocess.Popen(
            self.command,
            env=self.head.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def committed(self):
        shards = self.run_dir / "ledger" / "shards"
        return len([each for each in shards.glob("*.json") if not each.name.startswith(".")])

    def wait_beyond(self, process, count):
        """Until more than `count` shards are committed, the process still at work."""
        end = time.monotonic() + 60
        while self.committed() <= count:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < end
            time.sleep(0.02)

    def kill_a_worker(self):
        everybody = psutil.Process(self.head.pid).children(recursive=True)
        workers = [each for each in everybody if "ray::" in each.name() and "Agent" not in each.name()]
        workers[0].send_signal(signal.SIGKILL)


def test_signals_leave_a_state_that_resumes_and_a_second_run_is_kept_out(home, head):
    job = Job(home, head)
    done = 0
    for number in (signal.SIGINT, signal.SIGTERM):
        first = job.start()
        job.wait_beyond(first, done)
        if number == signal.SIGINT:
            os.kill(first.pid, signal.SIGSTOP)  # it shall not end before the second run has looked
            second = subprocess.run(job.command, env=head.environment, capture_output=True, text=True, timeout=60)
            assert second.returncode == 2, second.stderr
            assert f"is in use by process {first.pid}" in second.stderr
        os.killpg(first.pid, number)
        os.kill(first.pid, signal.SIGCONT)  # to the signal, before its workers have come to the end
        _, err = first.communicate(timeout=60)
        assert first.returncode == 130, err
        done = job.committed()
        kept = rf"Error: Interrupted; {done} of \d+ shards are committed and kept."
        assert re.fullmatch(kept + r" Resume with: headrace corpus r.yaml .*\n", _beside_progress(err)), err

    last = job.start()
    job.wait_beyond(last, done)
    job.kill_a_worker()
    _, err = last.communicate(timeout=100)
    assert last.returncode == 0, err
    assert _beside_progress(err) == ""
    dataset = artifacts.read_dataset(UPath(job.run_dir / "dataset"))
    parts = [pq.read_table(dataset.path / part.file) for part in dataset.parts]
    assert pa.concat_tables(parts)["text"].to_pylist() == job.rows


def test_a_signal_waits_until_ray_has_started_or_stopped():
    before = signal.getsignal(signal.SIGINT)
    reached = []

    def start():
        with _uninterrupted():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
            reached.append("the end")

    with pytest.raises(KeyboardInterrupt):
        start()
    assert reached
    assert signal.getsignal(signal.SIGINT) is before


def test_what_a_failed_block_leaves_behind_ends_before_ray_does(monkeypatch):
    events = []

    class Executor:
        def __del__(self):
            events.append("executor ended")

    def interrupted():
        executor = Executor()  # noqa: F841 - the frame holds it, and the exception the frame
        raise KeyboardInterrupt

    monkeypatch.setattr(ray, "init", lambda **settings: events.append("init"))
    monkeypatch.setattr(ray, "shutdown", lambda: events.append("shutdown"))
    with pytest.raises(KeyboardInterrupt), driver(ClusterError):
        interrupted()
    assert events == ["init", "executor ended", "shutdown"]


def test_only_noise_is_kept_off_stderr():
    program = """
        import os, sys
        from engine.cluster.stderr import without_noise
        with without_noise():
            os.write(2, b"E: Actor X has constructor arguments in the object store and max_restarts > 0. If ...\\n")
            os.write(2, b"E core_worker.cc:609: :info_message: Attempting to recover\\n")
            print("ours", file=sys.stderr)
            os.write(2, b"F check failed\\n")
            os.abort()
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == -signal.SIGABRT
    assert sorted(done.stderr.splitlines()) == ["F check failed", "ours"]


def _is_one_sentence(code, err, says):
    assert code == 2, err
    assert says in err
    assert err.startswith("Error: ")
    assert err.count("\n") == 1, err


def _beside_progress(err):
    """What stands on stderr beside lines of progress and of the log."""
    return "".join(line for line in err.splitlines(keepends=True) if not OURS.match(line))
