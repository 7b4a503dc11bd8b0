"""The codec ceiling: how fast one core reads and writes the same bytes with pyarrow and does nothing else.

It is the physical limit of a pass-through stream, measured on the job's own bytes and machine, so that a job can say
what share of it it reached.

Left out: anything about Ray. Called by `engine.corpus.transform` at the end of a job and by the benchmarks.
"""

import time
from collections.abc import Iterable
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from engine.artifacts import Dataset, Part
from engine.corpus.readers import Slice
from engine.corpus.sink import encode
from engine.storage import locate

_SAMPLE_BYTES = 64 * 2**20
_SAMPLE_FILES = 32
"""Most pieces looked at: ten thousand tiny ones would take longer to open than they tell."""


class Ceiling(NamedTuple):
    """Uncompressed Arrow megabytes (10^6 bytes) per CPU-second: reading, writing, and one after the other."""

    read: float
    write: float
    both: float


def codec_ceiling(dataset: Dataset, inputs: Iterable[Slice] = ()) -> Ceiling | None:
    """Measure on up to 64 MiB, one thread, in CPU time; None where there is nothing to measure on.

    `inputs`, where the job reads Parquet, are slices of its input: the ceiling then reads the same bytes as the job.
    Other formats have no codec of their own to compare with, and the dataset's parts are read instead.
    """
    largest = sorted(inputs, key=lambda each: each.size, reverse=True)[:_SAMPLE_FILES]
    parts = sorted(dataset.parts, key=lambda each: each.bytes, reverse=True)[:_SAMPLE_FILES]
    tables = map(_read_slice, largest) if largest else (_read_part(dataset, part) for part in parts)
    size = 0
    reading = writing = 0.0
    pa.set_cpu_count(1)
    started = time.thread_time()
    for table in tables:
        read = time.thread_time()
        encode(table)
        written = time.thread_time()
        size, reading, writing = size + table.nbytes, reading + read - started, writing + written - read
        if size >= _SAMPLE_BYTES:
            break
        started = time.thread_time()
    if not size or not reading or not writing:
        return None
    return Ceiling(size / reading / 1e6, size / writing / 1e6, size / (reading + writing) / 1e6)


def _read_slice(piece: Slice) -> pa.Table:
    with locate(piece.file.uri).open("rb") as file:
        return pq.ParquetFile(file).read_row_groups(list(range(piece.start, piece.stop)), use_threads=False)


def _read_part(dataset: Dataset, part: Part) -> pa.Table:
    with (dataset.path / part.file).open("rb") as file:
        return pq.read_table(file, use_threads=False)
