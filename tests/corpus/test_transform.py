"""A job over a corpus as a whole: every row accounted for, resumed without reading twice, published once."""

import json
import shutil
import sys
import uuid
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ray import cloudpickle
from upath import UPath

from engine import artifacts
from engine.config import build_recipe
from engine.corpus import transform
from engine.corpus.ledger import Ledger
from engine.corpus.stream import Stage
from engine.corpus.tally import Tally
from engine.errors import (
    ArtifactError,
    Interrupted,
    QuarantineExceeded,
    RecipeError,
    ResumeRefused,
    RunBusy,
    SchemaError,
    SourceError,
)
from engine.lintseq import sample_edit_sequence
from engine.observe import read_metrics
from engine.runs import Invocation
from jobs import corpus, lintseq

# Workers cannot import a test: what it defines travels by value.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


class Home:
    """A directory with inputs in `in/` and runs in `runs/`, and the two jobs on it."""

    def __init__(self, path):
        self.path = path
        self.inputs = path / "in"
        self.inputs.mkdir()

    def lines(self, name, rows):
        (self.inputs / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    def corpus(self, name="x", *, call=(), source=None, **keys):
        return self._run(corpus, name, {"paths": [str(self.inputs)], **(source or {})}, keys, call)

    def lintseq(self, paths, name="x", *, call=(), **keys):
        return self._run(lintseq, name, {"paths": paths, "shard_mb": 0.001}, keys, call)

    def run_dir(self, name="x", job="corpus"):
        return UPath(self.path / "runs" / job / name)

    def records(self, name="x", job="corpus"):
        return Ledger(self.run_dir(name, job)).records()

    def dataset(self, name="x", job="corpus"):
        return artifacts.read_dataset(self.run_dir(name, job) / "dataset")

    def _run(self, job, name, source, keys, call):
        source = {"roots": [str(self.path)], **source}
        data = {"name": name, "runs": str(self.path / "runs"), "source": source, **keys}
        return job.run(build_recipe(job.RECIPE, data), Invocation("headrace x", **dict(call)))


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path)


@pytest.fixture
def mixed(home):
    """Four files of twenty rows, a shard each: short ones, repeated ones, and a line of no JSON in each."""
    for n in range(4):
        rows = [{"text": f"file {n} row {row} is long enough", "error": "theirs", "n": row} for row in range(16)]
        rows += [{"text": "short"}, {"text": f"file {n} row 3 is long enough"}, {"text": "in every one of the files"}]
        home.lines(f"{n}.jsonl", rows)
        with (home.inputs / f"{n}.jsonl").open("a") as file:
            file.write("no JSON\n")
    return home


FILTERS = {"filters": {"min_chars": 10, "exact_duplicates": True}, "source": {"shard_mb": 0.0015}}


def _rows(dataset, *columns):
    tables = [pq.read_table(dataset.path / part.file) for part in dataset.parts]
    return [tuple(row.values()) for table in tables for row in table.select(columns or table.column_names).to_pylist()]


def _contents(dataset):
    return [(part.name, part.rows, part.sha256) for part in dataset.parts]


