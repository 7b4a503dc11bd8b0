"""What a training worker does, from the tokens to the published model; the first of them publishes.

Left out: the loop (`engine.finetune.loop`), and who starts workers (`engine.finetune.workers`). Handed to them by
`engine.finetune.job`.
"""

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upath import UPath

from engine.artifacts import Parent, publish_model, read_dataset
from engine.finetune.checkpoints import Checkpoints, State
from engine.finetune.loop import Plan, Task, total_steps, train
from engine.finetune.recipe import FineTuningRecipe
from engine.finetune.reward import RewardTraining
from engine.finetune.sft import FineTuning
from engine.finetune.store import TokenStore
from engine.finetune.tokenise import tokenizer_for
from engine.storage import is_local, storage_errors

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


MakeTask = Callable[["Assignment", TokenStore, "PreTrainedTokenizerBase", int], Task]
"""Assignment, examples, tokenizer and number of steps -> what is learnt, in a worker."""


@dataclass(frozen=True)
class Assignment:
    """All that a worker has to know; places as text, since it may be on another machine."""

    job: str
    recipe: Any
    tokens: str
    home: str
    output: str
    inputs_fingerprint: str
    parents: tuple[Parent, ...]
    models: Mapping[str, str]
    make_task: MakeTask
    publish: bool = True


def train_worker(assignment: Assignment) -> None:
    """Train, in one of the workers. Raises `HeadraceError`s."""
    import torch

    recipe, home = assignment.recipe, UPath(assignment.home)
    torch.set_num_threads(max(1, int(recipe.parallel.cpus)))
    store = TokenStore.of(read_dataset(UPath(assignment.tokens)), recipe.training.measured)
    if recipe.tasks:
        store = store.of_tasks(recipe.tasks.chosen, recipe.tasks.target, recipe.tasks.measured)
    tokenizer = tokenizer_for(recipe.model, recipe.format, recipe.tokens)
    steps = total_steps(recipe.training, len(store.train))
    task = assignment.make_task(assignment, store, tokenizer, steps)
    plan = Plan(recipe.seed, steps, recipe.training, recipe.optimiser, recipe.parallel)
    state = train(task, plan, home)
    if assignment.publish and torch.distributed.get_rank() == 0:
        _publish(assignment, task, state)


def task_by_format(assignment: Assignment, store: TokenStore, tokenizer: "PreTrainedTokenizerBase", steps: int) -> Task:
    """The tasks of `sft` and `reward-model`."""
    recipe: FineTuningRecipe = assignment.recipe
    capacity = recipe.parallel.tokens_per_device
    shared: Any = {"dtype": recipe.training.dtype, "lora": recipe.lora, "recompute": recipe.parallel.recompute}
    if recipe.format in ("pairs", "labels"):
        return RewardTraining(store, recipe.model, tokenizer, capacity, pairs=recipe.format == "pairs", **shared)
    return FineTuning(store, recipe.model, tokenizer, capacity, **shared)


def _publish(assignment: Assignment, task: Task, state: State) -> None:
    """Publish the best weights there are."""
    recipe, home, output = assignment.recipe, UPath(assignment.home), UPath(assignment.output)
    best = state.best or state.steps
    checkpoints = Checkpoints(home)
    with checkpoints.weights(best) as weights, staging_for(output) as staging:
        task.export(weights, staging)
        measured = {each.step: each.values for each in state.measured}
        publish_model(
            staging,
            output,
            job=assignment.job,
            recipe=recipe.model_dump(mode="json"),
            recipe_fingerprint=recipe.fingerprint(),
            inputs_fingerprint=assignment.inputs_fingerprint,
            seed=recipe.seed,
            parents=assignment.parents,
            models=assignment.models,
            counts={"steps": best, "examples": best * recipe.training.examples, "tokens": state.tokens},
            metrics={f"held-out {name}": value for name, value in measured.get(best, {}).items()},
        )


@contextlib.contextmanager
def staging_for(output: UPath) -> Iterator[Path]:
    """An empty directory to write a model in: beside its place if that is on this machine."""
    if not is_local(output):
        with tempfile.TemporaryDirectory() as elsewhere:
            yield Path(elsewhere)
        return
    folder = Path(f"{output}.partial")
    with storage_errors(output):
        shutil.rmtree(folder, ignore_errors=True)  # what a kill left
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
