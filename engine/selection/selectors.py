"""Ways to choose tasks, all behind one interface: candidates and a score in, `Choice` out.

    forward          the task that lowers the score most, again and again, until none does
    ensemble         many random subsets; a task's mark is the mean score of those it was in; marks below a cut are kept
    gradient         tasks whose mean gradient points the target's way, by cosine
    representation   tasks whose mean representation is like the target's, by cosine
    random, all      what they say

A score is a loss, lower is better, of any number of subsets at once: an estimate, or what real training gave. GradEx
(arXiv 2409.19458) proposes the first two; the released code's single pass in the order of tasks is not the first.

Left out: the scores (`engine.selection.estimates`, `engine.selection.trials`). Called by `engine.selection.job` and the
benchmarks; pure, but for the score.

Shapes: T tasks, m random subsets, w the width of vectors.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Subset = tuple[int, ...]
Score = Callable[[Sequence[Subset]], Sequence[float] | Floats]
"""Subsets (of places among the candidates) -> their losses."""


@dataclass(frozen=True)
class Choice:
    """The places of the chosen tasks, a mark for each candidate (lower is better; nan where it got none), and how it
    came about: (what was tried, its score), in order."""

    chosen: Subset
    marks: Floats
    trace: list[tuple[Subset, float]] = field(default_factory=list)


def forward(tasks: int, score: Score, *, most: int | None = None) -> Choice:
    """Greedy forward selection: from no task on, take the one with the lowest score of set and task together, as long
    as that lowers it; `most` tasks at the most. A mark is the score of the set when the task joined it, or in the last
    round would have. T (T + 1) / 2 scores at the most."""
    chosen: Subset = ()
    best = float(score([()])[0])
    trace = [(chosen, best)]
    marks = np.full(tasks, np.nan)
    while len(chosen) < (tasks if most is None else min(most, tasks)):
        left = [task for task in range(tasks) if task not in chosen]
        found = np.asarray(score([tuple(sorted((*chosen, task))) for task in left]), np.float64)
        marks[left] = found
        if not found.min() < best:
            break
        chosen, best = (*chosen, left[int(found.argmin())]), float(found.min())
        trace.append((chosen, best))
    return Choice(chosen, marks, trace)


def ensemble(
    tasks: int, score: Score, *, count: int = 1000, share: float = 0.5, threshold: float | None = None, seed: int = 0
) -> Choice:
    """Marks T_i, the mean score of the random subsets that hold task i; tasks with marks up to the `threshold` are
    chosen. Without one, of the sets that begin with the best mark that with the lowest score."""
    subsets = random_subsets(tasks, count, share, seed)
    marks = mean_scores(tasks, subsets, np.asarray(score(subsets), np.float64))
    order = np.argsort(np.nan_to_num(marks, nan=np.inf), kind="stable")
    if threshold is not None:
        chosen = tuple(int(task) for task in order if marks[task] <= threshold)
        return Choice(chosen, marks, [(chosen, float(score([chosen])[0]))])
    known = int(np.isfinite(marks).sum())
    prefixes = [tuple(int(task) for task in order[:size]) for size in range(1, known + 1)]
    found = np.asarray(score([tuple(sorted(each)) for each in prefixes]), np.float64)
    return Choice(prefixes[int(found.argmin())], marks, list(zip(prefixes, found.tolist(), strict=True)))


def similar(task_vectors: Floats, target_vector: Floats, size: int) -> Choice:
    """The `size` tasks most like the target: (T, w) and (w,); marks are cosines, negated."""
    norms = np.linalg.norm(task_vectors, axis=1) * np.linalg.norm(target_vector)
    cosines = np.divide(task_vectors @ target_vector, norms, out=np.zeros(len(norms)), where=norms > 0)
    order = np.argsort(-cosines, kind="stable")[:size]
    return Choice(tuple(int(task) for task in order), -cosines)


def at_random(tasks: int, size: int, seed: int) -> Choice:
    """`size` tasks drawn uniformly."""
    drawn = np.random.default_rng(seed).choice(tasks, size, replace=False)
    return Choice(tuple(int(task) for task in sorted(drawn)), np.full(tasks, np.nan))


def everything(tasks: int) -> Choice:
    """All tasks."""
    return Choice(tuple(range(tasks)), np.full(tasks, np.nan))


def random_subsets(tasks: int, count: int, share: float, seed: int) -> list[Subset]:
    """`count` subsets of a `share` of the tasks each, drawn uniformly."""
    rng = np.random.default_rng(seed)
    size = min(max(1, round(share * tasks)), tasks)
    return [tuple(sorted(rng.choice(tasks, size, replace=False).tolist())) for _ in range(count)]


def mean_scores(tasks: int, subsets: Sequence[Sequence[int]], scores: Floats) -> Floats:
    """T_i = mean{f(S_j) : i in S_j}, (T,); nan for a task in no subset."""
    within = np.zeros((len(subsets), tasks))
    for at, subset in enumerate(subsets):
        within[at, list(subset)] = 1.0
    counts = within.sum(0)
    found: Floats = np.divide(scores @ within, counts, out=np.full(tasks, np.nan), where=counts > 0)
    return found
