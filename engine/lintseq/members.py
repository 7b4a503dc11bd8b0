"""What the classes of a program define, which of their attributes it uses, and on which lines.

A class is known when all its bases are classes of the same program or built in, it has no keywords (a metaclass), and
no other thing of the program has its name or one of theirs. Of any other class nothing is said about attributes.

Left out: everything that takes types, such as attributes of anything but `self`, `cls` and `super()`. Called by
`engine.lintseq.needs`.
"""

import ast
import builtins
import re
from collections import Counter
from collections.abc import Callable, Iterator

_Function = ast.FunctionDef | ast.AsyncFunctionDef
LineOf = Callable[[int | None], int]
"""Turns the parser's line numbers into lines."""
Lines = dict[str, list[int]]
"""Name -> lines."""

_MIXIN = re.compile(".*[Mm]ixin")
_CATCH_ALL = frozenset({"AttributeError", "Exception", "BaseException"})
_CLASS_METHODS = frozenset({"__new__", "__init_subclass__", "__class_getitem__"})
"""Methods whose first argument is the class without a decorator that says so."""


class Members:
    """One class: what its body and its methods define, and the attributes of its own that it uses."""

    def __init__(self, node: ast.ClassDef) -> None:
        self.node = node
        self.bases: list[Members] = []
        self.built_in: set[str] = set()
        """What built-in bases define."""
        self.known = not node.keywords
        self.is_metaclass = False
        self.of_class: Lines = {}
        self.of_instances: Lines = {}
        self.methods: dict[str, list[_Function]] = {}
        self.uses: list[tuple[str, int, str]] = []
        """(attribute, line, what of: `self`, `cls` or `super`) of each use."""

    def line_of_succession(self) -> Iterator["Members"]:
        """The class and all it inherits from, nearest first."""
        seen, pending = set(), [self]
        while pending:
            each = pending.pop(0)
            if id(each) not in seen:
                seen.add(id(each))
                yield each
                pending += each.bases

    @property
    def judged(self) -> bool:
        """Whether its attributes are all known; mixins may use those of a class yet to come."""
        all_known = all(each.known and not each.is_metaclass for each in self.line_of_succession())
        return all_known and not _MIXIN.match(self.node.name)

    def definitions(self, name: str, owner: str) -> list[int] | None:
        """The lines that define an attribute of `self`, `cls` or `super()`; None where no line has to."""
        if name.startswith("__") and name.endswith("__"):
            return None  # most are everything's
        lines: list[int] = []
        for each in self.line_of_succession():
            if name in each.built_in:
                return None
            if owner == "super" and each is self:
                continue
            for names in (each.of_class, *((each.of_instances,) if owner == "self" else ())):
                lines += names.get(name, ())
            for dynamic in ("__getattr__", "__getattribute__"):
                lines += each.of_class.get(dynamic, ())
        return lines


class Program:
    """The classes of a program by name; how often each name is bound; attributes that are set on anything else."""

    def __init__(self, tree: ast.Module, line_of: LineOf) -> None:
        self.classes: dict[str, Members] = {}
        self.bound: Counter[str] = Counter()
        self.elsewhere: Lines = {}
        found: dict[str, Members] = {}
        stores: dict[int, tuple[str, int]] = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                found[node.name] = Members(node)
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                self.bound[node.name] += 1
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                self.bound[node.id] += 1
            elif isinstance(node, ast.arg):
                self.bound[node.arg] += 1
            elif isinstance(node, ast.alias):
                self.bound[node.asname or node.name] += 1
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                stores[id(node)] = node.attr, line_of(node.lineno)
        self.classes = {name: each for name, each in found.items() if self.bound[name] == 1}
        for each in self.classes.values():
            _inherit(each, self)
            _read_body(each, line_of)
            for name, methods in each.methods.items():
                for method in methods:
                    _read_method(each, name, method, line_of, stores)
        for attribute, line in stores.values():
            self.elsewhere.setdefault(attribute, []).append(line)


