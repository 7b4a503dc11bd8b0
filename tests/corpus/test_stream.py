"""One shard is one block from the read to the sink, whatever the stages do; and no wait is without an end."""

import json
import sys
import time

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from ray import cloudpickle
from upath import UPath

from engine.corpus.block import EMPTY, BlockInfo
from engine.corpus.config import FilterConfig, SourceConfig
from engine.corpus.ledger import Identity, Ledger
from engine.corpus.marks import DROP, mark
from engine.corpus.plan import make_plan
from engine.corpus.sink import Sink
from engine.corpus.stream import Read, Stage, stream
from engine.errors import DeadlineExceeded, SchemaError, SourceError

# Workers cannot import a test: what it defines travels by value.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

SHARDS = 6
ROWS = 5


@pytest.fixture
def plan(tmp_path):
    """Six shards of five rows each; the rows of shard 3 are blank lines, so it has none."""
    for shard in range(SHARDS):
        lines = [json.dumps({"text": f"{shard} {row}"}) if shard != 3 else " " * 17 for row in range(ROWS)]
        (tmp_path / f"{shard}.jsonl").write_text("\n".join(lines) + "\n")
    plan = make_plan(SourceConfig(paths=[str(tmp_path)], roots=[str(tmp_path)], shard_mb=0.000085), ("text",))
    assert len(plan.shards) == SHARDS
    return plan


def _read(plan, **filters):
    return Read(plan.reader, plan.schema, "text", FilterConfig(**filters))


def _look(block):
    """A sink that tells what it was given."""
    info = BlockInfo.of(block)
    told = {"shard": info.shard, "rows_in": info.rows_in, "seconds": info.seconds}
    told |= {"marks": block[DROP].to_pylist(), "texts": block["text"].to_pylist()}
    return pa.table({"shard": [info.shard], "told": [json.dumps(told)]})


class Twice:
    """A stage that turns every row into two, as LintSeq with two paths does."""

    def __call__(self, block):
        return block.take(pa.array([row for row in range(len(block)) for _ in range(2)]))


class Drops:
    """A stage that marks every row of even shards."""

    def __call__(self, block):
        even = BlockInfo.of(block).shard % 2 == 0
        return mark(block, pa.array([even] * len(block)), "even")


class Loses:
    """A stage with a mistake: it filters instead of marking."""

    def __call__(self, block):
        return block.filter(pc.not_equal(pc.fill_null(block["text"], ""), "2 2"))


class Sleeps:
    """A stage that never comes back."""

    def __call__(self, block):
        time.sleep(600)
        return block


class Refuses:
    """A stage that cannot work on its input."""

    def __call__(self, block):
        raise SchemaError("This will not do.", "Give another.")


def _breaks(block):
    """A sink with a bug."""
    raise ZeroDivisionError("a bug")


def _stage(actor):
    # Little of a core: an actor that stands still keeps its share until its driver disconnects.
    return [Stage(actor.__name__.lower(), actor, {}, actors=1, cpus=0.1)]


@pytest.mark.parametrize("actor", [None, Twice])
def test_a_shard_is_a_block_from_end_to_end(cluster, plan, actor):
    stages = _stage(actor) if actor else ()
    results = stream(plan.shards, _read(plan), stages, _look, stall_seconds=100)
    told = {row["shard"]: json.loads(row["told"]) for row in results}
    assert told.keys() == set(range(SHARDS))
    times = 2 if actor else 1
    for shard, row in told.items():
        wanted = [f"{shard} {each}" for each in range(ROWS) for _ in range(times)] if shard != 3 else [None] * times
        assert row["texts"] == wanted
        assert row["rows_in"] == (ROWS if shard != 3 else 0)
        assert row["marks"] == [EMPTY if shard == 3 else None] * len(wanted)
        assert row["seconds"].keys() >= ({"read", "filter"} if shard != 3 else set())
        assert ("twice" in row["seconds"]) == bool(actor)


def _here(shards, read, stage, sink):
    """The same road without Ray."""
    for shard in shards:
        yield from sink(stage(read(shard))).to_pylist()


