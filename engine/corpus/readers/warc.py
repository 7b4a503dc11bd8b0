"""WARC archives, plain or compressed: one row per HTML page that a server answered with a 2xx status.

`source_row` is the number of the record in the file, all types counted. A slice is a range of bytes that begins and
ends at a record; an archive compressed as one piece, not record by record, is one slice. A damaged, truncated or
oversized record is a quarantined row, and reading goes on at the next record that can be found.

Left out: fetching, and records other than responses. Called through `engine.corpus.readers.base`.
"""

import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

import zstandard
from fastwarc import ArchiveIterator, WarcRecord, WarcRecordType

from engine.corpus.readers.base import Slice, damage_named
from engine.corpus.readers.html import extract
from engine.corpus.readers.rows import Row, RowReader
from engine.corpus.sources import InputFile
from engine.storage import locate

_HTML = ("text/html", "application/xhtml+xml")
_WINDOW = 2**20
_HEAD = 4096
_GZIP, _ZSTD, _PLAIN = b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", b"WARC/"


class _Event(NamedTuple):
    """A record, or damage: where it begins (None: not known), its size, and the record unless it is damaged."""

    offset: int | None
    size: int
    record: WarcRecord | None
    error: str = ""


class WarcReader(RowReader):
    """Reads the pages of an archive; columns `text`, `title`, `url` and `date` (as the archive writes it)."""

    columns = ("text", "title", "url", "date")

    def slices(self, file: InputFile, target_bytes: int) -> list[Slice]:
        """One pass over the records; a slice ends with the first record that reaches `target_bytes`."""
        found: list[Slice] = []
        start = first_row = number = size = 0
        for number, event in enumerate(_events(file, 0, None, self.config.max_row_bytes), 1):
            if size >= target_bytes and event.offset is not None:
                found.append(Slice(file, start, event.offset, first_row, size))
                start, first_row, size = event.offset, number - 1, 0
            size += event.size
        # One past the end: a piece compressed as a whole reports its records there.
        return [*found, Slice(file, start, file.size + 1, first_row, size)] if number > first_row else found

    def rows(self, piece: Slice) -> Iterator[Row]:
        """The pages of a slice."""
        events = _events(piece.file, piece.start, piece.stop, self.config.max_row_bytes)
        for number, event in enumerate(events, piece.first_row):
            if event.record is None:
                yield Row.poison(number, event.error)
            elif event.record.record_type == WarcRecordType.response:
                yield from self._page(number, event.record)

    def _page(self, number: int, record: WarcRecord) -> Iterator[Row]:
        values = {"url": record.headers.get("WARC-Target-URI") or "", "date": record.headers.get("WARC-Date") or ""}
        limit = self.config.max_row_bytes
        try:
            record.parse_http(auto_decode="all")
            status = record.http_headers.status_code if record.is_http_parsed else None
            if status is None or not 200 <= status < 300 or record.http_content_type not in _HTML:
                return
            page = record.reader.read(limit + 1)
        except (OSError, ValueError) as error:
            yield Row.poison(number, f"the response cannot be decoded: {error}", values)
            return
        if len(page) > limit:
            yield Row.poison(number, "the page is longer than max_row_mb", values)
            return
        yield extract(page, number, values, charset=record.http_charset)


def _events(file: InputFile, start: int, stop: int | None, max_bytes: int) -> Iterator[_Event]:
    """Every record from `start` to the first that begins at `stop` or later, damage included.

    The plan and the read both walk through here, so they count alike.
    """
    with damage_named(file, "WARC"), locate(file.uri).open("rb") as stream:
        magic = _magic(stream)
        position: int | None = start
        while position is not None and (stop is None or position < stop):
            restart = position
            for event in _run(stream, position, magic, max_bytes):
                if stop is not None and event.offset is not None and event.offset >= stop:
                    return
                restart = max(restart, event.offset or 0)
                yield event
                if event.record is None:
                    break
            else:
                return
            position = _next_record(stream, restart + 1, magic)