def _inherit(members: Members, program: Program) -> None:
    """Look up a class's bases; one that is not found leaves the class unknown."""
    for base in members.node.bases:
        name = base.id if isinstance(base, ast.Name) else ""
        built_in = getattr(builtins, name, None) if name and not program.bound[name] else None
        if name in program.classes:
            members.bases.append(program.classes[name])
        elif built_in is type:
            members.is_metaclass = True
        elif isinstance(built_in, type):
            members.built_in.update(dir(built_in))
        else:
            members.known = False


def _read_body(members: Members, line_of: LineOf) -> None:
    """What the class's body binds; what stands in functions and in classes of its own is not followed."""
    pending: list[ast.AST] = list(members.node.body)
    while pending:
        node = pending.pop()
        name = None
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            members.methods.setdefault(node.name, []).insert(0, node)
            name = node.name
        elif isinstance(node, ast.ClassDef):
            name = node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            name = node.id
        elif isinstance(node, ast.alias):
            name = (node.asname or node.name).partition(".")[0]
            members.known = members.known and name != "*"
        else:
            pending += ast.iter_child_nodes(node)
        if name is not None:
            members.of_class.setdefault(name, []).append(line_of(node.lineno))  # type: ignore[attr-defined]


def kind_of(name: str, method: _Function) -> str:
    """`self`, `cls` or `static`: what a method is called with first."""
    decorators = {each.id for each in method.decorator_list if isinstance(each, ast.Name)}
    if "staticmethod" in decorators:
        return "static"
    return "cls" if "classmethod" in decorators or name in _CLASS_METHODS else "self"


def _read_method(
    members: Members,
    name: str,
    method: _Function,
    line_of: LineOf,
    stores: dict[int, tuple[str, int]],
) -> None:
    """The attributes of its own class that a method defines and uses; those it defines are taken from `stores`."""
    kind = kind_of(name, method)
    arguments = [*method.args.posonlyargs, *method.args.args]
    owner = arguments[0].arg if arguments and kind != "static" else ""
    defined = members.of_instances if kind == "self" else members.of_class
    pending: list[tuple[ast.AST, bool]] = [(each, False) for each in method.body]
    uses = []
    while pending:
        node, guarded = pending.pop()
        if isinstance(node, ast.ClassDef) or _hides(node, owner):
            continue
        if isinstance(node, ast.Name) and node.id == owner and not isinstance(node.ctx, ast.Load):
            return  # `self` is something else now
        if isinstance(node, ast.Attribute):
            of = kind if isinstance(node.value, ast.Name) and node.value.id == owner else _super(node.value)
            line = line_of(node.lineno)
            if of and isinstance(node.ctx, ast.Store):
                stores.pop(id(node), None)
                defined.setdefault(node.attr, []).append(line)
            elif of and not guarded:
                uses.append((node.attr, line, of))
        if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Attribute):
            # It changes what has to be defined elsewhere.
            stores.pop(id(node.target), None)
            read = ast.Attribute(node.target.value, node.target.attr, ast.Load())
            pending.append((ast.copy_location(read, node.target), guarded))
            pending.append((node.value, guarded))
            continue
        if isinstance(node, ast.Try):
            covered = guarded or any(_catches(each.type) for each in node.handlers)
            pending += [(each, covered) for each in node.body]
            pending += [(each, guarded) for each in (*node.handlers, *node.orelse, *node.finalbody)]
        elif isinstance(node, ast.With) and any(_catches(each.context_expr) for each in node.items):
            pending += [(each, True) for each in ast.iter_child_nodes(node)]
        else:
            pending += [(each, guarded) for each in ast.iter_child_nodes(node)]
    members.uses += uses


def _hides(node: ast.AST, owner: str) -> bool:
    """Whether a nested function has a parameter of the owner's name."""
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        return False
    return any(isinstance(each, ast.arg) and each.arg == owner for each in ast.walk(node.args))


def _super(node: ast.expr) -> str:
    """`super` for a call of `super()` without arguments, else nothing."""
    is_super = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "super"
    return "super" if is_super and not node.args else ""  # type: ignore[attr-defined]


def _catches(node: ast.AST | None) -> bool:
    """Whether a handler, or what stands in a `with`, may swallow an AttributeError."""
    return node is None or any(isinstance(each, ast.Name) and each.id in _CATCH_ALL for each in ast.walk(node))
