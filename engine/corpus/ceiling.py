"""The codec ceiling: how fast one core reads and writes the same bytes with pyarrow and does nothing else.

It is the physical limit of a pass-through stream, measured on the job's own output and machine, so that a job can say
what share of it it reached.

Left out: anything about Ray. Called by `engine.corpus.transform` at the end of a job and by the benchmarks.
"""

import time
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from engine.artifacts import Dataset
from engine.corpus.sink import encode

_SAMPLE_BYTES = 64 * 2**20


class Ceiling(NamedTuple):
    """Uncompressed Arrow megabytes (10^6 bytes) per CPU-second: reading, writing, and one after the other."""

    read: float
    write: float
    both: float


def codec_ceiling(dataset: Dataset) -> Ceiling | None:
    """Measure on up to 64 MiB of a dataset's parts, one thread, in CPU time; None for a dataset without rows."""
    size = 0
    reading = writing = 0.0
    pa.set_cpu_count(1)
    for part in dataset.parts:
        body = (dataset.path / part.file).read_bytes()
        started = time.thread_time()
        table = pq.read_table(pa.BufferReader(body), use_threads=False)
        read = time.thread_time()
        encode(table)
        written = time.thread_time()
        size, reading, writing = size + table.nbytes, reading + read - started, writing + written - read
        if size >= _SAMPLE_BYTES:
            break
    if not size or not reading or not writing:
        return None
    return Ceiling(size / reading / 1e6, size / writing / 1e6, size / (reading + writing) / 1e6)
