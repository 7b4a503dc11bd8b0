"""JSON lines, plain or compressed: slices are ranges of the decompressed bytes, cut at line starts.

`source_row` is the line number from 0, so `sed -n` finds a row; blank lines are counted but give no row. A line that
is not a JSON object in UTF-8, lacks a required field, holds a value of another type than its column, or is longer than
`max_row_mb`, is a quarantined row. A compressed stream that ends early or is damaged is a `SourceError`, found while
planning: rows are never lost in silence.

Columns and types come from the first MiB of each file. A column without one Arrow type there (all null, mixed, empty
objects) is read as JSON text. A key that first appears later is left out, and the log names it once per file; inside
objects, keys that the sample did not have are left out too.

Left out: `.json` files that hold one array. Called through `engine.corpus.readers.base`.
"""

import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import orjson
import pyarrow as pa

from engine.corpus.config import SourceConfig
from engine.corpus.marks import DROP, ERROR, QUARANTINE, RESERVED, SOURCE_PART, SOURCE_ROW, marked_schema
from engine.corpus.readers.base import (
    Slice,
    column_view,
    python_type,
    required_type,
    type_name,
    unify,
    wrong_type,
)
from engine.corpus.readers.compression import CHUNK, decompressed
from engine.corpus.sources import InputFile
from engine.errors import SourceError, redact
from engine.observe import get_logger

_WHAT = "JSON lines"
_SAMPLE = 2**20
_SAMPLE_THREADS = 8
_JSON_TEXT = {b"headrace": b"json"}
"""Field metadata of a column that is read as JSON text."""
_BOM = b"\xef\xbb\xbf"
_TOO_LONG = object()
_MISFITS = (pa.ArrowException, TypeError, ValueError, OverflowError)

_told: set[str] = set()
_log = get_logger("corpus")


