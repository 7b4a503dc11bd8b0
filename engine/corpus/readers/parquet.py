"""Parquet: slices are row-group ranges, read with one thread and no copy where types already fit.

A row whose required text is null, longer than `max_row_mb` or no valid UTF-8 is quarantined (Arrow itself checks none
of these). A row group is never split: a file of one huge row group is one slice.

Left out: other columns' contents; they pass through as they are. Called through `engine.corpus.readers.base`.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from engine.corpus.config import SourceConfig
from engine.corpus.marks import DROP, ERROR, QUARANTINE, SOURCE_PART, SOURCE_ROW, mark, marked_schema
from engine.corpus.readers.base import Slice, column_view, damage_named, python_type, required_type, unify
from engine.corpus.sources import InputFile
from engine.storage import is_local, locate

_FOOTER_THREADS = 8


class _Footer(NamedTuple):
    """What the plan needs of a file: its columns, and the rows and uncompressed bytes of each row group."""

    schema: pa.Schema
    groups: tuple[tuple[int, int], ...]


class ParquetReader:
    """Reads row groups; numbers rows from the start of the file."""

    def __init__(self, config: SourceConfig, required: tuple[str, ...]) -> None:
        self.columns = dict(config.columns)
        self.required = required
        self.max_row_bytes = config.max_row_bytes

    def slices(self, file: InputFile, target_bytes: int) -> list[Slice]:
        """Runs of row groups of at most `target_bytes`, one group at least."""
        found: list[Slice] = []
        start = first_row = rows = size = 0
        groups = _footer(file).groups
        for index, (group_rows, group_bytes) in enumerate(groups):
            if rows and size + group_bytes > target_bytes:
                found.append(Slice(file, start, index, first_row, size))
                start, first_row, rows, size = index, first_row + rows, 0, 0
            rows, size = rows + group_rows, size + group_bytes
        return [*found, Slice(file, start, len(groups), first_row, size)] if rows else found

    def schema(self, files: Sequence[InputFile]) -> pa.Schema:
        """All columns of all footers; one that a file lacks is null there."""
        with ThreadPoolExecutor(_FOOTER_THREADS) as pool:
            return unify(zip(files, pool.map(self._schema_of, files), strict=True))

    def read(self, slices: Sequence[Slice], schema: pa.Schema) -> pa.Table:
        """The rows of some slices; buffers are handed on as Parquet decoded them."""
        target = marked_schema(schema)
        tables = [self._read_slice(each, schema) for each in slices]
        return pa.concat_tables(tables).cast(target) if tables else target.empty_table()

    def _schema_of(self, file: InputFile) -> pa.Schema:
        schema = _footer(file).schema
        view = column_view(file, schema.names, self.columns, self.required)
        types = {name: schema.field(source).type for name, source in view.items()}
        types |= {name: required_type(file, name, types[name]) for name in self.required}
        return pa.schema(list(types.items()))

    def _read_slice(self, piece: Slice, schema: pa.Schema) -> pa.Table:
        with damage_named(piece.file, "Parquet"), _open(piece.file) as parquet:
            names = parquet.schema_arrow.names
            view = column_view(piece.file, names, self.columns, self.required)
            wanted = None if set(view.values()) == set(names) else list(view.values())
            source = parquet.read_row_groups(range(piece.start, piece.stop), columns=wanted, use_threads=False)
        rows = source.num_rows
        arrays = []
        for field in schema:
            array = source[view[field.name]] if field.name in view else pa.nulls(rows, field.type)
            arrays.append(array if array.type == field.type else array.cast(field.type))
        made = {
            SOURCE_PART: pa.repeat(piece.file.name, rows),
            SOURCE_ROW: pa.array(np.arange(piece.first_row, piece.first_row + rows)),
            DROP: pa.nulls(rows, pa.string()),
            ERROR: pa.nulls(rows, pa.string()),
        }
        table = pa.table([*arrays, *made.values()], names=[*schema.names, *made])
        for name in self.required:
            table = _check(table, name, self.max_row_bytes)
        return table


def _check(table: pa.Table, name: str, max_bytes: int) -> pa.Table:
    """Quarantine the rows whose required column is null, too long or no valid UTF-8."""
    column = table[name]
    if column.null_count:
        table = mark(table, pc.is_null(column), QUARANTINE, f"the column {name!r} is null")
    if python_type(name) is not str:
        return table
    lengths = pc.binary_length(column)
    if (pc.max(lengths).as_py() or 0) > max_bytes:
        too_long = pc.greater(lengths, max_bytes)
        table = mark(table, too_long, QUARANTINE, f"the column {name!r} is longer than max_row_mb")
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        table = _replace_invalid(table, name)
    return table


def _replace_invalid(table: pa.Table, name: str) -> pa.Table:
    # Rare, so row by row. The text stays readable for whoever looks into the quarantine, and safe to decode.
    raw = [value.as_buffer() for value in table[name]]
    texts = [None if each is None else each.to_pybytes().decode(errors="replace") for each in raw]
    invalid = [
        each is not None and text is not None and text.encode() != each.to_pybytes()
        for each, text in zip(raw, texts, strict=True)
    ]
    index = table.schema.get_field_index(name)
    table = table.set_column(index, name, pa.array(texts, pa.string()))
    return mark(table, pa.array(invalid), QUARANTINE, f"the column {name!r} is not valid UTF-8")


def _open(file: InputFile) -> pq.ParquetFile:
    path = locate(file.uri)
    # A path lets Arrow read by itself; of a remote file it fetches a row group's column chunks in one go.
    return pq.ParquetFile(str(path)) if is_local(path) else pq.ParquetFile(path.open("rb"), pre_buffer=True)


@lru_cache(maxsize=16384)  # the plan looks at each footer twice: for the schema and for the slices
def _footer(file: InputFile) -> _Footer:
    with damage_named(file, "Parquet"), _open(file) as parquet:
        groups = [parquet.metadata.row_group(index) for index in range(parquet.metadata.num_row_groups)]
        sizes = tuple((group.num_rows, group.total_byte_size) for group in groups)
        return _Footer(parquet.schema_arrow.remove_metadata(), sizes)
