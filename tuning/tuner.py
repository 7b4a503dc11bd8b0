"""Trials on Ray Tune: how they are asked for, started and listened to.

Ray Tune decides nothing by itself here: values come from the search, ends from its scheduler, and what is told of a
trial is set down in the history as it comes. Its own files lie in a temporary directory and are thrown away.

Left out: what a trial does (`tuning.trial`) and who is stopped (`tuning.schedulers`). Called by `tuning.search`.
"""

import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from engine.observe import Progress
from engine.resources import MIB
from tuning.history import History, Trial
from tuning.trial import Plan, drive

DRIVER_MEMORY = 512 * MIB
"""Of a trial's driver and who looks after it. No CPU, since they mostly wait: a trial of as many as there are would not
fit any more."""
_DEATHS = 2
"""Times that a trial whose driver died is begun again."""


def run_trials(
    plan: Plan,
    history: History,
    *,
    scheduler: Callable[[Plan], Any],
    at_once: bool,
    waiting: list[dict[str, Any]],
    begin: Callable[[], dict[str, Any]],
    fresh: int,
    most: int,
    progress: Progress,
    said: Callable[[Trial, list[Trial]], str] | None,
) -> None:
    """Run trials, with Ray up, until all have ended: those `waiting`, then so many `fresh` ones that `begin` makes,
    `most` at a time; or, `at_once`, all made before the first one runs. `said` gives a line to show on one that has
    ended."""
    from ray import tune

    space: dict[str, Any] = {}
    searcher = None
    if at_once:
        space = {"config": tune.grid_search([*waiting, *(begin() for _ in range(fresh))])}
    else:
        searcher = _proposals(list(waiting), begin)
    with _quiet(), tempfile.TemporaryDirectory(prefix="headrace-tune-") as scratch:
        tune.Tuner(
            tune.with_resources(_function(plan), tune.PlacementGroupFactory([{"memory": DRIVER_MEMORY}])),
            param_space=space,
            tune_config=tune.TuneConfig(
                num_samples=1 if at_once else len(waiting) + fresh,
                search_alg=searcher,
                scheduler=scheduler(plan),
                max_concurrent_trials=most,
                reuse_actors=False,
            ),
            run_config=tune.RunConfig(
                name="search",
                storage_path=scratch,
                verbose=0,
                callbacks=[_listener(history, progress, said)],
                failure_config=tune.FailureConfig(max_failures=_DEATHS),
            ),
        ).fit()


def _proposals(waiting: list[dict[str, Any]], begin: Callable[[], dict[str, Any]]) -> Any:
    """Ray Tune's way to ask for trials: first those that were running, then new ones."""
    from ray.tune.search import Searcher

    class Proposals(Searcher):  # type: ignore[misc]
        def suggest(self, trial_id: str) -> dict[str, Any]:
            return {"config": waiting.pop(0) if waiting else begin()}

        def set_search_properties(self, *arguments: Any, **keys: Any) -> bool:
            return True

        def on_trial_complete(self, *arguments: Any, **keys: Any) -> None:
            """The history tells it."""

        def save(self, checkpoint_path: str) -> None:
            """The history holds it."""

        def restore(self, checkpoint_path: str) -> None:
            """The history holds it."""

    return Proposals()


def _function(plan: Plan) -> Callable[[dict[str, Any]], None]:
    def trial(config: dict[str, Any]) -> None:
        drive(plan, config["config"])

    return trial


def _listener(history: History, progress: Progress, said: Callable[[Trial, list[Trial]], str] | None) -> Any:
    """Sets down what Ray Tune tells of trials as it comes."""
    from ray import tune

    before = {each.number: each.seconds for each in history.trials.values()}
    newest: dict[int, float] = {}

    class Listener(tune.Callback):  # type: ignore[misc]
        def on_trial_result(
            self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
        ) -> None:
            number = trial.config["config"]["number"]
            if result.get("run") != history.trials[number].name:
                return  # of a generation that has just given way to the next
            if "ended" in result:
                self._ended(number, result["ended"], result.get("why", ""))
            elif result["at"] not in history.trials[number].results:
                if result["seconds"] < newest.get(number, 0.0):  # its driver was begun again
                    before[number] = before.get(number, 0.0) + newest[number]
                newest[number] = result["seconds"]
                seconds = before.get(number, 0.0) + result["seconds"]
                history.result(number, result["at"], result["value"], seconds)

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            self._ended(trial.config["config"]["number"], "stopped", "")

        def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            last = str(trial.get_pickled_error() or "").strip().rpartition("\n")[2][:200].rstrip(".")
            why = f"Its driver died {_DEATHS + 1} times{f' ({last})' if last else ''}."
            self._ended(trial.config["config"]["number"], "failed", why)

        def _ended(self, number: int, state: Any, why: str) -> None:
            if history.trials[number].ended:
                return
            history.end(number, state, why)
            told = said(history.trials[number], list(history.trials.values())) if said else ""
            if told:
                sys.stderr.write(f"{told}\n")
            if why:
                sys.stderr.write(f"Trial {number} failed: {why}\n")
            best = history.ranked()[0].best
            progress.advance(best="-" if best is None else f"{best:.4f}")

    return Listener()


@contextmanager
def _quiet() -> Iterator[None]:
    """Ray Tune as this room needs it: no files, tables and handlers of its own, and actors that end at once."""
    settings = {
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_DISABLE_AUTO_CALLBACK_SYNCER": "1",
        "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
        "TUNE_DISABLE_SIGINT_HANDLER": "1",
        "TUNE_FORCE_TRIAL_CLEANUP_S": "1",
        "TUNE_MAX_PENDING_TRIALS_PG": "1",
        "TUNE_WARN_THRESHOLD_S": "60",
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
        "RAY_AIR_NEW_OUTPUT": "0",
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    level = logging.getLogger("ray.tune").level
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            # An actor that is used again would keep what its trial has started.
            warnings.filterwarnings("ignore", message="Consider boosting PBT performance by enabling `reuse_actors`")
            yield
    finally:
        logging.getLogger("ray.tune").setLevel(level)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
