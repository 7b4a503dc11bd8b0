"""What a score means: the chance to pass behind it, how often the stream passes, and the cuts that follow.

Labels come from where the query rule asked, so their own pass rate says nothing about the stream. Which snippets were
asked depended on their scores alone, though, so the chance to pass *given the score* can be learned from them all: a
logistic curve through out-of-fold scores (Platt scaling, but without its smoothed targets: where passing is rare they
push the cut down). The stream's own scores, of which there is no lack, then give its pass rate, and with it the two
cuts that matter: where passing is as likely as not (least error) and where it is as likely as in the stream at large
(greatest balanced accuracy).

This is a design of ours; the paper calibrates on random labels, of which a rare topic needs many. Pure NumPy; called
by the student's training and by the query rules.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from engine.sieve.threshold import Bools, Floats

_FLATTEST = 1e-3
"""A slope below this (in units of scores) says that scores tell nothing; cuts would run off to infinity."""
_WEIGHT = 1.0
"""Pull of the slope towards one, in labels: a few labels that happen to be separable must not make it a step."""


@dataclass(frozen=True)
class Calibration:
    """P(pass | logit) = sigmoid(slope * logit + offset); `rate` is the share of the stream that passes."""

    slope: float = 1.0
    offset: float = 0.0
    rate: float = 0.5

    def chance(self, logits: Floats) -> Floats:
        """P(pass) of each logit, shape (n,)."""
        return sigmoid(self.slope * np.asarray(logits, float) + self.offset)

    @property
    def least_error(self) -> float:
        """The logit at which passing is as likely as not: an estimate of the TRM threshold."""
        return -self.offset / self.slope

    @property
    def balanced(self) -> float:
        """The logit at which passing is as likely as in the stream at large: greatest balanced accuracy."""
        return (_logit(self.rate) - self.offset) / self.slope


def calibrate(logits: Floats, labels: Bools, stream: Floats) -> Calibration:
    """Fit the curve to out-of-fold logits and labels, shape (n,), and the rate to the stream's logits, shape (m,).

    Labels that are all alike count half a label less, so that the curve stays finite.
    """
    targets = np.asarray(labels, float)
    if labels.all() or not labels.any():
        targets = np.where(labels, 1 - 0.5 / len(labels), 0.5 / len(labels))
    slope, offset = _logistic(np.asarray(logits, float), targets)
    slope = max(slope, _FLATTEST)
    rate = float(sigmoid(slope * stream + offset).mean()) if len(stream) else float(np.mean(targets))
    return Calibration(slope, offset, min(max(rate, 1e-6), 1 - 1e-6))


def out_of_fold(
    fit: Callable[[np.ndarray], Callable[[np.ndarray], Floats]], labels: Bools, folds: int, seed: int
) -> Floats:
    """A logit for each label from a model that has not seen it, shape (n,).

    `fit(train)` trains on the labels of these indices and gives a function from indices to logits. Folds hold equal
    shares of both classes.
    """
    rng = np.random.default_rng(seed)
    fold = np.empty(len(labels), int)
    for members in (np.flatnonzero(labels), np.flatnonzero(~labels)):
        fold[rng.permutation(members)] = np.arange(len(members)) % folds
    logits = np.zeros(len(labels))
    for number in range(folds):
        held = np.flatnonzero(fold == number)
        if len(held):
            logits[held] = fit(np.flatnonzero(fold != number))(held)
    return logits


def sigmoid(values: Floats) -> Floats:
    """1 / (1 + exp(-x)) without overflow."""
    return 0.5 * (1.0 + np.tanh(0.5 * np.asarray(values, float)))


def _logit(chance: float) -> float:
    return float(np.log(chance) - np.log1p(-chance))


def _logistic(x: Floats, targets: Floats, steps: int = 100) -> tuple[float, float]:
    """Slope and offset of least cross-entropy, by Newton's method with halved steps."""
    point = np.array([1.0, _logit(float(np.clip(targets.mean(), 1e-6, 1 - 1e-6))) - float(x.mean())])

    def loss(at: Floats) -> float:
        z = at[0] * x + at[1]
        return float((np.logaddexp(0, z) - targets * z).sum() + 0.5 * _WEIGHT * (at[0] - 1) ** 2)

    for _ in range(steps):
        p = sigmoid(point[0] * x + point[1])
        gradient = np.array([((p - targets) * x).sum() + _WEIGHT * (point[0] - 1), (p - targets).sum()])
        w = p * (1 - p)
        hessian = np.array([[(w * x * x).sum() + _WEIGHT, (w * x).sum()], [(w * x).sum(), w.sum()]])
        step = np.linalg.solve(hessian + 1e-9 * np.eye(2), gradient)
        size, before = 1.0, loss(point)
        while loss(point - size * step) > before and size > 1e-6:
            size /= 2
        point = point - size * step
        if float(np.abs(size * step).max()) < 1e-9:
            break
    return float(point[0]), float(point[1])
