"""Builds the outline of a program from its syntax tree: a step per statement, a clause per header and block.

Left out: expressions (`engine.lintseq.names`) and what is wrong when lines go (`engine.lintseq.flow`). Called by
`engine.lintseq.fast_linter`.
"""

import ast
from collections.abc import Callable, Iterator, Sequence

from engine.lintseq.linting import LineNumbers
from engine.lintseq.names import Reader
from engine.lintseq.outline import CLASS, DEF, IF, JUMP, LOOP, MATCH, TRY, WITH, Clause, Scope, Step
from engine.lintseq.spans import Nothing, Span

_NEVER_RETURN = frozenset({"exit", "quit", "sys.exit", "os._exit", "os.abort"})
_Function = ast.FunctionDef | ast.AsyncFunctionDef
_Headed = ast.If | ast.While | ast.For | ast.AsyncFor | ast.With | ast.AsyncWith | _Function | ast.ClassDef


class Outline(Reader):
    """The whole program: its steps (`body`), its scope (`module`), a bit for each name (`bits`).

    `code` marks the lines that hold code.
    """

    def __init__(self, tree: ast.Module, lines: Sequence[str], numbers: LineNumbers) -> None:
        late_annotations = any(
            isinstance(node, ast.ImportFrom)
            and node.module == "__future__"
            and any(each.name == "annotations" for each in node.names)
            for node in tree.body[:8]
        )
        self.module = Scope("module")
        super().__init__(numbers.index, self.module, late_annotations)
        self.lines = lines
        self.functions: list[Scope] = []
        self._under = -1  # the line of the header whose block is being outlined
        self.star_lines: list[int] = []
        self.exporting: list[Step] = []
        """The module's assignments of a literal to `__all__`."""
        self.code = bytearray(bool(text) and text[0] != "#" for text in (line.strip() for line in lines))
        self.body = self._block(tree.body)

    def part(self, node: ast.stmt, lines: Sequence[int], scope: Scope, clause: Clause | None) -> list[Step]:
        """The steps of a statement, or of a header (of `clause`), that was parsed again from some of its `lines`."""
        before, self._line = self._line, lambda number: lines[min((number or 1) - 1, len(lines) - 1)]
        # What is bound here must not be added to the scope once more.
        outer, self._scope = self._scope, Scope(scope.kind)
        try:
            if clause is None:
                steps = self._statement(node)
                for step in steps:
                    step.line = step.start = step.end = lines[0]
                return steps
            step = Step(lines[0], lines[0])
            rest = Clause(clause.kind, clause.line, clause.line, clause.body)
            self._header(node, rest)  # type: ignore[arg-type]
            step.clauses = [rest]
            return [step]
        finally:
            self._line, self._scope = before, outer

    # Blocks

    def _block(self, statements: Sequence[ast.stmt]) -> list[Step]:
        steps: list[Step] = []
        for node in statements:
            found = self._statement(node)
            main = found[-1]
            if main.kind <= JUMP and main.end > main.line:
                if len(found) == 1:
                    main.span = Span(self.part, self._scope, node, self.lines, main)
                else:  # `:=` inside; what is left of it is left out rather than guessed
                    main.span = Nothing()
                for each in found[:-1]:
                    each.end = each.line
            steps += found
        return steps

    def _statement(self, node: ast.stmt) -> list[Step]:
        make = _STATEMENTS.get(type(node))
        first, last = self._line(node.lineno), self._line(node.end_lineno)
        if make is None:
            return [Step(first, last)]
        steps: list[Step] = make(self, node, first, last)
        scope = self._scope
        for step in steps:
            if step.binds:
                scope.binders.append((step.line, step.binds, step, self._under))
        return steps

    def _expression(self, node: ast.Expr, first: int, last: int) -> list[Step]:
        steps = self._reading(first, last, node.value)
        if isinstance(node.value, ast.Call) and _dotted(node.value.func) in _NEVER_RETURN:
            steps[-1].kind = JUMP
        return steps

    def _leaving(self, node: ast.stmt, first: int, last: int) -> list[Step]:
        steps = self._reading(first, last, *(getattr(node, name, None) for name in ("value", "exc", "cause")))
        steps[-1].kind = JUMP
        steps[-1].leaves = "break" if isinstance(node, ast.Break) else ""
        return steps

    def _assert(self, node: ast.Assert, first: int, last: int) -> list[Step]:
        steps = self._reading(first, last, node.test, node.msg)
        if isinstance(node.test, ast.Constant) and not node.test.value:
            steps[-1].kind = JUMP
        return steps

    def _assign(self, node: ast.Assign, first: int, last: int) -> list[Step]:
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
                self.exporting.append(steps[-1])
        return steps

    def _augmented(self, node: ast.AugAssign, first: int, last: int) -> list[Step]:
        steps = [Step(first, last)]
        steps[0].augmented = True
        if isinstance(node.target, ast.Name):
            self._use(node.target, steps)
        self._read(node.value, steps)
        self._write(node.target, steps)
        return steps

    def _annotated(self, node: ast.AnnAssign, first: int, last: int) -> list[Step]:
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
        step = Step(first, last)
        for alias in node.names:
            if alias.name == "*":
                self.star_lines.append(first)
            step.writes |= self.bit(alias.asname or alias.name.partition(".")[0])
        step.binds = step.writes
        return [step]

    def _elsewhere(self, node: ast.Global | ast.Nonlocal, first: int, last: int) -> list[Step]:
        names = 0
        for name in node.names:
            names |= self.bit(name)
        nonlocal_ = isinstance(node, ast.Nonlocal)
        self._scope.elsewhere.append((first, names, nonlocal_))
        self._scope.nonlocals |= nonlocal_
        return [Step(first, last)]

    def _alias(self, node: ast.stmt, first: int, last: int) -> list[Step]:
        # `type NAME = ...` of Python 3.12; its value is not evaluated until it is asked for.
        steps = [Step(first, last)]
        self._read(node.value, steps, frozenset(_type_parameters(node)), later=True)  # type: ignore[attr-defined]
        steps[-1].writes = steps[-1].binds = self.bit(node.name.id)  # type: ignore[attr-defined]
        return steps

    # Compound statements

    def _clause(self, kind: str, line: int, body: Sequence[ast.stmt]) -> Clause:
        above, self._under = self._under, line
        steps = self._block(body)
        self._under = above
        last = steps[0].start
        return Clause(kind, line, self.code.rfind(1, line, last) if last > line else line, steps)

    def _headed(self, kind: str, node: _Headed, line: int) -> Clause:
        """A clause whose header evaluates something, and which may stand on several lines."""
        clause = self._clause(kind, line, node.body)
        self._header(node, clause)
        for each in (*clause.head, *((clause.tail,) if clause.tail else ())):
            if each.binds:
                self._scope.binders.append((each.line, each.binds, None, self._under))
        if clause.last > line:
            clause.span = Span(self.part, self._scope, node, self.lines, clause)
        return clause

    def _else(self, kind: str, after: ast.AST, body: Sequence[ast.stmt]) -> Clause:
        """A clause which the tree does not place (`else`, `finally`, `case`): it is the next code after a node."""
        line = self.code.find(1, self._line(after.end_lineno) + 1)  # type: ignore[attr-defined]
        return self._clause(kind, line, body)

    def _header(self, node: _Headed, clause: Clause) -> None:
        """What a header reads and binds."""
        line = clause.line
        head: list[Step] = [Step(line, line)]
        if isinstance(node, ast.If | ast.While):
            self._read(node.test, head)
        elif isinstance(node, ast.For | ast.AsyncFor):
            self._read(node.iter, head)
            target = [Step(line, line)]
            self._write(node.target, target)
            clause.tail = target[-1]
        elif isinstance(node, ast.With | ast.AsyncWith):
            for item in node.items:
                self._read(item.context_expr, head)
                if item.optional_vars is not None:
                    self._write(item.optional_vars, head)
                    head.append(Step(line, line))
        elif isinstance(node, ast.ClassDef):
            hidden = frozenset(_type_parameters(node))
            for each in (*node.bases, *(keyword.value for keyword in node.keywords)):
                self._read(each, head, hidden)
        else:
            self._signature(node, clause, head)
        for step in head:
            step.line = step.start = step.end = line
        clause.head = head

    def _signature(self, node: _Function, clause: Clause, head: list[Step]) -> None:
        arguments = node.args
        parameters = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        parameters += [each for each in (arguments.vararg, arguments.kwarg) if each is not None]
        for default in (*arguments.defaults, *arguments.kw_defaults):
            if default is not None:
                self._read(default, head)
        hidden = frozenset(_type_parameters(node))
        for annotation in (*(each.annotation for each in parameters), node.returns):
            if annotation is not None:
                self._annotation(annotation, head, hidden)
        for name in (*(each.arg for each in parameters), *hidden):
            clause.parameters |= self.bit(name)

    def _if(self, node: ast.If, first: int, last: int) -> list[Step]:
        step = Step(first, last, IF)
        kind, line = "if", first
        # A long chain of `elif` nests in the tree; followed here in a loop, it costs no stack.
        while True:
            step.clauses.append(self._headed(kind, node, line))
            if len(node.orelse) != 1 or not self._is_elif(node.orelse[0], node):
                break
            node = node.orelse[0]  # type: ignore[assignment]
            kind, line = "elif", self._line(node.lineno)
        if node.orelse:
            step.clauses.append(self._else("else", node.body[-1], node.orelse))
        return [step]

    def _is_elif(self, node: ast.stmt, parent: ast.If) -> bool:
        if not isinstance(node, ast.If) or node.col_offset != parent.col_offset:
            return False
        return self.lines[self._line(node.lineno)].lstrip().startswith("elif")

    def _loop(self, node: ast.For | ast.AsyncFor | ast.While, first: int, last: int) -> list[Step]:
        step = Step(first, last, LOOP)
        if isinstance(node, ast.While) and isinstance(node.test, ast.Constant) and node.test.value:
            step.leaves = "never"
        step.clauses.append(self._headed("loop", node, first))
        if node.orelse:
            step.clauses.append(self._else("else", node.body[-1], node.orelse))
        return [step]

    def _try(self, node: ast.Try, first: int, last: int) -> list[Step]:
        step = Step(first, last, TRY)
        step.clauses.append(self._clause("try", first, node.body))
        before: ast.AST = node.body[-1]
        for handler in node.handlers:
            line = self._line(handler.lineno)
            clause = self._clause("except", line, handler.body)
            clause.head = self._reading(line, line, handler.type)
            clause.tail = Step(line, line)
            if handler.name:
                clause.tail.writes = clause.tail.binds = clause.tail.unbinds = self.bit(handler.name)
                self._scope.binders.append((line, clause.tail.binds, None, self._under))
            step.clauses.append(clause)
            before = handler.body[-1]
        for kind, body in (("else", node.orelse), ("finally", node.finalbody)):
            if body:
                step.clauses.append(self._else(kind, before, body))
                before = body[-1]
        return [step]

    def _with(self, node: ast.With | ast.AsyncWith, first: int, last: int) -> list[Step]:
        step = Step(first, last, WITH)
        step.clauses.append(self._headed("with", node, first))
        return [step]

    def _match(self, node: ast.Match, first: int, last: int) -> list[Step]:
        step = Step(first, last, MATCH)
        subject = Clause("match", first, self._line(node.subject.end_lineno), [])
        subject.head = self._reading(first, first, node.subject)
        step.clauses.append(subject)
        before: ast.AST = node.subject
        for case in node.cases:
            clause = self._else("case", before, case.body)
            captures = [Step(clause.line, clause.line)]
            for part in ast.walk(case.pattern):
                if isinstance(part, ast.MatchAs | ast.MatchStar) and part.name:
                    captures[0].writes |= self.bit(part.name)
                elif isinstance(part, ast.MatchMapping) and part.rest:
                    captures[0].writes |= self.bit(part.rest)
                elif isinstance(part, ast.Name):
                    self._use(part, captures)
            captures[0].binds = captures[0].writes
            guard = self._reading(clause.line, clause.line, case.guard) if case.guard else []
            clause.head = captures + guard
            self._scope.binders += [(clause.line, each.binds, None, self._under) for each in clause.head if each.binds]
            step.clauses.append(clause)
            before = case.body[-1]
        return [step]

    # Scopes

    def _define(self, node: _Function | ast.ClassDef, first: int, last: int) -> list[Step]:
        is_class = isinstance(node, ast.ClassDef)
        step = Step(first, last, CLASS if is_class else DEF)
        for each in node.decorator_list:
            line = self._line(each.lineno)
            step.decorators += self._reading(line, self._line(each.end_lineno), each)
            step.start = min(step.start, line)
        scope = Scope("class" if is_class else "function")
        self._deeper()
        outer, self._scope = self._scope, scope
        clause = self._clause("def", first, node.body)
        self._scope = outer
        self._depth -= 1
        self._header(node, clause)
        if clause.last > first:
            clause.span = Span(self.part, outer, node, self.lines, clause)
        head = (*step.decorators, *clause.head)
        outer.binders += [(each.line, each.binds, None, self._under) for each in head if each.binds]
        scope.start, scope.end = first, last
        step.clauses, step.inner = [clause], scope
        step.writes = step.binds = self.bit(node.name)
        if not is_class:
            self.functions.append(scope)
        return [step]


