"""Exact duplicates against a brute-force reference: the first row in plan order stays, and nothing else matters."""

from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from upath import UPath

from engine.corpus import duplicates
from engine.corpus.block import BlockInfo, part_name
from engine.corpus.duplicates import DUPLICATE, HashSink, find_duplicates, mark_duplicates
from engine.corpus.marks import DROP, ERROR, QUARANTINE

TEXTS = st.sampled_from(["", "a", "b", "ab", "ä", "a ", "a\x00", "\U0001f600", "long " * 50])
ROWS = st.tuples(TEXTS, st.sampled_from([None, None, None, QUARANTINE, "no_text"]))


def _blocks(shards):
    """Each shard's rows, (text or None, mark or None), as the marked block a read gives."""
    for index, rows in enumerate(shards):
        columns = {"text": [text for text, _ in rows], DROP: [mark for _, mark in rows], ERROR: [None] * len(rows)}
        table = pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})
        yield BlockInfo(index, "a", "f", len(rows), 0).attach(table)


def _dropped(shards):
    """(shard, row) of every repeated unmarked text: the reference."""
    seen, found = set(), set()
    for index, rows in enumerate(shards):
        for row, (text, mark) in enumerate(rows):
            if mark is None:
                if text in seen:
                    found.add((index, row))
                seen.add(text)
    return found


def _run(folder, shards, order=None):
    """Both passes; returns the number found and (shard, row) of every row marked a duplicate."""
    blocks = list(_blocks(shards))
    for index in order if order is not None else range(len(shards)):
        HashSink(folder, "text")(blocks[index])
    count = find_duplicates(folder, range(len(shards)))
    marked = set()
    for index, block in enumerate(blocks):
        marks = mark_duplicates(block, folder, part_name(index))[DROP].to_pylist()
        marked |= {(index, row) for row, mark in enumerate(marks) if mark == DUPLICATE}
        kept = [mark for _, mark in shards[index]]
        assert [None if mark == DUPLICATE else mark for mark in marks] == kept
    return count, marked


@settings(max_examples=60, deadline=None)
@given(
    shards=st.lists(st.lists(ROWS, max_size=12), min_size=1, max_size=4),
    at_once=st.sampled_from([1, 3, 1000]),
    seed=st.integers(0, 9),
)
def test_equal_to_brute_force_in_any_order_and_any_number_of_hash_ranges(tmp_path_factory, shards, at_once, seed):
    order = np.random.default_rng(seed).permutation(len(shards))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "_ROWS_AT_ONCE", at_once)
        count, marked = _run(UPath(tmp_path_factory.mktemp("hashes")), shards, order)
    assert marked == _dropped(shards)
    assert count == len(marked)


@settings(max_examples=30, deadline=None)
@given(texts=st.lists(TEXTS, min_size=1, max_size=20), cut=st.integers(0, 20))
def test_the_cut_into_shards_does_not_change_which_rows_survive(tmp_path_factory, texts, cut):
    rows = [(text, None) for text in texts]
    whole, parts = [rows], [rows[:cut], rows[cut:]]
    survivors = []
    for shards in (whole, parts):
        _, marked = _run(UPath(tmp_path_factory.mktemp("hashes")), shards)
        offsets = np.cumsum([0, *(len(shard) for shard in shards)])
        survivors.append(set(range(len(rows))) - {int(offsets[shard]) + row for shard, row in marked})
    assert survivors[0] == survivors[1]


def test_null_and_quarantined_rows_never_count(tmp_path):
    rows = [(None, QUARANTINE), ("", None), (None, QUARANTINE), ("", None), ("a", "no_text"), ("a", None)]
    assert _run(UPath(tmp_path), [rows, [(None, QUARANTINE), ("a", None)]]) == (2, {(0, 3), (1, 1)})


def test_hash_ranges_cover_every_hash_once():
    for count in (1, 2, 3, 7, 64):
        ranges = list(duplicates._hash_ranges(count))
        assert ranges[0][0] == 0
        assert ranges[-1][1] == 2**64 - 1
        assert all(before[1] + 1 == after[0] for before, after in pairwise(ranges))


def test_hashes_at_the_edges_of_ranges_are_found(tmp_path, monkeypatch):
    """Sidecars made by hand, with the hashes where ranges meet."""
    monkeypatch.setattr(duplicates, "_ROWS_AT_ONCE", 3)
    edges = [0, 2**62 - 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1]
    for shard in range(2):
        columns = {"high": np.array(edges, np.uint64), "low": np.zeros(6, np.uint64), "row": np.arange(6)}
        pq.write_table(pa.table(columns), tmp_path / f"{part_name(shard)}.parquet")
    assert find_duplicates(UPath(tmp_path), [0, 1]) == 6
    assert pq.read_table(tmp_path / "drop" / f"{part_name(1)}.parquet")["row"].to_pylist() == list(range(6))
    assert not (tmp_path / "drop" / f"{part_name(0)}.parquet").exists()


def test_a_sidecar_is_written_once(tmp_path):
    first, second = _blocks([[("a", None)], [("b", None), ("c", None)]])
    folder = UPath(tmp_path)
    HashSink(folder, "text")(first)
    before = (tmp_path / "part-000000.parquet").read_bytes()
    HashSink(folder, "text")(BlockInfo(0, "a", "f", 2, 0).attach(second))
    assert (tmp_path / "part-000000.parquet").read_bytes() == before
