"""Which tasks a training learns from: names in the recipe, or those that a selection has chosen.

A `chosen_tasks` artifact is a dataset with a row for each candidate: `task`, `chosen`, and why. Left out: choosing them
(`engine.selection`), and the examples (`engine.finetune.store`). Called by `engine.finetune.job`.
"""

from typing import TypeVar

import pyarrow.parquet as pq

from engine.artifacts import Dataset, Parent, read_dataset
from engine.errors import RecipeError, SourceError
from engine.finetune.options import TaskOptions
from engine.finetune.recipe import FineTuningRecipe
from engine.storage import locate

R = TypeVar("R", bound=FineTuningRecipe)


def with_named_tasks(recipe: R) -> tuple[R, tuple[Parent, ...]]:
    """The recipe with names where it tells of a `chosen_tasks` artifact, and that artifact, if any. Raises
    `ArtifactError` where there is none, `RecipeError` for tasks that make no sense."""
    tasks = recipe.tasks
    if tasks is None:
        return recipe, ()
    parents: tuple[Parent, ...] = ()
    if isinstance(tasks.chosen, str):
        dataset = read_dataset(locate(tasks.chosen))
        if dataset.schema_name != "chosen_tasks":
            raise RecipeError(
                f"tasks.chosen names {dataset.path}, a dataset of {dataset.schema_name}.",
                "Give what `headrace select-tasks` published, or a list of names.",
            )
        chosen = []
        for part in dataset.parts:
            with (dataset.path / part.file).open("rb") as file:
                rows = pq.read_table(file, columns=["task", "chosen"]).to_pylist()
            chosen += [row["task"] for row in rows if row["chosen"]]
        target = tasks.target or dataset.manifest.recipe.get("target")
        tasks = tasks.model_copy(update={"chosen": chosen, "target": target})
        parents = (Parent(uri=str(dataset.path), fingerprint=dataset.fingerprint),)
    if tasks.chosen is None:
        return recipe.model_copy(update={"tasks": tasks}), parents
    if not tasks.chosen:
        raise RecipeError("tasks.chosen names no task.", "Name one at least, or leave out the section `tasks`.")
    twice = [name for name in tasks.chosen if tasks.chosen.count(name) > 1]
    if twice:
        raise RecipeError(f"tasks.chosen names {twice[0]!r} more than once.", "Name each task once.")
    if tasks.target in tasks.chosen:
        raise RecipeError(
            f"tasks.target is {tasks.target!r}, which is among tasks.chosen: it would be learnt from and measured on.",
            "Take it out of one of them.",
        )
    return recipe.model_copy(update={"tasks": tasks}), parents


def learnt_rows(tasks: TaskOptions, dataset: Dataset) -> dict[str, int]:
    """How many examples there are to learn from of each task that is learnt, in a dataset of tokens. Raises
    `SourceError` for a task without any."""
    counts: dict[str, int] = dataset.manifest.statistics.get("tasks", {})
    there = [name for name in sorted(counts) if counts[name] and name != tasks.target]
    names = there if tasks.chosen is None else list(tasks.chosen)
    told = f"Tasks with rows are: {', '.join(there[:20])}{', ...' if len(there) > 20 else ''}."
    if not there:
        told = "Give rows with a column `task`; source.columns renames one."
    for name in names:
        if not counts.get(name):
            raise SourceError(f"There is no row of the task {name!r} to learn from.", told)
    if not names:
        raise SourceError("No row to learn from says which task it is of.", told)
    return {name: counts[name] for name in names}
