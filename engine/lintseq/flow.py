"""What is wrong with a program when only some of its lines are there, told from its outline without parsing.

Two kinds of errors, the first reported alone as a parser does:

    form     a header without its block, a block or a decorator without its header, `try` without handlers, what is
             left of a statement that no longer parses
    names    used without a definition on some way to their use, in Python's scopes and in the order of execution

The order is followed as a set of definitely bound names that branches narrow: `if` and `match` keep what every branch
binds, a handler of `try` starts from before the `try`. Where the truth depends on values the program is given the
benefit of the doubt, as pylint does: loops are taken to run, `try` to succeed, and see `Flow._is_excused`. Bodies of
functions run later, so for them any binding in an enclosing scope will do; what was found in one is kept for as long
as its lines stay the same.

Left out: attributes, types, values; names in string annotations. Called by `engine.lintseq.fast_linter`.
"""

from collections.abc import Callable, Sequence, Set
from functools import reduce
from operator import or_

from engine.lintseq.linting import SYNTAX_ERROR
from engine.lintseq.outline import BLIND, CLASS, DEF, IF, JUMP, LOOP, MATCH, TRY, UNREACHED, WITH, Clause, Scope, Step
from engine.lintseq.outlining import Outline

Error = tuple[int, str, str]
"""Line, kind of error (pylint's symbol), name."""

_MEMO = 1000
"""Most states remembered of one function: enough for a path, and a bound for a long one."""


