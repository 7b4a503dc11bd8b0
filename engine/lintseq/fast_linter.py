"""The fast linter: Python's own compiler for the form, our reading of the names for the rest, all in process.

It finds what taking lines away can break: the syntax, statements left outside their function or loop, and names left
without a definition on some way to their use (`engine.lintseq.names`). It knows nothing of installed packages, so
its answer is the same on every machine that runs the same Python.

Left out: types, attributes and call signatures, which only the oracle (`engine.lintseq.pylint_linter`) looks at.
Called by the sampler; the default linter.
"""

import ast
import importlib.util
from collections.abc import Iterator, Sequence

from engine.lintseq.linting import SYNTAX_ERROR, Finding, LineNumbers, Unlintable, blamed_line, no_warnings
from engine.lintseq.names import NestedTooDeep, name_errors

_INDENT = 4
# What the parser raises beside SyntaxError: lone surrogates (ValueError), nesting past its stack (the other two).
_HOPELESS = (ValueError, RecursionError, MemoryError, NestedTooDeep)


class FastLinter:
    """Syntax and names by `compile` and one walk over the tree; about a millisecond for a function of 40 lines.

    `missing_imports` counts modules that are not installed as errors; `strict_indentation` counts statements that
    are not indented by four spaces a level. Both are off by default and exist for comparison with the reference.
    """

    def __init__(self, *, missing_imports: bool = False, strict_indentation: bool = False) -> None:
        self._missing_imports = missing_imports
        self._strict_indentation = strict_indentation

    def check(self, lines: Sequence[str]) -> list[Finding]:
        """The errors of the program; see `Linter.check`."""
        text = "\n".join(lines)
        numbers = LineNumbers(lines)
        with no_warnings():
            try:
                tree = ast.parse(text)
            except SyntaxError as error:
                return [Finding(numbers.index(blamed_line(error.msg, error.lineno)), SYNTAX_ERROR)]
            except _HOPELESS as error:
                raise Unlintable(str(error)) from error
            try:
                found = name_errors(tree, text)
            except _HOPELESS as error:
                raise Unlintable(str(error)) from error
            if self._missing_imports:
                found += [(number, "import-error", name) for number, name in _missing_modules(tree)]
            if self._strict_indentation:
                found += [(number, "bad-indentation", "") for number in _badly_indented(tree, text)]
            findings = [Finding(numbers.index(number), code, name) for number, code, name in found]
            return findings or self._compiler_errors(text, numbers)

    def _compiler_errors(self, text: str, numbers: LineNumbers) -> list[Finding]:
        """What only a full compilation notices: `return` outside a function, `break` outside a loop, and the like."""
        try:
            compile(text, "<program>", "exec", dont_inherit=True)
        except SyntaxError as error:
            return [Finding(numbers.index(blamed_line(error.msg, error.lineno)), "misplaced-statement")]
        except _HOPELESS as error:
            raise Unlintable(str(error)) from error
        return []


def _missing_modules(tree: ast.Module) -> Iterator[tuple[int, str]]:
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