def test_every_row_is_accounted_for(cluster, mixed):
    outcome = mixed.corpus(**FILTERS, keep_dropped=True, call={"address": cluster.address})
    records, dataset = mixed.records(), mixed.dataset()
    assert len(records) == 4
    for shard, record in records.items():
        assert record.rows_in == 20 == record.rows_out + sum(record.dropped.values()) + record.quarantined
        assert record.dropped == {"too_short": 1, "duplicate": 1 if shard == 0 else 2}
        assert record.quarantined == 1
        assert record.part.rows == record.rows_out
    counts = dataset.manifest.counts
    assert counts == {"read": 80, "quarantined": 4, "dropped: too_short": 4, "dropped: duplicate": 7}
    assert dataset.rows == 80 - 4 - 4 - 7 == len(_rows(dataset)) == sum(part.rows for part in dataset.parts)
    # The input's own column `error` keeps its name and its contents, in every file that is written.
    assert dataset.manifest.columns.keys() == {"text", "error", "n", "source_part", "source_row"}
    folder = mixed.run_dir()
    poison = pa.concat_tables([pq.read_table(str(path)) for path in sorted((folder / "quarantine").iterdir())])
    assert poison["reason"].to_pylist() == ["quarantine"] * 4
    assert all("no JSON" in error for error in poison["_error"].to_pylist())
    assert list(zip(poison["source_part"].to_pylist(), poison["source_row"].to_pylist(), strict=True)) == [
        (f"{n}.jsonl", 19) for n in range(4)
    ]
    dropped = pa.concat_tables([pq.read_table(str(path)) for path in sorted((folder / "dropped").iterdir())])
    assert Counter(dropped["reason"].to_pylist()) == {"too_short": 4, "duplicate": 7}
    # Metrics: a line per shard, totals that end where the manifest does; shares of the wall clock that add up.
    lines = read_metrics(folder)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert {name: lines[-1][name] for name in ("rows", "rows_out", "quarantined")} == {
        "rows": 80, "rows_out": dataset.rows, "quarantined": 4,
    }  # fmt: skip
    assert sum(share.share for share in outcome.shares) == pytest.approx(1)
    assert {"plan", "duplicates", "read", "write", "publish", "report"} <= {share.name for share in outcome.shares}
    assert all(share.seconds >= 0 for share in outcome.shares)
    assert outcome.facts["rows"] == str(dataset.rows)
    assert "too_short" in outcome.report.read_text()


def test_a_dataset_of_nothing_is_published_and_the_next_job_says_so(cluster, home):
    home.lines("0.jsonl", [{"instruction": "a", "program": "x = 1\n"}] * 3)
    outcome = home.corpus(rows="instructions", filters={"min_chars": 100})
    assert outcome.published
    assert home.dataset().rows == 0
    assert home.dataset().parts == ()
    assert home.records()[0].part is None
    assert outcome.report.exists()
    for job in (home.lintseq, lambda paths: home.corpus("y", source={"paths": paths})):
        with pytest.raises(SourceError, match="published without a single row") as caught:
            job([str(outcome.output)])
        assert "\n" not in str(caught.value)


def test_which_texts_survive_depends_on_neither_shards_nor_workers(cluster, mixed):
    datasets = []
    for name, megabytes, workers in (("a", 0.0002, 1), ("b", 1, 2), ("c", 0.0002, 2)):
        mixed.corpus(name, filters=FILTERS["filters"], source={"shard_mb": megabytes}, workers=workers)
        datasets.append(mixed.dataset(name))
    rows = [_rows(dataset, "text", "source_part", "source_row") for dataset in datasets]
    assert rows[0] == rows[1]
    assert len(datasets[0].parts) > len(datasets[1].parts) == 1
    texts = [text for text, _, _ in rows[0]]
    assert len(texts) == len(set(texts)) == 65
    assert _contents(datasets[0]) == _contents(datasets[2])
    assert datasets[0].fingerprint == datasets[2].fingerprint != datasets[1].fingerprint


# Resume.


class Watched:
    """A reader that leaves a trace of every slice it reads."""

    def __init__(self, reader, folder):
        self.reader = reader
        self.folder = folder

    def read(self, slices, schema):
        for each in slices:
            Path(self.folder, f"{each.file.name}:{each.start}:{uuid.uuid4().hex}").touch()
        return self.reader.read(slices, schema)


@pytest.fixture
def reads(tmp_path, monkeypatch):
    """How often each slice has been read so far."""
    folder = tmp_path / "reads"
    folder.mkdir()
    plain = transform.make_plan

    def watched(*arguments):
        plan = plain(*arguments)
        return transform.replace(plan, reader=Watched(plan.reader, str(folder)))

    monkeypatch.setattr(transform, "make_plan", watched)
    return lambda: Counter(path.name.rpartition(":")[0] for path in folder.iterdir())


class Stop(BaseException):
    """Stands in for a kill: nothing catches it."""


def _stop_after(monkeypatch, shards, error):
    plain = Tally.add

    def add(self, record):
        plain(self, record)
        if self.shards == shards:
            raise error

    monkeypatch.setattr(Tally, "add", add)


