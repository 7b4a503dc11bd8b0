"""From estimates to predictions: a Bayesian linear regression of what trials gave on what was estimated of them.

    truth = a + b estimate + sum over the subset's tasks u_t / sqrt(size) + noise,   a, u_t ~ N(0, .), b ~ N(1, .)

Before any trial the prediction is the estimate itself. How much tasks and noise weigh is chosen anew with each fit, by
the evidence, on a small grid; all widths are in units of the spread of the estimates. Trials that were stopped early
count with a wider noise. The form is ours.

Left out: which subsets are predicted (`tuning.subsets`). Called by it; needs numpy alone.

Shapes: n trials, B subsets, T tasks, P = 2 + T coefficients.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]
_SLOPE = 0.3
"""Of b, a plain number."""
_INTERCEPT = 3.0
_TASKS = (0.03, 0.1, 0.3, 1.0)
_NOISE = (0.03, 0.1, 0.3, 1.0)
"""In units of the spread of the estimates."""


@dataclass(frozen=True)
class Recalibration:
    """The posterior of the coefficients."""

    centre: float
    """Mean of the estimates; they enter as differences from it."""
    mean: Floats
    """(P,)."""
    covariance: Floats
    """(P, P)."""
    noise: float
    """Standard deviation of a finished trial's result, in nats."""

    def predict(self, estimates: Floats, members: Floats) -> tuple[Floats, Floats]:
        """Mean and standard deviation of what trials of subsets would give, (B,) each; `members` is (B, T)."""
        x = features(estimates - self.centre, members)
        variance = np.einsum("bp,pq,bq->b", x, self.covariance, x)
        return self.centre + x @ self.mean, np.sqrt(np.maximum(variance, 0.0) + self.noise**2)


def features(estimates: Floats, members: Floats) -> Floats:
    """[1, estimate, membership / sqrt(size)], (B, P)."""
    size = np.sqrt(np.maximum(members.sum(1, keepdims=True), 1.0))
    return np.hstack([np.ones((len(estimates), 1)), np.asarray(estimates)[:, None], members / size])


def recalibrate(
    estimates: Floats, members: Floats, truth: Floats, *, spread: float, centre: float, wider: Sequence[float] = ()
) -> Recalibration:
    """Fit to trials: estimates and truth (n,), `members` (n, T). `spread` and `centre` are the standard deviation and
    the mean of the estimates at large; `wider` multiplies the noise of each trial."""
    unit = max(spread, 1e-9)
    x, y = features(np.asarray(estimates) - centre, members), np.asarray(truth, float) - centre
    factor = np.square(wider) if len(wider) else np.ones(len(y))
    first = np.zeros(x.shape[1])
    first[1] = 1.0
    best: tuple[float, Recalibration] | None = None
    for tasks, noise in product(_TASKS, _NOISE):
        prior = np.square([_INTERCEPT * unit, _SLOPE, *[tasks * unit] * members.shape[1]])
        errors = np.square(noise * unit) * factor
        # Of the data, (n, n): what the prior and the noise make of it.
        covariance = (x * prior) @ x.T + np.diag(errors)
        off = y - x @ first
        solved = (
            np.linalg.solve(covariance, np.column_stack([off, x * prior])) if len(y) else np.zeros((0, 1 + len(prior)))
        )
        evidence = -0.5 * (off @ solved[:, 0] + np.linalg.slogdet(covariance)[1]) if len(y) else 0.0
        gain = (x * prior).T
        posterior = Recalibration(
            centre, first + gain @ solved[:, 0], np.diag(prior) - gain @ solved[:, 1:], noise * unit
        )
        # Between equals, the middle of the grid: with few trials the evidence says little.
        evidence -= 0.5 * (np.log(tasks / 0.1) ** 2 + np.log(noise / 0.1) ** 2) / 4
        if best is None or evidence > best[0]:
            best = (float(evidence), posterior)
    assert best, "the grid is not empty"
    return best[1]
