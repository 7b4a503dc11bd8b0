"""Who goes on: ASHA and population-based training as Ray Tune has them, made to remember what was before a kill.

    asha    asynchronous successive halving (Li et al., arXiv 1810.05934): at grace, grace x reduction, ... steps a
            trial is compared with all that came so far, and goes on if it is among the best 1/reduction
    pbt     population-based training (Jaderberg et al., arXiv 1711.09846): every interval the worst quantile takes
            weights, optimiser and step of one of the best, with values moved a little

Left out: how a checkpoint gets from one to the other (`tuning.trial`). Called by `tuning.search`.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from engine.errors import RecipeError
from tuning.history import History, Trial
from tuning.recipe import SchedulerOptions
from tuning.space import Space
from tuning.trial import SNAPSHOT, Plan, newest, take

_KEPT_BY_CHECKPOINTS = (
    "optimiser.", "learning.", "macro.", "guards.", "critic.learning_rate", "critic.clip", "rollout.temperature"
)  # fmt: skip
"""Keys that may change while a training goes on from its checkpoint,"""
_SHAPES = ("learning.layers", "learning.dtype")
"""and those of the same sections by which a checkpoint would no longer fit."""


def make_scheduler(
    options: SchedulerOptions,
    mode: str,
    steps: int | None,
    history: History,
    space: Space,
    seed: int,
    plan: Plan,
    most: int,
) -> Any:
    """Ray Tune's scheduler; `steps` of a whole trial where the recipe tells, `most` trials run at once."""
    from ray.tune.schedulers import FIFOScheduler

    if options.kind == "fifo":
        return FIFOScheduler()
    if options.kind == "pbt":
        return _population(options, mode, history, space, seed, plan, most)
    return _halving(options, mode, steps, list(history.trials.values()))


def check_scheduler(options: SchedulerOptions, steps: int | None, space: Space) -> None:
    """Raise `RecipeError` for what cannot work."""
    if options.kind == "asha":
        most = options.most or steps
        if most is None:
            raise RecipeError(
                "ASHA must know how many steps a whole trial has, and the base recipe tells epochs.",
                "Set scheduler.most.",
            )
        if options.grace >= most:
            raise RecipeError(
                f"scheduler.grace is {options.grace}, and a whole trial has {most} steps: nobody would be stopped.",
                "Choose less.",
            )
    if options.kind == "pbt":
        for key in space.ranges:
            if not key.startswith(_KEPT_BY_CHECKPOINTS) or key in _SHAPES:
                raise RecipeError(
                    f"{key} cannot change while a training goes on from a checkpoint, as pbt would have it.",
                    f"Search keys of {', '.join(each.rstrip('.') for each in _KEPT_BY_CHECKPOINTS)}; or use asha.",
                )


def _halving(options: SchedulerOptions, mode: str, steps: int | None, past: Sequence[Trial]) -> Any:
    from ray.tune.schedulers import ASHAScheduler

    known = {each.number: each for each in past}

    class Halving(ASHAScheduler):  # type: ignore[misc]
        """Compares with the trials of before a kill too, and decides nothing twice."""

        def __init__(self) -> None:
            # No comparison at the last step: what has come so far shall publish its model.
            super().__init__(
                time_attr="step",
                metric="value",
                mode=mode,
                max_t=max((options.most or steps or 1) - 1, options.grace),
                grace_period=options.grace,
                reduction_factor=options.reduction,
                stop_last_trials=False,
            )
            for each in known.values():
                if each.ended:
                    self._remember(self._brackets[0], f"before-{each.number}", list(each.results.items()))

        def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
            super().on_trial_add(tune_controller, trial)
            before = known.get(_number(trial))
            if before and not before.ended:
                # The last one is told again: perhaps nobody was left to stop the trial then.
                self._remember(self._brackets[0], trial.trial_id, list(before.results.items())[:-1])

        def _remember(self, bracket: Any, name: str, results: Sequence[tuple[int, float]]) -> None:
            for step, value in results:
                bracket.on_result(SimpleNamespace(trial_id=name), step, self._metric_op * value)

    return Halving()


def _population(
    options: SchedulerOptions, mode: str, history: History, space: Space, seed: int, plan: Plan, most: int
) -> Any:
    snapshots, runs = Path(plan.snapshots), Path(plan.runs) / plan.job
    together = len(history.trials) <= most

    from ray.tune.schedulers import PopulationBasedTraining

    class Population(PopulationBasedTraining):  # type: ignore[misc]
        """Sets down who takes from whom before it happens."""

        def __init__(self, explore: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
            super().__init__(
                time_attr="step",
                metric="value",
                mode=mode,
                perturbation_interval=options.interval,
                quantile_fraction=options.quantile,
                custom_explore_fn=explore,
                log_config=False,
                require_attrs=False,
            )

        def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
            super().on_trial_add(tune_controller, trial)
            told = trial.config["config"]["told"]
            self._trial_state[trial].last_perturbation_time = told - told % options.interval

        def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
            if result.get("step") is None or result.get("value") is None:
                return str(self.CONTINUE)
            action = str(super().on_trial_result(tune_controller, trial, result))
            # Ray lets trials take turns as soon as one waits; where all fit, that would stop one for nothing.
            return str(self.CONTINUE) if action == self.PAUSE and together else action

        def _exploit(self, tune_controller: Any, trial: Any, trial_to_clone: Any) -> None:
            ours, theirs = history.trials[_number(trial)], history.trials[_number(trial_to_clone)]
            generation = replace(ours, generation=ours.generation + 1)
            with self._trial_state[trial_to_clone].last_checkpoint.as_directory() as folder:
                told = Path(json.loads(Path(folder, SNAPSHOT).read_text())["path"])
            try:
                # At once: the donor goes on, and keeps a few snapshots only.
                taken = told if told.exists() else newest(snapshots, theirs.name) or told
                take(taken, runs / generation.name)
            except FileNotFoundError:
                return  # next time, then
            values = space.moved(theirs.values, f"{seed} {ours.number} {generation.generation}", options.resample)
            history.start(
                ours.number,
                values,
                generation=generation.generation,
                donor=str(taken),
                taken=theirs.number,
                step=int(taken.name.rpartition("-")[2]),
            )
            super()._exploit(tune_controller, trial, trial_to_clone)

        def _get_new_config(self, trial: Any, trial_to_clone: Any) -> tuple[dict[str, Any], dict[str, Any]]:
            return {"config": config_of(history.trials[_number(trial)])}, {}

    return Population(lambda config: config)


def _number(trial: Any) -> int:
    return int(trial.config["config"]["number"])


def config_of(trial: Trial, *, again: int = 0) -> dict[str, Any]:
    """What a trial's driver is given; `again`: so many of its results are told once more."""
    steps = list(trial.results)
    told = steps[-1 - again] if len(steps) > again else (trial.lineage[-1]["step"] if trial.lineage else 0)
    return {
        "number": trial.number,
        "name": trial.name,
        "values": json.dumps(trial.values),
        "told": told,
    }
