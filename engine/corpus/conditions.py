"""Conditions on columns (`filters.where`): a row that fails one is marked with the reason `where`.

    negative, [a, b]             the cell, written as text, is this or one of these (1.0 is written 1)
    >=0.9, <=0.9, >0.9, <0.9     the cell is a number, and such a one; text that spells a number counts as it

A null meets no condition. Numbers are compared as float64, so whole numbers past 2**53 are rounded.

Left out: filters on texts (`engine.corpus.prefilters`). Called by `engine.corpus.transform` (the check) and inside the
read, by `engine.corpus.stream`.
"""

from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc

from engine.corpus.config import Wanted, comparison
from engine.corpus.marks import mark
from engine.errors import SchemaError

_COMPARE = {">=": pc.greater_equal, "<=": pc.less_equal, ">": pc.greater, "<": pc.less}
_NUMBER = r"^[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?$"


def check_conditions(where: Mapping[str, Wanted], schema: pa.Schema) -> None:
    """Raise `SchemaError` for a condition on a column that rows of this schema lack, or that holds neither."""
    for name in where:
        if name not in schema.names:
            raise SchemaError(
                f"filters.where names the column {name!r}, which the input does not have; "
                f"it has {', '.join(schema.names)}.",
                "Name one of these; a column renamed by source.columns goes by its new name.",
            )
        kind = _plain(schema.field(name).type)
        if not (_is_text(kind) or _is_number(kind) or any(test(kind) for test in _WRITTEN)):
            raise SchemaError(
                f"filters.where names the column {name!r}, which is {kind}, where text or numbers are needed.",
                "Leave it out.",
            )


def apply_conditions(table: pa.Table, where: Mapping[str, Wanted]) -> pa.Table:
    """Mark the rows of a table with marks that fail a condition."""
    for name, wanted in where.items():
        met = pc.fill_null(_met(table[name], wanted), False)
        table = mark(table, pc.invert(met), "where")
    return table


def _met(column: pa.ChunkedArray, wanted: Wanted) -> pa.ChunkedArray:
    """Whether each cell meets a condition; null where there is no cell, or no number to compare."""
    column = column.cast(_plain(column.type))
    compared = comparison(wanted) if isinstance(wanted, str) else None
    if compared:
        sign, limit = compared
        return _COMPARE[sign](_numbers(column), limit)
    values = [wanted] if isinstance(wanted, str) else wanted
    return pc.is_in(column.cast(pa.string()), value_set=pa.array(values, pa.string()))


def _numbers(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The cells as float64, null where one is no number."""
    if _is_text(column.type):
        text = pc.utf8_trim_whitespace(column.cast(pa.string()))
        text = pc.if_else(pc.match_substring_regex(text, _NUMBER), text, None)
        return pc.utf8_ltrim(text, characters="+").cast(pa.float64())
    if _is_number(column.type):
        return column.cast(pa.float64(), safe=False)
    return pa.chunked_array([pa.nulls(len(column), pa.float64())])


_WRITTEN = (pa.types.is_boolean, pa.types.is_date, pa.types.is_timestamp, pa.types.is_null)
"""What is neither text nor number, but can be written as text."""


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_text(kind: pa.DataType) -> bool:
    return any(test(kind) for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view))


def _is_number(kind: pa.DataType) -> bool:
    return any(test(kind) for test in (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal))
