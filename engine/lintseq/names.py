"""Which names of a program are used without a definition: scopes and definite assignment in one walk over the tree.

Scopes are Python's. Inside the body that is being executed (module, class, function) the walk also follows the order
of execution, as a set of definitely bound names that branches narrow: `if` and `match` keep what every branch binds,
a handler of `try` starts from before the `try`. Where the truth depends on values, the walk takes the side of the
program, as pylint does: loops are taken to run, `try` to succeed. A name that some way leaves unbound is *possibly*
used before its assignment; one that no line above binds is used before it. Bodies of nested functions run later, so
for them any binding in an enclosing scope will do.

Left out: attributes, types, values; names in string annotations. Called by `engine.lintseq.fast_linter`.
"""

import ast
from collections.abc import Callable, Iterable, Sequence
from functools import reduce
from operator import or_

from engine.lintseq.scopes import (
    ALWAYS_DEFINED,
    UNREACHABLE,
    Bindings,
    Scope,
    dotted,
    globals_bound,
    parts,
    type_parameters,
)

NameError_ = tuple[int, str, str]
"""The parser's line, the kind of error (pylint's symbol), the name."""

_NEVER_RETURN = frozenset({"exit", "quit", "sys.exit", "os._exit", "os.abort"})
# Deeper than any program a person wrote, and shallow enough for Python's own stack.
_DEEPEST = 60

_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_Comprehension = ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp
_Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda


class NestedTooDeep(Exception):
    """Scopes nest deeper than the walk will follow."""


def name_errors(tree: ast.Module, text: str) -> list[NameError_]:
    """The uses of undefined names in a program, in the order of the walk; `text` is what `tree` was parsed from."""
    walk = _Walk(tree, text)
    walk.block(tree.body)
    return walk.errors


