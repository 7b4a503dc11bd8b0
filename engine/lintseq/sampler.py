"""The backward sampler: take lines away until none are left, keep every state clean, and read the states forwards.

Each backward round draws one line by weight, deletes it with the lines indented under it, and lints the rest; lines
the linter objects to go the same way until it is content. All that one round took away is one edit.
Section 1 of the specification; arXiv 2410.02749, algorithm 1.

Left out: what an error is (`engine.lintseq.linting`) and how edits are written down (`engine.lintseq.diffs`).
Called by `engine.lintseq.actor` and by anyone with a program in hand.
"""

import random
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import cast

from engine.lintseq import layout
from engine.lintseq.diffs import insertion_edit
from engine.lintseq.linting import (
    NAME_CODES,
    SYNTAX_ERROR,
    Finding,
    Given,
    Layout,
    Linter,
    Relint,
    Watch,
    linter_for,
    watch,
)
from engine.lintseq.options import LintSeqOptions
from engine.lintseq.randseq import random_groups

Chooser = Callable[[Sequence[int], Sequence[int]], int]
"""Picks one of the remaining candidate lines (first argument) given their weights (second)."""

_TRIES = 16
"""Draws for one edit before the smallest of them stands, where `max_edit_lines` sets a limit."""
_ATTEMPTS = 16
"""Draws of one path before a program counts as having no further one."""


class TimeLimit(Exception):
    """A program took longer than `max_seconds`."""


class Deadline:
    """So many seconds of CPU time of this thread, from now on."""

    def __init__(self, seconds: float) -> None:
        self._wall, self._cpu = time.perf_counter() + seconds, time.thread_time() + seconds

    def check(self) -> None:
        """Raise `TimeLimit` if they are over; the CPU is asked only when the cheaper clock says they may be."""
        if time.perf_counter() > self._wall and time.thread_time() > self._cpu:
            raise TimeLimit


def sample_edit_sequence(
    program: str, *, seed: int, linter: Linter | None = None, options: LintSeqOptions | None = None
) -> list[str]:
    """Insertion diffs, first to last, that write `program`: `apply_edit_sequence` gives it back byte for byte.

    Every state between is clean for the linter (`FastLinter` unless `options` or `linter` say otherwise), except for
    names the whole program leaves undefined too (`options.undefined_names`). A program the linter cannot work on (it
    does not parse, or has only comments, or takes longer than `options.max_seconds`) is a single insertion; the empty
    program has no edits. The same seed gives the same edits in any process. Under `initial_errors: repair` the edits
    write the program without its erroneous lines (unless finding these is what takes too long), under
    `reference_compat` they write `program.strip()`.
    """
    options = options or LintSeqOptions()
    written = program
    try:
        prepared = prepare(program, linter or linter_for(options), options)
        written = prepared.program
        return prepared.sample(seed)
    except TimeLimit:
        lines = written.split("\n")
        if options.reference_compat:
            lines, _, _ = _stripped(lines)
        return [insertion_edit(lines, [], range(len(lines)))]


def prepare(program: str, linter: Linter, options: LintSeqOptions) -> "Prepared":
    """Do once per program what all its paths share: candidates, weights, and the errors it has as it stands.

    The clock of `options.max_seconds` starts here: CPU time of the calling thread. Raises `TimeLimit`.
    """
    deadline = Deadline(options.max_seconds)
    prepared = _prepared(program, linter, options, deadline)
    if options.initial_errors == "repair" and prepared.erroneous:
        rest = _prepared(prepared.repaired(linter), linter, options, deadline)
        return replace(rest, found=prepared.initial)
    return prepared


