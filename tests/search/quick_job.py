"""A job that learns nothing but does what jobs do: it measures, keeps a checkpoint, resumes, and counts its starts."""

import json
import os
import signal
import time
from typing import Any

from engine.config import Recipe, Section
from engine.errors import HeadraceError
from engine.finetune.checkpoints import Checkpoints, State
from engine.observe import MetricsWriter
from engine.resources import Demand
from engine.runs import Invocation, Outcome, Run


class Options(Section):
    rate: float = 1.0
    kind: str = "a"
    only_b: int | None = None


class Training(Section):
    steps: int = 9
    pause: float = 0.0
    """Seconds a step."""
    crash: float | None = None
    """From this rate on."""


class QuickRecipe(Recipe):
    optimiser: Options = Options()
    training: Training = Training()
    cpus: float = 0.1
    tasks: dict[str, Any] | None = None


RECIPE = QuickRecipe


def liked(prompts, responses, references):
    """A reward, as a user would write it."""
    return [float(len(response)) for response in responses]


def load(name):
    """Stands for `jobs.registry.load_job`."""
    import quick_job

    return quick_job


def run(recipe: QuickRecipe, call: Invocation) -> Outcome:
    home = Run("sft", recipe)
    demands = [Demand("workers", 1, recipe.cpus)]
    if call.dry_run:
        return Outcome("sft", home.path, {}, published=False, demands=demands)
    home.open()
    with open(home.path / "starts", "a") as file:
        file.write(f"{os.getpid()}\n")
    training, rate = recipe.training, recipe.optimiser.rate
    if training.crash is not None and rate >= training.crash:
        if recipe.optimiser.kind == "bug":
            raise KeyError("a bug")
        raise HeadraceError(f"A rate of {rate:g} is too much.", "Lower it.")
    checkpoints = Checkpoints(home.path)
    state = checkpoints.latest() or State(extra={"weights": 0.0})
    while state.steps < training.steps:
        time.sleep(training.pause)
        steps = state.steps + 1
        weights = state.extra["weights"] + rate
        ended = "all steps are done" if steps == training.steps else ""
        state = state.model_copy(update={"steps": steps, "extra": {"weights": weights}, "ended": ended})
        loss = abs(rate - 0.3) + 1 / steps
        if recipe.tasks:
            loss = 1.0 + len(recipe.tasks["chosen"])
        with MetricsWriter(home.path) as metrics:
            metrics.log(steps, **{"held_out/loss": loss, "weights": weights})

        def write(folder, place, weights=weights):
            (place / "weights.json").write_text(json.dumps(weights))
            (folder / "worker-00000-of-00001").write_text("state")

        checkpoints.save(state, write)
    (home.path / "done").write_text("")
    if os.environ.get("QUICK_KILLS"):
        os.kill(os.getpid(), signal.SIGKILL)
    return Outcome("sft", home.path, {}, demands=demands)
