"""The estimator of one selection: everything a subset's loss is estimated from, to be kept and read again.

A subset's step begins where its training does: margins are those of the model before any training, gradients those of
the meta-initialisation. How long the step is, the meta-training itself tells. It was measured on the target as it went,
so for each moment there is a length by which the estimate for all tasks is what was measured; and the step of a subset
is as long as that of the moment at which as much had been learnt as its own training will: moments are told by the sum
of the learning rates so far. So an estimate is one of the loss itself, not of a rank alone, and no subset is trained.
Of the paper (GradEx, arXiv 2409.19458) is the regression; beginning at the base and the measured lengths are ours.

Left out: the regression (`engine.selection.estimates`). Called by `engine.selection.job`, `tuning` and the benchmarks.

Shapes: N examples, M of the target, d projected numbers, T tasks, K measurements.
"""

import io
import json
import math
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import expit
from upath import UPath

from engine.errors import ArtifactError, SourceError
from engine.finetune.learner import learning_rate
from engine.finetune.options import OptimiserOptions
from engine.selection.estimates import Mode, SubsetEstimates, estimate_subsets
from engine.storage import locate, storage_errors
from engine.storage import replace as put

Floats = npt.NDArray[np.floating[Any]]
Ints = npt.NDArray[np.int64]
FILE = "estimates.npz"
_ARRAYS = ("margins", "gradients", "task_numbers", "target_margins", "target_gradients", "curve")


class Budget(NamedTuple):
    """How long a subset is trained: a number of optimiser steps, or passes over its examples, so many to a step."""

    fixed: int | None
    epochs: float
    examples: int
    optimiser: OptimiserOptions = OptimiserOptions()

    def moment(self, rows: int) -> float:
        """The sum of the learning rates of a training on so many rows; 0 for none."""
        steps = self.fixed or max(1, math.ceil(self.epochs * rows / self.examples))
        return self.after(steps, steps) if rows else 0.0

    def after(self, step: int, steps: int) -> float:
        """That of the first `step` of `steps`."""
        return sum(learning_rate(self.optimiser, each, steps) for each in range(step))


_RIDGES = (1e-4, 1e12)
"""Between which a ridge is looked for."""
_FINER = 8
"""Ridges to a factor of ten, where lengths are told by losses."""
_OVERSHOT = 1.05
"""Steps whose loss is so much above the lowest are too long."""
_CLOSE = 0.005
"""A step is as long as it should be to this share."""
_TRIES = 12
_FLATTEST = 0.1
"""Where a step hardly grows as its ridge falls, it is let fall by so much more, and no further."""


