"""Regularised logistic regressions of many subsets at once, over the projected gradients of their examples:

    w_S = argmin_w  sum_{i in S} log(1 + exp(-(f_i + g_i . w)))  +  r_S / 2 |w|^2

Subsets are unions of tasks, so a Hessian is a sum of one matrix per task, made once for all of them. A batch of subsets
is stepped at once, each with its own inverse; where steps no longer shrink, the tasks' Hessians are made anew at the
mean of the batch, and what does not settle then either is solved by Newton's method, subset by subset.

Left out: what a solution is worth (`engine.selection.estimates`). Called by it.

Shapes: N examples, d projected numbers, T tasks, B subsets.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_factor, cho_solve
from scipy.special import expit

Floats = npt.NDArray[np.float64]
_BATCH = 64
_ROUNDS = 5
"""Times that the Hessians of a batch are made."""
_SETTLED = 1e-13
"""A solution has settled when the next step would lower the objective by no more than this share of the losses."""
_SHRINKING = 0.3
"""Steps are taken as long as each promises less than this share of the gain before."""
_EXACT_STEPS = 100


@dataclass(frozen=True)
class Examples:
    """What all subsets are taken from: margins (N,), projected gradients (N, d), and the task of each, 0 to T-1."""

    margins: Floats
    gradients: Floats
    tasks: npt.NDArray[np.int64]
    count: int

    def members(self, subset: Sequence[int]) -> npt.NDArray[np.bool_]:
        """Which examples belong to these tasks, (N,)."""
        return np.isin(self.tasks, np.asarray(list(subset), np.int64))


@dataclass(frozen=True)
class Solved:
    """Solutions of a batch of subsets."""

    w: Floats
    """(B, d)."""
    inverse: Floats
    """Inverse Hessians at w = 0, (B, d, d)."""
    members: Floats
    """1 where an example belongs to a subset, (B, N)."""
    newton: int
    """How many had to be solved by Newton's method."""


def solve(examples: Examples, subsets: Sequence[Sequence[int]], ridges: Floats) -> Iterator[Solved]:
    """Solve for every subset (task numbers), in batches; `ridges` are theirs, (number of subsets,)."""
    at_zero = _hessians(examples, np.zeros(examples.gradients.shape[1]))
    for start in range(0, len(subsets), _BATCH):
        batch, ridge = subsets[start : start + _BATCH], ridges[start : start + _BATCH]
        chosen = np.zeros((len(batch), examples.count))
        for at, subset in enumerate(batch):
            chosen[at, list(subset)] = 1.0
        stepping = _Stepping(examples, chosen[:, examples.tasks], ridge)
        hessians = at_zero
        for _ in range(_ROUNDS):
            stepping.settle(chosen, hessians)
            if stepping.settled.all():
                break
            hessians = _hessians(examples, stepping.w[~stepping.settled].mean(0))
        for at in np.flatnonzero(~stepping.settled):
            stepping.w[at] = solve_exactly(examples, batch[at], float(ridge[at]))
        yield Solved(stepping.w, stepping.inverse, stepping.members, int((~stepping.settled).sum()))


def _hessians(examples: Examples, w: Floats) -> Floats:
    """The Hessian of each task's losses at w, (T, d * d)."""
    p = expit(-(examples.margins + examples.gradients @ w))
    weighted = np.sqrt(p * (1 - p))[:, None] * examples.gradients
    found = np.empty((examples.count, examples.gradients.shape[1] ** 2))
    for task in range(examples.count):
        own = weighted[examples.tasks == task]
        found[task] = (own.T @ own).ravel()
    return found


class _Stepping:
    """The solutions of a batch on their way: `w` (B, d), which have `settled` (B,), `inverse` Hessians (B, d, d)."""

    def __init__(self, examples: Examples, members: Floats, ridge: Floats) -> None:
        d = examples.gradients.shape[1]
        self._examples, self._ridge, self.members = examples, ridge, members
        self.w, self.settled = np.zeros((len(members), d)), np.zeros(len(members), bool)
        self.inverse = np.empty((len(members), d, d))

    def settle(self, chosen: Floats, hessians: Floats) -> None:
        """Step those that have not settled, as long as it helps, with the Hessians of their tasks, (T, d * d)."""
        examples, d = self._examples, self.w.shape[1]
        active = np.flatnonzero(~self.settled)
        hessian = (chosen[active] @ hessians).reshape(len(active), d, d)
        self.inverse[active] = np.linalg.inv(hessian + self._ridge[active, None, None] * np.eye(d))
        before, last = np.full(len(self.w), np.inf), np.zeros_like(self.w)
        while len(active):
            margins = examples.margins + self.w[active] @ examples.gradients.T
            pull = expit(-margins) * self.members[active]
            gradient = self._ridge[active, None] * self.w[active] - pull @ examples.gradients
            step = (self.inverse[active] @ gradient[:, :, None])[:, :, 0]
            gain = (gradient * step).sum(1)
            worse = gain > before[active]
            self.w[active[worse]] += last[active[worse]]  # that step went too far: it is taken back
            done = gain <= _SETTLED * (self.members[active] * np.logaddexp(0.0, -margins)).sum(1)
            self.settled[active[done]] = True
            going = ~done & (gain < _SHRINKING * before[active])
            moved = done | going
            self.w[active[moved]] -= step[moved]
            last[active], before[active] = step, gain
            active = active[going]


def solve_exactly(examples: Examples, subset: Sequence[int], ridge: float) -> Floats:
    """The solution of one subset to the precision of the numbers, by damped Newton steps: (d,)."""
    rows = examples.members(subset)
    margins, gradients = examples.margins[rows], examples.gradients[rows]

    def objective(w: Floats) -> float:
        return float(np.logaddexp(0.0, -(margins + gradients @ w)).sum() + ridge / 2 * w @ w)

    w = np.zeros(gradients.shape[1])
    value = objective(w)
    for _ in range(_EXACT_STEPS):
        p = expit(-(margins + gradients @ w))
        gradient = ridge * w - p @ gradients
        hessian = (gradients * (p * (1 - p))[:, None]).T @ gradients
        hessian[np.diag_indices_from(hessian)] += ridge
        step = cho_solve(cho_factor(hessian), gradient)
        length = 1.0
        while objective(w - length * step) > value - 1e-4 * length * (gradient @ step) and length > 1e-6:
            length /= 2
        better = objective(w - length * step)
        if not better < value:
            return w
        w, value = w - length * step, better
    return w
