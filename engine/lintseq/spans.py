"""Statements and headers that stand on several lines: what is left of them when some of the lines go.

Left out: everything that stands on one line, which is there or is not. Called by `engine.lintseq.outlining`, which
makes the steps, and through the outline by `engine.lintseq.flow`.
"""

import ast
from collections.abc import Callable, Sequence

from engine.lintseq.linting import no_warnings
from engine.lintseq.outline import Clause, Scope, Step

Outlined = Callable[[ast.stmt, Sequence[int], Scope, Clause | None], list[Step]]
"""Makes the steps of a statement parsed from some of a program's lines; see `Outline.part`."""

_MEMO = 100
"""Most choices of lines remembered of one statement; each costs memory in proportion to what is left."""
_QUOTES = (b'"""', b"'''")


class Nothing:
    """What is left of a statement that cannot be taken apart."""

    def steps(self, alive: bytearray) -> None:
        """None: it goes as a whole."""


class Span:
    """Several lines of one statement or header: what is left of them is parsed again, once per choice of lines."""

    def __init__(
        self, outlined: Outlined, scope: Scope, node: ast.stmt, lines: Sequence[str], whole: Step | Clause
    ) -> None:
        self._outlined, self._scope, self._node, self._lines, self._whole = outlined, scope, node, lines, whole
        self._start, self._end = whole.line, whole.end if isinstance(whole, Step) else whole.last
        self._is_string = isinstance(whole, Step) and _is_one_string(node, lines[self._start : self._end + 1])
        self._known: dict[bytes, list[Step] | None] = {}

    def steps(self, alive: bytearray) -> list[Step] | None:
        """See `engine.lintseq.outline.Rest`."""
        kept = bytes(alive[self._start : self._end + 1])
        if self._is_string and isinstance(self._whole, Step):
            return [self._whole] if kept[-1] else None
        if kept not in self._known:
            if len(self._known) >= _MEMO:
                self._known.clear()
            self._known[kept] = self._parsed([line for line, here in enumerate(kept, self._start) if here])
        return self._known[kept]

    def _parsed(self, lines: Sequence[int]) -> list[Step] | None:
        """The steps of what some of the lines say, if they still say the same kind of thing."""
        # Lines after the first stand inside brackets or a string; only the first one's indentation counts.
        text = "\n".join(self._lines[line] for line in lines).lstrip()
        if "\r" in text:
            return None
        whole = text
        if isinstance(self._whole, Clause):
            whole = text = f"{text.removeprefix('el') if self._whole.kind == 'elif' else text}\n pass"
        if not isinstance(self._node, ast.FunctionDef | ast.AsyncFunctionDef):
            # In a loop in a coroutine, where `break`, `await` and `return` are at home.
            whole = "async def _():\n while 1:\n  " + text.replace("\n pass", "\n   pass")
        try:
            with no_warnings():
                (node,) = ast.parse(text).body
                compile(whole, "<part>", "exec", dont_inherit=True)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return None
        if type(node) is not type(self._node):
            return None
        return self._outlined(node, lines, self._scope, self._whole if isinstance(self._whole, Clause) else None)


def _is_one_string(node: ast.stmt, lines: Sequence[str]) -> bool:
    """Whether a statement is a single string in triple quotes: then it holds as long as its first and last line do."""
    if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)):
        return False
    # Other statements may stand on its first and last line; the parser counts in bytes.
    first, last = lines[0].encode()[node.col_offset :], lines[-1].encode()[: node.end_col_offset]
    text = b"\n".join([first, *(line.encode() for line in lines[1:-1]), last])
    quotes = text.lstrip(b"rRuU")[:3]
    return quotes in _QUOTES and text.count(quotes) == 2 and text.endswith(quotes)
