"""What a program's outline is made of: steps, clauses and scopes, each with its lines and its names.

An outline is built once per program from its syntax tree (`engine.lintseq.outlining`), so that what happens when lines
go can be told without parsing again (`engine.lintseq.flow`). Names are bits of whole numbers; bit 0 is kept for
"never reached". Line numbers are indices into the program's lines. Where a statement or a header stands on several
lines and some of them go, its `span` knows what is left.

Left out: building and following. Called by both.
"""

from collections.abc import Sequence
from typing import Protocol

SIMPLE, JUMP, BLIND, IF, LOOP, TRY, WITH, MATCH, DEF, CLASS = range(10)
"""Kinds of steps. SIMPLE covers every statement that control passes through; JUMP those it leaves by; BLIND a
comprehension's inside in a class body, which does not see the names of that class."""

UNREACHED = 1
"""The bit of a set of bound names that says: control does not get here."""


class Rest(Protocol):
    """What is left of something that stands on several lines when some of them have gone."""

    def steps(self, alive: bytearray) -> "list[Step] | None":
        """The steps of what is left, given that its first line is; None if it parses no more as what it was.

        For a header the one step has one clause, with the new header and the block as it was.
        """
        ...


class Use:
    """One name read: its bit, where, and whether at once or only later (inside a lambda)."""

    __slots__ = ("bit", "later", "line", "name")

    def __init__(self, bit: int, line: int, name: str, later: bool) -> None:
        self.bit, self.line, self.name, self.later = bit, line, name, later


class Step:
    """A statement, or a part of one that is evaluated at once.

    `line` is the line it begins on (of a decorated definition, that of `def`), `start` to `end` all its lines. `reads`
    are names read at once, `later` those read at some later time, `writes` those bound afterwards, `binds` those that
    become names of the scope (a superset), `unbinds` those deleted.
    """

    __slots__ = (
        *("augmented", "binds", "clauses", "decorators", "end", "exports", "inner", "kind", "later", "leaves", "line"),
        *("reads", "span", "start", "unbinds", "uses", "writes"),
    )

    def __init__(self, line: int, end: int, kind: int = SIMPLE) -> None:
        self.line = self.start = line
        self.end = end
        self.kind = kind
        self.reads = self.later = self.writes = self.binds = self.unbinds = 0
        self.uses: list[Use] = []
        self.augmented = False
        self.leaves = ""
        """Of a JUMP: `break`, or empty for any other; of a loop: `never` if nothing but `break` ends it."""
        self.span: Rest | None = None
        self.decorators: list[Step] = []
        self.clauses: list[Clause] = []
        self.inner: Scope | None = None
        self.exports: list[tuple[int, int, str]] = []
        """Of `__all__ = [...]`: bit, line and name of each entry."""


class Clause:
    """A header line with a block under it: `kind` is its first word (`if`, `elif`, `else`, `except`, ...)."""

    __slots__ = ("body", "head", "kind", "last", "line", "parameters", "span", "tail")

    def __init__(self, kind: str, line: int, last: int, body: list[Step]) -> None:
        self.kind = kind
        self.line, self.last = line, last
        self.span: Rest | None = None
        self.head: list[Step] = []
        """What the header evaluates before the block."""
        self.parameters = 0
        """Of a function: the names its header binds inside."""
        self.body = body
        self.tail: Step | None = None
        """What is bound only while or after the block runs: a loop's target, a handler's name, a pattern's captures."""


class Scope:
    """A function's or a class's body, and all that binds names in it."""

    __slots__ = ("_by_bit", "binders", "elsewhere", "end", "kind", "memo", "start")

    def __init__(self, kind: str) -> None:
        self.kind = kind  # module, class or function
        self.binders: list[tuple[int, int, Step | None, int]] = []
        """(line, names, step, line of the header it stands under) of what binds; no step for a header."""
        self._by_bit: dict[int, list[tuple[int, Step | None, int]]] | None = None
        self.elsewhere: list[tuple[int, int, bool]] = []
        """(line, names, whether nonlocal) of each `global` and `nonlocal`."""
        self.start = self.end = 0
        self.memo: dict[bytes, tuple[int, int, list[tuple[int, str, str]], list[int]]] = {}
        """What `engine.lintseq.flow` found, by which lines were there."""

    def binders_of(self, bit: int) -> Sequence[tuple[int, Step | None, int]]:
        """Those of `binders` that bind one name; to be asked for when all of them are known."""
        if self._by_bit is None:
            self._by_bit = {}
            for line, names, step, under in self.binders:
                while names:
                    lowest = names & -names
                    names ^= lowest
                    self._by_bit.setdefault(lowest, []).append((line, step, under))
        return self._by_bit.get(bit, ())
