"""Outlines simple statements: a step each, with what it reads, binds and deletes.

Left out: compound statements and the outline itself (`engine.lintseq.outlining`, whose base this is).
"""

import ast
from collections.abc import Callable, Iterator

from engine.lintseq.names import Reader
from engine.lintseq.outline import JUMP, Scope, Step

_NEVER_RETURN = frozenset({"exit", "quit", "sys.exit", "os._exit", "os.abort"})


class Statements(Reader):
    """Makes the steps of simple statements inside `self._scope`; every method takes a node, its first and last line."""

    def __init__(self, line_of: Callable[[int | None], int], module: Scope, late_annotations: bool) -> None:
        super().__init__(line_of, module, late_annotations)
        self.module = module
        self.star_lines: list[int] = []
        self.exporting: list[Step] = []
        """The module's assignments of a literal to `__all__`."""

    def _expression(self, node: ast.Expr, first: int, last: int) -> list[Step]:
        """An expression; the call of a function that never returns is a jump."""
        steps = self._reading(first, last, node.value)
        if isinstance(node.value, ast.Call) and _dotted(node.value.func) in _NEVER_RETURN:
            steps[-1].kind = JUMP
        return steps

    def _leaving(self, node: ast.stmt, first: int, last: int) -> list[Step]:
        """`return`, `raise`, `break` and `continue`: control does not pass."""
        steps = self._reading(first, last, *(getattr(node, name, None) for name in ("value", "exc", "cause")))
        steps[-1].kind = JUMP
        steps[-1].leaves = "break" if isinstance(node, ast.Break) else ""
        return steps

    def _assert(self, node: ast.Assert, first: int, last: int) -> list[Step]:
        """`assert`; one that always fails is a jump."""
        steps = self._reading(first, last, node.test, node.msg)
        if isinstance(node.test, ast.Constant) and not node.test.value:
            steps[-1].kind = JUMP
        return steps

    def _assign(self, node: ast.Assign, first: int, last: int) -> list[Step]:
        """`a = b = value`; a literal given to `__all__` is remembered with its entries."""
        steps = self._reading(first, last, node.value)
        for target in node.targets:
            self._write(target, steps)
            exports = isinstance(target, ast.Name) and target.id == "__all__" and self._scope.kind == "module"
            if exports and isinstance(node.value, ast.List | ast.Tuple):
                steps[-1].exports = [
                    (self.bit(each.value), self._line(each.lineno), each.value)
                    for each in node.value.elts
                    if isinstance(each, ast.Constant) and isinstance(each.value, str)
                ]
                if self._scope is self.module:  # not where what is left of one is read again
                    self.exporting.append(steps[-1])
        return steps

    def _augmented(self, node: ast.AugAssign, first: int, last: int) -> list[Step]:
        """`a += value` reads what it binds."""
        steps = [Step(first, last)]
        steps[0].augmented = True
        if isinstance(node.target, ast.Name):
            self._use(node.target, steps)
        self._read(node.value, steps)
        self._write(node.target, steps)
        return steps

    def _annotated(self, node: ast.AnnAssign, first: int, last: int) -> list[Step]:
        """`a: kind = value`; without a value the name is declared and not bound."""
        steps = [Step(first, last)]
        self._annotation(node.annotation, steps)
        if node.value is not None:
            self._read(node.value, steps)
        if node.value is not None or not isinstance(node.target, ast.Name):
            self._write(node.target, steps)
        else:
            steps[-1].binds |= self.bit(node.target.id)
        return steps

    def _delete(self, node: ast.Delete, first: int, last: int) -> list[Step]:
        """`del a` reads the name and unbinds it."""
        steps = [Step(first, last)]
        for target in node.targets:
            if isinstance(target, ast.Name):
                self._use(target, steps)
                steps[-1].unbinds |= self.bit(target.id)
                steps[-1].binds |= self.bit(target.id)
            else:
                self._read(target, steps)
        return steps

    def _import(self, node: ast.Import | ast.ImportFrom, first: int, last: int) -> list[Step]:
        """Imports bind the name after `as`, or the first part of the module."""
        step = Step(first, last)
        for alias in node.names:
            if alias.name == "*":
                self.star_lines.append(first)
            step.writes |= self.bit(alias.asname or alias.name.partition(".")[0])
        step.binds = step.writes
        return [step]

    def _elsewhere(self, node: ast.Global | ast.Nonlocal, first: int, last: int) -> list[Step]:
        """`global` and `nonlocal`."""
        names = 0
        for name in node.names:
            names |= self.bit(name)
        self._scope.elsewhere.append((first, names, isinstance(node, ast.Nonlocal)))
        return [Step(first, last)]

    def _alias(self, node: ast.stmt, first: int, last: int) -> list[Step]:
        """`type NAME = value` of Python 3.12; the value is not evaluated until it is asked for."""
        steps = [Step(first, last)]
        self._read(node.value, steps, frozenset(type_parameters(node)), later=True)  # type: ignore[attr-defined]
        steps[-1].writes = steps[-1].binds = self.bit(node.name.id)  # type: ignore[attr-defined]
        return steps


def _dotted(node: ast.expr) -> str:
    """`a.b` for the expression `a.b`; empty for anything but a name or one attribute of a name."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return f"{node.value.id}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def type_parameters(node: ast.AST) -> Iterator[str]:
    """The names of a generic's type parameters (Python 3.12)."""
    return (each.name for each in getattr(node, "type_params", ()))
