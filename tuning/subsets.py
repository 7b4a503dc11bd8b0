"""Subsets of tasks, proposed by estimate and tried for real: the lowest lower confidence bound of a pool comes next.

A pool holds subsets drawn at random, the best ones so far with a task more, less or exchanged, and all tasks. Each is
estimated without training (`engine.selection`), the estimate is recalibrated on what real trials gave (`tuning.
recalibration`), and the subset with the least prediction minus one standard deviation is tried. What was tried is never
proposed again. A trial that ASHA stopped counts too: by how far those that went on fell after that step.

Left out: estimates themselves, and trials. Called by `tuning.search`.
"""

import math
import random
from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from upath import UPath

from engine.errors import RecipeError
from engine.observe import Report, plots
from engine.storage import locate
from tuning.history import Trial
from tuning.recalibration import Recalibration, recalibrate
from tuning.recipe import TuneRecipe
from tuning.space import Space

CHOSEN = "tasks.chosen"
_BOLDNESS = 1.0
"""Standard deviations taken off a prediction: how much is paid for what is not known."""
_STOPPED = 3.0
"""The noise of a trial that was stopped, in units of that of a finished one."""
_PARENTS = 5
"""Best subsets whose neighbours are in the pool."""


class SubsetProposer:
    """Gives values with a subset for each trial. Raises `RecipeError`, `ArtifactError`."""

    def __init__(self, recipe: TuneRecipe, space: Space) -> None:
        from engine.selection import read_estimates

        self._recipe, self._space = recipe, space
        if recipe.measure[1] != "min":
            raise RecipeError(
                "Estimates are of a loss, and the metric is one of which more is better.", "Choose a loss."
            )
        if CHOSEN in space.ranges:
            raise RecipeError(f"{CHOSEN} is what search: subsets proposes.", "Leave it out of space.")
        self._estimator = read_estimates(UPath(locate(str(recipe.estimates))))
        self.names: tuple[str, ...] = self._estimator.tasks
        target = (space.base.get("tasks") or {}).get("target")
        if not target:
            raise RecipeError(
                "The base recipe names no tasks.target: subsets would be measured on their own tasks.",
                "Set tasks.target to that of the select-tasks run.",
            )
        if target in self.names:
            raise RecipeError(
                f"tasks.target is {target!r}, one of the tasks to choose from.", "Set it to that of the run."
            )
        most = 2 ** len(self.names) - 1
        if recipe.trials > most:
            raise RecipeError(
                f"{recipe.trials} trials of {len(self.names)} tasks, which have {most} subsets.",
                f"Set trials to {most}.",
            )
        self._cache: dict[tuple[str, ...], tuple[float, float]] = {}

    def __call__(self, number: int, known: Sequence[Trial]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Values and notes of trial `number`."""
        others = self._space.draw(self._recipe.seed, number) if self._space.ranges else {}
        tried = {_subset(each) for each in known}
        pool = [each for each in self._pool(number, known) if each not in tried]
        pool = pool or [next(each for each in self._all() if each not in tried)]
        estimates = self._estimates(pool)
        fitted = self.fit(known)
        mean, deviation = fitted.predict(estimates, self._members(pool))
        at = int(np.argmin(mean - _BOLDNESS * deviation))
        notes = {"estimate": float(estimates[at]), "predicted": float(mean[at]), "deviation": float(deviation[at])}
        return {**others, CHOSEN: list(pool[at])}, notes

    def fit(self, known: Iterable[Trial]) -> Recalibration:
        """What trials so far make of estimates."""
        results = truths(known)
        subsets = [_subset(each) for each, _, _ in results]
        spread = self._estimates(self._at_random(random.Random(0), 64))
        return recalibrate(
            self._estimates(subsets),
            self._members(subsets),
            np.array([truth for _, truth, _ in results]),
            spread=float(spread.std()),
            centre=float(spread.mean()),
            wider=[1.0 if whole else _STOPPED for _, _, whole in results],
        )

    def _pool(self, number: int, known: Sequence[Trial]) -> list[tuple[str, ...]]:
        chance = random.Random(f"{self._recipe.seed} {number}")
        best = sorted(truths(known), key=lambda each: each[1])[:_PARENTS]
        found = {tuple(sorted(self.names)): None}
        for trial, _, _ in best:
            found |= dict.fromkeys(self._neighbours(_subset(trial)))
        found |= dict.fromkeys(self._at_random(chance, self._recipe.pool))
        return list(found)[: max(self._recipe.pool, len(self.names))]

    def _neighbours(self, subset: tuple[str, ...]) -> Iterable[tuple[str, ...]]:
        there, missing = set(subset), [name for name in self.names if name not in subset]
        for name in missing:
            yield tuple(sorted(there | {name}))
        for name in subset if len(subset) > 1 else ():
            yield tuple(sorted(there - {name}))
            for other in missing:
                yield tuple(sorted(there - {name} | {other}))

    def _at_random(self, chance: random.Random, count: int) -> list[tuple[str, ...]]:
        """Subsets of all sizes; each but a few once."""
        found: dict[tuple[str, ...], None] = {}
        for _ in range(count):
            size = chance.randint(1, len(self.names))
            found[tuple(sorted(chance.sample(self.names, size)))] = None
        return list(found)

    def _all(self) -> Iterable[tuple[str, ...]]:
        for size in range(1, len(self.names) + 1):
            yield from combinations(sorted(self.names), size)

    def _estimates(self, subsets: Sequence[tuple[str, ...]]) -> Any:
        new = [each for each in dict.fromkeys(subsets) if each not in self._cache]
        if new:
            loss, uncertainty = self._estimator.estimate([list(each) for each in new])
            self._cache |= dict(zip(new, zip(loss.tolist(), uncertainty.tolist(), strict=True), strict=True))
        return np.array([self._cache[each][0] for each in subsets])

    def _members(self, subsets: Sequence[tuple[str, ...]]) -> Any:
        return np.array([[float(name in each) for name in self.names] for each in subsets]).reshape(-1, len(self.names))

    def said(self, trial: Trial, known: Iterable[Trial]) -> str:
        """A line on how a trial's estimate compares with the truth, and how those before did."""
        if trial.best is None or not trial.told:
            return ""
        off, mended = errors(known)
        told = trial.told
        return (
            f"Trial {trial.number}: estimated {told['estimate']:.4f}, recalibrated {told['predicted']:.4f} ±"
            f" {told['deviation']:.4f}, measured {trial.best:.4f}"
            + ("" if trial.state == "finished" else f" after {max(trial.results)} steps")
            + (f"; mean error so far {off:.4f}, recalibrated {mended:.4f}" if math.isfinite(off) else "")
        )

    def tell(self, report: Report, known: Iterable[Trial]) -> None:
        """Add estimates against truth to a report."""
        trials = [each for each, _, _ in truths(known)]
        truth = {each.number: value for each, value, _ in truths(known)}
        off, mended = errors(trials)
        numbers = [float(each.number) for each in trials]
        report.figure(
            "Estimate against truth, trial by trial",
            plots.lines(
                {
                    "measured": (numbers, [truth[each.number] for each in trials]),
                    "estimated": (numbers, [each.told["estimate"] for each in trials]),
                    "recalibrated before the trial": (numbers, [each.told["predicted"] for each in trials]),
                },
                "trial",
                "loss",
            ),
            f"Mean error of the estimates {off:.4f}, of the recalibrated predictions {mended:.4f}."
            if math.isfinite(off)
            else "No trial has finished.",
        )
        rows = [
            (each.number, each.told["estimate"], each.told["predicted"], each.told["deviation"], truth[each.number],
             each.state, ", ".join(_subset(each)))
            for each in trials
        ]  # fmt: skip
        columns = ["trial", "estimated", "recalibrated", "±", "measured", "state", "tasks"]
        report.table("Subsets that were tried", columns, rows, "Of stopped trials: what they would have come to.")


def truths(known: Iterable[Trial]) -> list[tuple[Trial, float, bool]]:
    """Ended trials with what they gave, and whether that was measured at the end. Of one that was stopped, its last
    result and the mean of what finished ones gained after that step; it is left out where none has passed it."""
    ended = sorted((each for each in known if each.ended and each.best is not None), key=lambda each: each.number)
    whole = [each for each in ended if each.state == "finished"]
    found = []
    for each in ended:
        if each.state == "finished":
            found.append((each, float(each.best or 0.0), True))
        elif each.state == "stopped":
            step = max(each.results)
            gains = [float(one.best or 0.0) - one.results[step] for one in whole if step in one.results]
            if gains:
                found.append((each, each.results[step] + sum(gains) / len(gains), False))
    return [(trial, truth, at_end) for trial, truth, at_end in found if math.isfinite(truth)]


def errors(known: Iterable[Trial]) -> tuple[float, float]:
    """Mean absolute error of estimates, and of the recalibrated predictions that were made before each trial."""
    done = [each for each in known if each.state == "finished" and each.best is not None and each.told]
    if not done:
        return math.nan, math.nan
    off = [abs(each.told["estimate"] - float(each.best or 0.0)) for each in done]
    mended = [abs(each.told["predicted"] - float(each.best or 0.0)) for each in done]
    return sum(off) / len(off), sum(mended) / len(mended)


def _subset(trial: Trial) -> tuple[str, ...]:
    return tuple(sorted(trial.values[CHOSEN]))
