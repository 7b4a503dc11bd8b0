"""Lines that are wrong unless one of certain other lines is there: what classes and calls need, told without types.

    no-member                an attribute of `self`, `cls` or `super()` that nothing in the class defines any more
    super-init-not-called    `__init__` without the call of a base's, while the base has one
    no-self-argument         a method without the `@staticmethod` or `@classmethod` that its arguments are made for
    invalid-...-returned     `__str__`, `__len__` and the like with nothing to return
    assignment-from-no-return    an assignment of what a function returns that returns nothing

Pylint says all this by inference; here it is read off the syntax, and only where that is enough: see
`engine.lintseq.members` for the classes, and functions count only under a name that nothing else has. Called by
`engine.lintseq.flow`.
"""

import ast
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from engine.lintseq.members import LineOf, Lines, Members, Program, kind_of

_Function = ast.FunctionDef | ast.AsyncFunctionDef
_Blocks = ast.stmt | ast.ExceptHandler | ast.match_case
_RETURNING = {
    "__iter__": "non-iterator-returned",
    "__len__": "invalid-length-returned",
    "__length_hint__": "invalid-length-hint-returned",
    **{
        f"__{name}__": f"invalid-{name.replace('_', '-')}-returned"
        for name in ("bool", "index", "repr", "str", "bytes", "hash", "format", "getnewargs", "getnewargs_ex")
    },
}
_ACCESSORS = frozenset({"getter", "setter", "deleter"})


class Need(NamedTuple):
    """On `line` is an error of the kind `code` while all lines of `when` are there and none of `providers` is."""

    line: int
    code: str
    name: str
    providers: Sequence[int]
    when: Sequence[int] = ()


def unmet(needs: Sequence[Need], alive: bytearray) -> list[tuple[int, str, str]]:
    """The errors (line, kind, name) of needs that are not met by the lines that `alive` marks with 1."""
    there = alive.__getitem__
    return [
        (need.line, need.code, need.name)
        for need in needs
        if there(need.line) and not any(map(there, need.providers)) and all(map(there, need.when))
    ]


def needs_of(tree: ast.Module, line_of: LineOf) -> list[Need]:
    """The needs of a program."""
    if not _may_need(tree):
        return []
    program = Program(tree, line_of)
    needs: list[Need] = []
    for members in program.classes.values():
        for name, methods in members.methods.items():
            for at, method in enumerate(methods):
                needs += _of_method(members, name, method, line_of)
                needs += _of_accessor(methods[:at], method, line_of)
        if members.judged:
            needs += _of_attributes(members, program.elsewhere)
            needs += _of_constructor(members, line_of)
    needs += _of_calls(tree, program, line_of)
    return needs


def _may_need(tree: ast.Module) -> bool:
    """Whether there is a class, or an assignment of what a function of the program returns; most have neither."""
    functions, called = set(), set()
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.ClassDef):
            return True
        if isinstance(node, ast.FunctionDef):
            functions.add(node.name)
        elif isinstance(node, ast.Assign):
            if isinstance(node.value, ast.Call) and isinstance(node.value.func, ast.Name):
                called.add(node.value.func.id)
            continue
        elif isinstance(node, ast.Expr | ast.Return):
            continue
        pending += [each for each in ast.iter_child_nodes(node) if isinstance(each, _Blocks)]
    return not functions.isdisjoint(called)


def _of_attributes(members: Members, elsewhere: Lines) -> Iterator[Need]:
    """Every use of an attribute wants a definition of it."""
    for name, line, owner in members.uses:
        found = members.definitions(name, owner)
        if found is not None and not name.startswith(f"_{members.node.name}"):
            yield Need(line, "no-member", name, (*found, *elsewhere.get(name, ())))


def _of_constructor(members: Members, line_of: LineOf) -> Iterator[Need]:
    """`__init__` wants the call of a base's, as long as the base has one."""
    for method in members.methods.get("__init__", ()):
        calls = [
            line_of(each.lineno)
            for each in ast.walk(method)
            if isinstance(each, ast.Call) and isinstance(each.func, ast.Attribute) and each.func.attr == "__init__"
        ]
        for base in members.bases:
            for each in base.line_of_succession():
                for other in each.methods.get("__init__", ()):
                    if not isinstance(other.body[0], ast.Raise | ast.Pass):
                        yield Need(line_of(method.lineno), "super-init-not-called", "", calls, (line_of(other.lineno),))


