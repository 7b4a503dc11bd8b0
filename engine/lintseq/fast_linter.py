"""The fast linter: Python's own compiler for the form, our reading of the names for the rest, all in process.

It finds what taking lines away can break: the syntax, statements left outside their function or loop, names left
without a definition on some way to their use, and what classes and calls need of other lines. A program is parsed and
outlined once (`engine.lintseq.outlining`); every state of it is then told from the outline (`engine.lintseq.flow`), in
some tens of microseconds. It knows nothing of installed packages nor of what this process has put among the built-in
names, so its answer is the same on every machine that runs the same Python.

Left out: types, call signatures, and attributes of anything but `self`, `cls` and `super()`, which only the oracle
(`engine.lintseq.pylint_linter`) looks at. Called by the sampler; the default linter.
"""

import ast
import builtins
import importlib.util
from collections.abc import Callable, Iterator, Sequence

from engine.lintseq.flow import Flow
from engine.lintseq.linting import (
    SYNTAX_ERROR,
    Finding,
    Given,
    LineNumbers,
    Unlintable,
    Watch,
    blamed_line,
    no_warnings,
    without_mark,
)
from engine.lintseq.names import NestedTooDeep
from engine.lintseq.needs import needs_of
from engine.lintseq.outlining import Outline

_INDENT = 4
# What Python itself defines: consoles, gettext and others put names of their own among the built-in ones.
ALWAYS_DEFINED = {name for name, value in vars(builtins).items() if getattr(value, "__module__", "") == "builtins"} | {
    *("Ellipsis", "False", "None", "NotImplemented", "True", "__annotations__", "__builtins__", "__cached__"),
    *("__class__", "__debug__", "__doc__", "__file__", "__loader__", "__module__", "__name__", "__package__"),
    *(
        "__path__",
        "__qualname__",
        "__spec__",
        "WindowsError",
        "copyright",
        "credits",
        "exit",
        "license",
        "open",
        "quit",
    ),
}
# What the parser raises beside SyntaxError: lone surrogates (ValueError), nesting past its stack (the other two).
_HOPELESS = (ValueError, RecursionError, MemoryError, NestedTooDeep)


class FastLinter:
    """Syntax by `compile`, names by an outline of the program, the rest by what lines need of each other.

    `missing_imports` counts modules that are not installed as errors; `strict_indentation` counts statements that
    are not indented by four spaces a level. Both are off by default and exist for comparison with the reference.
    """

    def __init__(self, *, missing_imports: bool = False, strict_indentation: bool = False) -> None:
        self._missing_imports = missing_imports
        self._strict_indentation = strict_indentation

    def check(self, lines: Sequence[str]) -> list[Finding]:
        """The errors of the program; see `Linter.check`."""
        lines = without_mark(lines)
        text = "\n".join(lines)
        numbers = LineNumbers(lines)
        with no_warnings():
            parsed = self._parsed(text, lines, numbers)
            if isinstance(parsed, Finding):
                return [parsed]
            tree, flow, _ = parsed
            findings = _initial(flow, lines)
            if self._missing_imports:
                findings += [Finding(numbers.index(at), "import-error", name) for at, name in _missing_modules(tree)]
            if self._strict_indentation:
                findings += [Finding(numbers.index(at), "bad-indentation") for at in _badly_indented(tree, text)]
            return findings or self._compiler_errors(text, numbers)

    def watch(self, lines: Sequence[str]) -> Watch | None:
        """The program's outline, followed as lines go; None where every state has to be checked anew.

        Stricter than `check` in three points. A clause whose statement has gone (`else` without its `if`) is an error
        even where it happens to fit the statement before; so is what is left of a class's header; and a name that the
        program itself defines is not taken for one that a star import brings.
        """
        if self._missing_imports or self._strict_indentation:
            return None
        lines = without_mark(lines)
        text = "\n".join(lines)
        numbers = LineNumbers(lines)
        try:
            with no_warnings():
                parsed = self._parsed(text, lines, numbers)
                if isinstance(parsed, Finding):
                    return Hopeless(parsed)
                if self._compiler_errors(text, numbers):
                    return None  # the outline does not know these errors
                tree, flow, late = parsed
                initial = _initial(flow, lines)
        except Unlintable:
            return Hopeless(Finding(0, SYNTAX_ERROR))
        return Followed(initial, flow, late, lambda: _flow(tree, lines, numbers, late_annotations=False))

    def _parsed(
        self, text: str, lines: Sequence[str], numbers: LineNumbers
    ) -> Finding | tuple[ast.Module, Flow, list[int]]:
        """The tree, the flow through it, and the lines that put off the evaluation of its annotations."""
        try:
            tree = ast.parse(text)
            late = [numbers.index(number) for number in _late_annotations(tree)]
            return tree, _flow(tree, lines, numbers, late_annotations=bool(late)), late
        except SyntaxError as error:
            return Finding(numbers.index(blamed_line(error.msg, error.lineno)), SYNTAX_ERROR)
        except _HOPELESS as error:
            raise Unlintable(str(error)) from error

    def _compiler_errors(self, text: str, numbers: LineNumbers) -> list[Finding]:
        """What only a full compilation notices: `return` outside a function, `break` outside a loop, and the like."""
        try:
            compile(text, "<program>", "exec", dont_inherit=True)
        except SyntaxError as error:
            return [Finding(numbers.index(blamed_line(error.msg, error.lineno)), "misplaced-statement")]
        except _HOPELESS as error:
            raise Unlintable(str(error)) from error
        return []