class Flow:
    """Follows one program; see `define` for the names that count as bound before it begins."""

    def __init__(self, outline: Outline) -> None:
        self._outline = outline
        self._defined = 0
        self._declares_global = any(not nonlocal_ for scope in outline.scopes for _, _, nonlocal_ in scope.elsewhere)
        self._alive = bytearray()
        self._form: list[int] = []
        self._errors: list[Error] = []
        # Of the scope being followed:
        self._scope = outline.module
        self._names = 0  # the names it binds somewhere
        self._used = 0  # the names it reads at once
        self._later = 0  # those it reads later, nested functions included
        self._deleted = 0  # those it has deleted
        self._nonlocal = 0  # those that some function outside it has to bind
        self._unreached = 0  # what counts as bound where control does not get
        self._around = 0  # of a class body: what was bound where it began
        self._breaks: list[list[int]] = []  # per loop, what was bound at each `break`
        self._within: list[Clause] = []  # the headers above
        self._wanted = 0  # names that nobody defines, while their uses are looked for

    def define(self, names: Set[str]) -> None:
        """Count these names, and no others, as bound before the program begins."""
        self._defined = self._outline.mask(names)

    def errors(self, alive: bytearray) -> list[Error]:
        """The errors of the lines that `alive` marks with 1."""
        self._alive = alive
        module = self._outline.module
        late = self._bound_as_global() if self._declares_global else 0
        self._names = self._local(module) | late
        known = self._names | self._defined
        star = any(alive[line] for line in self._outline.star_lines)
        self._follow(known, late, wanted=0)
        if self._form:
            return [(line if line >= 0 else self._next_code(~line), SYNTAX_ERROR, "") for line in set(self._form)]
        unbound = self._nonlocal
        wanted = self._later & ~known
        if wanted and not star:
            self._follow(known, late, wanted)
        errors = [each for each in self._errors if each[1] != "undefined-variable"] if star else self._errors
        if unbound:
            errors = errors + self._unbound_nonlocals(unbound)
        if self._outline.exporting and not star:
            errors = errors + self._missing_exports(known)
        return errors

    def _follow(self, known: int, late: int, wanted: int) -> None:
        self._scope, self._wanted = self._outline.module, wanted
        self._form, self._errors, self._breaks, self._within = [], [], [], []
        self._used = self._later = self._nonlocal = 0
        self._unreached = known | UNREACHED
        self._block(self._outline.body, self._defined | late)

    # Statements: each takes the names bound before it and returns those bound after it

    def _block(self, steps: Sequence[Step], bound: int) -> int:
        alive = self._alive
        for step in steps:
            line = step.line
            if not alive[line]:
                if step.end > step.start and alive.find(1, step.start, step.end + 1) >= 0:
                    self._blame(step.start, step.end)
                continue
            kind = step.kind
            if kind > BLIND:
                bound = _COMPOUND[kind](self, step, bound)
                continue
            if step.span is not None and alive.find(0, line, step.end + 1) >= 0:
                rest = step.span.steps(alive)
                if rest is None:
                    self._blame(line, step.end)
                    continue
                if rest[0] is not step:
                    bound = self._block(rest, bound)
                    continue
            reads = step.reads
            if reads:
                if reads & ~(self._around if kind == BLIND else bound):
                    bound |= self._report(step, self._around if kind == BLIND else bound)
                self._used |= reads
            if step.later:
                self._later |= step.later
                if step.later & self._wanted:
                    self._report(step, bound)
            bound |= step.writes
            if step.unbinds and not bound & UNREACHED:
                bound &= ~step.unbinds
                self._deleted |= step.unbinds
            if kind == JUMP:
                if step.leaves == "break" and self._breaks:
                    self._breaks[-1].append(bound)
                bound = self._unreached
        return bound

    def _whole(self, clause: Clause) -> Clause:
        """The clause with what is left of its header, if that stands on several lines."""
        if clause.last == clause.line or self._alive.find(0, clause.line, clause.last + 1) < 0:
            return clause
        rest = clause.span.steps(self._alive) if clause.span is not None else None
        if rest is None:
            self._blame(clause.line, clause.last)
            return clause
        return rest[0].clauses[0]

    def _body(self, clause: Clause, bound: int) -> int:
        """The block under a header; a header without one is blamed."""
        alive = self._alive
        for step in clause.body:
            if alive[step.line]:
                break
        else:
            self._form.append(clause.line)
        self._within.append(clause)
        bound = self._block(clause.body, bound)
        self._within.pop()
        return bound

    def _present(self, clause: Clause) -> bool:
        """Whether a later clause of a statement is there; what is left of one without its header is blamed."""
        if self._alive[clause.line]:
            return True
        end = clause.body[-1].end
        if self._alive.find(1, clause.line, end + 1) >= 0:
            self._blame(clause.line, end)
        return False

    def _if(self, step: Step, bound: int) -> int:
        ends, last = -1, step.clauses[0]
        for clause in step.clauses:
            if self._present(clause):
                last = self._whole(clause)
                self._within.append(last)
                bound = self._block(last.head, bound)
                self._within.pop()
                ends &= self._body(last, bound)
        return ends if last.kind == "else" else ends & bound

    def _loop(self, step: Step, bound: int) -> int:
        clause = self._whole(step.clauses[0])
        if clause.tail is not None:  # of a `for`, the header counts as part of its block
            self._within.append(clause)
        bound = before = self._block(clause.head, bound)
        if clause.tail is not None:
            bound = self._block((clause.tail,), bound)
            self._within.pop()
        self._breaks.append([])
        bound = self._body(clause, bound)
        ends = self._breaks.pop()
        endless = step.leaves == "never"
        if not endless:
            bound = before | (0 if bound & UNREACHED else bound)
        for other in step.clauses[1:]:
            if self._present(other):
                bound = self._body(other, self._unreached if endless else bound)
        if not endless:
            ends.append(bound)
        reached = [end for end in ends if not end & UNREACHED]
        return reduce(or_, reached) if reached else self._unreached

    def _try(self, step: Step, bound: int) -> int:
        before = bound
        first, *others = step.clauses
        there = [self._whole(clause) for clause in others if self._present(clause)]
        handlers = [clause for clause in there if clause.kind == "except"]
        bound = self._body(first, bound)
        if not handlers and (not there or there[0].kind == "else"):
            # Told as a place to look from: what is remembered of a function must not name lines outside it.
            self._form.append(~(first.body[-1].end + 1))
        for clause in there:
            if clause.kind == "else":
                bound = self._body(clause, bound)
        succeeded, handled = bound, self._unreached
        for clause in handlers:
            tail = clause.tail
            assert tail is not None
            bound = self._body(clause, self._block(clause.head, before) | tail.writes)
            if not bound & UNREACHED:
                bound &= ~tail.unbinds
            handled &= bound
        after = handled if succeeded & UNREACHED else succeeded
        if there and there[-1].kind == "finally":
            after |= self._body(there[-1], before)
        return after

    def _with(self, step: Step, bound: int) -> int:
        clause = self._whole(step.clauses[0])
        return self._body(clause, self._block(clause.head, bound))

    def _match(self, step: Step, bound: int) -> int:
        subject, *cases = step.clauses
        before, ends = self._block(self._whole(subject).head, bound), self._unreached
        cases = [self._whole(clause) for clause in cases if self._present(clause)]
        if not cases:
            self._form.append(step.line)
        for clause in cases:
            ends &= self._body(clause, self._block(clause.head, before))
        return ends

    # Scopes

    def _define(self, step: Step, bound: int) -> int:
        bound = self._decorators(step, bound)
        clause, scope = self._whole(step.clauses[0]), step.inner
        assert scope is not None
        bound = self._block(clause.head, bound)
        key = bytes(self._alive[scope.start : scope.end + 1])
        found = None if self._wanted else scope.memo.get(key)
        if found is None:
            found = self._function(scope, clause)
            if not self._wanted:
                if len(scope.memo) >= _MEMO:
                    scope.memo.clear()
                scope.memo[key] = found
        free, nonlocal_, errors, form = found
        self._later |= free
        self._nonlocal |= nonlocal_
        self._errors += errors
        self._form += form
        return bound | step.writes

    def _function(self, scope: Scope, clause: Clause) -> tuple[int, int, list[Error], list[int]]:
        """Follow a body as if every name outside it were defined; what it needs of them is the first result."""
        outside = (self._scope, self._names, self._used, self._later, self._nonlocal, self._unreached, self._breaks)
        around = (self._errors, self._form, self._wanted, self._within, self._deleted)
        local = self._local(scope) | clause.parameters
        self._scope, self._names, self._breaks, self._errors, self._form = scope, local, [], [], []
        self._used = self._later = self._nonlocal = 0
        self._within, self._deleted = [], 0
        self._wanted &= ~local
        self._unreached = ~self._wanted
        self._body(clause, (clause.parameters | ~local) & ~UNREACHED & ~self._wanted)
        needed = self._nonlocal & ~local
        if scope.elsewhere:
            needed |= self._declared(scope)
        found = ((self._used | self._later) & ~local, needed, self._errors, self._form)
        self._scope, self._names, self._used, self._later, self._nonlocal, self._unreached, self._breaks = outside
        self._errors, self._form, self._wanted, self._within, self._deleted = around
        return found

    def _class(self, step: Step, bound: int) -> int:
        bound = self._decorators(step, bound)
        clause, scope = self._whole(step.clauses[0]), step.inner
        assert scope is not None
        bound = self._block(clause.head, bound)
        outside = (self._scope, self._names, self._unreached, self._around)
        names = self._local(scope)
        self._scope, self._names, self._around = scope, names, bound
        self._unreached |= names
        self._body(clause, bound)
        self._nonlocal |= self._declared(scope)
        self._scope, self._names, self._unreached, self._around = outside
        return bound | step.writes

    def _decorators(self, step: Step, bound: int) -> int:
        for each in step.decorators:
            if each.end > each.line and self._alive[each.line] and self._alive.find(0, each.line, each.end + 1) >= 0:
                self._blame(each.line, each.end)
        return self._block(step.decorators, bound) if step.decorators else bound

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

    # Errors

    def _blame(self, start: int, end: int) -> None:
        """Every line of a range that is there and holds code."""
        code = self._outline.code
        self._form += [line for line in range(start, end + 1) if self._alive[line] and code[line]]

    def _next_code(self, start: int) -> int:
        """The line on which a parser notices that something is missing: the next with code, or the last one."""
        for line in range(start, len(self._alive)):
            if self._alive[line] and self._outline.code[line]:
                return line
        return self._alive.rfind(1)

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
        if not bit & self._names:
            return "undefined-variable"
        above = any(names & bit and at < line and self._alive[at] for at, names, _, _ in self._scope.binders)
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
        for at, names, binder, under in self._scope.binders:
            if names & bit and self._alive[at]:
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
        return [
            (line, "misplaced-statement", "")
            for scope in self._outline.scopes
            for line, names, nonlocal_ in scope.elsewhere
            if nonlocal_ and names & unbound and self._alive[line]
        ]

    def _missing_exports(self, known: int) -> list[Error]:
        errors: list[Error] = []
        for step in self._outline.exporting:
            if self._alive[step.line]:
                partial = step.span is not None and self._alive.find(0, step.line, step.end + 1) >= 0
                steps = (step.span.steps(self._alive) or ()) if partial and step.span is not None else (step,)
                entries = [entry for each in steps for entry in each.exports]
                errors += [(line, "undefined-all-variable", name) for bit, line, name in entries if bit & ~known]
        return errors


_COMPOUND: dict[int, Callable[[Flow, Step, int], int]] = {
    IF: Flow._if,
    LOOP: Flow._loop,
    TRY: Flow._try,
    WITH: Flow._with,
    MATCH: Flow._match,
    DEF: Flow._define,
    CLASS: Flow._class,
}
