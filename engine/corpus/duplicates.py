"""Exact duplicates, within and across shards: the first row in plan order stays, whoever runs when.

A first pass over the input writes a 128-bit hash of each row's text, one sidecar file per shard. The driver then finds
all hashes that occur before (in slices of the hash range, so its memory is bounded however many rows there are) and
writes, per shard, the row positions to drop; the read of the main pass marks them. Both passes are pure functions of
the input, so a kill between them costs nothing but time.

Left out: near-duplicates. Called by `engine.corpus.transform` (both passes) and `engine.corpus.stream` (the marking).
"""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash
from upath import UPath

from engine.corpus.block import BlockInfo, part_name
from engine.corpus.marks import DROP, mark
from engine.storage import create, make_directory, replace

DUPLICATE = "duplicate"
_ROWS_AT_ONCE = 16_000_000
"""Hashes the driver compares at once: about 1 GB with the sort's working memory."""
_READ_THREADS = 8
"""Sidecars read side by side: from an object store each costs a round trip."""


class HashSink:
    """Writes the hashes of a block's unmarked rows as a sidecar; returns the shard number and its rows."""

    def __init__(self, folder: UPath, column: str) -> None:
        self.folder = folder
        self.column = column

    def __call__(self, block: pa.Table) -> pa.Table:
        """One sidecar, sorted by hash: columns `high`, `low` (uint64) and `row` (position in the shard)."""
        started = time.thread_time()
        info = BlockInfo.of(block)
        positions = np.flatnonzero(np.asarray(pc.is_null(block.column(DROP))))
        texts = block.column(self.column).take(pa.array(positions))
        digests = np.frombuffer(
            b"".join(xxhash.xxh3_128_digest(text.as_buffer() or b"") for text in texts), dtype=">u8"
        ).reshape(-1, 2)
        order = np.lexsort((digests[:, 1], digests[:, 0]))
        table = pa.table(
            {
                "high": digests[order, 0].astype(np.uint64),
                "low": digests[order, 1].astype(np.uint64),
                "row": positions[order].astype(np.int64),
            }
        )
        stream = pa.BufferOutputStream()
        pq.write_table(table, stream, compression="none", use_dictionary=False)
        create(self.folder / f"{info.part}.parquet", stream.getvalue().to_pybytes())
        return pa.table({"shard": [info.shard], "rows": [len(table)], "seconds": [time.thread_time() - started]})


def find_duplicates(folder: UPath, shards: Sequence[int]) -> int:
    """Compare all sidecars and write the positions to drop, one file per shard that has any; returns their number.

    The first occurrence, by (shard, position), is the one that stays.
    """
    paths = [_sidecar(folder, shard) for shard in shards]
    dropped = folder / "drop"
    make_directory(dropped)
    with ThreadPoolExecutor(_READ_THREADS) as pool:
        rows = sum(pool.map(_rows_of, paths))
    found: dict[int, list[npt.NDArray[np.int64]]] = {}
    for low, high in _hash_ranges(max(1, -(-rows // _ROWS_AT_ONCE))):
        with ThreadPoolExecutor(_READ_THREADS) as pool:
            tables = list(pool.map(partial(_range_of, low=low, high=high), paths))
        shard = np.repeat(np.asarray(shards, np.int64), [len(table) for table in tables])
        columns = [np.concatenate([table[name].to_numpy() for table in tables]) for name in ("high", "low", "row")]
        order = np.lexsort((columns[2], shard, columns[1], columns[0]))
        again = np.zeros(len(order), bool)
        first, second = columns[0][order], columns[1][order]
        again[1:] = (first[1:] == first[:-1]) & (second[1:] == second[:-1])
        repeated = order[again]
        repeated = repeated[np.argsort(shard[repeated], kind="stable")]
        numbers, starts = np.unique(shard[repeated], return_index=True)
        for number, group in zip(numbers, np.split(columns[2][repeated], starts[1:]), strict=False):
            found.setdefault(int(number), []).append(group)
    for number, groups in found.items():
        stream = pa.BufferOutputStream()
        pq.write_table(pa.table({"row": np.sort(np.concatenate(groups))}), stream)
        replace(_sidecar(dropped, number), stream.getvalue().to_pybytes())
    return sum(len(group) for groups in found.values() for group in groups)


def mark_duplicates(block: pa.Table, folder: UPath, part: str) -> pa.Table:
    """Mark the rows of a block that `find_duplicates` named for its part."""
    path = folder / "drop" / f"{part}.parquet"
    if not path.exists():
        return block
    with path.open("rb") as file:
        rows = pq.read_table(file)["row"].to_numpy()
    mask = np.zeros(len(block), bool)
    mask[rows] = True
    return mark(block, pa.array(mask), DUPLICATE)


def _sidecar(folder: UPath, shard: int) -> UPath:
    return folder / f"{part_name(shard)}.parquet"


def _rows_of(path: UPath) -> int:
    with path.open("rb") as file:
        return int(pq.read_metadata(file).num_rows)


def _hash_ranges(count: int) -> Iterator[tuple[int, int]]:
    edges = [step * 2**64 // count for step in range(count + 1)]
    yield from ((low, high - 1) for low, high in pairwise(edges))


def _range_of(path: UPath, low: int, high: int) -> pa.Table:
    with path.open("rb") as file:
        table = pq.read_table(file, use_threads=False)
    hashes = table["high"].to_numpy()
    start, stop = np.searchsorted(hashes, np.uint64(low), "left"), np.searchsorted(hashes, np.uint64(high), "right")
    # A copy: a slice would keep the whole file in memory.
    return table.take(pa.array(np.arange(start, stop)))