class _Walk:
    def __init__(self, tree: ast.Module, text: str) -> None:
        self.errors: list[NameError_] = []
        self.walrus = ":=" in text
        declared = Bindings(tree.body, walrus=self.walrus)
        self.scope = Scope("module", declared.names, None)
        self.star = declared.star
        self.depth = 0
        self.late_annotations = any(
            isinstance(node, ast.ImportFrom)
            and node.module == "__future__"
            and any(each.name == "annotations" for each in node.names)
            for node in tree.body[:8]
        )
        # A function that declares a name global binds it for the module, at a time nobody knows.
        for name in sorted(globals_bound(tree) - declared.names) if "global" in text else ():
            self.scope.bits[name] = 1 << len(self.scope.bits)
            self.scope.bind(name)

    # Statements

    def block(self, statements: Sequence[ast.stmt]) -> None:
        for statement in statements:
            handler = _STATEMENTS.get(type(statement))
            if handler is not None:
                handler(self, statement)

    def _expression(self, node: ast.Expr) -> None:
        self.read(node.value)
        if isinstance(node.value, ast.Call) and dotted(node.value.func) in _NEVER_RETURN:
            self.scope.bound = UNREACHABLE

    def _assign(self, node: ast.Assign) -> None:
        self.read(node.value)
        for target in node.targets:
            self.write(target)
            if self.scope.kind == "module" and isinstance(target, ast.Name) and target.id == "__all__":
                self._exports(node.value)

    def _exports(self, value: ast.expr) -> None:
        for each in value.elts if isinstance(value, ast.List | ast.Tuple) else ():
            if isinstance(each, ast.Constant) and isinstance(each.value, str) and not self.star:
                name = each.value
                if name not in self.scope.bits and name not in ALWAYS_DEFINED:
                    self.errors.append((each.lineno, "undefined-all-variable", name))

    def _augmented(self, node: ast.AugAssign) -> None:
        if isinstance(node.target, ast.Name):
            self._use(node.target)
        self.read(node.value)
        self.write(node.target)

    def _annotated(self, node: ast.AnnAssign) -> None:
        self._annotation(node.annotation)
        if node.value is not None:
            self.read(node.value)
        if node.value is not None or not isinstance(node.target, ast.Name):
            self.write(node.target)

    def _return(self, node: ast.Return) -> None:
        self.read(node.value)
        self.scope.bound = UNREACHABLE

    def _raise(self, node: ast.Raise) -> None:
        self.read(node.exc, node.cause)
        self.scope.bound = UNREACHABLE

    def _continue(self, node: ast.Continue) -> None:
        self.scope.bound = UNREACHABLE

    def _break(self, node: ast.Break) -> None:
        if self.scope.breaks:
            self.scope.breaks[-1].append(self.scope.bound)
        self.scope.bound = UNREACHABLE

    def _assert(self, node: ast.Assert) -> None:
        self.read(node.test, node.msg)
        if isinstance(node.test, ast.Constant) and not node.test.value:
            self.scope.bound = UNREACHABLE

    def _delete(self, node: ast.Delete) -> None:
        for target in node.targets:
            self.read(target)
            if isinstance(target, ast.Name):
                self._use(target)
                self.scope.unbind(target.id)

    def _import(self, node: ast.Import | ast.ImportFrom) -> None:
        for alias in node.names:
            self.scope.bind(alias.asname or alias.name.partition(".")[0])

    def _if(self, node: ast.If) -> None:
        # A long chain of `elif` nests in the tree; followed here in a loop, it costs no stack.
        scope, ends = self.scope, UNREACHABLE
        while True:
            self.read(node.test)
            before = scope.bound
            self.block(node.body)
            ends &= scope.bound
            scope.bound = before
            if len(node.orelse) != 1 or not isinstance(node.orelse[0], ast.If):
                break
            node = node.orelse[0]
        self.block(node.orelse)
        scope.bound &= ends

    def _loop(self, node: ast.For | ast.AsyncFor | ast.While) -> None:
        scope = self.scope
        endless = False
        if isinstance(node, ast.While):
            self.read(node.test)
            endless = isinstance(node.test, ast.Constant) and bool(node.test.value)
        else:
            self.read(node.iter)
        before = scope.bound
        if not isinstance(node, ast.While):
            self.write(node.target)
        scope.breaks.append([])
        self.block(node.body)
        ends = scope.breaks.pop()
        if not endless:
            scope.bound = before | (0 if scope.bound == UNREACHABLE else scope.bound)
            self.block(node.orelse)
            ends.append(scope.bound)
        reached = [end for end in ends if end != UNREACHABLE]
        scope.bound = reduce(or_, reached) if reached else UNREACHABLE

    def _try(self, node: "ast.Try | ast.TryStar") -> None:
        scope = self.scope
        before = scope.bound
        self.block(node.body)
        self.block(node.orelse)
        succeeded, handled = scope.bound, UNREACHABLE
        for handler in node.handlers:
            scope.bound = before
            self.read(handler.type)
            if handler.name:
                scope.bind(handler.name)
            self.block(handler.body)
            if handler.name:
                scope.unbind(handler.name)
            handled &= scope.bound
        after = handled if succeeded == UNREACHABLE else succeeded
        if node.finalbody:
            scope.bound = before
            self.block(node.finalbody)
            after |= scope.bound
        scope.bound = after

    def _with(self, node: ast.With | ast.AsyncWith) -> None:
        for item in node.items:
            self.read(item.context_expr)
            if item.optional_vars is not None:
                self.write(item.optional_vars)
        self.block(node.body)

    def _match(self, node: ast.Match) -> None:
        self.read(node.subject)
        before, ends = self.scope.bound, UNREACHABLE
        for case in node.cases:
            self.scope.bound = before
            for part in ast.walk(case.pattern):
                if isinstance(part, ast.MatchAs | ast.MatchStar) and part.name:
                    self.scope.bind(part.name)
                elif isinstance(part, ast.MatchMapping) and part.rest:
                    self.scope.bind(part.rest)
                elif isinstance(part, ast.Name):
                    self._use(part)
            self.read(case.guard)
            self.block(case.body)
            ends &= self.scope.bound
        self.scope.bound = ends

    def _define(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self.read(*node.decorator_list)
        self._function(node)
        self.scope.bind(node.name)

    def _class(self, node: ast.ClassDef) -> None:
        self.read(*node.decorator_list)
        outer = self._open("type", type_parameters(node), all_bound=True)
        self.read(*node.bases, *(each.value for each in node.keywords))
        self._open("class", Bindings(node.body, walrus=self.walrus).local)
        self.block(node.body)
        self._close(outer)
        self.scope.bind(node.name)

    def _alias(self, node: ast.AST) -> None:
        # `type NAME = ...` of Python 3.12; its value is not evaluated until it is asked for.
        self.scope.bind(node.name.id)  # type: ignore[attr-defined]
        outer = self._open("function", type_parameters(node), all_bound=True)
        self.read(node.value)  # type: ignore[attr-defined]
        self._close(outer)

    # Scopes

    def _open(self, kind: str, names: Iterable[str], *, all_bound: bool = False) -> Scope:
        self.depth += 1
        if self.depth > _DEEPEST:
            raise NestedTooDeep(f"scopes nest deeper than {_DEEPEST}")
        outer = self.scope
        self.scope = Scope(kind, names, outer, all_bound=all_bound)
        return outer

    def _close(self, outer: Scope) -> None:
        while self.scope is not outer:
            assert self.scope.parent is not None
            self.scope = self.scope.parent
            self.depth -= 1

    def _function(self, node: _Function) -> None:
        arguments = node.args
        parameters = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        parameters += [each for each in (arguments.vararg, arguments.kwarg) if each is not None]
        self.read(*arguments.defaults, *arguments.kw_defaults)
        outer = self.scope
        if isinstance(node, ast.Lambda):
            self._open("function", [each.arg for each in parameters], all_bound=True)
            self.read(node.body)
        else:
            self._open("type", type_parameters(node), all_bound=True)
            for parameter in parameters:
                self._annotation(parameter.annotation)
            self._annotation(node.returns)
            names = {each.arg for each in parameters}
            self._open("function", names | Bindings(node.body, walrus=self.walrus).local)
            for name in names:
                self.scope.bind(name)
            self.block(node.body)
        self._close(outer)

    def _comprehension(self, node: _Comprehension) -> None:
        first = node.generators[0]
        self.read(first.iter)
        names = {each.id for part in node.generators for each in ast.walk(part.target) if isinstance(each, ast.Name)}
        outer = self._open("comprehension", names, all_bound=True)
        for part in node.generators:
            self.read(*part.ifs, *(() if part is first else (part.iter,)))
        if isinstance(node, ast.DictComp):
            self.read(node.key, node.value)
        else:
            self.read(node.elt)
        self._close(outer)

    # Expressions

    def read(self, *expressions: ast.expr | None) -> None:
        """Check every name an expression reads; bind those it assigns with `:=`."""
        pending: list[ast.AST | None] = list(reversed(expressions))
        while pending:
            node = pending.pop()
            kind = type(node)
            if kind is ast.Name:
                if type(node.ctx) is ast.Load:  # type: ignore[union-attr]
                    self._use(node)  # type: ignore[arg-type]
            elif kind is ast.NamedExpr:
                self.read(node.value)  # type: ignore[union-attr]
                self._bind_outside(node.target.id)  # type: ignore[union-attr]
            elif kind is ast.Lambda:
                self._function(node)  # type: ignore[arg-type]
            elif kind in _COMPREHENSIONS:
                self._comprehension(node)  # type: ignore[arg-type]
            elif node is not None:
                pending.extend(reversed(parts(node)))

    def write(self, target: ast.expr) -> None:
        """Bind the names of an assignment's target; read what its attributes and subscripts read."""
        if isinstance(target, ast.Name):
            self.scope.bind(target.id)
        elif isinstance(target, ast.Tuple | ast.List):
            for each in target.elts:
                self.write(each)
        elif isinstance(target, ast.Starred):
            self.write(target.value)
        else:
            self.read(target)

    def _annotation(self, node: ast.expr | None) -> None:
        if node is None:
            return
        if not self.late_annotations:
            self.read(node)
            return
        outer = self._open("function", ())
        self.read(node)
        self._close(outer)

    def _bind_outside(self, name: str) -> None:
        scope = self.scope
        while scope.kind == "comprehension" and scope.parent is not None:
            scope = scope.parent
        scope.bind(name)

    def _use(self, node: ast.Name) -> None:
        name = node.id
        scope: Scope | None = self.scope
        now, classes = True, True  # executed at this point; class scopes in sight
        while scope is not None:
            bit = scope.bits.get(name, 0)
            if bit and (classes or scope.kind != "class"):
                if not now or scope.bound & bit:
                    return
                # Not bound yet: a class body looks further out, a module at the built-in names.
                outward = scope.kind == "class" or (scope.kind == "module" and name in ALWAYS_DEFINED)
                if scope.seen & bit or not outward:
                    code = "possibly-used-before-assignment" if scope.seen & bit else "used-before-assignment"
                    self.errors.append((node.lineno, code, name))
                    return
            now = now and scope.kind != "function"
            classes = classes and scope.kind not in ("function", "comprehension")
            scope = scope.parent
        if name not in ALWAYS_DEFINED and not self.star:
            self.errors.append((node.lineno, "undefined-variable", name))


_STATEMENTS: dict[type, Callable[..., None]] = {
    ast.Expr: _Walk._expression,
    ast.Assign: _Walk._assign,
    ast.AugAssign: _Walk._augmented,
    ast.AnnAssign: _Walk._annotated,
    ast.Return: _Walk._return,
    ast.Raise: _Walk._raise,
    ast.Continue: _Walk._continue,
    ast.Break: _Walk._break,
    ast.Assert: _Walk._assert,
    ast.Delete: _Walk._delete,
    ast.Import: _Walk._import,
    ast.ImportFrom: _Walk._import,
    ast.If: _Walk._if,
    ast.For: _Walk._loop,
    ast.AsyncFor: _Walk._loop,
    ast.While: _Walk._loop,
    ast.Try: _Walk._try,
    ast.With: _Walk._with,
    ast.AsyncWith: _Walk._with,
    ast.Match: _Walk._match,
    ast.FunctionDef: _Walk._define,
    ast.AsyncFunctionDef: _Walk._define,
    ast.ClassDef: _Walk._class,
}
for _name, _handler in (("TryStar", _Walk._try), ("TypeAlias", _Walk._alias)):
    if hasattr(ast, _name):
        _STATEMENTS[getattr(ast, _name)] = _handler
