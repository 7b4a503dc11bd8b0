"""CSV and TSV, plain or compressed: the first line names the columns, every column is text; a file is one slice.

Cells are separated by commas, in files named .tsv by tabs; a cell in double quotes may hold separators, line breaks and
doubled quotes. Lines end with LF, CR or CRLF. `source_row` counts rows from 0, without the header and blank lines;
errors name the line. A row that breaks these rules, has more or fewer cells than the header, is not in
`source.encoding`, or is longer than `max_row_mb` (in UTF-8), is a quarantined row; so is one whose cell of a required
whole number holds none. After a row that breaks the rules, reading goes on at the line after its first one, so that a
quote that is never closed takes no other row with it; after one that is too long, where its quotes are closed.

Left out: files without a header, other separators and quotes, numbers and dates as such, and cutting a file into
slices (whether a line begins a row depends on all quotes before it): one file is one shard at least, held in memory.
Called through `engine.corpus.readers.base`.
"""

import codecs
import csv
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import TextIOWrapper
from itertools import islice
from typing import NamedTuple

import pyarrow as pa

from engine.corpus.config import SourceConfig
from engine.corpus.marks import DROP, ERROR, QUARANTINE, SOURCE_PART, SOURCE_ROW, marked_schema
from engine.corpus.readers.base import Slice, column_view, python_type, required_type, type_name, unify
from engine.corpus.readers.compression import CHUNK, decompressed
from engine.corpus.sources import InputFile
from engine.errors import SourceError, redact

_WHAT = "CSV"
_HEADER_THREADS = 8
_ROWS_AT_ONCE = 10_000
_WHOLE_NUMBER = re.compile(r"\s*[+-]?[0-9]+\s*")
_SMALLEST, _LARGEST = -(2**63), 2**63 - 1

_UNDECODED = "headrace-undecoded"
"""The error handler that lets the text go on after bytes that are not in the encoding."""
# A lone surrogate stands for them: no valid text holds one.
codecs.register_error(_UNDECODED, lambda error: ("\udc80", getattr(error, "end", 0)))
_SURROGATE = re.compile("[\ud800-\udfff]")

# The module's own limit (128 KB a cell) is the whole interpreter's; `max_row_mb` takes its place.
csv.field_size_limit(2**31 - 1)


class _Record(NamedTuple):
    """A row as the file has it: the line it begins at (from 1), its cells, and what is wrong with it, if anything."""

    line: int
    cells: list[str]
    error: str | None = None


