"""Marks: rows are marked with a reason and stay in the stream, so that a shard's completeness is known at its end.

Every table in the corpus stream carries four columns beside its own: `source_part` and `source_row` say where a row
came from, `_drop` why it will be dropped (null: it is kept), `_error` what was wrong with a quarantined row.

Left out: the dropping itself (the writer does it) and the reasons (readers and filters name them). Called by the
readers, the prefilters and every stage that drops rows.
"""

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

DROP = "_drop"
ERROR = "_error"
SOURCE_PART = "source_part"
SOURCE_ROW = "source_row"
QUARANTINE = "quarantine"
"""The reason of a poison row; its `_error` says what is wrong with it."""

RESERVED = (SOURCE_PART, SOURCE_ROW, DROP, ERROR)
"""Columns the stream makes itself; an input's own columns of these names give way."""


def marked_schema(schema: pa.Schema) -> pa.Schema:
    """The schema of a reader's tables: the rows' own columns, then where they came from, then the marks."""
    types = {SOURCE_PART: pa.string(), SOURCE_ROW: pa.int64(), DROP: pa.string(), ERROR: pa.string()}
    return pa.schema([*schema, *(pa.field(name, type_) for name, type_ in types.items())])


def unmarked(table: pa.Table) -> pa.ChunkedArray:
    """Which rows are still kept: one boolean per row."""
    return pc.is_null(table[DROP])


def mark(table: pa.Table, mask: Any, reason: str, error: Any = None) -> pa.Table:
    """Mark the rows where `mask` is true and no mark is set yet; the first reason stays.

    `mask` holds one boolean per row (null counts as false). `error`, a string or one string per row, is written where
    the mark is set.
    """
    if isinstance(mask, pa.Array):
        mask = pa.chunked_array([mask])
    chosen = pc.and_(pc.fill_null(mask, False), unmarked(table))
    if not pc.any(chosen).as_py():
        return table
    table = _write(table, DROP, chosen, reason)
    return table if error is None else _write(table, ERROR, chosen, error)


def _write(table: pa.Table, name: str, chosen: pa.ChunkedArray, value: Any) -> pa.Table:
    value = pa.scalar(value, pa.string()) if isinstance(value, str) else value
    index = table.schema.get_field_index(name)
    return table.set_column(index, table.schema.field(index), pc.if_else(chosen, value, table[name]))
