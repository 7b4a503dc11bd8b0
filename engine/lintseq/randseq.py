"""RandSeq, the control of the paper: random lines taken away in random chunks, with no regard to errors.

Where n lines are left, a chunk of 1 to n - 1 of them goes (the last one alone), any lines, comments and blanks too. So
a program of two lines or more has two edits or more. Section 1 of the specification. Written down with the same exact
diffs as LintSeq, so that the two differ in nothing but the order of lines. Called by the sampler.
"""

import random


def random_groups(count: int, seed: int) -> list[list[int]]:
    """Backward edits of a program of `count` lines: ascending line numbers, together every line once."""
    generator = random.Random(seed)
    left = list(range(count))
    groups: list[list[int]] = []
    while left:
        size = 1 + int(generator.random() * (len(left) - 1))
        for at in range(size):  # the first places become a random choice; only `random()` is the same everywhere
            other = at + int(generator.random() * (len(left) - at))
            left[at], left[other] = left[other], left[at]
        groups.append(sorted(left[:size]))
        left = sorted(left[size:])
    return groups
