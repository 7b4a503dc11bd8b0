"""The backward sampler: take lines away until none are left, keep every state clean, and read the states forwards.

Each backward round draws one line by weight, deletes it with the lines indented under it, and lints the rest; lines
the linter objects to go the same way until it is content. All that one round took away is one edit.
Section 1 of the specification; arXiv 2410.02749, algorithm 1.

Left out: what an error is (`engine.lintseq.linting`) and how edits are written down (`engine.lintseq.diffs`).
Called by `engine.lintseq.actor` and by anyone with a program in hand.
"""

import random
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from engine.lintseq.diffs import insertion_edit
from engine.lintseq.linting import NAME_CODES, SYNTAX_ERROR, Finding, Given, Linter, Relint, Watch, linter_for, watch
from engine.lintseq.options import LintSeqOptions

Chooser = Callable[[Sequence[int], Sequence[int]], int]
"""Picks one of the remaining candidate lines (first argument) given their weights (second)."""


def sample_edit_sequence(
    program: str, *, seed: int, linter: Linter | None = None, options: LintSeqOptions | None = None
) -> list[str]:
    """Insertion diffs, first to last, that write `program`: `apply_edit_sequence` gives it back byte for byte.

    Every state between is clean for the linter (`FastLinter` unless `options` or `linter` say otherwise), except for
    names the whole program leaves undefined too (`options.undefined_names`). A program the linter cannot work on (it
    does not parse, or has only comments) is a single insertion; the empty program has no edits. The same seed gives
    the same edits in any process. Under `options.reference_compat` the edits write `program.strip()`.
    """
    options = options or LintSeqOptions()
    return prepare(program, linter or linter_for(options), options).sample(seed)


def prepare(program: str, linter: Linter, options: LintSeqOptions) -> "Prepared":
    """Do once per program what all its paths share: candidates, weights, and the errors it has as it stands."""
    lines = program.split("\n")
    indents = _indents(lines)
    candidates = _candidates(lines)
    tab = next((indent for indent in indents if indent), 1)
    # The reference knows nothing but the text of each state.
    watched = Relint(linter, lines) if options.reference_compat else watch(linter, lines)
    initial = watched.initial if candidates else []
    assume = options.undefined_names == "given" and not options.reference_compat
    given = frozenset((each.code, each.name) for each in initial if each.code in NAME_CODES) if assume else frozenset()
    return Prepared(
        lines=lines,
        candidates=candidates,
        # Whole numbers in the proportion 1 : indent / tab, so that a draw is the same on every machine.
        weights=[indent or tab for indent in indents],
        family_end=_family_ends(indents),
        initial=initial,
        given=given,
        watched=watched,
        options=options,
    )


@dataclass(frozen=True, slots=True)
class Prepared:
    """A program ready to be sampled any number of times.

    `candidates` are the lines that may be drawn; `weights` and `family_end` have one entry per line: the line's share
    in a draw, and the end of the run of lines after it that are indented deeper. `initial` holds the errors of the
    whole program, `given` those of them (code, name) that are none of the sampler's business.
    """

    lines: list[str]
    candidates: list[int]
    weights: list[int]
    family_end: list[int]
    initial: list[Finding]
    given: Given
    watched: Watch
    options: LintSeqOptions

    @property
    def erroneous(self) -> bool:
        """Whether the whole program has errors of its own, names taken as given left aside."""
        return any((each.code, each.name) not in self.given for each in self.initial)

    @property
    def workable(self) -> bool:
        """Whether there is anything to sample; if not, the program is a single insertion."""
        if self.options.reference_compat:
            return bool(self.candidates)
        if self.options.initial_errors == "reject" and self.erroneous:
            return False
        return bool(self.candidates) and all(each.code != SYNTAX_ERROR for each in self.initial)

    def sample(self, seed: int) -> list[str]:
        """The edit sequence of one path."""
        return self.edits(self.groups(weighted_draws(seed)))

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
            line = choose(remaining, [self.weights[index] for index in remaining])
            groups.append(self._delete(line, alive))
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

    def _delete(self, line: int, alive: bytearray) -> list[int]:
        """Delete `line` and all that must go with it until the linter is content again; the lines that went."""
        gone: list[int] = []
        queue = [line]
        while queue:
            for index in queue:
                for each in range(index, max(index + 1, self.family_end[index])):
                    if alive[each]:
                        alive[each] = 0
                        gone.append(each)
            queue = self.watched.errors(alive, self.given)
        return sorted(gone)


def weighted_draws(seed: int) -> Chooser:
    """Draw by weight from a generator of its own; `random.Random.random` is the same on every build of Python."""
    generator = random.Random(seed)

    def choose(remaining: Sequence[int], weights: Sequence[int]) -> int:
        sums = list(accumulate(weights))
        return remaining[bisect_right(sums, int(generator.random() * sums[-1]))]

    return choose


def _candidates(lines: Sequence[str]) -> list[int]:
    """Lines that may be drawn: no blanks, no comments, no inner lines of a constant's literal (`NAME = [ ... ]`)."""
    found: list[int] = []
    closer = ""
    for index, line in enumerate(lines):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        if closer:
            if text.endswith(closer):
                closer = ""
            continue
        found.append(index)
        target, equals, _ = text.partition("=")
        if equals and text[-1] in "([" and target.replace(" ", "").isupper():
            closer = {"(": ")", "[": "]"}[text[-1]]
    return found


def _indents(lines: Sequence[str]) -> list[int]:
    """Leading white space per line; a line of at most one character (blank, a closing bracket) takes the one before."""
    indents: list[int] = []
    current = 0
    for line in lines:
        text = line.lstrip()
        if len(text.rstrip()) > 1:
            current = len(line) - len(text)
        indents.append(current)
    return indents


def _family_ends(indents: Sequence[int]) -> list[int]:
    """For each line, the first later line that is not indented deeper (or the number of lines)."""
    ends = [len(indents)] * len(indents)
    pending: list[int] = []
    for index, indent in enumerate(indents):
        while pending and indents[pending[-1]] >= indent:
            ends[pending.pop()] = index
        pending.append(index)
    return ends


def _stripped(lines: list[str]) -> tuple[list[str], int, int]:
    """The lines of `"\\n".join(lines).strip()`, and the range of `lines` they come from."""
    filled = [index for index, line in enumerate(lines) if line.strip()]
    if not filled:
        return [], 0, 0
    first, end = filled[0], filled[-1] + 1
    return "\n".join(lines[first:end]).strip().split("\n"), first, end