def _prepared(program: str, linter: Linter, options: LintSeqOptions, deadline: Deadline) -> "Prepared":
    """As `prepare`, without repair."""
    lines = program.split("\n")
    own = cast(Layout, linter) if hasattr(linter, "indents") else None
    indents = own.indents(lines) if own else layout.indentations(lines)
    candidates = own.candidates(lines) if own else layout.candidates(lines, by_looks=options.reference_compat)
    # The reference knows nothing but the text of each state.
    watched = Relint(linter, lines) if options.reference_compat else watch(linter, lines)
    initial = watched.initial if candidates else []
    assume = options.undefined_names == "given" and not options.reference_compat
    given = frozenset((each.code, each.name) for each in initial if each.code in NAME_CODES) if assume else frozenset()
    tab = next((indent for indent in indents if indent), 1)
    return Prepared(
        lines=lines,
        candidates=candidates,
        # Whole numbers in the proportion 1 : indent / tab, so that a draw is the same on every machine.
        weights=[indent or tab for indent in indents],
        family_end=layout.family_ends(indents),
        initial=initial,
        given=given,
        watched=watched,
        options=options,
        deadline=deadline,
    )


@dataclass(frozen=True, slots=True)
class Prepared:
    """A program ready to be sampled any number of times.

    `candidates` are the lines that may be drawn; `weights` and `family_end` have one entry per line: the line's share
    in a draw, and the end of the run of lines after it that are indented deeper. `initial` holds the errors of the
    whole program, `given` those of them (code, name) that are none of the sampler's business; `found` are the errors
    that were repaired.
    """

    lines: list[str]
    candidates: list[int]
    weights: list[int]
    family_end: list[int]
    initial: list[Finding]
    given: Given
    watched: Watch
    options: LintSeqOptions
    deadline: Deadline
    found: Sequence[Finding] = ()

    @property
    def program(self) -> str:
        """What the edits write."""
        return "\n".join(self.lines)

    @property
    def erroneous(self) -> bool:
        """Whether the whole program has errors of its own, names taken as given left aside."""
        return any((each.code, each.name) not in self.given for each in self.initial)

    @property
    def rejected(self) -> bool:
        """Whether the options want nothing of a program with such errors."""
        return self.options.initial_errors == "reject" and self.erroneous

    @property
    def workable(self) -> bool:
        """Whether there is anything to sample; if not, the program is a single insertion."""
        if self.options.reference_compat:
            return bool(self.candidates)
        return bool(self.candidates) and not self.rejected and all(each.code != SYNTAX_ERROR for each in self.initial)

    def sample(self, seed: int) -> list[str]:
        """The edit sequence of one path. Raises `TimeLimit`."""
        return self.edits(self.draw(seed))

    def paths(self, seed_of: Callable[[int, int], int]) -> Iterator[tuple[int, list[str]]]:
        """Seeds and edit sequences of `options.paths` paths, or of as many different ones as were found.

        `seed_of(path, attempt)` is the seed of an attempt at a path. Raises `TimeLimit`.
        """
        seen: set[tuple[tuple[int, ...], ...]] = set()
        for path in range(self.options.paths):
            for attempt in range(_ATTEMPTS if self.options.distinct else 1):
                seed = seed_of(path, attempt)
                groups = self.draw(seed)
                key = tuple(map(tuple, groups))
                if key not in seen or not self.options.distinct:
                    break
            else:
                return
            seen.add(key)
            yield seed, self.edits(groups)

    def draw(self, seed: int) -> list[list[int]]:
        """The backward edits of one path."""
        if self.options.algorithm == "randseq" and not self.rejected:
            return random_groups(len(self.lines), seed)
        return self.groups(weighted_draws(seed))

    def groups(self, choose: Chooser) -> list[list[int]]:
        """The backward edits, first to last: ascending line numbers, together every line of the program once.

        Where nothing can be sampled there is one group of all lines (under `reference_compat` none).
        """
        everything = list(range(len(self.lines)))
        if not self.workable:
            return [] if self.options.reference_compat else [everything]
        groups: list[list[int]] = []
        alive, remaining = bytearray(b"\1") * len(self.lines), self.candidates
        while remaining and len(groups) < self.options.max_rounds:
            group, alive = self._round(choose, remaining, alive)
            groups.append(group)
            remaining = [index for index in remaining if alive[index]]
        kept = [index for index in everything if alive[index]]
        rest = "\n".join(self.lines[index] for index in kept)
        if rest.strip() or (self.options.reference_compat and rest):
            groups.append(kept)
        else:
            # Blank lines alone are no step worth writing: they come with the first edit that has a word in it.
            groups[-1] = sorted(groups[-1] + kept)
        return groups

    def edits(self, groups: Sequence[Sequence[int]]) -> list[str]:
        """The backward edits read forwards, as diffs."""
        lines, first, end = self.lines, 0, len(self.lines)
        if self.options.reference_compat:
            lines, first, end = _stripped(self.lines)
        elif self.lines == [""]:
            return []
        edits: list[str] = []
        kept: list[int] = []
        for group in reversed(groups):
            inserted = [index - first for index in group if first <= index < end]
            edits.append(insertion_edit(lines, kept, inserted))
            kept = sorted(kept + inserted)
        return edits

    def repaired(self, linter: Linter) -> str:
        """The program without its erroneous lines and what cannot stand without them. Raises `TimeLimit`."""
        broken = any(each.code == SYNTAX_ERROR for each in self.initial)
        watched = Relint(linter, self.lines) if broken else self.watched
        alive = bytearray(b"\1") * len(self.lines)
        self._delete(watched.errors(alive, self.given), alive, watched)
        return "\n".join(line for line, here in zip(self.lines, alive, strict=True) if here)

    def _round(self, choose: Chooser, remaining: list[int], alive: bytearray) -> tuple[list[int], bytearray]:
        """One edit and the lines that are left: as small as `max_edit_lines` asks, if a few draws can make it so."""
        most = self.options.max_edit_lines
        if most is None:
            return self._edit(choose, remaining, alive), alive
        smallest: tuple[list[int], bytearray] | None = None
        for _ in range(_TRIES):
            left = bytearray(alive)
            gone = self._edit(choose, remaining, left)
            if smallest is None or len(gone) < len(smallest[0]):
                smallest = gone, left
            if len(gone) <= most:
                break
        assert smallest is not None
        return smallest

    def _edit(self, choose: Chooser, remaining: list[int], alive: bytearray) -> list[int]:
        """Draw and delete until `min_edit_lines` have gone; one draw is enough for most."""
        gone: list[int] = []
        while remaining:
            line = choose(remaining, [self.weights[index] for index in remaining])
            gone += self._delete([line], alive, self.watched)
            if len(gone) >= self.options.min_edit_lines:
                break
            remaining = [index for index in remaining if alive[index]]
        return sorted(gone)

    def _delete(self, queue: list[int], alive: bytearray, watched: Watch) -> list[int]:
        """Delete lines and all that must go with them until the linter is content again; those that went."""
        gone: list[int] = []
        while queue:
            self.deadline.check()
            before = len(gone)
            for index in queue:
                for each in range(index, max(index + 1, self.family_end[index])):
                    if alive[each]:
                        alive[each] = 0
                        gone.append(each)
            # A linter that blames only lines that have gone already will never be content.
            queue = watched.errors(alive, self.given) if len(gone) > before else []
        return gone


def weighted_draws(seed: int) -> Chooser:
    """Draw by weight from a generator of its own; `random.Random.random` is the same on every build of Python."""
    generator = random.Random(seed)

    def choose(remaining: Sequence[int], weights: Sequence[int]) -> int:
        sums = list(accumulate(weights))
        return remaining[bisect_right(sums, int(generator.random() * sums[-1]))]

    return choose


def _stripped(lines: list[str]) -> tuple[list[str], int, int]:
    """The lines of `"\\n".join(lines).strip()`, and the range of `lines` they come from."""
    filled = [index for index, line in enumerate(lines) if line.strip()]
    if not filled:
        return [], 0, 0
    first, end = filled[0], filled[-1] + 1
    return "\n".join(lines[first:end]).strip().split("\n"), first, end
