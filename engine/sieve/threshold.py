"""Thresholds and what they are judged by: the cut of least error, balanced accuracy, and the error of every cut.

A cut k of n ascending scores lets the last n - k pass. The true-risk-minimising (TRM) cut makes the fewest errors; near
it the labels are balanced however rare passing is, which is why questions are asked there (SIEVE, arXiv 2410.02755;
the guarantee of a quarter for each class is our own elementary result).

Left out: where to ask (`engine.sieve.rules`). Pure NumPy; called by the rest of the room.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


def trm_threshold(scores: Sequence[float] | Floats, labels: Sequence[int] | Bools) -> float:
    """The threshold of least error: items with a score above it pass; of equal ones the lowest.

    `scores` and `labels` (1 or True for pass) have shape (n,). The threshold lies halfway between the two scores it
    parts; -inf lets everything pass, inf nothing (also where there are no items). Raises `ValueError` for shapes
    that differ and for scores that are not numbers.
    """
    ordered, errors = cut_errors(scores, labels)
    # Equal scores cannot be parted: a cut between them does not exist.
    real = np.r_[True, ordered[1:] > ordered[:-1], True] if len(ordered) else np.array([True])
    if not len(ordered):
        return float("inf")
    return halfway(ordered, int(np.argmin(np.where(real, errors, np.inf))))


def cut_errors(
    scores: Sequence[float] | Floats, labels: Sequence[int] | Bools, weights: Floats | None = None
) -> tuple[Floats, Floats]:
    """Scores in ascending order, shape (n,), and the weighted errors of every cut, shape (n + 1,).

    The error of cut k is the weight of passes among the first k and of fails among the rest.
    """
    values, passed = _paired(scores, labels)
    order = np.argsort(values, kind="stable")
    weight = np.ones(len(values)) if weights is None else np.asarray(weights, float)[order]
    passes = np.where(passed[order], weight, 0.0)
    fails = np.where(passed[order], 0.0, weight)
    return values[order], np.r_[0.0, np.cumsum(passes)] + fails.sum() - np.r_[0.0, np.cumsum(fails)]


def balanced_threshold(
    scores: Sequence[float] | Floats, labels: Sequence[int] | Bools, weights: Floats | None = None
) -> float:
    """The threshold of greatest balanced accuracy: the TRM threshold where both classes weigh the same.

    Raises `ValueError` where a class is missing.
    """
    _, passed = _paired(scores, labels)
    weight = np.ones(len(passed)) if weights is None else np.asarray(weights, float)
    shares = weight[passed].sum(), weight[~passed].sum()
    if not all(shares):
        raise ValueError("balanced accuracy needs passes and fails")
    ordered, errors = cut_errors(scores, labels, np.where(passed, weight / shares[0], weight / shares[1]))
    real = np.r_[True, ordered[1:] > ordered[:-1], True]
    return halfway(ordered, int(np.argmin(np.where(real, errors.round(12), np.inf))))


def halfway(ordered: Floats, cut: int) -> float:
    """The threshold of a cut of ascending scores: halfway between the scores on its two sides, infinite at the ends."""
    if cut == 0:
        return float("-inf")
    if cut == len(ordered):
        return float("inf")
    below, above = float(ordered[cut - 1]), float(ordered[cut])
    middle = below / 2 + above / 2
    # Between neighbouring floats there is nothing; the upper score still has to lie above the threshold.
    return middle if below <= middle < above else below


@dataclass(frozen=True)
class Confusion:
    """Counts of a binary prediction against what is so: pass is the positive class."""

    true_pass: int
    false_fail: int
    false_pass: int
    true_fail: int

    @property
    def balanced_accuracy(self) -> float:
        """Mean recall of the classes there are; nan where there is neither."""
        classes = ((self.true_pass, self.false_fail), (self.true_fail, self.false_pass))
        recalls = [hit / (hit + missed) for hit, missed in classes if hit + missed]
        return sum(recalls) / len(recalls) if recalls else float("nan")

    @property
    def accuracy(self) -> float:
        """Share of right predictions; nan where there are none."""
        total = self.true_pass + self.false_fail + self.false_pass + self.true_fail
        return (self.true_pass + self.true_fail) / total if total else float("nan")

    @property
    def f1(self) -> float:
        """F1 of the passes; 0 where none was found or is there."""
        wrong = self.false_pass + self.false_fail
        return 2 * self.true_pass / (2 * self.true_pass + wrong) if self.true_pass else 0.0

    @property
    def precision(self) -> float:
        """Share of right predictions among the predicted passes; nan where nothing passes."""
        passed = self.true_pass + self.false_pass
        return self.true_pass / passed if passed else float("nan")

    @property
    def recall(self) -> float:
        """Share of the passes that were found; nan where there are none."""
        there = self.true_pass + self.false_fail
        return self.true_pass / there if there else float("nan")


def confusion(predicted: Sequence[int] | Bools, actual: Sequence[int] | Bools) -> Confusion:
    """Count predictions, shape (n,), against what is so, shape (n,)."""
    said, true = np.asarray(predicted, bool), np.asarray(actual, bool)
    if said.shape != true.shape or said.ndim != 1:
        raise ValueError(f"predictions have shape {said.shape}, truths {true.shape}; both should be (n,)")
    cells = [int((a & b).sum()) for b in (true, ~true) for a in (said, ~said)]
    return Confusion(cells[0], cells[1], cells[2], cells[3])


def balanced_accuracy(predicted: Sequence[int] | Bools, actual: Sequence[int] | Bools) -> float:
    """Mean of the recalls of pass and fail, in [0, 1]; of the one class where only one is there, nan without items."""
    return confusion(predicted, actual).balanced_accuracy


def balanced_accuracy_interval(counts: Confusion, confidence: float = 0.95) -> tuple[float, float]:
    """An interval for the balanced accuracy of a random sample: the Jeffreys posteriors of both recalls, drawn.

    10,000 draws with a fixed seed, so the same counts give the same interval. It is widened to hold the estimate where
    that is perfect or hopeless, as is usual with this prior.
    """
    rng = np.random.default_rng(0)
    recalls = [
        rng.beta(hit + 0.5, missed + 0.5, 10_000)
        for hit, missed in ((counts.true_pass, counts.false_fail), (counts.true_fail, counts.false_pass))
    ]
    tail = (1 - confidence) / 2
    low, high = np.quantile((recalls[0] + recalls[1]) / 2, (tail, 1 - tail))
    measured = counts.balanced_accuracy
    return min(float(low), measured), max(float(high), measured)


def _paired(scores: Sequence[float] | Floats, labels: Sequence[int] | Bools) -> tuple[Floats, Bools]:
    values, passed = np.asarray(scores, float), np.asarray(labels, bool)
    if values.shape != passed.shape or values.ndim != 1:
        raise ValueError(f"scores have shape {values.shape}, labels {passed.shape}; both should be (n,)")
    if np.isnan(values).any():
        raise ValueError("scores hold nan")
    return values, passed
