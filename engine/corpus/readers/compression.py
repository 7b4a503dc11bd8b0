"""The decompressed bytes of a file of lines: plain, gzip or zstandard, told by how the file begins.

Left out: WARC, whose pieces are compressed one by one. Called by the readers of JSON lines and CSV.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import pyarrow as pa

from engine.corpus.readers.base import damage_named
from engine.corpus.sources import InputFile
from engine.storage import locate

CHUNK = 4 * 2**20
"""Bytes read at a time."""


@contextmanager
def decompressed(file: InputFile, what: str, start: int = 0) -> Iterator[BinaryIO]:
    """The bytes from `start` on. Raises `SourceError` for a damaged stream, which is no `what`, also while reading."""
    with damage_named(file, what), locate(file.uri).open("rb") as raw:
        magic = raw.read(4)
        codec = "gzip" if magic[:2] == b"\x1f\x8b" else "zstd" if magic == b"\x28\xb5\x2f\xfd" else None
        raw.seek(0 if codec else start)
        stream: Any = raw
        if codec:
            stream = pa.CompressedInputStream(raw, codec)
            while start and (skipped := stream.read(min(CHUNK, start))):
                start -= len(skipped)
        yield stream
