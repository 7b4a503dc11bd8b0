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
from engine.errors import SourceError, redact
from engine.storage import locate

_HTML = ("text/html", "application/xhtml+xml")
_CHUNK = 2**20
_HEAD_BYTES = 64 * 2**10
_GZIP, _ZSTD, _PLAIN = b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", b"WARC/"


class _Event(NamedTuple):
    """A record, or damage: where it begins (None: not known), its bytes, the page of a response, what is wrong."""

    offset: int | None
    size: int = 0
    page: "_Page | None" = None
    error: str = ""


class _Page(NamedTuple):
    """What a server answered; of a record longer than `max_row_mb` only the beginning is kept."""

    values: dict[str, str]
    answer: bytes
    oversized: bool


class WarcReader(RowReader):
    """Reads the pages of an archive; columns `text`, `title`, `url` and `date` (as the archive writes it)."""

    columns = ("text", "title", "url", "date")

    def slices(self, file: InputFile, target_bytes: int) -> list[Slice]:
        """One pass over the records; a slice ends with the first record that reaches `target_bytes`."""
        if not file.size:
            return []
        found: list[Slice] = []
        start = first_row = number = size = 0
        with damage_named(file, "WARC"), locate(file.uri).open("rb") as stream:
            if not _begins_record(stream, 0, _magic(stream)):
                raise SourceError(f"{redact(file.uri)} is not a WARC file.", "Leave it out with source.exclude.")
            for event in _events(file, 0, file.size + 1, self.config.max_row_bytes):
                # Of an archive compressed in one piece, offsets inside are no places to begin.
                if size >= target_bytes and event.offset and _begins_record(stream, event.offset, _magic(stream)):
                    found.append(Slice(file, start, event.offset, first_row, size))
                    start, first_row, size = event.offset, number, 0
                number += 1
                size += event.size
        # One past the end: there such an archive reports its records.
        return [*found, Slice(file, start, file.size + 1, first_row, size)]

    def rows(self, piece: Slice) -> Iterator[Row]:
        """The pages of a slice."""
        events = _events(piece.file, piece.start, piece.stop, self.config.max_row_bytes)
        for number, event in enumerate(events, piece.first_row):
            if event.error:
                yield Row.poison(number, event.error)
            elif event.page:
                yield from self._row(number, event.page)

    def _row(self, number: int, page: _Page) -> Iterator[Row]:
        # A record of its own: a body that cannot be decoded would otherwise end the walk through the archive.
        record = WarcRecord()
        record.init_headers(WarcRecordType.response)
        record.set_bytes_content(page.answer)
        record.is_http = True
        limit = self.config.max_row_bytes
        try:
            record.parse_http(auto_decode="all")
            status = record.http_headers.status_code or 0
            if not 200 <= status < 300 or (record.http_content_type or "").lower() not in _HTML:
                return
            body = b"" if page.oversized else record.reader.read(limit + 1)
        except (OSError, ValueError) as error:
            yield Row.poison(number, f"the response cannot be decoded: {error}", page.values)
            return
        if page.oversized or len(body) > limit:
            yield Row.poison(number, "the page is longer than max_row_mb", page.values)
        else:
            yield extract(body, number, page.values, charset=record.http_charset)


def _events(file: InputFile, start: int, stop: int, max_bytes: int) -> Iterator[_Event]:
    """Every record that begins at `start` or later and before `stop`, and each stretch of damage among them.

    The plan and the read both walk through here, so they count alike. After damage the walk goes on at the next place
    where a record begins.
    """
    with damage_named(file, "WARC"), locate(file.uri).open("rb") as stream:
        magic = _magic(stream)
        position: int | None = start
        recovering = False
        while position is not None and position < stop:
            last = position
            damaged = False
            for event in _records(stream, position, magic, max_bytes):
                if event.offset is not None and event.offset >= stop:
                    return
                last = max(last, event.offset or 0)
                damaged = bool(event.error)
                # Damage right after damage, at no known record, is the same stretch.
                if not (recovering and damaged and event.offset is None):
                    yield event
                recovering = damaged
            position = _next_record(stream, last + 1, magic) if damaged else None