class Followed:
    """A program that is followed through its outline; see `engine.lintseq.linting.Watch`."""

    def __init__(
        self, initial: list[Finding], flow: Flow, late: Sequence[int], without_late: Callable[[], Flow]
    ) -> None:
        self.initial = initial
        self._flows = [flow]
        self._late = late
        """The lines that put off the evaluation of annotations; when they have gone, `without_late` is followed."""
        self._without_late = without_late
        self._given: Given = frozenset()
        self._names = ALWAYS_DEFINED

    def errors(self, alive: bytearray, given: Given) -> list[int]:
        """See `Watch.errors`."""
        if given is not self._given:
            self._given = given
            self._names = ALWAYS_DEFINED | {name for code, name in given if code == "undefined-variable"}
            for flow in self._flows:
                flow.define(self._names)
        found = self._followed(alive).errors(alive)
        return sorted({line for line, code, name in found if (code, name) not in given}) if found else []

    def _followed(self, alive: bytearray) -> Flow:
        """The flow that fits the lines that are there."""
        if not self._late or any(alive[line] for line in self._late):
            return self._flows[0]
        if len(self._flows) == 1:
            self._flows.append(self._without_late())
            self._flows[1].define(self._names)
        return self._flows[1]


class Hopeless:
    """A program that does not parse: there is nothing to follow."""

    def __init__(self, error: Finding) -> None:
        self.initial = [error]

    def errors(self, alive: bytearray, given: Given) -> list[int]:
        """All of it."""
        return [line for line, here in enumerate(alive) if here]


def _initial(flow: Flow, lines: Sequence[str]) -> list[Finding]:
    """The errors of the whole program."""
    return [Finding(*each) for each in flow.errors(bytearray(b"\1") * len(lines))]


def _flow(tree: ast.Module, lines: Sequence[str], numbers: LineNumbers, *, late_annotations: bool) -> Flow:
    """The outline of a program, ready to be followed."""
    outline = Outline(tree, lines, numbers, late_annotations=late_annotations)
    # One function alone neither calls nor inherits from anything of its own.
    alone = len(tree.body) == len(outline.scopes) == 1 and outline.scopes[0].kind == "function"
    flow = Flow(outline, [] if alone else needs_of(tree, numbers.index))
    flow.define(ALWAYS_DEFINED)
    return flow


def _late_annotations(tree: ast.Module) -> Iterator[int]:
    """The parser's line of each `from __future__ import annotations`."""
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module == "__future__":
            yield from (alias.lineno for alias in node.names if alias.name == "annotations")


def _missing_modules(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """The parser's line and the name of each imported module that is not installed."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module]
        else:
            continue
        yield from ((node.lineno, name) for name in names if not _installed(name.partition(".")[0]))


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:
        # A module that is loaded but has no spec, such as __main__.
        return True


def _badly_indented(tree: ast.Module, text: str) -> Iterator[int]:
    """The parser's line of each statement that begins its line but not at four spaces a level."""
    rows = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    pending: list[tuple[ast.AST, int]] = [(tree, -1)]
    while pending:
        node, level = pending.pop()
        if isinstance(node, ast.stmt):
            indent = rows[node.lineno - 1]
            indent = indent[: len(indent) - len(indent.lstrip())]
            if len(indent.encode()) == node.col_offset and indent != " " * (_INDENT * level):
                yield node.lineno
        for field, children in ast.iter_fields(node):
            for child in children if isinstance(children, list) else ():
                if isinstance(child, ast.stmt | ast.ExceptHandler | ast.match_case):
                    # `elif` is an If inside `orelse` but stands, like `except`, at its parent's level.
                    chained = field == "orelse" and isinstance(child, ast.If) and child.col_offset == _column(node)
                    same = chained or isinstance(child, ast.ExceptHandler)
                    pending.append((child, level if same else level + 1))


def _column(node: ast.AST) -> int:
    return getattr(node, "col_offset", -1)