class CsvReader:
    """Reads rows; numbers them from the start of the file."""

    def __init__(self, config: SourceConfig, required: tuple[str, ...]) -> None:
        self.columns = dict(config.columns)
        self.required = required
        self.max_row_bytes = config.max_row_bytes
        # A byte order mark is no part of the first column's name.
        self.encoding = "utf-8-sig" if config.encoding == "utf-8" else config.encoding

    def slices(self, file: InputFile, target_bytes: int) -> list[Slice]:
        """The file as one slice, however large; a compressed one is read through for its size."""
        size = file.size
        if file.uri.lower().endswith((".gz", ".zst")):
            with decompressed(file, _WHAT) as stream:
                size = sum(len(chunk) for chunk in iter(lambda: stream.read(CHUNK), b""))
        return [Slice(file, 0, 1, 0, size)] if size else []

    def schema(self, files: Sequence[InputFile]) -> pa.Schema:
        """The columns of the files' headers together; an empty file has no say."""
        with ThreadPoolExecutor(_HEADER_THREADS) as pool:
            merged = unify(zip(files, pool.map(self._schema_of, files), strict=True))
        # Where every file is empty there are no rows either.
        missing = [pa.field(name, pa.string()) for name in self.required if name not in merged.names]
        return pa.schema([*merged, *missing])

    def read(self, slices: Sequence[Slice], schema: pa.Schema) -> pa.Table:
        """The rows of some slices, some thousand at a time."""
        batches = [batch for each in slices for batch in self._read_slice(each, schema)]
        return pa.Table.from_batches(batches, marked_schema(schema))

    def _schema_of(self, file: InputFile) -> pa.Schema:
        with self._records(file) as records:
            names = self._header(file, records)
        if not names:
            return pa.schema([])
        view = column_view(file, names, self.columns, self.required)
        types = dict.fromkeys(view, pa.string())
        for name in self.required:
            whole = python_type(name) is int
            types[name] = pa.int64() if whole else required_type(file, name, pa.string())
        return pa.schema(list(types.items()))

    def _header(self, file: InputFile, records: Iterator[_Record]) -> list[str]:
        """The names of the columns; none in an empty file. Raises `SourceError` for a header that is no CSV."""
        first = next(records, None)
        if first is None:
            return []
        if first.error:
            raise SourceError(
                f"The header of {redact(file.uri)} cannot be read: {first.error}.",
                "Correct it or set source.encoding, or leave the file out with source.exclude.",
            )
        return first.cells

    def _read_slice(self, piece: Slice, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        with self._records(piece.file) as records:
            names = self._header(piece.file, records)
            if not names:
                return
            view = column_view(piece.file, names, self.columns, self.required)
            number = piece.first_row
            while rows := list(islice(records, _ROWS_AT_ONCE)):
                yield self._batch(piece.file, rows, names, view, schema, number)
                number += len(rows)

    def _batch(
        self,
        file: InputFile,
        rows: list[_Record],
        names: list[str],
        view: dict[str, str],
        schema: pa.Schema,
        number: int,
    ) -> pa.RecordBatch:
        errors = [row.error or _misfit(row, names) for row in rows]
        cells = [
            row.cells if len(row.cells) == len(names) else row.cells + [None] * (len(names) - len(row.cells))
            for row in rows
        ]
        columns: list[pa.Array] = []
        for field in schema:
            if field.name not in view:
                columns.append(pa.nulls(len(rows), field.type))
                continue
            at = names.index(view[field.name])
            values: list[str | int | None] = [row[at] for row in cells]
            if field.type == pa.int64():
                values = _whole_numbers(field.name, values, rows, errors)
            columns.append(pa.array(values, field.type))
        made = {
            SOURCE_PART: pa.repeat(file.name, len(rows)),
            SOURCE_ROW: pa.array(range(number, number + len(rows)), pa.int64()),
            DROP: pa.array([None if error is None else QUARANTINE for error in errors], pa.string()),
            ERROR: pa.array(errors, pa.string()),
        }
        return pa.record_batch([*columns, *made.values()], schema=marked_schema(schema))

    @contextmanager
    def _records(self, file: InputFile) -> Iterator[Iterator[_Record]]:
        """The rows of a file, its header first. Raises `SourceError` for a file that no rows can be found in."""
        with decompressed(file, _WHAT) as raw:
            # Line ends are left as they are: inside quotes they belong to the text.
            text = TextIOWrapper(raw, self.encoding, _UNDECODED, newline="")
            try:
                yield _parsed(_Lines(text, self.max_row_bytes), _is_tsv(file), self.encoding.removesuffix("-sig"))
            except UnicodeError as error:
                raise SourceError(
                    f"{redact(file.uri)} is not {self.encoding}: {error}.", "Set source.encoding."
                ) from None


class _TooLong(Exception):
    """The row in hand is longer than `max_row_mb`."""


class _Lines:
    """The lines of a file, of which those of the row in hand can be taken back; never more than one row in memory."""

    def __init__(self, text: TextIOWrapper, max_bytes: int) -> None:
        self._text = text
        self._max_bytes = max_bytes
        self._waiting: list[str] = []
        self._taken: list[str] = []
        self._bytes = 0
        self.number = 0
        """Lines handed out so far."""
        self.undecoded = False
        """Whether the row in hand holds bytes that are not in the encoding."""

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = self._next()
        if not line:
            raise StopIteration
        self._taken.append(line)
        try:
            self._bytes += len(line) if line.isascii() else len(line.encode())
        except UnicodeEncodeError:  # what stands for bytes that are not in the encoding is no text
            self._bytes += len(line.encode(errors="replace"))
            self.undecoded = True
        if self._bytes > self._max_bytes:
            raise _TooLong
        return line

    def begin(self) -> int:
        """Begin a row; the number of its first line."""
        self._taken.clear()
        self._bytes = 0
        self.undecoded = False
        return self.number + 1

    def take_back(self) -> None:
        """Hand out the lines of the row in hand again, all but its first."""
        again = self._taken[1:]
        self._waiting += reversed(again)
        self.number -= len(again)

    def skip(self) -> None:
        """Pass over the rest of the row in hand: to the end of the first line up to which quotes come in pairs."""
        quotes = sum(line.count('"') for line in self._taken)
        line = self._taken[-1]
        self._taken.clear()
        while line and (quotes % 2 or not line.endswith(("\n", "\r"))):
            line = self._next(whole=line.endswith(("\n", "\r")))
            quotes += line.count('"')

    def _next(self, *, whole: bool = True) -> str:
        """The next line, or as much of it as shows that it is too long; empty at the end of the file."""
        line = self._waiting.pop() if self._waiting else self._text.readline(self._max_bytes + 1)
        self.number += bool(line) and whole
        return line


def _parsed(lines: _Lines, tabs: bool, encoding: str) -> Iterator[_Record]:
    """Each row that is not blank, its cells as the csv module finds them, and what is wrong with it."""
    rows = csv.reader(lines, csv.excel_tab if tabs else csv.excel, strict=True)
    while True:
        line = lines.begin()
        try:
            cells = next(rows, None)
        except csv.Error as error:
            lines.take_back()
            yield _Record(line, [], f"line {line} begins a row that is no CSV: {error}")
            continue
        except _TooLong:
            lines.skip()
            last = f" to {lines.number}" if lines.number > line else ""
            yield _Record(line, [], f"the row is longer than max_row_mb (line {line}{last})")
            continue
        if cells is None:
            return
        if lines.undecoded:
            # The rest of the text stays readable for whoever looks into the quarantine.
            cells = [_SURROGATE.sub("\ufffd", cell) for cell in cells]
            yield _Record(line, cells, f"line {line} is not valid {encoding} (see source.encoding)")
        elif cells:
            yield _Record(line, cells)


def _misfit(row: _Record, names: list[str]) -> str | None:
    if len(row.cells) == len(names):
        return None
    return f"line {row.line} has {len(row.cells)} cells, where the header has {len(names)}"


def _whole_numbers(
    name: str, values: list[str | int | None], rows: list[_Record], errors: list[str | None]
) -> list[str | int | None]:
    """The numbers of a column; a cell that is none is null and leaves its error in `errors`."""
    found: list[str | int | None] = []
    for at, value in enumerate(values):
        text = str(value) if value is not None else ""
        number = int(text) if len(text) < 100 and _WHOLE_NUMBER.fullmatch(text) else None
        if number is None or not _SMALLEST <= number <= _LARGEST:
            number = None
            errors[at] = errors[at] or f"line {rows[at].line}: the column {name!r} is not {type_name(name)}"
        found.append(number)
    return found


def _is_tsv(file: InputFile) -> bool:
    return file.uri.lower().removesuffix(".gz").removesuffix(".zst").endswith(".tsv")
