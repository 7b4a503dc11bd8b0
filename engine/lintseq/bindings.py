"""Which names a scope has when only some of its lines are there, and what is wrong with a use of one.

Left out: the order of execution (`engine.lintseq.flow`, whose base this is).
"""

from functools import reduce
from operator import or_

from engine.lintseq.outline import Clause, Scope, Step
from engine.lintseq.outlining import Outline

Error = tuple[int, str, str]
"""Line, kind of error (pylint's symbol), name."""


class Bindings:
    """Looks names up in an outline, given the lines that are there."""

    def __init__(self, outline: Outline) -> None:
        self._outline = outline
        self._alive = bytearray()
        self._errors: list[Error] = []
        self._wanted = 0  # names that nobody defines, while their uses are looked for
        # Of the scope being followed:
        self._scope = outline.module
        self._names = 0  # the names it binds somewhere
        self._used = 0  # the names it reads at once
        self._deleted = 0  # those it has deleted
        self._within: list[Clause] = []  # the headers above

    def _local(self, scope: Scope) -> int:
        """The names that are the scope's own, given the lines that are there."""
        alive, names = self._alive, 0
        for line, binds, step, _ in scope.binders:
            if alive[line]:
                if step is not None and step.span is not None and alive.find(0, line, step.end + 1) >= 0:
                    binds = reduce(or_, (each.binds for each in step.span.steps(alive) or ()), 0)
                names |= binds
        for line, others, _ in scope.elsewhere if scope.kind != "module" else ():
            if alive[line]:
                names &= ~others
        return names

    def _declared(self, scope: Scope, *, nonlocal_: bool = True) -> int:
        """The names that a scope declares nonlocal (or global), given the lines that are there."""
        alive = self._alive
        return reduce(or_, (names for line, names, which in scope.elsewhere if alive[line] and which == nonlocal_), 0)

    def _bound_as_global(self) -> int:
        """The names that functions declare global and bind: for the module they are bound at a time nobody knows."""
        alive, found = self._alive, 0
        for scope in self._outline.scopes:
            declared = self._declared(scope, nonlocal_=False)
            for line, names, step, _ in scope.binders if declared else ():
                if alive[line]:
                    found |= declared & (names if step is None else names & (step.writes | ~step.unbinds))
        return found

    def _report(self, step: Step, bound: int) -> int:
        """Set down the uses in a step of names not bound; returns those that get the benefit of the doubt."""
        excused = 0
        for use in step.uses:
            if use.bit & self._wanted if use.later else use.bit & ~bound:
                code = self._code(use.bit, step.line)
                if self._is_excused(use.bit, step, code):
                    excused |= use.bit
                else:
                    self._errors.append((use.line, code, use.name))
        return excused

    def _code(self, bit: int, line: int) -> str:
        """What pylint calls the use of a name that is not bound there."""
        if not bit & self._names:
            return "undefined-variable"
        above = any(at < line and self._alive[at] for at, _, _ in self._scope.binders_of(bit))
        return "possibly-used-before-assignment" if above else "used-before-assignment"

    def _is_excused(self, bit: int, step: Step, code: str) -> bool:
        """Whether the oracle lets a use pass: it asks only once for a name, and not inside the branch that binds it.

        In functions, a name is asked for at its first use and not again, and one that is bound later in the
        same block counts as bound there if that is, or stands in, a branch of an `if` (by no `x += 1`) or a `for`.
        """
        if self._scope.kind != "function" or code == "undefined-variable":
            return False
        if self._used & ~self._deleted & bit:
            return True
        if code == "possibly-used-before-assignment":
            return False
        plain, augmented = set[int](), set[int]()
        for at, binder, under in self._scope.binders_of(bit):
            if self._alive[at]:
                (augmented if binder is not None and binder.augmented else plain).add(under)
        branches = loops = 0
        for clause in self._within:
            loops += clause.kind == "loop" and clause.tail is not None
            branches += clause.kind in ("if", "elif", "else")
            if clause.line in plain and (loops or (branches and not step.augmented)):
                return True
            if clause.line in augmented and loops:
                return True
        return False

    def _unbound_nonlocals(self, unbound: int) -> list[Error]:
        """The `nonlocal` lines of names that no function around them binds."""
        return [
            (line, "misplaced-statement", "")
            for scope in self._outline.scopes
            for line, names, nonlocal_ in scope.elsewhere
            if nonlocal_ and names & unbound and self._alive[line]
        ]

    def _missing_exports(self, known: int) -> list[Error]:
        """The entries of `__all__` that nothing in the module binds."""
        errors: list[Error] = []
        for step in self._outline.exporting:
            if self._alive[step.line]:
                partial = step.span is not None and self._alive.find(0, step.line, step.end + 1) >= 0
                steps = (step.span.steps(self._alive) or ()) if partial and step.span is not None else (step,)
                entries = [entry for each in steps for entry in each.exports]
                errors += [(line, "undefined-all-variable", name) for bit, line, name in entries if bit & ~known]
        return errors