def test_every_shard_commits_one_record_and_at_most_one_part(plan, tmp_path):
    """Also a shard without rows, and one whose rows are all dropped in a stage."""
    staging = UPath(tmp_path / "staging")
    staging.mkdir()
    ledger = Ledger(UPath(tmp_path / "run"))
    ledger.identify(Identity(job="x", recipe_fingerprint="", inputs_fingerprint="", shards=SHARDS), {}, {})
    with ledger.claimed() as claimed:
        sink = Sink(staging, UPath(tmp_path / "run"), claimed, keep_dropped=True)
        for _ in range(2):  # a second attempt of everything changes nothing
            results = list(_here(plan.shards, _read(plan), Drops(), sink))
            assert sorted(row["shard"] for row in results) == list(range(SHARDS))
            records = claimed.records()
            assert {shard: record.rows_out for shard, record in records.items()} == {0: 0, 1: 5, 2: 0, 3: 0, 4: 0, 5: 5}
            assert {shard for shard, record in records.items() if record.part} == {1, 5}
            assert {path.name for path in staging.iterdir()} == {records[1].part.file, records[5].part.file}
    for record in records.values():
        assert record.rows_in == record.rows_out + sum(record.dropped.values()) + record.quarantined
        assert record.rows_in == (0 if record.shard == 3 else ROWS)
        assert record.dropped == ({"even": ROWS} if record.shard in (0, 2, 4) else {})
        assert all(seconds >= 0 for seconds in record.seconds.values())
    dropped = sorted(path.name.partition(".")[0] for path in (tmp_path / "run" / "dropped").iterdir())
    assert dropped == ["part-000000", "part-000002", "part-000004"]


def test_a_stage_that_loses_rows_does_not_pass(plan, tmp_path):
    ledger = Ledger(UPath(tmp_path / "run"))
    ledger.identify(Identity(job="x", recipe_fingerprint="", inputs_fingerprint="", shards=SHARDS), {}, {})
    with ledger.claimed() as claimed:
        sink = Sink(UPath(tmp_path), UPath(tmp_path / "run"), claimed)
        with pytest.raises(AssertionError, match="5 rows were read, 4 came out of the stages"):
            list(_here(plan.shards[2:3], _read(plan), Loses(), sink))
        assert claimed.records() == {}


def test_the_users_error_comes_back_as_it_was(cluster, plan, tmp_path):
    with pytest.raises(SchemaError) as caught:
        list(stream(plan.shards[:1], _read(plan), _stage(Refuses), _look, stall_seconds=100))
    assert type(caught.value) is SchemaError
    assert str(caught.value) == "This will not do. Give another."
    (tmp_path / "0.jsonl").unlink()
    with pytest.raises(SourceError, match="no longer there") as caught:
        list(stream(plan.shards[:1], _read(plan), (), _look, stall_seconds=100))
    assert type(caught.value) is SourceError


def test_a_bug_stays_a_bug(cluster, plan):
    with pytest.raises(Exception, match="a bug") as caught:
        list(stream(plan.shards[:1], _read(plan), (), _breaks, stall_seconds=100))
    assert "ZeroDivisionError" in str(caught.value)


def test_a_stage_that_stands_still_meets_the_deadline(cluster, plan):
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded, match=r"3 shards are unfinished, first 0\.jsonl \[0:") as caught:
        list(stream(plan.shards[:3], _read(plan), _stage(Sleeps), _look, stall_seconds=2))
    assert "Nothing moved for 2 s" in str(caught.value)
    # What stands still holds nothing up: the next stream runs on the same cluster, long before the stage would be back.
    assert len(list(stream(plan.shards, _read(plan), (), _look, stall_seconds=100))) == SHARDS
    assert time.monotonic() - started < 300


def test_closing_the_stream_ends_what_runs(cluster, plan, tmp_path):
    seen = tmp_path / "seen"
    seen.mkdir()

    def slow(block):
        shard = BlockInfo.of(block).shard
        (seen / str(shard)).touch()
        time.sleep(0.5)
        return pa.table({"shard": [shard]})

    results = stream(plan.shards, _read(plan), (), slow, stall_seconds=100, cores=1)
    next(results)
    results.close()
    after = len(list(seen.iterdir()))
    time.sleep(1.5)
    assert len(list(seen.iterdir())) == after < SHARDS


def test_cores_bound_what_runs_at_once(cluster, plan):
    def timed(block):
        started = time.time()
        time.sleep(0.2)
        return pa.table({"shard": [BlockInfo.of(block).shard], "start": [started], "end": [time.time()]})

    rows = list(stream(plan.shards, _read(plan), (), timed, stall_seconds=100, cores=1))
    assert len(rows) == SHARDS
    assert all(sum(a["start"] <= b["start"] < a["end"] for a in rows) == 1 for b in rows)


def test_nothing_to_do_starts_nothing(plan):
    assert list(stream([], _read(plan), (), _look, stall_seconds=1)) == []
