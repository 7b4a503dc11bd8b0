"""What the readers of documents share: formats without columns of their own, read row by row.

A subclass of `RowReader` names its columns, all of them text, cuts slices and yields their rows; one of `FileReader`
takes a file whole and parses its bytes.

Left out: the formats (`text`, `html`, `python`, `warc`). Called through `engine.corpus.readers.base`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import ClassVar, NamedTuple

import pyarrow as pa

from engine.corpus.config import SourceConfig
from engine.corpus.marks import DROP, ERROR, QUARANTINE, SOURCE_PART, SOURCE_ROW, marked_schema
from engine.corpus.readers.base import Slice, column_view, damage_named, required_type
from engine.corpus.sources import InputFile
from engine.storage import locate

NO_TEXT = "no_text"
"""The reason of a page from which no text could be extracted."""


class Row(NamedTuple):
    """One row: its number in the file, its values by column, and the mark it carries, if any."""

    number: int
    values: dict[str, str]
    drop: str | None = None
    error: str | None = None

    @staticmethod
    def poison(number: int, error: str, values: dict[str, str] | None = None) -> "Row":
        """A quarantined row."""
        return Row(number, values or {}, QUARANTINE, error)


class RowReader(ABC):
    """A reader whose rows come one by one."""

    columns: ClassVar[tuple[str, ...]]

    def __init__(self, config: SourceConfig, required: tuple[str, ...]) -> None:
        self.config = config
        self.required = required

    @abstractmethod
    def slices(self, file: InputFile, target_bytes: int) -> list[Slice]:
        """Cut a file into slices of about `target_bytes`."""

    @abstractmethod
    def rows(self, piece: Slice) -> Iterator[Row]:
        """The rows of one slice."""

    def schema(self, files: Sequence[InputFile]) -> pa.Schema:
        """The format's columns after the renames of `source.columns`."""
        view = column_view(files[0], self.columns, self.config.columns, self.required)
        for name in self.required:
            required_type(files[0], name, pa.string())
        return pa.schema([pa.field(name, pa.string()) for name in view])

    def read(self, slices: Sequence[Slice], schema: pa.Schema) -> pa.Table:
        """The rows of some slices."""
        rows = [(piece.file.name, row) for piece in slices for row in self.rows(piece)]
        columns = [[row.values.get(self.config.columns.get(name, name)) for _, row in rows] for name in schema.names]
        made = {
            SOURCE_PART: [part for part, _ in rows],
            SOURCE_ROW: [row.number for _, row in rows],
            DROP: [row.drop for _, row in rows],
            ERROR: [row.error for _, row in rows],
        }
        target = marked_schema(schema)
        arrays = [
            pa.array(values, field.type) for values, field in zip([*columns, *made.values()], target, strict=True)
        ]
        return pa.Table.from_arrays(arrays, schema=target)


class FileReader(RowReader):
    """A reader of small files: each is one slice, however large, and read whole."""

    def slices(self, file: InputFile, target_bytes: int) -> list[Slice]:
        """The file as one slice."""
        return [Slice(file, 0, 1, 0, file.size)]

    def rows(self, piece: Slice) -> Iterator[Row]:
        """The rows of the file."""
        if piece.file.size > self.config.max_row_bytes:
            yield Row.poison(0, "the file is longer than max_row_mb")
            return
        with damage_named(piece.file, "readable"):
            data = locate(piece.file.uri).read_bytes()
        yield from self.parse(data)

    @abstractmethod
    def parse(self, data: bytes) -> Iterator[Row]:
        """The rows of a whole file."""