@pytest.mark.parametrize("error", [KeyboardInterrupt, Stop])
def test_resume_reads_nothing_twice_and_gives_the_same_parts(cluster, mixed, reads, monkeypatch, error):
    mixed.corpus("calm", source={"shard_mb": 0.0002}, workers=1)
    before = reads()
    shards = len(mixed.records("calm"))
    assert shards >= 20
    with monkeypatch.context() as patch:
        _stop_after(patch, 3, error)
        with pytest.raises(Interrupted if error is KeyboardInterrupt else Stop) as caught:
            mixed.corpus("wild", source={"shard_mb": 0.0002}, workers=1)
    committed = mixed.records("wild")
    assert 3 <= len(committed) < shards
    if error is KeyboardInterrupt:
        assert "Resume with: headrace x" in str(caught.value)
        assert f"of {shards} shards are committed" in str(caught.value)
    middle = reads()
    mixed.corpus("wild", source={"shard_mb": 0.0002}, workers=1)
    fresh = reads() - middle
    plan = transform.make_plan(
        build_recipe(
            corpus.RECIPE,
            {"name": "x", "source": {"paths": [str(mixed.inputs)], "roots": [str(mixed.path)], "shard_mb": 0.0002}},
        ).source,
        ("text",),
    )
    slices = {shard.index: [f"{each.file.name}:{each.start}" for each in shard.slices] for shard in plan.shards}
    # A task that was under way at the stop may have committed after we looked, under the claim of the stopped run.
    by_then = {shard for shard, record in mixed.records("wild").items() if record.claim == 1}
    assert committed.keys() <= by_then
    assert fresh == Counter(each for shard in slices.keys() - by_then for each in slices[shard])
    assert before == Counter(each for names in slices.values() for each in names)
    assert _contents(mixed.dataset("wild")) == _contents(mixed.dataset("calm"))
    assert {shard: mixed.records("wild")[shard] for shard in committed} == committed
    assert [line["step"] for line in read_metrics(mixed.run_dir("wild"))][-1] == shards
    listed = {part.file for part in mixed.dataset("wild").parts} | {"manifest.json"}
    assert {path.name for path in mixed.dataset("wild").path.iterdir()} == listed


@pytest.mark.parametrize("moment", ["before the manifest", "before the rename", "before the report"])
def test_a_kill_around_publishing_costs_only_the_rest(cluster, mixed, monkeypatch, moment):
    mixed.corpus("calm", **FILTERS)
    where = {
        "before the manifest": (transform, "make_manifest"),
        "before the rename": (Path, "rename"),
        "before the report": (transform, "common_sections"),
    }[moment]

    def stop(*arguments, **keys):
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(*where, stop)
        with pytest.raises(Stop):
            mixed.corpus("wild", **FILTERS)
    folder = mixed.run_dir("wild")
    assert (folder / "dataset").exists() == (moment == "before the report")
    (folder / ("dataset" if (folder / "dataset").exists() else "dataset.partial") / "part-000000.0.parquet").touch()
    with monkeypatch.context() as patch:
        patch.setattr(transform, "stream", stop)  # nothing is read or hashed again
        outcome = mixed.corpus("wild", **FILTERS)
    assert outcome.reused == (moment == "before the report")
    assert outcome.report.exists()
    dataset = mixed.dataset("wild")
    assert _contents(dataset) == _contents(mixed.dataset("calm"))
    assert dataset.manifest.counts == mixed.dataset("calm").manifest.counts
    if not outcome.reused:  # an orphan that came after publishing is harmless and stays
        names = {path.name for path in dataset.path.iterdir()}
        assert names == {part.file for part in dataset.parts} | {"manifest.json"}
    assert not (folder / "dataset.partial").exists()
    assert mixed.corpus("wild", **FILTERS).reused


def test_a_kill_during_the_hashing_pass_resumes_it(cluster, mixed, reads, monkeypatch):
    mixed.corpus("calm", **FILTERS)
    whole = reads()
    assert set(whole.values()) == {2}
    with monkeypatch.context() as patch:
        patch.setattr(transform, "find_duplicates", lambda *arguments: (_ for _ in ()).throw(Stop()))
        with pytest.raises(Stop):
            mixed.corpus("wild", **FILTERS)
    assert mixed.records("wild") == {}
    mixed.corpus("wild", **FILTERS)
    assert reads() - whole == whole
    assert _contents(mixed.dataset("wild")) == _contents(mixed.dataset("calm"))