def _of_method(members: Members, name: str, method: _Function, line_of: LineOf) -> Iterator[Need]:
    """A method wants what its arguments are made for, and a result where its name promises one."""
    decorators = [
        line_of(each.lineno)
        for each in method.decorator_list
        if isinstance(each, ast.Name) and each.id in ("staticmethod", "classmethod")
    ]
    own, named = line_of(method.lineno), [*method.args.posonlyargs, *method.args.args]
    is_metaclass = any(each.is_metaclass for each in members.line_of_succession())
    # `f = staticmethod(f)` says the same as a decorator.
    wrapped = len(members.of_class[name]) > len(members.methods[name])
    implicit = wrapped or (not decorators and kind_of(name, method) == "cls")
    if not named and not (method.args.vararg or method.args.kwarg) and (decorators or members.judged):
        yield Need(own, "no-method-argument", "", decorators)
    elif named and not implicit and not is_metaclass and (decorators or members.judged):
        made_for = [line_of(named[0].lineno)] if named[0].arg == "self" else []
        yield Need(own, "no-self-argument", "", decorators + made_for)
    if name in _RETURNING and isinstance(method, ast.FunctionDef):
        yield Need(own, _RETURNING[name], "", _results(method, line_of, (ast.Raise, ast.Pass)))


def _of_accessor(before: Sequence[_Function], method: _Function, line_of: LineOf) -> Iterator[Need]:
    """`@x.setter` wants the property `x` above it, and the second `def x` wants its `@x.setter`."""
    for each in method.decorator_list:
        if isinstance(each, ast.Attribute) and each.attr in _ACCESSORS and isinstance(each.value, ast.Name):
            line, own = line_of(each.lineno), line_of(method.lineno)
            made = [line_of(one.lineno) for other in before for one in other.decorator_list]
            if each.value.id == method.name and made:
                yield Need(own, "no-member", each.attr, made, (line,))
                for other in before:
                    yield Need(own, "function-redefined", method.name, (line,), (line_of(other.lineno),))


def _of_calls(tree: ast.Module, program: Program, line_of: LineOf) -> Iterator[Need]:
    """Assignments of what a function of the program returns: called by its name, or as a method of `self`."""
    owners = {id(each): one for one in program.classes.values() for same in one.methods.values() for each in same}
    functions: dict[str, _Function] = {}
    calls: list[tuple[ast.Assign, ast.expr, Members | None, int]] = []
    pending: list[tuple[ast.AST, Members | None, int]] = [(tree, None, 0)]
    while pending:
        node, members, within = pending.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            members, within = owners.get(id(node), members), id(node)
            if id(node) not in owners:
                functions[node.name] = node
        elif isinstance(node, ast.ClassDef):
            members = None
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            calls.append((node, node.value.func, members, within))
        pending += [(each, members, within) for each in ast.iter_child_nodes(node) if isinstance(each, _Blocks)]
    for assignment, called, members, within in calls:
        function = None
        if isinstance(called, ast.Name) and program.bound[called.id] == 1:
            function = functions.get(called.id)
        elif isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name) and called.value.id == "self":
            function = _method(members, called.attr) if members is not None and members.judged else None
        if isinstance(function, ast.FunctionDef) and id(function) != within:
            line = line_of(function.lineno)
            providers = _results(function, line_of, (ast.Raise,))
            providers += [line_of(each.lineno) for each in function.decorator_list]
            yield Need(line_of(assignment.lineno), "assignment-from-no-return", "", providers, (line,))


def _method(members: Members, name: str) -> _Function | None:
    """The one method of that name in the class and all it inherits from."""
    found = [each for one in members.line_of_succession() for each in one.methods.get(name, ())]
    return found[0] if len(found) == len(members.definitions(name, "self") or ()) == 1 else None


def _results(function: _Function, line_of: LineOf, also: tuple[type[ast.stmt], ...]) -> list[int]:
    """The lines by which a function gives something back; `also` kinds of statements of its body excuse it too."""
    lines = [line_of(each.lineno) for each in function.body if isinstance(each, also) or _is_ellipsis(each)]
    pending: list[ast.AST] = list(function.body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            continue
        if isinstance(node, ast.Yield | ast.YieldFrom) or (isinstance(node, ast.Return) and not _is_none(node.value)):
            lines.append(line_of(node.lineno))
        pending += ast.iter_child_nodes(node)
    return lines


def _is_none(node: ast.expr | None) -> bool:
    return node is None or (isinstance(node, ast.Constant) and node.value is None)


def _is_ellipsis(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and node.value.value is ...
