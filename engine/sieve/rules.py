"""Query rules: which snippets of the stream the teacher is asked about, behind one interface.

    band         starts as a window of the stream around the threshold of least error, then narrows   (the default)
    published    starts as everything, narrows                                        (the paper's, as reconstructed)
    uncertainty  a window of the same share around a score of 0.5                     (control)
    random       everything                                                           (control)

`band` and `published` narrow by the empirical Bernstein bound: between two thresholds s < t the errors differ by the
mean of (2y - 1) over the snippets scored in (s, t], so labels inside the band tell thresholds apart, and one that is
worse than another beyond doubt is dropped. Within some hundred labels that bound drops next to nothing; the published
rule then asks at random, which is why ours begins with the window.

A rule sees scores in [0, 1] and works within one batch: the loop makes a new one for each student. Left out: where the
threshold of least error is thought to be (`engine.sieve.calibration`). Pure NumPy; called by the active loop.
"""

from typing import Protocol

import numpy as np

from engine.sieve.options import LoopOptions
from engine.sieve.threshold import Bools, Floats


class QueryRule(Protocol):
    """Chooses by score; `low` and `high` bound what it takes, and come only closer together."""

    low: float
    high: float

    def wants(self, scores: Floats) -> Bools:
        """Which of these scores, shape (n,), to ask about."""

    def learn(self, scores: Floats, labels: Bools) -> None:
        """Take note of answered questions: scores and labels, shape (n,), all of which the rule wanted."""


class Everything:
    """The random control: the stream is in random order, so whatever comes is a random sample."""

    low, high = 0.0, 1.0

    def wants(self, scores: Floats) -> Bools:
        """All of them."""
        return np.ones(len(scores), bool)

    def learn(self, scores: Floats, labels: Bools) -> None:
        """Nothing."""


class Window:
    """Scores in [low, high], for good."""

    def __init__(self, low: float, high: float) -> None:
        self.low, self.high = low, high

    def wants(self, scores: Floats) -> Bools:
        """Those in the window."""
        return (scores >= self.low) & (scores <= self.high)

    def learn(self, scores: Floats, labels: Bools) -> None:
        """Nothing."""


class Band(Window):
    """A window that narrows as thresholds in it prove worse than others; never to nothing.

    `grid` thresholds are laid evenly over the window, `every` answers looked at together; `confidence` is the chance
    that any comparison is wrong, shared out evenly among all pairs.
    """

    def __init__(self, low: float, high: float, *, grid: int, every: int, confidence: float) -> None:
        super().__init__(low, high)
        self._grid = np.linspace(low, high, grid)
        self._every = every
        self._confidence = confidence / grid**2
        self._scores: list[float] = []
        self._labels: list[bool] = []
        self._looked = 0

    def learn(self, scores: Floats, labels: Bools) -> None:
        """Take answers one after the other and narrow the band after every so many."""
        for score, label in zip(scores, labels, strict=True):
            self._scores.append(float(score))
            self._labels.append(bool(label))
            self._looked += 1
            if self._looked % self._every == 0:
                self._narrow()

    def _narrow(self) -> None:
        scores, labels = np.array(self._scores), np.array(self._labels)
        # What lies outside the band by now was drawn from a wider one; inside, all are a sample of the stream's band.
        inside = self.wants(scores)
        grid = self._grid[(self._grid >= self.low) & (self._grid <= self.high)]
        if len(grid) < 2 or inside.sum() < 2:
            return
        worse = worse_thresholds(scores[inside], labels[inside], grid, self._confidence)
        if worse.any() and not worse.all():
            self.low, self.high = float(grid[~worse].min()), float(grid[~worse].max())


def worse_thresholds(scores: Floats, labels: Bools, grid: Floats, confidence: float) -> Bools:
    """Which thresholds of an ascending grid, shape (g,), make more errors than another beyond doubt.

    `scores` and `labels`, shape (n,), are a random sample of the stream between the ends of the grid.
    """
    n = len(scores)
    signs = np.where(labels, 1.0, -1.0)
    at = np.searchsorted(grid, scores, side="left")  # a score belongs to every threshold at or above it
    sums = np.cumsum(np.bincount(at, signs, len(grid) + 1))[:-1]
    counts = np.cumsum(np.bincount(at, minlength=len(grid) + 1))[:-1]
    # err(t) - err(s), mean over the sample, for every pair; each item contributes -1, 0 or 1.
    excess = (sums[:, None] - sums[None, :]) / n
    variance = np.abs(counts[:, None] - counts[None, :]) / n - excess**2
    doubt = empirical_bernstein(np.maximum(variance, 0.0), n, confidence, value_range=2.0)
    return np.asarray((excess - doubt > 0).any(axis=1))


def empirical_bernstein(variance: Floats | float, n: int, confidence: float, value_range: float) -> Floats:
    """Half-width of the interval for the mean of n values of this variance within a range, at 1 - confidence."""
    log = np.log(2 / confidence)
    return np.asarray(np.sqrt(2 * np.asarray(variance) * log / n) + 7 * value_range * log / (3 * (n - 1)))


def make_rule(options: LoopOptions, centre: float, stream: Floats) -> QueryRule:
    """The rule of one batch. `centre` is the student's threshold of least error, `stream` scores it gave to a random
    sample of the stream, shape (m,), both in [0, 1]."""
    if options.rule == "random":
        return Everything()
    if options.rule == "uncertainty":
        return Window(*window(stream, 0.5, options.share))
    low, high = (0.0, 1.0) if options.rule == "published" else window(stream, centre, options.share)
    return Band(low, high, grid=options.grid, every=options.every, confidence=options.confidence)


def window(stream: Floats, centre: float, share: float) -> tuple[float, float]:
    """The scores between which this share of a sample lies, half of it on each side of a centre; pushed inwards, with
    the same share, where one side does not hold so much."""
    ordered = np.sort(stream)
    if not len(ordered):
        return 0.0, 1.0
    place = float(np.searchsorted(ordered, centre)) / len(ordered)
    low = min(max(place - share / 2, 0.0), max(1.0 - share, 0.0))
    high = min(low + share, 1.0)
    return (
        0.0 if low <= 0 else float(np.quantile(ordered, low)),
        1.0 if high >= 1 else float(np.quantile(ordered, high)),
    )
