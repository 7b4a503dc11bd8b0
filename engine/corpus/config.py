"""The recipe sections `source:` (which files are read, and how) and `filters:` (which rows are dropped on the way).

Left out: what the keys do (`engine.corpus.sources`, `engine.corpus.readers`, `engine.corpus.prefilters`). Light: it
imports neither pyarrow nor ray. Called by the recipe classes of `jobs`.
"""

import codecs
import math
import re
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from engine.config import Section, knob

STDLIB = "stdlib:"
"""The path that stands for the standard library of the running interpreter."""

PACKAGE = "package:"
"""Begins a path that stands for a directory of an installed package: `package:NAME/below`."""

SUFFIXES: dict[str, tuple[str, ...]] = {
    "parquet": (".parquet", ".pq"),
    "jsonl": (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz", ".jsonl.zst", ".ndjson.zst"),
    "csv": (".csv", ".tsv", ".csv.gz", ".tsv.gz", ".csv.zst", ".tsv.zst"),
    "text": (".txt", ".md", ".rst"),
    "python": (".py",),
    "html": (".html", ".htm", ".xhtml"),
    "dialogues": (".yml", ".yaml"),
    "warc": (".warc", ".warc.gz", ".warc.zst"),
}
"""The suffixes of each format's files."""

_SHARD_MB: dict[str, float] = {
    "parquet": 64, "jsonl": 64, "csv": 64, "warc": 64, "text": 16, "html": 16, "dialogues": 16, "python": 0.5,
}  # fmt: skip
_MEGABYTE = 1_000_000
_COMPARISON = re.compile(r"(>=|<=|>|<)(.*)", re.DOTALL)

Wanted = str | list[str]
"""A condition on a column: a value, a list of values, or a comparison with a number."""


class SourceConfig(Section):
    """Which files a job reads and how it reads them."""

    # What is read there decides, and that is the fingerprint of the inputs, not the recipe's.
    paths: list[str] = Field(min_length=1, json_schema_extra={"knob": True})
    """Files, directories, globs or URIs (file, s3, gs, az, hf); `stdlib:` is this Python's standard library,
    `package:NAME/below` a directory of an installed package, `reasoning-gym:NAME,NAME/COUNT` so many rows of each of
    these tasks of reasoning-gym, with a column `task`."""
    format: Literal["auto", "parquet", "jsonl", "csv", "text", "python", "html", "dialogues", "warc"] = "auto"
    """Format of all inputs; `auto` goes by the suffix and refuses mixtures; `dialogues` is ChatterBot's YAML."""
    roots: list[str] = knob(["."])
    """Local directories inputs may come from, symbolic links resolved."""
    include: list[str] | None = None
    """Globs on names inside walked directories; a glob without `/` is matched against the file's own name. Unset: the
    suffixes of the format."""
    exclude: list[str] | None = None
    """Globs of names to leave out; one without `/` also matches any directory on the way. Unset: hidden files and what
    the format's tools leave behind; of the standard library also its tests and installed packages."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Schema column -> source column, for example {text: content}."""
    shard_mb: float | None = Field(None, gt=0)
    """Aim for shards of this many uncompressed megabytes; unset: 64, 16 for text, html, dialogues, 0.5 for python."""
    max_row_mb: float = Field(16, gt=0)
    """A longer row is quarantined instead of read."""
    encoding: str = "utf-8"
    """Encoding of text and CSV files."""
    min_lines: int = Field(3, ge=1)
    """Shortest Python function taken, in lines without its docstring."""
    max_lines: int = Field(200, ge=1)
    """Longest Python function taken, in lines without its docstring."""
    require_docstring: bool = True
    """Take only Python functions with a docstring; otherwise the instruction may be empty."""

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, value: str) -> str:
        try:
            "".encode(value)  # a codec may be no encoding of text
            return codecs.lookup(value).name
        except LookupError:
            raise ValueError("no such encoding") from None

    @model_validator(mode="after")
    def _lines_in_order(self) -> "SourceConfig":
        if self.min_lines > self.max_lines:
            raise ValueError("min_lines is larger than max_lines")
        return self

    @property
    def max_row_bytes(self) -> int:
        """Longest row that is read, in bytes."""
        return int(self.max_row_mb * _MEGABYTE)

    def target_mb(self, format: str) -> float:
        """Target size of a shard of this format, in uncompressed megabytes."""
        return self.shard_mb or _SHARD_MB[format]


class FilterConfig(Section):
    """Which documents are dropped before anything costly sees them; every filter is off unless set."""

    min_chars: int | None = Field(None, ge=0)
    """Drop texts of fewer characters (reason too_short)."""
    max_chars: int | None = Field(None, ge=1)
    """Drop texts of more characters (reason too_long)."""
    max_symbol_ratio: float | None = Field(None, ge=0, le=1)
    """Drop texts with a larger share of symbols: neither letter, mark, digit nor space (reason symbols)."""
    max_repetition_ratio: float | None = Field(None, ge=0, le=1)
    """Drop texts with a larger share of characters in repeated lines (reason repetition)."""
    languages: list[str] | None = Field(None, min_length=1)
    """Keep only these languages, by ISO 639 code (reason language)."""
    min_language_score: float = Field(0.0, ge=0, le=1)
    """How sure the language must be."""
    exact_duplicates: bool = False
    """Drop texts that are equal to an earlier one (reason duplicate)."""
    where: dict[str, Wanted] = Field(default_factory=dict)
    """Keep only rows whose columns meet these, for example {kind: news, lang: [en, fr], score: ">=0.9"} (reason
    where). Values are compared as text; after >=, <=, > or < stands a number, which a cell that is none never meets."""

    @field_validator("where", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {name: list(map(_text, each)) if isinstance(each, list) else _text(each) for name, each in value.items()}

    @field_validator("where")
    @classmethod
    def _meetable(cls, value: dict[str, Wanted]) -> dict[str, Wanted]:
        for name, wanted in value.items():
            if isinstance(wanted, str):
                comparison(wanted)
            elif not wanted:
                raise ValueError(f"{name} has an empty list, which no cell meets")
        return value


def comparison(wanted: str) -> tuple[str, float] | None:
    """The sign and the number of a condition that compares; None for one that is a plain value.

    Raises `ValueError` where no number follows the sign.
    """
    found = _COMPARISON.fullmatch(wanted.strip())
    if found is None:
        return None
    try:
        number = float(found[2])
    except ValueError:
        number = math.nan
    if math.isnan(number):
        raise ValueError(f"no number follows {found[1]} in {wanted!r}; a text that begins so goes into a list")
    return found[1], number


def _text(value: Any) -> Any:
    """A number or truth value of YAML as the text that Arrow writes for it."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int | float) else value
