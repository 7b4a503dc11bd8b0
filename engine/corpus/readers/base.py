"""What every reader is: a Protocol, the slice it reads, and what readers of several formats share.

A reader cuts a file into slices (the same ones every time), settles one schema over all files, and reads slices into
Arrow tables that carry `source_part`, `source_row` and the marks. A poison row comes back marked with its error; a
damaged file is a `SourceError`.

Left out: the formats themselves (one module each, beside this one) and the grouping of slices into shards
(`engine.corpus.plan`). Called by the plan in the driver and by the stream in the workers.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

import pyarrow as pa

from engine.corpus.config import SourceConfig
from engine.corpus.marks import RESERVED
from engine.corpus.sources import InputFile
from engine.errors import SchemaError, SourceError, redact

_READERS = {
    "parquet": ("engine.corpus.readers.parquet", "ParquetReader"),
    "jsonl": ("engine.corpus.readers.jsonl", "JsonlReader"),
    "csv": ("engine.corpus.readers.csv", "CsvReader"),
    "text": ("engine.corpus.readers.text", "TextReader"),
    "python": ("engine.corpus.readers.python", "PythonReader"),
    "dialogues": ("engine.corpus.readers.dialogues", "DialogueReader"),
    "html": ("engine.corpus.readers.html", "HtmlReader"),
    "warc": ("engine.corpus.readers.warc", "WarcReader"),
}

_NOT_TEXT: dict[str, tuple[Any, str]] = {
    "messages": (list, "a list"),
    "edits": (list, "a list"),
    "seed": (int, "a whole number"),
    "path": (int, "a whole number"),
    "label": ((str, int), "text or a whole number"),
}
"""Required columns that hold something else than text: its Python type and its name."""


@dataclass(frozen=True, slots=True)
class Slice:
    """A piece of one file: `start` to `stop` in the reader's own units, `size` in estimated uncompressed bytes.

    `first_row` is the `source_row` of its first row, counted in the whole file.
    """

    file: InputFile
    start: int
    stop: int
    first_row: int
    size: int


class Reader(Protocol):
    """Reads the files of one format; a reader is pickled to workers, so it holds settings and nothing else."""

    def slices(self, file: InputFile, target_bytes: int) -> list[Slice]:
        """Cut a file into slices of about `target_bytes`; a file without rows may give none."""
        ...

    def schema(self, files: Sequence[InputFile]) -> pa.Schema:
        """The columns of the rows of all files together. Raises `SchemaError`."""
        ...

    def read(self, slices: Sequence[Slice], schema: pa.Schema) -> pa.Table:
        """The rows of some slices, in order: `schema`, then `source_part`, `source_row` and the marks."""
        ...


def reader_for(format: str, config: SourceConfig, required: Sequence[str]) -> Reader:
    """The reader of a format, for rows that must have the `required` columns."""
    module, name = _READERS[format]
    reader: Reader = getattr(import_module(module), name)(config, tuple(required))
    return reader


@contextmanager
def damage_named(file: InputFile, what: str) -> Iterator[None]:
    """Turn what a library says of a damaged, vanished or forbidden file into a `SourceError` that names the file.

    An `OSError` that carries an error number comes from the file system or the network and passes unchanged.
    """
    try:
        yield
    except FileNotFoundError:
        raise SourceError(f"{redact(file.uri)} is no longer there.", "Put it back, or start a new run.") from None
    except PermissionError:
        raise SourceError(f"{redact(file.uri)} may not be read.", "Grant read permission.") from None
    except (pa.ArrowInvalid, OSError, EOFError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = str(error).strip().partition("\n")[0].partition(". ")[0].rstrip(".")[:200]
        raise SourceError(
            f"{redact(file.uri)} is not a whole {what} file: {reason}.",
            "Fetch or write it again, or leave it out with source.exclude.",
        ) from error


def column_view(
    file: InputFile, names: Sequence[str], columns: Mapping[str, str], required: Sequence[str]
) -> dict[str, str]:
    """Which column of a file each column of the rows is taken from, after the renames of `source.columns`.

    A renamed column hides one that has its new name already; the stream's own columns hide theirs. Raises
    `SchemaError` for a column that is required, or named in the recipe, and not there.
    """
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise SchemaError(f"{file.name} has more than one column {twice[0]!r}.", "Rename one of them.")
    taken = set(columns.values())
    kept = {name: name for name in names if name not in taken and name not in columns and name not in RESERVED}
    view = dict(columns) | kept
    for name in (*required, *columns):
        if view.get(name) not in names:
            raise SchemaError(
                f"{file.name} has no column {columns.get(name, name)!r}; it has {', '.join(names) or 'none'}.",
                "Name the column to take instead among the source's keys, for example"
                f" columns: {{{name}: {(*names, 'content')[0]}}}.",
            )
    return view


def python_type(name: str) -> Any:
    """The Python type of a required column's values, as for `isinstance`: `str`, `list`, `int` or several."""
    return _NOT_TEXT[name][0] if name in _NOT_TEXT else str


def type_name(name: str) -> str:
    """What a required column holds, in words."""
    return _NOT_TEXT[name][1] if name in _NOT_TEXT else "text"


def required_type(file: InputFile, name: str, type_: pa.DataType) -> pa.DataType:
    """The type a required column is read as: text in any Arrow form becomes `string`. Raises `SchemaError`."""
    types = pa.types
    plain = type_.value_type if types.is_dictionary(type_) else type_
    texts = (types.is_string, types.is_large_string, types.is_string_view)
    tests: dict[Any, tuple[Any, ...]] = {
        str: texts,
        list: (types.is_list, types.is_large_list),
        int: (types.is_integer,),
        (str, int): (*texts, types.is_integer),
    }
    if any(test(plain) for test in tests[python_type(name)]):
        return pa.string() if python_type(name) is str else type_
    raise wrong_type(file, name, str(type_))


def wrong_type(file: InputFile, name: str, found: str) -> SchemaError:
    """The error for a required column whose type does not serve."""
    return SchemaError(
        f"The column {name!r} of {file.name} is {found}, where {type_name(name)} is needed.",
        f"Choose another column with the source's columns={{{name}: ...}}, or convert it.",
    )


def unify(schemas: Iterable[tuple[InputFile, pa.Schema]]) -> pa.Schema:
    """One schema that holds the rows of all files: columns in order of appearance, numbers widened where they differ.

    Raises `SchemaError`, naming both files and the column, where types cannot be brought together.
    """
    fields: dict[str, pa.Field] = {}
    owner: dict[str, InputFile] = {}
    for file, schema in schemas:
        for each in schema:
            field = pa.field(each.name, each.type, metadata=each.metadata)
            known = fields.setdefault(field.name, field)
            first = owner.setdefault(field.name, file)
            if known.type == field.type:
                continue
            try:
                pair = [pa.schema([known]), pa.schema([field])]
                fields[field.name] = pa.unify_schemas(pair, promote_options="permissive").field(0)
            except (pa.ArrowTypeError, pa.ArrowInvalid):
                raise SchemaError(
                    f"The column {field.name!r} is {known.type} in {first.name} but {field.type} in {file.name}.",
                    "Convert one of them, or read the two files in separate jobs.",
                ) from None
    return pa.schema(list(fields.values()))