def _records(stream: BinaryIO, position: int, magic: bytes, max_bytes: int) -> Iterator[_Event]:
    """The records from `position` to the end of the file or to the first damage, which is the last event."""
    stream.seek(position)
    records = ArchiveIterator(stream, parse_http=False)
    offset: int | None = None
    last = position
    try:
        for record in records:
            offset = last = record.stream_pos
            length = record.headers.get("Content-Length") or ""
            if not length.isdecimal():
                yield _Event(offset, error="the record has no length")
                return
            oversized = int(length) > max_bytes
            content = _read(record.reader, min(int(length), _HEAD_BYTES if oversized else max_bytes))
            size = len(content)
            while oversized and (more := len(record.reader.read(_CHUNK))):
                size += more
            if size < int(length):
                yield _Event(offset, error="the record ends early")
                return
            page = None
            if record.record_type == WarcRecordType.response:
                url, date = (record.headers.get(name) or "" for name in ("WARC-Target-URI", "WARC-Date"))
                page = _Page({"url": url.strip("<>"), "date": date}, content, oversized)
            yield _Event(offset, size, page)
            offset = None
        if magic != _PLAIN and not _ends_whole(stream, last, magic):
            yield _Event(None, error="the archive ends in the middle of a record")
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        yield _Event(offset, error=f"the record is damaged: {error}")


def _read(reader: Any, size: int) -> bytes:
    """Exactly `size` bytes, or what there is; the reader may hand out less at a time."""
    pieces: list[bytes] = []
    while size and (piece := reader.read(size)):
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


def _magic(stream: BinaryIO) -> bytes:
    stream.seek(0)
    head = stream.read(4)
    return next((magic for magic in (_GZIP, _ZSTD) if head.startswith(magic)), _PLAIN)


def _decompressor(magic: bytes) -> Any:
    # Both kinds say `eof` at the end of one piece and keep what follows in `unused_data`.
    return zlib.decompressobj(zlib.MAX_WBITS | 16) if magic == _GZIP else zstandard.ZstdDecompressor().decompressobj()


def _begins_record(stream: BinaryIO, offset: int, magic: bytes) -> bool:
    """Whether a record, compressed or not, begins at an offset."""
    stream.seek(offset)
    head = stream.read(_HEAD_BYTES)
    if magic == _PLAIN or not head.startswith(magic):
        return magic == _PLAIN and head.startswith(_PLAIN)
    try:
        return bool(_decompressor(magic).decompress(head).startswith(_PLAIN))
    except (zlib.error, zstandard.ZstdError):
        return False


def _ends_whole(stream: BinaryIO, offset: int, magic: bytes) -> bool:
    """Whether the compressed pieces from the last record on are complete."""
    stream.seek(offset if _begins_record(stream, offset, magic) else 0)
    piece = _decompressor(magic)
    fresh = True
    try:
        while chunk := stream.read(_CHUNK):
            while chunk:
                piece.decompress(chunk)
                fresh = piece.eof
                chunk = piece.unused_data if piece.eof else b""
                piece = _decompressor(magic) if piece.eof else piece
    except (zlib.error, zstandard.ZstdError):
        return False
    return fresh


def _next_record(stream: BinaryIO, start: int, magic: bytes) -> int | None:
    """The first offset from `start` on where a record begins; None if there is none."""
    position = start
    while True:
        stream.seek(position)
        window = stream.read(_CHUNK)
        place = window.find(magic)
        while place >= 0:
            if _begins_record(stream, position + place, magic):
                return position + place
            place = window.find(magic, place + 1)
        if len(window) < _CHUNK:
            return None
        position += len(window) - len(magic) + 1