def test_parts_that_are_gone_are_noticed(cluster, mixed, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(transform, "make_manifest", lambda *arguments, **keys: (_ for _ in ()).throw(Stop()))
        with pytest.raises(Stop):
            mixed.corpus()
    shutil.rmtree(mixed.run_dir() / "dataset.partial")
    with pytest.raises(ResumeRefused, match="committed parts") as caught:
        mixed.corpus()
    assert "--fresh" in str(caught.value)
    assert mixed.corpus(call={"fresh": True}).facts["rows"] == "76"


# Refusals.


def test_a_changed_recipe_or_input_is_refused_and_fresh_sets_the_old_run_aside(cluster, mixed):
    mixed.corpus(**FILTERS)
    first = mixed.dataset().fingerprint
    kept = (mixed.run_dir() / "recipe.yaml").read_text()
    with pytest.raises(ResumeRefused, match="published from another recipe"):
        mixed.corpus()
    mixed.lines("4.jsonl", [{"text": "one more row that is new"}])
    with pytest.raises(ResumeRefused, match="published from another input"):
        mixed.corpus(**FILTERS)
    shutil.rmtree(mixed.run_dir() / "dataset")
    with pytest.raises(ResumeRefused, match=r"the input changed \(4\.jsonl\)"):
        mixed.corpus(**FILTERS)
    with pytest.raises(ResumeRefused, match="the recipe changed at seed"):
        mixed.corpus(**FILTERS, seed=1)
    with pytest.raises(ResumeRefused, match="the recipe changed at seed"):
        mixed.corpus(**FILTERS, seed=1, call={"dry_run": True})
    # A refused call leaves the run as it was.
    assert (mixed.run_dir() / "recipe.yaml").read_text() == kept
    outcome = mixed.corpus(**FILTERS, call={"fresh": True})
    assert outcome.facts["read"] == "81"
    assert mixed.dataset().fingerprint != first
    (aside,) = mixed.run_dir().parent.glob("x.before-*")
    assert (aside / "recipe.yaml").read_text() == kept


def test_a_knob_may_change_on_resume(cluster, mixed):
    mixed.corpus()
    assert mixed.corpus(workers=1, max_quarantine=0.5, stall_seconds=5).reused


def test_a_live_run_is_left_alone_also_by_fresh(cluster, mixed):
    mixed.corpus()
    ledger = Ledger(mixed.run_dir())
    with ledger.claimed():
        shutil.move(mixed.run_dir() / "dataset", mixed.run_dir() / "dataset.partial")
        for call in ({}, {"fresh": True}):
            with pytest.raises(RunBusy, match="in use by process"):
                mixed.corpus(call=call)
    assert not list(mixed.run_dir().parent.glob("x.before-*"))
    assert mixed.corpus().facts["read"] == "80"


def test_an_output_that_holds_other_files_is_refused_before_any_work(cluster, mixed):
    (mixed.path / "mine").mkdir()
    (mixed.path / "mine" / "precious.parquet").write_bytes(b"x")
    with pytest.raises(ArtifactError, match="exists already"):
        mixed.corpus(output=str(mixed.path / "mine"))
    assert not mixed.run_dir().exists()
    assert mixed.corpus(output=str(mixed.path / "other")).output == UPath(mixed.path / "other")


def test_too_much_poison_stops_the_job_every_time_until_it_is_allowed(cluster, home, reads):
    for n in range(2):
        (home.inputs / f"{n}.jsonl").write_text('{"text": "x"}\nno JSON\n' * 10)
    for _ in range(2):
        with pytest.raises(QuarantineExceeded, match=r"more than max_quarantine=0\.01") as caught:
            home.corpus(source={"shard_mb": 0.0001}, workers=1)
        assert "quarantine" in str(caught.value)
    before = reads()
    committed = home.records()
    home.corpus(source={"shard_mb": 0.0001}, workers=1, max_quarantine=0.5)
    assert len(reads() - before) == len(home.records()) - len(committed)
    assert home.dataset().manifest.counts["quarantined"] == 20


def test_ten_poison_rows_are_tolerated_in_a_small_input(cluster, home):
    (home.inputs / "0.jsonl").write_text('{"text": "x"}\n' + "no JSON\n" * 10)
    assert home.corpus().facts["quarantined"] == "10"


def test_an_exceeded_quarantine_is_not_forgotten_when_every_shard_is_done(cluster, home):
    (home.inputs / "0.jsonl").write_text('{"text": "x"}\n' + "no JSON\n" * 11)
    for _ in range(2):
        with pytest.raises(QuarantineExceeded):
            home.corpus()
    assert len(home.records()) == 1
    assert not (home.run_dir() / "dataset").exists()


def test_a_dry_run_makes_nothing(mixed):
    before = sorted(mixed.path.rglob("*"))
    outcome = mixed.corpus(**FILTERS, call={"dry_run": True})
    assert not outcome.published
    assert outcome.facts["shards"].startswith("4 (0 committed already)")
    assert outcome.facts["input"].startswith("4 files")
    # More workers than this machine has are what a private Ray is then given.
    mixed.corpus(**FILTERS, workers=64, call={"dry_run": True, "fresh": True})
    assert sorted(mixed.path.rglob("*")) == before


def test_an_unknown_language_is_one_sentence(cluster, home):
    home.lines("0.jsonl", [{"text": "Guten Morgen, wie geht es Ihnen heute?"}])
    with pytest.raises(RecipeError, match="no language 'xx'"):
        home.corpus(filters={"languages": ["xx"]})


def test_conditions_on_other_columns(cluster, home):
    rows = [("a", "no", "0.95"), ("a", "yes", "0.9"), ("b", "yes", "0.1"), ("c", "yes", ""), ("a", "yes", "1")]
    text = "text,kind,score\n" + "".join(",".join(row) + "\n" for row in rows)
    (home.inputs / "a.csv").write_text(text)
    where = {"kind": ["yes", "perhaps"], "score": ">=0.9"}
    home.corpus(filters={"where": where, "exact_duplicates": True})
    # The first "a" goes for its kind, so it is not the one that stands for the others.
    assert _rows(home.dataset(), "text", "kind", "score", "source_row") == [("a", "yes", "0.9", 1)]
    assert home.dataset().manifest.counts == {"read": 5, "quarantined": 0, "dropped: where": 3, "dropped: duplicate": 1}
    with pytest.raises(SchemaError, match="the column 'sort', which the input does not have; it has text, kind, score"):
        home.corpus("other", filters={"where": {"sort": "yes"}})
    assert not (home.run_dir("other")).exists()


class _Ids:
    """Makes the column that the job is about, as the tokenise stage does."""

    def __call__(self, block):
        return block.append_column("ids", pa.compute.utf8_length(block["text"]))


def test_a_condition_needs_no_column_of_texts(cluster, home):
    home.lines("0.jsonl", [{"text": f"row {n}", "n": n} for n in range(5)])
    recipe = {"name": "x", "runs": str(home.path / "runs"), "filters": {"where": {"n": "<2"}}}
    recipe["source"] = {"paths": [str(home.inputs)], "roots": [str(home.path)]}
    built = build_recipe(corpus.RECIPE, recipe)
    stage = Stage("ids", _Ids, {}, actors=1)
    job = transform.Transform(
        "corpus", "documents", "documents", content="ids", filters=built.filters, stages=lambda cores: [stage]
    )
    transform.run_transform(job, built, Invocation("headrace x"))
    assert _rows(home.dataset(), "n", "ids") == [(0, 5), (1, 5)]


# Formats.

PAGE = "<html><head><title>T</title></head><body><article><p>{}</p></article></body></html>"
SENTENCE = "A headrace is the channel that brings the stream to the mill, and this one carries text. " * 4


def _warc(pages):
    records = []
    for n, page in enumerate(pages):
        answer = b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n\r\n" + page.encode()
        head = (
            f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: http://example.org/{n}\r\n"
            f"WARC-Date: 2024-01-01T00:00:00Z\r\nWARC-Record-ID: <urn:uuid:{uuid.UUID(int=n)}>\r\n"
            f"Content-Type: application/http; msgtype=response\r\nContent-Length: {len(answer)}\r\n\r\n"
        )
        records.append(head.encode() + answer + b"\r\n\r\n")
    return b"".join(records)


def _compressed(data, codec):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, codec) as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


