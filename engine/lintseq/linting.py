"""What a linter is to LintSeq: text in, erroneous lines out.

Three linters are built in: `FastLinter` (ours, in process), `PylintLinter` (the oracle) and `SyntaxLinter` (other
languages, their syntax alone). Any other implements `Linter` and is handed to `sample_edit_sequence`.

Left out: what to do about an error (the sampler). Called by the sampler and by the linters.
"""

import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import NamedTuple, Protocol

from engine.lintseq.options import LintSeqOptions

SYNTAX_ERROR = "syntax-error"
# Findings of these kinds name a variable, so they can be told apart from those the whole program already had.
NAME_CODES = frozenset(
    {"undefined-variable", "used-before-assignment", "possibly-used-before-assignment", "undefined-all-variable"}
)


class Finding(NamedTuple):
    """An error: the 0-based line it is on, what it is (pylint's symbol), and the name at fault or `""`."""

    line: int
    code: str
    name: str = ""


class Unlintable(Exception):
    """The linter can say nothing about a text: it nests too deep, or holds characters no parser takes."""


class Linter(Protocol):
    """Finds the errors of a program; the same lines always give the same findings.

    A linter may also offer `watch(lines) -> Watch | None`, a way of its own to follow a program as lines go, and
    `Layout`, where lines hang together otherwise than in Python.
    """

    def check(self, lines: Sequence[str]) -> list[Finding]:
        """The errors of the program `"\\n".join(lines)`; an empty list when it is clean.

        Each finding's line is an index into `lines`. A text that does not parse gives findings with the code
        `syntax-error`. Raises `Unlintable`.
        """
        ...


class Layout(Protocol):
    """How the lines of a language other than Python hang together."""

    def candidates(self, lines: Sequence[str]) -> list[int]:
        """The lines that may be drawn, ascending: no blanks, no comments, no insides of strings."""
        ...

    def indents(self, lines: Sequence[str]) -> list[int]:
        """How deep each line stands; those deeper than the line before them go with it."""
        ...


Given = frozenset[tuple[str, str]]
"""Errors, as (code, name), that are taken to be none of the sampler's business."""


class Watch(Protocol):
    """One program under a linter's eye while its lines go: `initial` are the errors of the whole program."""

    initial: list[Finding]

    def errors(self, alive: bytearray, given: Given) -> list[int]:
        """The erroneous lines, ascending, when only those marked 1 in `alive` are there; those `given` left aside.

        A text about which the linter can say nothing is wrong in every line.
        """
        ...


class Relint:
    """The `Watch` of any linter: the text of every state is checked anew."""

    def __init__(self, linter: Linter, lines: Sequence[str]) -> None:
        self._linter = linter
        self._lines = lines
        try:
            self.initial = linter.check(lines)
        except Unlintable:
            self.initial = [Finding(0, SYNTAX_ERROR)]

    def errors(self, alive: bytearray, given: Given) -> list[int]:
        """See `Watch.errors`."""
        kept = [index for index, here in enumerate(alive) if here]
        if not kept:
            return []
        try:
            findings = self._linter.check([self._lines[index] for index in kept])
        except Unlintable:
            return kept
        return sorted({kept[each.line] for each in findings if (each.code, each.name) not in given})


def watch(linter: Linter, lines: Sequence[str]) -> Watch:
    """The linter's own way of watching a program, if it has one, else `Relint`."""
    own = getattr(linter, "watch", None)
    watched: Watch | None = own(lines) if own is not None else None
    return watched or Relint(linter, lines)


@lru_cache(maxsize=8)
def linter_for(options: LintSeqOptions) -> Linter:
    """The linter the options name, built once per process."""
    if options.linter == "syntax":
        from engine.lintseq.syntax_linter import SyntaxLinter

        return SyntaxLinter(options.language)
    if options.linter == "pylint":
        from engine.lintseq.pylint_linter import PylintLinter

        return PylintLinter(missing_imports=options.missing_imports, strict_indentation=options.reference_compat)
    from engine.lintseq.fast_linter import FastLinter

    return FastLinter(missing_imports=options.missing_imports, strict_indentation=options.reference_compat)


class LineNumbers:
    """Turns the 1-based line numbers of Python's parser into 0-based indices of `lines`.

    The parser ends a line at a lone carriage return too, LintSeq at a newline only. Numbers past the end (an error at
    the end of the file) mean the last line.
    """

    def __init__(self, lines: Sequence[str]) -> None:
        self._last = len(lines) - 1
        self._starts: list[int] | None = None
        if any("\r" in line for line in lines):
            self._starts = [index for index, line in enumerate(lines) for _ in range(_parser_lines(line))]

    def index(self, number: int | None) -> int:
        """The line that holds the parser's line `number`; None (no place given) means the first."""
        at = max((number or 1) - 1, 0)
        if self._starts is not None:
            return self._starts[at] if at < len(self._starts) else self._last
        return min(at, self._last)


def _parser_lines(line: str) -> int:
    """How many lines the parser counts in one of ours."""
    return 1 + line.count("\r") - line.endswith("\r")


def blamed_line(message: str, number: int | None) -> int | None:
    """The line a syntax error is about: the opener that `... on line N` names, else the line it was noticed on."""
    if "on line" in message:
        last = message.rstrip().rpartition(" ")[2]
        if last.isdecimal():
            return int(last)
    return number


def without_mark(lines: Sequence[str]) -> Sequence[str]:
    """The lines without the byte order mark that a file may begin with, as Python reads it."""
    return [lines[0][1:], *lines[1:]] if lines and lines[0].startswith("\ufeff") else lines


_warnings_lock = threading.Lock()


@contextmanager
def no_warnings() -> Iterator[None]:
    """Keep the parser's warnings about the programs (invalid escapes and the like) from the user's filters.

    Python's warning filters belong to the process, hence the lock: two threads must not restore each other's.
    """
    with _warnings_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