def _dotted(node: ast.expr) -> str:
    """`a.b` for the expression `a.b`; empty for anything but a name or one attribute of a name."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return f"{node.value.id}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def _type_parameters(node: ast.AST) -> Iterator[str]:
    """The names of a generic's type parameters (Python 3.12)."""
    return (each.name for each in getattr(node, "type_params", ()))


_STATEMENTS: dict[type, Callable[..., list[Step]]] = {
    ast.Expr: Outline._expression,
    ast.Assign: Outline._assign,
    ast.AugAssign: Outline._augmented,
    ast.AnnAssign: Outline._annotated,
    ast.Return: Outline._leaving,
    ast.Raise: Outline._leaving,
    ast.Continue: Outline._leaving,
    ast.Break: Outline._leaving,
    ast.Assert: Outline._assert,
    ast.Delete: Outline._delete,
    ast.Import: Outline._import,
    ast.ImportFrom: Outline._import,
    ast.Global: Outline._elsewhere,
    ast.Nonlocal: Outline._elsewhere,
    ast.If: Outline._if,
    ast.For: Outline._loop,
    ast.AsyncFor: Outline._loop,
    ast.While: Outline._loop,
    ast.Try: Outline._try,
    ast.With: Outline._with,
    ast.AsyncWith: Outline._with,
    ast.Match: Outline._match,
    ast.FunctionDef: Outline._define,
    ast.AsyncFunctionDef: Outline._define,
    ast.ClassDef: Outline._define,
}
for _name, _make in (("TryStar", Outline._try), ("TypeAlias", Outline._alias)):
    if hasattr(ast, _name):
        _STATEMENTS[getattr(ast, _name)] = _make
