"""Which names an expression reads, and which it binds, collected into the steps of an outline.

Left out: statements (`engine.lintseq.outlining`, whose base this is) and every judgement about errors.
"""

import ast
from collections.abc import Callable, Set

from engine.lintseq.outline import BLIND, Scope, Step, Use

# Deeper than any program a person wrote, and shallow enough for Python's own stack.
_DEEPEST = 60

_Comprehension = ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp
_PLAIN_FIELDS = frozenset({"ctx", "op", "ops", "kind", "type_comment", "id", "attr", "arg", "conversion", "name"})
_PART_FIELDS: dict[type, tuple[str, ...]] = {
    kind: tuple(field for field in kind._fields if field not in _PLAIN_FIELDS)
    for kind in vars(ast).values()
    if isinstance(kind, type) and issubclass(kind, ast.AST)
}


class NestedTooDeep(Exception):
    """Scopes nest deeper than the outline will follow."""


class Reader:
    """Reads expressions inside `self._scope`; a step stands for a stretch of evaluation that binds at its end."""

    def __init__(self, line_of: Callable[[int | None], int], scope: Scope, late_annotations: bool) -> None:
        self.bits: dict[str, int] = {}
        self._line = line_of
        self._scope = scope
        self._depth = 0
        self._late_annotations = late_annotations

    def bit(self, name: str) -> int:
        """The bit that stands for a name."""
        bit = self.bits.get(name)
        if bit is None:
            bit = self.bits[name] = 2 << len(self.bits)  # bit 0 is UNREACHED
        return bit

    def mask(self, names: Set[str]) -> int:
        """The bits of those names that occur in the program."""
        found = 0
        for name, bit in self.bits.items():
            if name in names:
                found |= bit
        return found

    def _reading(self, line: int, end: int, *expressions: ast.expr | None) -> list[Step]:
        """Steps that evaluate expressions; more than one where `:=` binds a name in between."""
        steps = [Step(line, end)]
        for each in expressions:
            if each is not None:
                self._read(each, steps)
        return steps

    def _deeper(self) -> None:
        """Count one more scope around what is read."""
        self._depth += 1
        if self._depth > _DEEPEST:
            raise NestedTooDeep(f"scopes nest deeper than {_DEEPEST}")

    def _read(
        self, node: ast.AST, steps: list[Step], hidden: frozenset[str] = frozenset(), later: bool = False
    ) -> None:
        """Add what an expression reads to the last step; `hidden` names are its own (of a comprehension or lambda)."""
        pending: list[ast.AST | None] = [node]
        while pending:
            each = pending.pop()
            kind = type(each)
            if kind is ast.Name:
                if type(each.ctx) is ast.Load and each.id not in hidden:  # type: ignore[union-attr]
                    self._use(each, steps, later)  # type: ignore[arg-type]
            elif kind is ast.Constant:
                pass
            elif kind in _SCOPED:
                self._deeper()
                _SCOPED[kind](self, each, steps, hidden, later)
                self._depth -= 1
            elif each is not None:
                fields = _PART_FIELDS[kind]
                for name in fields[::-1]:
                    value = getattr(each, name)
                    if value.__class__ is list:
                        pending += value[::-1]
                    elif isinstance(value, ast.AST):
                        pending.append(value)

    def _use(self, node: ast.Name, steps: list[Step], later: bool = False) -> None:
        """Add the read of a name to the last step."""
        step = steps[-1]
        bit = self.bit(node.id)
        if later:
            step.later |= bit
        else:
            step.reads |= bit
        step.uses.append(Use(bit, self._line(node.lineno), node.id, later))

    def _walrus(self, node: ast.NamedExpr, steps: list[Step], hidden: frozenset[str], later: bool) -> None:
        """`name := value` binds in the scope around, and what follows it is a step of its own."""
        self._read(node.value, steps, hidden, later)
        if not later:
            steps[-1].writes |= self.bit(node.target.id)
            steps[-1].binds |= self.bit(node.target.id)
            steps.append(Step(steps[-1].line, steps[-1].end))

    def _lambda(self, node: ast.Lambda, steps: list[Step], hidden: frozenset[str], later: bool) -> None:
        """Defaults are read at once, the body later."""
        arguments = node.args
        for default in (*arguments.defaults, *arguments.kw_defaults):
            if default is not None:
                self._read(default, steps, hidden, later)
        names = {each.arg for each in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)}
        names |= {each.arg for each in (arguments.vararg, arguments.kwarg) if each is not None}
        names |= {each.target.id for each in ast.walk(node.body) if isinstance(each, ast.NamedExpr)}
        self._read(node.body, steps, hidden | names, later=True)

    def _comprehension(self, node: _Comprehension, steps: list[Step], hidden: frozenset[str], later: bool) -> None:
        """The first iterable is read in the scope around; in a class body the rest does not see its names."""
        first = node.generators[0]
        self._read(first.iter, steps, hidden, later)
        names = {each.id for part in node.generators for each in ast.walk(part.target) if isinstance(each, ast.Name)}
        within = hidden | names
        if self._scope.kind == "class" and not later:
            steps.append(Step(steps[-1].line, steps[-1].end, BLIND))
        for part in node.generators:
            self._read(part.target, steps, within, later)
            for each in (*part.ifs, *(() if part is first else (part.iter,))):
                self._read(each, steps, within, later)
        for each in (node.key, node.value) if isinstance(node, ast.DictComp) else (node.elt,):
            self._read(each, steps, within, later)
        if self._scope.kind == "class" and not later:
            steps.append(Step(steps[-1].line, steps[-1].end))

    def _write(self, target: ast.expr, steps: list[Step]) -> None:
        """Bind the names of an assignment's target; read what its attributes and subscripts read."""
        if isinstance(target, ast.Name):
            bit = self.bit(target.id)
            steps[-1].writes |= bit
            steps[-1].binds |= bit
        elif isinstance(target, ast.Tuple | ast.List):
            for each in target.elts:
                self._write(each, steps)
        elif isinstance(target, ast.Starred):
            self._write(target.value, steps)
        else:
            self._read(target, steps)

    def _annotation(self, node: ast.expr, steps: list[Step], hidden: frozenset[str] = frozenset()) -> None:
        """Read an annotation, at once or later as the program says."""
        self._read(node, steps, hidden, later=self._late_annotations)


_SCOPED: dict[type, Callable[..., None]] = {
    ast.NamedExpr: Reader._walrus,
    ast.Lambda: Reader._lambda,
    ast.ListComp: Reader._comprehension,
    ast.SetComp: Reader._comprehension,
    ast.DictComp: Reader._comprehension,
    ast.GeneratorExp: Reader._comprehension,
}
