"""The plan is a pure function of inputs and recipe: it covers every row once, and its fingerprint tells when it is."""

import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from upath import UPath

from engine import artifacts
from engine.corpus.config import SourceConfig
from engine.corpus.plan import _MAX_SLICES, make_plan
from engine.errors import SchemaError, SourceError


def _plan(folder, **source):
    config = {"paths": [str(folder)], "roots": [str(folder)], **source}
    return make_plan(SourceConfig(**config), ("text",))


def _lines(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def _groups(path, texts, rows):
    pq.write_table(pa.table({"text": pa.array(texts, pa.string())}), path, row_group_size=rows)


def _read(plan):
    """(file, row, text) of every row, in the order of the shards."""
    rows = []
    for shard in plan.shards:
        table = plan.reader.read(shard.slices, plan.schema)
        rows += zip(*(table[name].to_pylist() for name in ("source_part", "source_row", "text")), strict=True)
    return rows


def test_the_same_inputs_give_the_same_shards(tmp_path):
    for n in range(5):
        _lines(tmp_path / f"{n}.jsonl", [f"{n} {row}" for row in range(50)])
    first, again = _plan(tmp_path, shard_mb=0.0005), _plan(tmp_path, shard_mb=0.0005)
    assert first.shards == again.shards
    assert first.fingerprint() == again.fingerprint()
    assert [shard.index for shard in first.shards] == list(range(len(first.shards)))


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 30), min_size=1, max_size=4).filter(any),
    group=st.integers(1, 12),
    target=st.integers(1, 3000),
)
def test_any_target_size_covers_every_row_once(tmp_path_factory, sizes, group, target):
    folder = tmp_path_factory.mktemp("rows")
    lines, parquet = folder / "lines", folder / "parquet"
    lines.mkdir()
    parquet.mkdir()
    wanted = []
    for n, size in enumerate(sizes):
        texts = [f"{n} {row} " + "x" * (row * 7 % 40) for row in range(size)]
        wanted += [(f"{n}", row, text) for row, text in enumerate(texts)]
        _lines(lines / f"{n}.jsonl", texts)
        _groups(parquet / f"{n}.parquet", texts, group)
    for kind in (lines, parquet):
        plan = _plan(kind, shard_mb=target / 1e6)
        found = [(name.partition(".")[0], row, text) for name, row, text in _read(plan)]
        assert found == wanted
        assert all(shard.slices for shard in plan.shards)


def test_small_files_share_shards_and_large_ones_are_cut(tmp_path):
    for n in range(40):
        _lines(tmp_path / f"{n:03d}.jsonl", ["tiny"])
    _lines(tmp_path / "large.jsonl", ["x" * 100] * 300)
    plan = _plan(tmp_path, shard_mb=0.005)
    assert len(plan.shards[0].slices) == 40
    assert 6 <= len(plan.shards) <= 8
    assert all(shard.size <= 5200 for shard in plan.shards)
    assert plan.shards[0].describe() == "000.jsonl and 39 more files"
    assert "large.jsonl [" in plan.shards[1].describe()


def test_a_shard_takes_a_bounded_number_of_files(tmp_path):
    for n in range(_MAX_SLICES + 1):
        (tmp_path / f"{n}.txt").write_bytes(b"")
    plan = _plan(tmp_path)
    assert [len(shard.slices) for shard in plan.shards] == [_MAX_SLICES, 1]


@pytest.mark.parametrize("change", ["content", "same size", "new file", "gone", "renamed", "cut differently"])
def test_any_change_of_an_input_changes_the_fingerprint(tmp_path, change):
    for n in range(3):
        _lines(tmp_path / f"{n}.jsonl", [f"{n} {row}" for row in range(20)])
    before = _plan(tmp_path).fingerprint()
    middle = tmp_path / "1.jsonl"
    times = (middle.stat().st_atime, middle.stat().st_mtime)
    if change == "content":
        middle.write_text(middle.read_text() + '{"text": "more"}\n')
    elif change == "same size":
        middle.write_text(middle.read_text().replace("1 7", "1 8"))
        os.utime(middle, times)
    elif change == "new file":
        _lines(tmp_path / "3.jsonl", ["x"])
    elif change == "gone":
        middle.unlink()
    elif change == "renamed":
        middle.rename(tmp_path / "1a.jsonl")
    after = _plan(tmp_path, **({"shard_mb": 0.0002} if change == "cut differently" else {})).fingerprint()
    assert after != before


def test_touching_a_file_or_moving_the_tree_changes_nothing(tmp_path):
    (tmp_path / "a").mkdir()
    _lines(tmp_path / "a" / "0.jsonl", ["x", "y"])
    before = _plan(tmp_path / "a").fingerprint()
    os.utime(tmp_path / "a" / "0.jsonl", (1, 1))
    (tmp_path / "a").rename(tmp_path / "b")
    assert _plan(tmp_path / "b").fingerprint() == before


def test_inputs_without_rows_are_one_sentence(tmp_path):
    (tmp_path / "0.jsonl").write_bytes(b"")
    with pytest.raises(SourceError, match="holds no rows") as caught:
        _plan(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_published_dataset_without_rows_is_one_sentence(tmp_path):
    output = UPath(tmp_path / "dataset")
    manifest = artifacts.Manifest(
        schema_name="documents", columns={}, rows=0, parts=(), parents=(), job="corpus", recipe={},
        recipe_fingerprint="", inputs_fingerprint="", code_version="", seed=0,
    )  # fmt: skip
    artifacts.publish(artifacts.open_staging(output), output, manifest)
    with pytest.raises(SourceError, match="published without a single row") as caught:
        _plan(tmp_path / "dataset")
    assert "\n" not in str(caught.value)


def test_a_required_column_that_is_missing_is_named(tmp_path):
    pq.write_table(pa.table({"body": ["x"]}), tmp_path / "0.parquet")
    with pytest.raises(SchemaError, match="no column 'text'; it has body"):
        _plan(tmp_path)