LINES = b"".join(json.dumps({"text": f"row {n}", "n": n}).encode() + b"\n" for n in range(3))
FILES = {
    "jsonl": {"a.jsonl": LINES},
    "jsonl.gz": {"a.jsonl.gz": _compressed(LINES, "gzip")},
    "jsonl.zst": {"a.jsonl.zst": _compressed(LINES, "zstd")},
    "csv": {"a.csv": b"text,n\nrow 0,0\nrow 1,1\n", "b.tsv": b"n\ttext\n2\trow 2\n"},
    "csv.gz": {"a.csv.gz": _compressed(b"text\nrow 0\nrow 1\nrow 2\n", "gzip")},
    "text": {"a.txt": b"row 0", "b.md": b"row 1", "sub/c.rst": b"row 2"},
    "html": {f"{n}.html": PAGE.format(SENTENCE + str(n)).encode() for n in range(3)},
    "warc": {"a.warc": _warc([PAGE.format(SENTENCE + str(n)) for n in range(3)])},
    "python": {"a.py": b"\n\n".join(b'def f%d(x):\n    """A row."""\n    y = x\n    return y\n' % n for n in range(3))},
    "parquet": {},
}  # fmt: skip


@pytest.mark.parametrize("format", FILES)
def test_every_format_goes_all_the_way(cluster, home, format):
    for name, body in FILES[format].items():
        (home.inputs / name).parent.mkdir(exist_ok=True)
        (home.inputs / name).write_bytes(body)
    if format == "parquet":
        pq.write_table(pa.table({"text": [f"row {n}" for n in range(3)], "n": [0, 1, 2]}), home.inputs / "a.parquet")
    outcome = home.corpus(source={"format": format.partition(".")[0]})
    dataset = home.dataset()
    assert dataset.schema_name == ("instructions" if format == "python" else "documents")
    wanted = artifacts.SCHEMAS[dataset.schema_name]
    assert dataset.manifest.columns.keys() >= {*wanted, "source_part", "source_row"}
    assert dataset.rows == 3
    texts = [text for (text,) in _rows(dataset, wanted[-1])]
    if format == "python":
        assert texts == [f"def f{n}(x):\n    y = x\n    return y\n" for n in range(3)]
    elif format in ("html", "warc"):
        assert [text.strip() for text in texts] == [SENTENCE + str(n) for n in range(3)]
    else:
        assert texts == [f"row {n}" for n in range(3)]
    assert dataset.manifest.statistics["chars"] == sum(map(len, texts))
    if format not in ("python", "warc"):
        return
    # What is published is read as an input like any other, and gives the same rows.
    home.corpus("again", source={"paths": [str(outcome.output)]}, rows=dataset.schema_name)
    assert _rows(home.dataset("again"), *wanted) == _rows(dataset, *wanted)
    (parent,) = home.dataset("again").manifest.parents
    assert parent.fingerprint == dataset.fingerprint


