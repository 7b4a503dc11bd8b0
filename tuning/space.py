"""Search spaces: every key checked before anything starts, values drawn key by key so that conditions hold.

A key with `when` is drawn only where the other keys have the values it names; so spaces are define-by-run, and one code
path serves random search and Optuna's TPE. A proposal depends on the seed, its number and what is known by then, never
on the process that makes it: a search that was killed proposes what it would have proposed.

Left out: subsets of tasks (`tuning.subsets`). Called by `tuning.search` and `tuning.schedulers`.
"""

import copy
import difflib
import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

from engine.config import Recipe, build_recipe, set_key
from engine.errors import RecipeError
from tuning.history import Trial
from tuning.recipe import Range, TuneRecipe

_OURS = ("name", "runs", "output", "shared")
"""Keys that a search fills in itself."""
_START = 8
"""Trials at random before TPE proposes, at most; a third of a short search."""


class Space:
    """The searched keys in an order in which conditions come before what they decide. `base` is the base recipe's plain
    data with what the search sets for all, `kind` the job's recipe class. Raises `RecipeError`."""

    def __init__(self, recipe: TuneRecipe, kind: type[Recipe], base: Mapping[str, Any]) -> None:
        self.kind, self.base, self._where = kind, base, recipe.where
        self._start = max(1, min(_START, recipe.trials // 3))
        self.ranges = _ordered(recipe.space)
        for key in (*self.ranges, *recipe.set):
            if key in _OURS:
                raise RecipeError(f"{key} is the search's own to set.", "Leave it out of space and set.")
        always = {key: each.ends[0] for key, each in self.ranges.items() if not each.when}
        self._whole = self._build(always).model_dump(mode="json")
        for key, each in self.ranges.items():
            for value in each.ends:
                self._build({**self._on_the_way_to(key), key: value})

    def recipe(self, values: Mapping[str, Any], **ours: Any) -> Recipe:
        """The job's recipe with these values, and keys that the search fills in."""
        return self._build({**values, **ours})

    def data(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The plain data of the same."""
        data = copy.deepcopy(dict(self.base))
        for key, value in values.items():
            set_key(data, key, value)
        return data

    def _build(self, values: Mapping[str, Any]) -> Recipe:
        return build_recipe(self.kind, self.data(values), where=self._where)

    def _on_the_way_to(self, key: str) -> dict[str, Any]:
        """Values of other keys with which this one is drawn."""
        found: dict[str, Any] = {}
        for other, wanted in self.ranges[key].when.items():
            if other in self.ranges:
                found |= self._on_the_way_to(other)
            found[other] = _listed(wanted)[0]
        return found

    def active(self, key: str, values: Mapping[str, Any]) -> bool:
        """Whether a key is drawn, given the values of those before it."""
        for other, wanted in self.ranges[key].when.items():
            if other in self.ranges and other not in values:
                return False
            if values.get(other, _get(self._whole, other)) not in _listed(wanted):
                return False
        return True

    def draw(self, seed: int, number: int) -> dict[str, Any]:
        """Values at random, for trial `number`."""
        return self.propose("random", seed, number, (), minimise=True)

    def propose(self, search: str, seed: int, number: int, known: Sequence[Trial], *, minimise: bool) -> dict[str, Any]:
        """Values for trial `number`, given the trials there are."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        chance = random.Random(f"{seed} {number}").getrandbits(31)
        sampler = (
            optuna.samplers.TPESampler(seed=chance, n_startup_trials=self._start, constant_liar=True)
            if search == "optuna"
            else optuna.samplers.RandomSampler(seed=chance)
        )
        study = optuna.create_study(sampler=sampler, direction="minimize" if minimise else "maximize")
        if search == "optuna":
            for before in known:
                study.add_trial(self._told(before))
        asked = study.ask()
        values: dict[str, Any] = {}
        for key, each in self.ranges.items():
            if self.active(key, values):
                values[key] = _suggest(asked, key, each)
        return values

    def _told(self, trial: Trial) -> Any:
        """A trial as Optuna knows them: one that was stopped counts with how far it came."""
        from optuna.trial import TrialState, create_trial

        held = {key: value for key, value in trial.values.items() if key in self.ranges}
        params = {
            key: self.ranges[key].ends.index(value) if self.ranges[key].kind == "choice" else value
            for key, value in held.items()
        }
        state, score = TrialState.RUNNING, None
        if trial.state == "failed" or (trial.ended and trial.best is None):
            state = TrialState.FAIL
        elif trial.ended:
            state = TrialState.PRUNED if trial.state == "stopped" else TrialState.COMPLETE
            score = trial.best if state == TrialState.COMPLETE else None
        return create_trial(
            state=state,
            value=score,
            params=params,
            distributions={key: _distribution(self.ranges[key]) for key in held},
            intermediate_values=dict(trial.results),
        )

    def moved(self, values: Mapping[str, Any], seed: str, resample: float) -> dict[str, Any]:
        """Values near these, for a trial that goes on from another's checkpoint: numbers times 0.8 or 1.2, choices one
        place further, or with the chance `resample` drawn anew."""
        chance = random.Random(seed)
        anew = self.draw(chance.getrandbits(31), 0)
        found: dict[str, Any] = {}
        for key, each in self.ranges.items():
            if not self.active(key, found):
                continue
            if key not in values or chance.random() < resample:
                found[key] = anew[key] if key in anew else each.ends[0]
            elif each.kind == "choice":
                place = each.ends.index(values[key]) + chance.choice((-1, 1))
                found[key] = each.ends[min(max(place, 0), len(each.ends) - 1)]
            else:
                low, high = each.ends
                number = min(max(values[key] * chance.choice((0.8, 1.2)), low), high)
                found[key] = round(number) if each.kind.endswith("int") else number
        return found


def _suggest(trial: Any, key: str, each: Range) -> Any:
    if each.kind == "choice":
        # By place: Optuna's own choices are numbers and texts alone.
        return each.ends[trial.suggest_categorical(key, list(range(len(each.ends))))]
    low, high = each.ends
    if each.kind.endswith("int"):
        return trial.suggest_int(key, low, high, log=each.kind == "log_int")
    return trial.suggest_float(key, low, high, log=each.kind == "log")


def _distribution(each: Range) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if each.kind == "choice":
        return CategoricalDistribution(list(range(len(each.ends))))
    low, high = each.ends
    kind = IntDistribution if each.kind.endswith("int") else FloatDistribution
    return kind(low, high, log=each.kind in ("log", "log_int"))


def _ordered(ranges: Mapping[str, Range]) -> dict[str, Range]:
    """Keys so that each comes after those it depends on."""
    left, found = dict(ranges), dict[str, Range]({})
    while left:
        ready = [key for key, each in left.items() if not any(other in left for other in each.when)]
        if not ready:
            raise RecipeError(f"The conditions of {', '.join(left)} go round in a circle.", "Take one `when` away.")
        found |= {key: left.pop(key) for key in ready}
    for key, each in found.items():
        for other, wanted in each.when.items():
            if other in found and found[other].kind == "choice":
                missing = [value for value in _listed(wanted) if value not in found[other].ends]
                if missing:
                    near = difflib.get_close_matches(
                        str(missing[0]), list(map(str, found[other].ends)), n=1, cutoff=0.0
                    )
                    raise RecipeError(
                        f"{key} is searched when {other} is {missing[0]!r}, which it never is; nearest is {near[0]!r}.",
                        "Correct the condition.",
                    )
    return found


def _listed(wanted: Any) -> list[Any]:
    return wanted if isinstance(wanted, list) else [wanted]


def _get(data: Any, key: str) -> Any:
    for name in key.split("."):
        data = data.get(name) if isinstance(data, dict) else None
    return data


def shown(value: Any) -> str:
    """A value for a table."""
    if isinstance(value, float):
        return f"{value:.4g}" if math.isfinite(value) else str(value)
    return str(value)