class JsonlReader:
    """Reads lines; numbers them from the start of the file."""

    def __init__(self, config: SourceConfig, required: tuple[str, ...]) -> None:
        self.columns = dict(config.columns)
        self.required = required
        self.max_row_bytes = config.max_row_bytes

    def slices(self, file: InputFile, target_bytes: int) -> list[Slice]:
        """One pass over the file: a slice ends with the first line that reaches `target_bytes`."""
        found: list[Slice] = []
        start = first_row = position = rows = 0
        with decompressed(file, _WHAT) as stream:
            while chunk := stream.read(CHUNK):
                begin = 0
                while (cut := chunk.find(b"\n", max(begin, start + target_bytes - 1 - position))) >= 0:
                    rows += chunk.count(b"\n", begin, cut + 1)
                    stop = position + cut + 1
                    found.append(Slice(file, start, stop, first_row, stop - start))
                    start, first_row, begin = stop, rows, cut + 1
                rows += chunk.count(b"\n", begin)
                position += len(chunk)
        return [*found, Slice(file, start, position, first_row, position - start)] if position > start else found

    def schema(self, files: Sequence[InputFile]) -> pa.Schema:
        """The columns of the files' samples together; a file without a readable row has no say."""
        with ThreadPoolExecutor(_SAMPLE_THREADS) as pool:
            sampled = list(zip(files, pool.map(self._sample, files), strict=True))
        mixed = {field.name for _, schema in sampled for field in schema if field.metadata == _JSON_TEXT}
        merged = unify(
            (file, pa.schema([_as_json_text(field) if field.name in mixed else field for field in schema]))
            for file, schema in sampled
        )
        fields = [
            _as_json_text(field) if field.name not in self.required and _is_vague(field.type) else field
            for field in merged
        ]
        # Where no row could be read anywhere, every row will be quarantined, and says why.
        fields += [pa.field(name, pa.string()) for name in self.required if name not in merged.names]
        return pa.schema(fields)

    def read(self, slices: Sequence[Slice], schema: pa.Schema) -> pa.Table:
        """The rows of some slices, parsed a few MiB at a time."""
        batches = [batch for each in slices for batch in self._read_slice(each, schema)]
        return pa.Table.from_batches(batches, marked_schema(schema))

    def _read_slice(self, piece: Slice, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        view = {field.name: self.columns.get(field.name, field.name) for field in schema}
        unknown: set[str] = set()
        for lines in _line_batches(piece, self.max_row_bytes, CHUNK):
            yield self._batch(piece.file, lines, schema, view, unknown)
        unknown -= {*view.values(), *self.columns, *RESERVED}
        if unknown and piece.file.uri not in _told:
            _told.add(piece.file.uri)
            _log.warning("keys left out", file=piece.file.name, keys=sorted(unknown), why="not in the first MiB")

    def _batch(
        self,
        file: InputFile,
        lines: list[tuple[int, Any]],
        schema: pa.Schema,
        view: dict[str, str],
        unknown: set[str],
    ) -> pa.RecordBatch:
        rows: list[dict[str, Any]] = []
        errors: list[str | None] = []
        for _, line in lines:
            row, error = self._parse(line, view)
            rows.append(row)
            errors.append(error)
            unknown.update(row)
        arrays = [_array(field, [row.get(view[field.name]) for row in rows], errors) for field in schema]
        made = {
            SOURCE_PART: pa.repeat(file.name, len(lines)),
            SOURCE_ROW: pa.array([number for number, _ in lines], pa.int64()),
            DROP: pa.array([None if error is None else QUARANTINE for error in errors], pa.string()),
            ERROR: pa.array(errors, pa.string()),
        }
        return pa.record_batch([*arrays, *made.values()], schema=marked_schema(schema))

    def _parse(self, line: Any, view: dict[str, str]) -> tuple[dict[str, Any], str | None]:
        if line is _TOO_LONG:
            return {}, "the line is longer than max_row_mb"
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            return {}, f"the line is no JSON: {error}"
        if not isinstance(row, dict):
            return {}, "the line holds no JSON object"
        for name in self.required:
            value = row.get(view[name])
            if value is None:
                return row, f"the field {view[name]!r} is missing"
            if not isinstance(value, python_type(name)):
                return row, f"the field {view[name]!r} is not {type_name(name)}"
        return row, None

    def _sample(self, file: InputFile) -> pa.Schema:
        rows: list[dict[str, Any]] = []
        seen = 0
        for lines in _line_batches(Slice(file, 0, sys.maxsize, 0, 0), self.max_row_bytes, _SAMPLE):
            for _, line in lines:
                row, _ = self._parse(line, {name: name for name in self.required})
                rows += [row] if row else []
                seen += 0 if line is _TOO_LONG else len(line)
            if rows and seen >= _SAMPLE // 2:
                break
        if not rows:
            return pa.schema([])
        names = list(dict.fromkeys(key for row in rows for key in row))
        view = column_view(file, names, self.columns, self.required)
        columns = {name: [row[key] for row in rows if row.get(key) is not None] for name, key in view.items()}
        return pa.schema([self._field(file, name, values) for name, values in columns.items()])

    def _field(self, file: InputFile, name: str, values: list[Any]) -> pa.Field:
        if name not in self.required:
            return _infer(name, values)
        wanted = python_type(name)
        if not values:
            return pa.field(name, pa.string() if wanted is str else pa.null())
        # Poison lines have no say in the type, unless all are.
        field = _infer(name, [value for value in values if isinstance(value, wanted)] or values)
        if field.metadata == _JSON_TEXT:
            raise wrong_type(file, name, "of several types")
        return pa.field(name, required_type(file, name, field.type))


def _array(field: pa.Field, values: list[Any], errors: list[str | None]) -> pa.Array:
    """One column of a batch; values that do not fit are null and leave their error in `errors`."""
    if field.metadata == _JSON_TEXT:
        values = [None if value is None else orjson.dumps(value).decode() for value in values]
    try:
        return pa.array(values, field.type)
    except _MISFITS:
        pass
    for index, value in enumerate(values):
        try:
            pa.array([value], field.type)
        except _MISFITS:
            values[index] = None
            errors[index] = errors[index] or f"the field {field.name!r} is no {field.type}"
    return pa.array(values, field.type)


def _infer(name: str, values: list[Any]) -> pa.Field:
    try:
        return pa.field(name, pa.array(values).type)
    except _MISFITS:
        return _as_json_text(pa.field(name, pa.string()))


def _as_json_text(field: pa.Field) -> pa.Field:
    return pa.field(field.name, pa.string(), metadata=_JSON_TEXT)


def _is_vague(type_: pa.DataType) -> bool:
    """Whether a type says too little to hold later rows, or (an empty object) cannot be written to Parquet."""
    if pa.types.is_struct(type_):
        return type_.num_fields == 0 or any(_is_vague(each.type) for each in type_)
    return _is_vague(type_.value_type) if pa.types.is_list(type_) else bool(pa.types.is_null(type_))


def _line_batches(piece: Slice, max_bytes: int, chunk_bytes: int) -> Iterator[list[tuple[int, Any]]]:
    """The numbered lines of a slice, blank ones left out, a chunk at a time; `_TOO_LONG` stands for a line too long."""
    number, position = piece.first_row, piece.start
    kept = b""
    skipping = False
    with decompressed(piece.file, _WHAT, piece.start) as stream:
        while True:
            chunk = stream.read(min(chunk_bytes, piece.stop - position))
            position += len(chunk)
            first, newline, rest = chunk.partition(b"\n")
            if skipping or len(kept) + len(first) > max_bytes:
                kept, skipping = b"", True
            else:
                kept += first
            if chunk and not newline:
                continue
            lines: list[Any] = [_TOO_LONG if skipping else kept]
            kept, skipping = b"", False
            if newline:
                lines += rest.split(b"\n")
                kept = lines.pop()
            if number == 0 and lines[0] is not _TOO_LONG:
                lines[0] = lines[0].removeprefix(_BOM)
            yield [
                (index, line if line is _TOO_LONG or len(line) <= max_bytes else _TOO_LONG)
                for index, line in enumerate(lines, number)
                if line is _TOO_LONG or line.strip()
            ]
            number += len(lines)
            if not chunk:
                break
    if position < piece.stop < sys.maxsize:
        raise SourceError(f"{redact(piece.file.uri)} has become shorter.", "Start a new run: the input has changed.")
