"""Builds the outline of a program from its syntax tree: a step per statement, a clause per header and block.

Left out: simple statements (`engine.lintseq.statements`), expressions (`engine.lintseq.names`) and what is wrong when
lines go (`engine.lintseq.flow`). Called by `engine.lintseq.fast_linter`.
"""

import ast
import re
from collections.abc import Callable, Sequence

from engine.lintseq.linting import LineNumbers
from engine.lintseq.outline import CLASS, DEF, IF, JUMP, LOOP, MATCH, TRY, WITH, Clause, Scope, Step
from engine.lintseq.spans import Nothing, Span
from engine.lintseq.statements import Statements, type_parameters

_CASE = re.compile(r"\s*case\b")
_DECORATOR = re.compile(r"\s*@")
_Function = ast.FunctionDef | ast.AsyncFunctionDef
_Headed = ast.If | ast.While | ast.For | ast.AsyncFor | ast.With | ast.AsyncWith | _Function | ast.ClassDef


class Outline(Statements):
    """The whole program: its steps (`body`), its scope (`module`), a bit for each name (`bits`).

    `code` marks the lines that hold code. `late_annotations` says that annotations are not evaluated where they stand.
    """

    def __init__(self, tree: ast.Module, lines: Sequence[str], numbers: LineNumbers, *, late_annotations: bool) -> None:
        super().__init__(numbers.index, Scope("module"), late_annotations)
        self.lines = lines
        self.scopes: list[Scope] = []
        """Those of functions and classes."""
        self._under = -1  # the line of the header whose block is being outlined
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
        """The steps of a block; statements on several lines get a span."""
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
        """The steps of one statement; what they bind becomes a binder of the scope."""
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

    # Compound statements

    def _clause(self, kind: str, line: int, body: Sequence[ast.stmt]) -> Clause:
        """A header with the block under it."""
        above, self._under = self._under, line
        steps = self._block(body)
        self._under = above
        return Clause(kind, line, self._last_line(line, steps[0].start), steps)

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
        """A clause which the tree does not place (`else`, `finally`): it is the next code after a node."""
        line = self.code.find(1, self._line(after.end_lineno) + 1)  # type: ignore[attr-defined]
        return self._clause(kind, line, body)

    def _first_line(self, opener: re.Pattern[str], node: ast.AST, above: int) -> int:
        """The line of the word or sign before a bracketed node, which the tree does not place; it is below `above`."""
        line = found = self._line(node.lineno)  # type: ignore[attr-defined]
        while found > above and not opener.match(self.lines[found]):
            found -= 1
        return found if found > above else line

    def _last_line(self, first: int, after: int) -> int:
        """The last line with code of what begins on the line `first` and ends before the line `after`."""
        return self.code.rfind(1, first, after) if after > first else first

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
            hidden = frozenset(type_parameters(node))
            for each in (*node.bases, *(keyword.value for keyword in node.keywords)):
                self._read(each, head, hidden)
        else:
            self._signature(node, clause, head)
        for step in head:
            step.line = step.start = step.end = line
        clause.head = head

    def _signature(self, node: _Function, clause: Clause, head: list[Step]) -> None:
        """What a function's header evaluates, and the names it binds inside."""
        arguments = node.args
        parameters = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        parameters += [each for each in (arguments.vararg, arguments.kwarg) if each is not None]
        for default in (*arguments.defaults, *arguments.kw_defaults):
            if default is not None:
                self._read(default, head)
        hidden = frozenset(type_parameters(node))
        for annotation in (*(each.annotation for each in parameters), node.returns):
            if annotation is not None:
                self._annotation(annotation, head, hidden)
        for name in (*(each.arg for each in parameters), *hidden):
            clause.parameters |= self.bit(name)

    def _if(self, node: ast.If, first: int, last: int) -> list[Step]:
        """A chain of `if`, `elif` and `else` is one step."""
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
        """Whether an `if` inside an `else` is written as `elif`."""
        if not isinstance(node, ast.If) or node.col_offset != parent.col_offset:
            return False
        return self.lines[self._line(node.lineno)].lstrip().startswith("elif")

    def _loop(self, node: ast.For | ast.AsyncFor | ast.While, first: int, last: int) -> list[Step]:
        """`for` and `while`, with their `else`."""
        step = Step(first, last, LOOP)
        if isinstance(node, ast.While) and isinstance(node.test, ast.Constant) and node.test.value:
            step.leaves = "never"
        step.clauses.append(self._headed("loop", node, first))
        if node.orelse:
            step.clauses.append(self._else("else", node.body[-1], node.orelse))
        return [step]

    def _try(self, node: ast.Try, first: int, last: int) -> list[Step]:
        """`try` with all that follows it; the names of handlers are bound in their blocks only."""
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
        """`with` and its block."""
        step = Step(first, last, WITH)
        step.clauses.append(self._headed("with", node, first))
        return [step]

    def _match(self, node: ast.Match, first: int, last: int) -> list[Step]:
        """`match` with its cases, each of which binds what its pattern captures."""
        step = Step(first, last, MATCH)
        lines = [self._first_line(_CASE, case.pattern, first) for case in node.cases]
        subject = Clause("match", first, self._last_line(first, lines[0]), [])
        subject.head = self._reading(first, first, node.subject)
        step.clauses.append(subject)
        for line, case in zip(lines, node.cases, strict=True):
            clause = self._clause("case", line, case.body)
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
        return [step]

    # Scopes

    def _define(self, node: _Function | ast.ClassDef, first: int, last: int) -> list[Step]:
        """A function or a class: decorators, header, and a scope for its body."""
        is_class = isinstance(node, ast.ClassDef)
        step = Step(first, last, CLASS if is_class else DEF)
        lines = [self._first_line(_DECORATOR, each, self._under) for each in node.decorator_list]
        for each, line, after in zip(node.decorator_list, lines, [*lines[1:], first], strict=False):
            step.decorators += self._reading(line, self._last_line(line, after), each)
        step.start = min([first, *lines])
        scope = Scope("class" if is_class else "function")
        self._deeper()
        outer, self._scope = self._scope, scope
        clause = self._clause("def", first, node.body)
        self._scope = outer
        self._depth -= 1
        self._header(node, clause)
        if clause.last > first and not is_class:  # a class without one of its bases is another class
            clause.span = Span(self.part, outer, node, self.lines, clause)
        head = (*step.decorators, *clause.head)
        outer.binders += [(each.line, each.binds, None, self._under) for each in head if each.binds]
        scope.start, scope.end = first, last
        step.clauses, step.inner = [clause], scope
        step.writes = step.binds = self.bit(node.name)
        self.scopes.append(scope)
        return [step]


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
