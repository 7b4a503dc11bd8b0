"""The training loop, run by every worker alike: draw, pack, step, measure, save, until the end or no gain any more.

What a step trains on depends on its number alone (`engine.finetune.order`), so a training that was killed goes on from
its last checkpoint as if nothing had been. What is learnt, and from what, a `Task` says: the loop is blind to it.

Left out: the tasks (`engine.finetune.sft`, `engine.finetune.reward`, `engine.value_network.training`), and who starts
the workers (`engine.finetune.job`).
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from upath import UPath

from engine.errors import HeadraceError
from engine.finetune.checkpoints import Checkpoints, Measured, State
from engine.finetune.learner import Learner, Stepped
from engine.finetune.options import OptimiserOptions, ParallelOptions, TrainingOptions
from engine.finetune.order import DataOrder, Indices
from engine.observe import MetricsWriter, TrajectoryRecorder
from engine.storage import is_local

LOSS = "loss"
"""The measured value that the best is chosen by."""


@dataclass(frozen=True)
class Portion:
    """One worker's part of a step: its micro-batches, as many as every other's; `weight` (what the sum of losses is
    divided by) and `tokens` are those of all workers."""

    rows: Sequence[Any]
    weight: int
    tokens: int


class Task(Protocol):
    """What is learnt."""

    examples: int
    """How many there are to learn from; an example is what `TrainingOptions.examples` counts."""

    def portion(self, step: int, indices: Indices, epochs: Indices, rank: int, workers: int) -> Portion:
        """A worker's part of a step's examples, each read in its epoch; steps count from 0."""

    def row_loss(self, model: Any, row: Any) -> Any:
        """The sum of the losses of a micro-batch, a scalar tensor."""

    def measure(self, learner: Learner) -> dict[str, float]:
        """What the model is worth on held-out examples, `loss` among it; empty where nothing is held out."""

    def load(self, weights: Path | None) -> Any:
        """The model to train: a new one, or the one whose weights were saved there."""

    def save(self, model: Any, weights: dict[str, Any], folder: Path) -> None:
        """Write a model's weights (on the first worker)."""

    def export(self, weights: Path, folder: Path) -> None:
        """Write saved weights as the directory that is published."""


@dataclass(frozen=True)
class Plan:
    """What the recipe and the number of examples come to."""

    seed: int
    steps: int
    training: TrainingOptions
    optimiser: OptimiserOptions
    parallel: ParallelOptions

    @property
    def checkpoint_every(self) -> int:
        """Steps between two checkpoints."""
        return self.training.checkpoint_every or self.training.measure_every


def total_steps(options: TrainingOptions, examples: int) -> int:
    """Optimiser steps of a training."""
    return options.steps or max(1, math.ceil(options.epochs * examples / options.examples))


def train(task: Task, plan: Plan, home: UPath) -> State:
    """Train to the end, from the newest checkpoint if there is one; needs an initialised process group."""
    import torch

    rank = torch.distributed.get_rank()
    checkpoints = Checkpoints(home, rank, agree)
    state = checkpoints.latest() or State()
    if state.ended:
        return state
    loop = _Loop(task, plan, home, checkpoints, state)
    with loop.metrics if rank == 0 else _Nothing():
        return loop.run()


