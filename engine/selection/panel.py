"""Whether estimates can be trusted: how far the first order goes, whether the projection is wide enough, and how exact
the batched solver is.

Left out: the estimates (`engine.selection.estimates`). Called by `engine.selection.job`, for the report.

Shapes: M target examples looked at, d projected numbers.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import expit
from scipy.stats import spearmanr

from engine.selection.estimator import Estimator
from engine.selection.gradients import Describers
from engine.selection.margins import losses_of
from engine.selection.methods import Chosen
from engine.selection.projection import narrowed
from engine.selection.selectors import random_subsets
from engine.selection.solver import Examples, solve_exactly

Floats = npt.NDArray[np.float64]
SHARES = (0.125, 0.25, 0.5, 1.0, 2.0)
"""Shares of the chosen tasks' step at which the model itself is asked."""
_LOOKED_AT = 48
"""Target examples that are asked."""
_STEPPED = 256
"""Examples whose gradients the step is made of, at most."""
_SUBSETS = 200
_EXACTLY = 20


@dataclass(frozen=True)
class Panel:
    """What was found."""

    shares: tuple[float, ...]
    errors: list[float]
    """Residual ratio of linear margins against true ones, for each share."""
    without: list[float]
    """The same of margins that stay where they are: the control without gradients."""
    widths: dict[int, tuple[float, float]]
    """Projected numbers -> rank correlation of estimates with those of the full width, mean difference in nats."""
    deviation: float
    """Largest difference of a batched estimate from that of the exact solver, nats."""
    per_second: float
    """Subsets solved a second, a ridge given."""


def look(
    estimator: Estimator,
    chosen: Chosen,
    describers: Describers,
    numbers: Sequence[int],
    target: Sequence[int],
    seed: int,
) -> Panel:
    """Look at the estimates of a selection. `numbers` and `target` are the examples' in the dataset of tokens."""
    subsets = random_subsets(len(estimator.tasks), _SUBSETS, 0.5, seed)
    errors, without = _linearisation(estimator, chosen, describers, numbers, target, seed)
    per_second, deviation = _solver(estimator, subsets)
    return Panel(SHARES, errors, without, _widths(estimator, subsets), deviation, per_second)


def residual_ratio(linear: Any, true: Any) -> float:
    """sum (linear - true)^2 / sum true^2."""
    linear, true = np.asarray(linear, np.float64), np.asarray(true, np.float64)
    return float(np.square(linear - true).sum() / np.square(true).sum())


def scaled_residual(before: Any, linear: Any, true: Any) -> float:
    """The released code's: the mean of ((linear - true) / max(|true|, |before|))^2."""
    before, linear, true = (np.asarray(each, np.float64) for each in (before, linear, true))
    return float(np.square((linear - true) / np.maximum(np.abs(true), np.abs(before))).mean())


def _linearisation(
    estimator: Estimator,
    chosen: Chosen,
    describers: Describers,
    numbers: Sequence[int],
    target: Sequence[int],
    seed: int,
) -> tuple[list[float], list[float]]:
    """Residual ratios at shares of a step of the model itself: the sum of gradients that the regression comes to."""
    w = estimator.of([chosen.choice.chosen]).steps[0]
    rng = np.random.default_rng(seed)
    members = np.flatnonzero(np.isin(estimator.task_numbers, chosen.choice.chosen))
    members = rng.permutation(members)[:_STEPPED]
    some = rng.permutation(len(target))[:_LOOKED_AT]
    pull = expit(-(estimator.margins[members] + estimator.gradients[members] @ w))
    step = pull @ estimator.gradients[members]
    pull *= np.linalg.norm(w) / max(float(np.linalg.norm(step)), 1e-12)
    true = describers.along([numbers[at] for at in members], pull, [target[at] for at in some], (0.0, *SHARES))
    rise = estimator.target_gradients[some] @ (pull @ estimator.gradients[members])
    linear = [true[0] + share * rise for share in SHARES]
    errors = [residual_ratio(each, found) for each, found in zip(linear, true[1:], strict=True)]
    return errors, [residual_ratio(true[0], found) for found in true[1:]]


def _widths(estimator: Estimator, subsets: Sequence[tuple[int, ...]]) -> dict[int, tuple[float, float]]:
    """Stability over projection sizes: the curve of lengths is scaled by no more than chance."""
    full = estimator.score(subsets)
    found = {}
    wide = estimator.gradients.shape[1]
    for width in (wide // 4, wide // 2):
        narrow = replace(
            estimator,
            gradients=narrowed(estimator.gradients, width),
            target_gradients=narrowed(estimator.target_gradients, width),
        )
        losses = narrow.score(subsets)
        found[width] = (float(spearmanr(losses, full).statistic), float(np.abs(losses - full).mean()))
    return found


def _solver(estimator: Estimator, subsets: Sequence[tuple[int, ...]]) -> tuple[float, float]:
    """Solves per second, and the largest deviation of the loss from that of the exact solver, at one ridge."""
    given = replace(estimator, ridge=estimator.ridge or len(estimator.margins) / 10)
    start = time.perf_counter()
    found = given.of(subsets)
    per_second = len(subsets) / (time.perf_counter() - start)
    margins = estimator.margins if estimator.mode == "offset" else np.zeros(len(estimator.margins))
    examples = Examples(
        np.asarray(margins, np.float64), np.asarray(estimator.gradients, np.float64), estimator.task_numbers,
        len(estimator.tasks),
    )  # fmt: skip
    exact = [solve_exactly(examples, subset, float(given.ridge or 1)) for subset in subsets[:_EXACTLY]]
    if estimator.step_length is not None:
        exact = [w * estimator.step_length / np.linalg.norm(w) for w in exact]
    losses = [losses_of(estimator.target_margins + estimator.target_gradients @ w).mean() for w in exact]
    return per_second, float(np.abs(found.loss[:_EXACTLY] - losses).max())
