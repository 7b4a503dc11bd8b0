"""What a scope of a Python program binds, found without following the order of execution.

Left out: uses of names and the order of execution (`engine.lintseq.names`, which calls this).
"""

import ast
import builtins
from collections.abc import Iterable, Iterator, Sequence

# Bound by every path that cannot be reached: all bits set.
UNREACHABLE = -1
# `_` is there only while a console or gettext has put it there.
ALWAYS_DEFINED = (frozenset(dir(builtins)) - {"_"}) | {
    *("__annotations__", "__builtins__", "__cached__", "__class__", "__file__", "__module__", "__path__"),
    *("__qualname__", "WindowsError", "copyright", "credits", "exit", "license", "quit"),
}
# The fields of a node that can hold an assignment outside any expression; kinds not listed hold none.
_BINDING_FIELDS: dict[str, tuple[str, ...]] = {
    "Assign": ("targets",),
    "AugAssign": ("target",),
    "AnnAssign": ("target",),
    "For": ("target", "body", "orelse"),
    "AsyncFor": ("target", "body", "orelse"),
    "While": ("body", "orelse"),
    "If": ("body", "orelse"),
    "With": ("items", "body"),
    "AsyncWith": ("items", "body"),
    "withitem": ("optional_vars",),
    "Try": ("body", "handlers", "orelse", "finalbody"),
    "TryStar": ("body", "handlers", "orelse", "finalbody"),
    "ExceptHandler": ("body",),
    "Match": ("cases",),
    "match_case": ("pattern", "body"),
    "MatchSequence": ("patterns",),
    "MatchMapping": ("patterns",),
    "MatchClass": ("patterns", "kwd_patterns"),
    "MatchOr": ("patterns",),
    "MatchAs": ("pattern",),
    "Delete": ("targets",),
    "TypeAlias": ("name",),
    "Tuple": ("elts",),
    "List": ("elts",),
    "Starred": ("value",),
}
_PLAIN_FIELDS = frozenset({"ctx", "op", "ops", "kind", "type_comment", "id", "attr", "arg", "conversion", "name"})
_PART_FIELDS: dict[type, tuple[str, ...]] = {
    kind: tuple(field for field in kind._fields if field not in _PLAIN_FIELDS)
    for kind in vars(ast).values()
    if isinstance(kind, type) and issubclass(kind, ast.AST)
}


class Scope:
    """The names a scope binds (one bit each) and those bound for certain at the point a walk has reached."""

    __slots__ = ("bits", "bound", "breaks", "kind", "parent", "seen")

    def __init__(self, kind: str, names: Iterable[str], parent: "Scope | None", *, all_bound: bool = False) -> None:
        self.kind = kind  # module, class, function, comprehension, or type (the parameters of a generic)
        self.bits = {name: 1 << at for at, name in enumerate(names)}
        self.parent = parent
        self.bound = UNREACHABLE if all_bound else 0
        self.seen = self.bound  # bound by some line above, on whatever path
        self.breaks: list[list[int]] = []  # per enclosing loop, what was bound at each `break`

    def bind(self, name: str) -> None:
        bit = self.bits.get(name, 0)
        self.bound |= bit
        self.seen |= bit

    def unbind(self, name: str) -> None:
        if self.bound != UNREACHABLE:
            self.bound &= ~self.bits.get(name, 0)


class Bindings:
    """The names bound somewhere in a body, nested scopes left aside.

    `names` are those bound, `elsewhere` those declared global or nonlocal; `star` tells of an `import *`.
    """

    def __init__(self, body: Sequence[ast.stmt], *, walrus: bool) -> None:
        self.names: set[str] = set()
        self.elsewhere: set[str] = set()
        self.star = False
        pending: list[ast.AST | None] = list(body)
        while pending:
            node = pending.pop()
            kind = type(node).__name__
            if kind == "Name":
                self.names.add(node.id)  # type: ignore[union-attr]
            elif kind in ("FunctionDef", "AsyncFunctionDef", "ClassDef"):
                self.names.add(node.name)  # type: ignore[union-attr]
                continue
            elif kind in ("Import", "ImportFrom"):
                for alias in node.names:  # type: ignore[union-attr]
                    self.names.add(alias.asname or alias.name.partition(".")[0])
                    self.star = self.star or alias.name == "*"
            elif kind in ("Global", "Nonlocal"):
                self.elsewhere.update(node.names)  # type: ignore[union-attr]
            elif kind in ("ExceptHandler", "MatchAs", "MatchStar") and node.name:  # type: ignore[union-attr]
                self.names.add(node.name)  # type: ignore[union-attr]
            elif kind == "MatchMapping" and node.rest:  # type: ignore[union-attr]
                self.names.add(node.rest)  # type: ignore[union-attr]
            for field in _BINDING_FIELDS.get(kind, ()):
                value = getattr(node, field)
                if isinstance(value, list):
                    pending.extend(value)
                else:
                    pending.append(value)
        if walrus:
            self.names.update(_walrus_names(body))

    @property
    def local(self) -> set[str]:
        """The names that are the scope's own."""
        return self.names - self.elsewhere


def parts(node: ast.AST) -> list[ast.AST | None]:
    """The nodes directly under an expression, in the order of the text."""
    found: list[ast.AST | None] = []
    for field in _PART_FIELDS[type(node)]:
        value = getattr(node, field)
        if isinstance(value, list):
            found += value
        elif isinstance(value, ast.AST):
            found.append(value)
    return found


def globals_bound(tree: ast.Module) -> set[str]:
    """The names that some function declares global and binds."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            bindings = Bindings(node.body, walrus=False)
            found |= bindings.names & bindings.elsewhere
    return found


def type_parameters(node: ast.AST) -> list[str]:
    """The names of a generic's type parameters (Python 3.12)."""
    return [each.name for each in getattr(node, "type_params", ())]


def dotted(node: ast.expr) -> str:
    """`a.b` for the expression `a.b`; empty for anything but a name or one attribute of a name."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return f"{node.value.id}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def _walrus_names(body: Sequence[ast.stmt]) -> Iterator[str]:
    pending: list[ast.AST] = list(body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.NamedExpr):
            yield node.target.id
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            pending.extend(ast.iter_child_nodes(node))
