"""A trial, seen from outside: its job in a process of its own, whose metrics are told to Ray Tune as they come.

The job has a run directory of its own (RUN/trials/JOB/NUMBER) and survives any kill, so a trial that is begun again
goes on from its own checkpoint.

For population-based training a measurement is told once its checkpoint is whole, with a snapshot of it (hard links, so
no room is taken). A trial that takes another's place begins a new run whose checkpoints are such a snapshot.

Left out: the process (`tuning.driver`) and who is stopped (`tuning.schedulers`). Called by Ray Tune, started by
`tuning.search`.
"""

import json
import math
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from upath import UPath

from engine.config import Recipe
from engine.errors import HeadraceError
from engine.finetune.checkpoints import Checkpoints, State
from engine.observe import read_metrics
from engine.runs import Run
from tuning.driver import running

_POLL_SECONDS = 0.25
_KEPT = 4
"""Snapshots of a trial; those that are taken from are among the newest."""
SNAPSHOT = "snapshot.json"


@dataclass(frozen=True)
class Plan:
    """What all trials of a search have in common. `make` gives the recipe of a trial, given its name and values."""

    job: str
    load_job: Callable[[str], Any]
    make: Callable[[str, Mapping[str, Any]], Recipe]
    metric: str
    command: str
    cwd: str
    runs: str
    """Where the runs of the trials lie, by job."""
    snapshots: str = ""
    """Where snapshots are kept; empty: none are made."""


def drive(plan: Plan, config: Mapping[str, Any]) -> None:
    """Carry out a trial, to be called as Ray Tune's trainable function. `config` tells its name and number, its values
    as JSON, and the step up to which its results are known."""
    with suppress(OSError):  # paths in recipes are relative to where the search was called
        os.chdir(plan.cwd)
    try:
        for told in _followed(plan, config):
            _report(config, told)
    except HeadraceError as error:
        _report(config, {"ended": "failed", "why": str(error)})


def _report(config: Mapping[str, Any], told: dict[str, Any]) -> None:
    from ray import tune

    told["run"] = config["name"]
    snapshot = told.pop("snapshot", None)
    if snapshot is None:
        tune.report(told)
        return
    with tempfile.TemporaryDirectory(prefix="headrace-tune-") as folder:
        Path(folder, SNAPSHOT).write_text(json.dumps({"path": snapshot, "step": told["reached"]}))
        tune.report(told, checkpoint=tune.Checkpoint.from_directory(folder))


def _followed(plan: Plan, config: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """What is told of a trial: each measurement once, then how it ended. Raises `HeadraceError`, and `RuntimeError`
    where its process was killed."""
    import ray

    recipe = plan.make(config["name"], json.loads(config["values"]))
    home = Run(plan.job, recipe).path
    began, told, place = time.monotonic(), int(config.get("told", 0)), home
    with tempfile.TemporaryDirectory(prefix="headrace-tune-") as folder:
        outcome = Path(folder, "outcome.json")
        address = ray.get_runtime_context().gcs_address
        with running(
            plan.job, plan.load_job, recipe, address=address, command=plan.command, outcome=outcome
        ) as process:
            alive = True
            while alive:
                alive = process.poll() is None
                for step, value in measured(place, plan.metric):
                    if step <= told:
                        continue
                    told = step
                    # A result of the last step decides nothing any more; rungs and intervals come before it.
                    yield {"step": step, "at": step, "value": value, "seconds": time.monotonic() - began} | (
                        _snapshot(plan, config["name"], home, step, process) if plan.snapshots else {}
                    )
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_POLL_SECONDS)
                if plan.job == "sieve":
                    place = _loop_of(recipe, home)
        if not outcome.exists():
            raise RuntimeError(f"its process ended with {process.returncode}")
        why = json.loads(outcome.read_text())
    if why:
        yield {"ended": "failed", "why": why}
        return
    if not told:
        names = sorted({name for line in read_metrics(place) for name in line if name != "step"})
        raise HeadraceError(
            f"The job has measured no {plan.metric}.",
            f"Choose a metric among: {', '.join(names) or 'none'}; or let it measure more often.",
        )
    yield {"ended": "finished", "seconds": time.monotonic() - began}


def measured(home: UPath, metric: str) -> list[tuple[int, float]]:
    """Steps after the first and the metric there, in order; a resume repeats steps, of which the later line holds."""
    found: dict[int, float] = {}
    for line in read_metrics(home):
        if metric in line and line["step"] > 0:
            found[line["step"]] = math.nan if line[metric] is None else float(line[metric])
    return sorted(found.items())


def _loop_of(recipe: Recipe, home: UPath) -> UPath:
    """Where a sieve's rounds are measured."""
    loop: Any = getattr(recipe, "loop", None)
    return home / "loop" / str(loop.rule)


def _snapshot(plan: Plan, name: str, home: UPath, step: int, job: "subprocess.Popen[bytes]") -> dict[str, Any]:
    """The snapshot of the checkpoint of this step or a later one; none when the job has ended, since nobody can go on
    from there."""
    while job.poll() is None:
        with suppress(FileNotFoundError):  # it was replaced by the next one while we looked
            state = Checkpoints(home).latest()
            if state and state.steps >= step:
                if state.ended:
                    break
                place = keep(Path(str(home)), state, Path(plan.snapshots), name)
                return {"snapshot": str(place), "reached": state.steps}
        time.sleep(0.05)
    return {"step": None}


def keep(home: Path, state: State, snapshots: Path, name: str) -> Path:
    """Link a run's newest checkpoint, and the weights of its best, to where nobody removes them. Raises
    `FileNotFoundError` where the run went on meanwhile."""
    place = snapshots / f"{name}-{state.steps:08d}"
    if place.exists():
        return place
    staging = snapshots / f".{place.name}"
    shutil.rmtree(staging, ignore_errors=True)
    for step in {state.steps, state.best or state.steps}:
        folder = f"step-{step:08d}"
        _linked(home / "checkpoints" / folder, staging / folder)
    if not (staging / f"step-{state.steps:08d}" / "state.json").exists():
        raise FileNotFoundError(place)
    staging.rename(place)
    for old in sorted(snapshots.glob(f"{name}-[0-9]*"))[:-_KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    return place


def take(snapshot: Path, home: Path) -> None:
    """Begin a run with the checkpoints of a snapshot. Raises `FileNotFoundError` if it is gone."""
    shutil.rmtree(home, ignore_errors=True)  # what a kill left before the taking was set down
    staging = home / ".checkpoints"
    _linked(snapshot, staging)
    staging.rename(home / "checkpoints")


def newest(snapshots: Path, name: str) -> Path | None:
    """A trial's newest snapshot."""
    return max(snapshots.glob(f"{name}-[0-9]*"), default=None)


def _linked(source: Path, target: Path) -> None:
    try:
        shutil.copytree(source, target, copy_function=_link)
    except shutil.Error as error:  # some file of it was removed meanwhile
        raise FileNotFoundError(str(source)) from error


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:  # another disk, or one that knows no links
        shutil.copy2(source, target)