class _Loop:
    """One worker's loop."""

    def __init__(self, task: Task, plan: Plan, home: UPath, checkpoints: Checkpoints, state: State) -> None:
        import torch

        self.task, self.plan, self.checkpoints, self.state = task, plan, checkpoints, state
        self.rank, self.workers = torch.distributed.get_rank(), torch.distributed.get_world_size()
        torch.manual_seed(plan.seed)
        bf16 = plan.training.dtype == "bfloat16"
        arguments = (plan.optimiser, plan.parallel, plan.steps)
        if state.steps:
            with checkpoints.weights(state.steps) as weights:
                self.learner = Learner(task.load(weights), *arguments, bf16=bf16)
            with checkpoints.optimiser(state.steps, self.learner.part) as folder:
                self.learner.load(folder)
        else:
            self.learner = Learner(task.load(None), *arguments, bf16=bf16)
        self.metrics = MetricsWriter(home)
        recorded = plan.training.trajectory and self.rank == 0 and is_local(home)
        self.recorder = TrajectoryRecorder(Path(str(home)), state.steps) if recorded else None

    def run(self) -> State:
        plan, order = self.plan, DataOrder(self.task.examples, self.plan.seed, self.plan.training.shuffle)
        if not self.state.steps:
            self._measure(0)  # where it starts from
        while not self.state.ended:
            started, step = time.monotonic(), self.state.steps
            indices, epochs = order.take(step * plan.training.examples, plan.training.examples)
            portion = self.task.portion(step, indices, epochs, self.rank, self.workers)
            _seed(plan.seed, step, self.rank)
            stepped = self.learner.step(portion.rows, portion.weight, self.task.row_loss)
            self._note(stepped, portion, indices, time.monotonic() - started)
            done = self.state.steps
            if done % plan.training.measure_every == 0 or done == plan.steps:
                self._measure(done)
            self._see_whether_to_end()
            if self.state.ended or done % plan.checkpoint_every == 0 or done % plan.training.measure_every == 0:
                self.checkpoints.save(self.state, self._write)
        return self.state

    def _note(self, stepped: Stepped, portion: Portion, indices: Indices, seconds: float) -> None:
        before = self.state
        self.state = before.model_copy(
            update={
                "steps": before.steps + 1,
                "tokens": before.tokens + portion.tokens,
                "seconds": before.seconds + seconds,
            }
        )
        if self.rank == 0:
            self.metrics.log(
                self.state.steps,
                loss=stepped.loss,
                gradient_norm=stepped.gradient_norm,
                learning_rate=stepped.learning_rate,
                tokens=self.state.tokens,
                tokens_per_second=portion.tokens / seconds,
            )
        if self.recorder:
            self.recorder.record(self.state.steps, indices, loss=stepped.loss)

    def _measure(self, step: int) -> None:
        """Measure on held-out examples and remember the best."""
        values = self.task.measure(self.learner)
        if not values:
            return
        if not math.isfinite(values[LOSS]):
            raise HeadraceError(
                f"The held-out loss after step {step:,} is {values[LOSS]:g}.",
                "Lower optimiser.learning_rate; the last checkpoint stays.",
            )
        measured = (*self.state.measured, Measured(step=step, values=values))
        learnt = [each for each in measured if each.step] or list(measured)
        best = min(learnt, key=lambda each: each.values[LOSS]).step
        self.state = self.state.model_copy(update={"measured": measured, "best": best or None})
        if self.rank == 0:
            self.metrics.log(step, **{f"held_out/{name}": value for name, value in values.items()})

    def _see_whether_to_end(self) -> None:
        state, patience = self.state, self.plan.training.patience
        since = [each for each in state.measured if state.best and each.step > state.best]
        ended = ""
        if state.steps == self.plan.steps:
            ended = "all steps are done"
        elif patience and len(since) >= patience:
            ended = f"{len(since)} measurements without a lower held-out loss than that of step {state.best:,}"
        self.state = state.model_copy(update={"ended": ended})

    def _write(self, folder: Path, weights: Path) -> None:
        """This worker's part of a checkpoint; at the end nobody needs the optimiser's state any more."""
        if not self.state.ended:
            self.learner.save(folder)
        found = self.learner.weights()
        if found is not None:
            self.task.save(self.learner.engine.module, found, weights)


def agree(well: bool) -> bool:
    """Whether all workers are well; each waits for the others here."""
    import torch

    said = torch.tensor([0 if well else 1])
    if torch.cuda.is_available():
        said = said.cuda()
    torch.distributed.all_reduce(said)
    return not said.item()


def _seed(seed: int, step: int, rank: int) -> None:
    """Chances in a step (dropout) depend on its number and the worker's, so that a resume draws the same."""
    import torch

    torch.manual_seed(int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> 1))


class _Nothing:
    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...
