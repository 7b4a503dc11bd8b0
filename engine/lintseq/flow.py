"""What is wrong with a program when only some of its lines are there, told from its outline without parsing.

Three kinds of errors, the first reported alone as a parser does:

    form     a header without its block, a block or a decorator without its header, `try` without handlers, what is
             left of a statement that no longer parses
    names    used without a definition on some way to their use, in Python's scopes and in the order of execution
    needs    what classes and calls need that is not there (`engine.lintseq.needs`)

The order is followed as a set of definitely bound names that branches narrow: `if` and `match` keep what every branch
binds, a handler of `try` starts from before the `try`. Where the truth depends on values the program is given the
benefit of the doubt, as pylint does: loops are taken to run, `try` to succeed, and see `Bindings._is_excused`. Bodies
of functions run later, so for them any binding in an enclosing scope will do; what was found in one is kept for as
long as its lines stay the same.

Left out: types, values; names in string annotations; which names a scope has (`engine.lintseq.bindings`). Called by
`engine.lintseq.fast_linter`.
"""

from collections.abc import Callable, Sequence, Set
from functools import reduce
from operator import or_

from engine.lintseq.bindings import Bindings, Error
from engine.lintseq.linting import SYNTAX_ERROR
from engine.lintseq.needs import Need, unmet
from engine.lintseq.outline import BLIND, CLASS, DEF, IF, JUMP, LOOP, MATCH, TRY, UNREACHED, WITH, Clause, Scope, Step
from engine.lintseq.outlining import Outline

_MEMO = 1000
"""Most states remembered of one function: enough for a path, and a bound for a long one."""


class Flow(Bindings):
    """Follows one program; see `define` for the names that count as bound before it begins."""

    def __init__(self, outline: Outline, needs: Sequence[Need]) -> None:
        super().__init__(outline)
        self._needs = needs
        self._defined = 0
        self._own = reduce(or_, (names for _, names, _, _ in outline.module.binders), 0)
        self._declares_global = any(not nonlocal_ for scope in outline.scopes for _, _, nonlocal_ in scope.elsewhere)
        self._form: list[int] = []
        # Of the scope being followed:
        self._later = 0  # the names it reads later, nested functions included
        self._nonlocal = 0  # those that some function outside it has to bind
        self._unreached = 0  # what counts as bound where control does not get
        self._around = 0  # of a class body: what was bound where it began
        self._breaks: list[list[int]] = []  # per loop, what was bound at each `break`

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
        # A star import may define anything but what the program defines itself.
        wanted = self._later & ~known & (self._own if star else -1)
        if wanted:
            self._follow(known, late, wanted)
        errors = self._errors
        if star:
            bits = self._outline.bits
            errors = [each for each in errors if each[1] != "undefined-variable" or bits[each[2]] & self._own]
        if unbound:
            errors = errors + self._unbound_nonlocals(unbound)
        if self._outline.exporting and not star:
            errors = errors + self._missing_exports(known)
        return errors + unmet(self._needs, alive) if self._needs else errors

    def _follow(self, known: int, late: int, wanted: int) -> None:
        """Follow the module from its beginning; errors and the names it needs are collected on the way."""
        self._scope, self._wanted = self._outline.module, wanted
        self._form, self._errors, self._breaks, self._within = [], [], [], []
        self._used = self._later = self._nonlocal = 0
        self._unreached = known | UNREACHED
        self._block(self._outline.body, self._defined | late)

    # Statements: each takes the names bound before it and returns those bound after it

    def _block(self, steps: Sequence[Step], bound: int) -> int:
        """Follow statements in their order."""
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
        """Every branch starts from before; what all of them bind is bound after it."""
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
        """A loop is taken to run; an endless one is left at its `break`s only."""
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
        """The block is taken to succeed; handlers start from before it and count only where it always leaves."""
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
        """The block runs once, after its header."""
        clause = self._whole(step.clauses[0])
        return self._body(clause, self._block(clause.head, bound))

    def _match(self, step: Step, bound: int) -> int:
        """One of the cases is taken to be chosen; what all of them bind is bound after it."""
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
        """The header is evaluated here; the body later, from what is remembered of it if its lines are the same."""
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
        """The body runs here, in a scope that functions inside it do not see."""
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
        """What stands above a definition; one that has lost some of its lines is blamed."""
        for each in step.decorators:
            if each.end > each.line and self._alive[each.line] and self._alive.find(0, each.line, each.end + 1) >= 0:
                self._blame(each.line, each.end)
        return self._block(step.decorators, bound) if step.decorators else bound

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


_COMPOUND: dict[int, Callable[[Flow, Step, int], int]] = {
    IF: Flow._if,
    LOOP: Flow._loop,
    TRY: Flow._try,
    WITH: Flow._with,
    MATCH: Flow._match,
    DEF: Flow._define,
    CLASS: Flow._class,
}
