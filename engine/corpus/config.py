"""The recipe sections `source:` (which files are read, and how) and `filters:` (which rows are dropped on the way).

Left out: what the keys do (`engine.corpus.sources`, `engine.corpus.readers`, `engine.corpus.prefilters`). Light: it
imports neither pyarrow nor ray. Called by the recipe classes of `jobs`.
"""

import codecs
from typing import Literal

from pydantic import Field, field_validator, model_validator

from engine.config import Section, knob

STDLIB = "stdlib:"
"""The path that stands for the standard library of the running interpreter."""

PACKAGE = "package:"
"""Begins a path that stands for a directory of an installed package: `package:NAME/below`."""

_SHARD_MB: dict[str, float] = {"parquet": 64, "jsonl": 64, "warc": 64, "text": 16, "html": 16, "python": 0.5}
_MEGABYTE = 1_000_000


class SourceConfig(Section):
    """Which files a job reads and how it reads them."""

    paths: list[str] = Field(min_length=1)
    """Files, directories, globs or URIs (file, s3, gs, az, hf); `stdlib:` is this Python's standard library,
    `package:NAME/below` a directory of an installed package."""
    format: Literal["auto", "parquet", "jsonl", "text", "python", "html", "warc"] = "auto"
    """Format of all inputs; `auto` goes by the suffix and refuses mixtures."""
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
    """Aim for shards of this many uncompressed megabytes; unset: 64, or 16 for text and html, or 0.5 for python."""
    max_row_mb: float = Field(16, gt=0)
    """A longer row is quarantined instead of read."""
    encoding: str = "utf-8"
    """Encoding of text files."""
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