@dataclass(frozen=True)
class Estimator:
    """See the module. Losses are nats."""

    tasks: tuple[str, ...]
    """Names of the candidates."""
    margins: Floats
    """Where steps begin, (N,)."""
    gradients: Floats
    """(N, d)."""
    task_numbers: Ints
    """The place of each example's task in `tasks`, (N,)."""
    target_margins: Floats
    """(M,)."""
    target_gradients: Floats
    """(M, d)."""
    budget: Budget
    """How long subsets are trained."""
    ridge: float | None = None
    """The same for every subset; None: the one by which its step has the length that is measured."""
    curve: Floats = field(default_factory=lambda: np.zeros((0, 2)))
    """Moments of the meta-training, and the length of the projected step by then, (K, 2)."""
    mode: Mode = "offset"
    step_length: float | None = None
    """repo: the length of every step."""

    def of(self, subsets: Sequence[Sequence[int]]) -> SubsetEstimates:
        """Estimates for subsets of places in `tasks`; the empty one stays where steps begin."""
        if self.ridge is not None or not len(subsets):
            return self._solved(subsets, np.full(len(subsets), self.ridge or 1.0))
        counts = np.bincount(self.task_numbers, minlength=len(self.tasks))
        moments = [self.budget.moment(int(counts[list(subset)].sum()) if len(subset) else 0) for subset in subsets]
        return self._of_length(subsets, np.interp(moments, *np.vstack([[0, 0], self.curve]).T))

    def score(self, subsets: Sequence[Sequence[int]]) -> npt.NDArray[np.float64]:
        """Their losses alone."""
        return self.of(subsets).loss

    def estimate(self, subsets: Sequence[Sequence[str]]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Losses and uncertainties of subsets of task names."""
        places = {name: place for place, name in enumerate(self.tasks)}
        found = self.of([[places[name] for name in subset] for subset in subsets])
        return found.loss, found.uncertainty

    def calibrated(self, measured: Sequence[tuple[float, float]]) -> "Estimator":
        """The same with the curve that the meta-training's measurements give: moments and the target's loss. Raises
        `SourceError` where none of them is below the loss at the start."""
        lengths, losses = self._path(min(loss for _, loss in measured))
        # Beyond the lowest loss a longer step is a worse one; what was measured below it is out of the first order's
        # reach, and its length is that of the lowest.
        reach = int(losses.argmin()) + 1
        lengths, losses = lengths[:reach], np.minimum.accumulate(losses[:reach])
        # Noise aside, who trains longer goes further; and losses fall on the way there.
        found = np.interp([-loss for _, loss in measured], -losses, lengths)
        if not found.any():
            raise SourceError(
                "Training on all candidates never made the target better by the estimates' measure, so how far a step"
                " goes cannot be told.",
                "Train longer, lower optimiser.learning_rate, give candidates nearer to the target, or set"
                " estimate.ridge (a tenth of the number of examples is a start).",
            )
        moments = [moment for moment, _ in measured]
        return replace(self, curve=np.column_stack([moments, np.maximum.accumulate(found)]))

    def _solved(self, subsets: Sequence[Sequence[int]], ridges: Floats) -> SubsetEstimates:
        return estimate_subsets(
            self.margins,
            self.gradients,
            self.task_numbers,
            subsets,
            target_margins=self.target_margins,
            target_gradients=self.target_gradients,
            ridge=ridges,
            mode=self.mode,
            step_length=self.step_length,
        )

    def _of_length(self, subsets: Sequence[Sequence[int]], lengths: Floats) -> SubsetEstimates:
        """Estimates whose steps have these lengths, (B,): a ridge for each is found by Newton's rule, log to log.

        It begins at the ridge by which a single step along the gradient would be as long: the true one is smaller, and
        since steps grow ever more slowly as ridges fall, it is neared from above, where regressions are quick.
        """
        slopes = np.zeros((len(self.tasks), self.gradients.shape[1]))
        np.add.at(slopes, self.task_numbers, expit(-np.asarray(self.margins, np.float64))[:, None] * self.gradients)
        first = np.array([np.linalg.norm(slopes[list(subset)].sum(0)) for subset in subsets])
        moves = (first > 0) & (lengths > 0)
        subsets = [subset if moving else () for subset, moving in zip(subsets, moves, strict=True)]  # or it stays
        wanted = np.log(np.where(moves, lengths, 1.0))
        low, high = np.log(_RIDGES[0]), np.log(_RIDGES[1])
        at = np.clip(np.log(np.where(moves, first, 1.0)) - wanted, low, high)
        found = self._solved(subsets, np.exp(at))
        for _ in range(_TRIES):
            off = np.log(np.maximum(np.linalg.norm(found.steps, axis=1), 1e-300)) - wanted
            far = np.flatnonzero(moves & (np.abs(off) > _CLOSE))
            if not len(far):
                break
            at[far] = np.clip(at[far] - off[far] / np.minimum(found.slopes[far], -_FLATTEST), low, high)
            found.put(far, self._solved([subsets[each] for each in far], np.exp(at[far])))
        return found

    def _path(self, least: float) -> tuple[Floats, Floats]:
        """Lengths and losses of steps for all tasks, from short ones on until the loss is `least`, or has no further to
        fall."""
        everything = [list(range(len(self.tasks)))]
        ridge = _RIDGES[1]
        lengths, losses = [np.zeros(1)], [self._solved([[]], np.ones(1)).loss]
        while ridge > _RIDGES[0]:
            ridges = ridge * 10 ** (-np.arange(_FINER) / _FINER)
            found = self._solved(everything * _FINER, ridges)
            lengths.append(np.linalg.norm(found.steps, axis=1))
            losses.append(found.loss)
            fallen = min(each.min() for each in losses)
            if fallen <= least or losses[-1].min() > _OVERSHOT * fallen:
                break
            ridge /= 10
        return np.concatenate(lengths), np.concatenate(losses)

    def save(self, folder: UPath) -> None:
        """Write FOLDER/estimates.npz."""
        body = io.BytesIO()
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        budget = [*self.budget[:3], self.budget.optimiser.model_dump()]
        rest = {"budget": budget, "ridge": self.ridge, "mode": self.mode, "step_length": self.step_length}
        np.savez(body, allow_pickle=False, tasks=np.array(self.tasks), rest=np.array(json.dumps(rest)), **arrays)
        put(folder / FILE, body.getvalue())


def read_estimates(folder: UPath | str) -> Estimator:
    """The estimator of a finished `select-tasks` run, by its run directory or its `chosen_tasks`. Raises
    `ArtifactError` where there is none."""
    place = locate(str(folder))
    place = place if (place / FILE).exists() else place.parent
    with storage_errors(place):
        body = (place / FILE).read_bytes() if (place / FILE).exists() else None
    if body is None:
        raise ArtifactError(f"{folder} holds no {FILE}.", "Give the run directory of a finished select-tasks job.")
    try:
        with np.load(io.BytesIO(body), allow_pickle=False) as kept:
            arrays = {name: kept[name] for name in _ARRAYS}
            tasks, rest = tuple(kept["tasks"].tolist()), json.loads(str(kept["rest"]))
        fixed, epochs, examples, optimiser = rest["budget"]
        budget = Budget(fixed, epochs, examples, OptimiserOptions(**optimiser))
        return Estimator(tasks=tasks, **arrays, **{**rest, "budget": budget})
    except (ValueError, KeyError, TypeError, OSError, zipfile.BadZipFile):
        raise ArtifactError(f"{place / FILE} is damaged.", "Run headrace select-tasks again with --fresh.") from None