# LintSeq as a job.


def test_edit_sequences_do_not_depend_on_workers_and_sample_again_from_their_seed(cluster, home):
    body = "".join(
        f"def f{n}(x):\n    y = x + {n}\n    if y > 3:\n        y = 2\n    return y\n" + "def broken(:\n" * (n == 5)
        for n in range(12)
    )
    programs = ["def f" + each for each in body.split("def f")[1:]]
    home.lines("0.jsonl", [{"instruction": f"i{n}", "program": program} for n, program in enumerate(programs)])
    outcomes = []
    for name, workers in (("one", 1), ("two", 2)):
        keys = {"workers": workers, "lintseq": {"paths": 2, "distinct": False}, "seed": 7}
        outcomes.append(home.lintseq([str(home.inputs)], name, **keys))
    one, two = (home.dataset(name, "lintseq") for name in ("one", "two"))
    assert len(one.parts) > 1
    assert _contents(one) == _contents(two)
    assert one.schema_name == "edit_sequences"
    rows = _rows(one, "program", "edits", "seed", "path", "source_row")
    assert [(row, path) for *_, path, row in rows] == [(n, path) for n in range(12) for path in (0, 1)]
    for program, edits, seed, _, row in rows:
        assert program == programs[row]
        assert sample_edit_sequence(program, seed=seed) == edits
    assert len({seed for _, _, seed, _, _ in rows}) == 24
    for record in home.records("one", "lintseq").values():
        assert record.rows_out == 2 * record.rows_in
        assert record.seconds.keys() >= {"read", "lint", "write"}
    assert one.manifest.counts["read"] == 12
    assert one.manifest.statistics["programs"] == 12
    assert outcomes[0].report.exists()
