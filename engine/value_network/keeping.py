"""Which logits of the frozen bases a training needs, and how they are come by: before its first step, by all workers.

A step's examples and its base follow from its number, so what will be read is known beforehand: no more is kept. Each
base is loaded once, by the workers that have a part of it to make, and is gone from memory before training begins.

Left out: the files (`engine.value_network.cache`). Called by the training and, for a dry run, by the job.
"""

import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from upath import UPath

from engine.artifacts import Dataset
from engine.finetune.attention import keeps_apart
from engine.finetune.batches import Row
from engine.finetune.loop import agree, total_steps
from engine.finetune.order import DataOrder, Indices
from engine.finetune.rows import PackedExamples
from engine.finetune.store import TokenStore
from engine.finetune.work import Assignment
from engine.observe import MetricsWriter, get_logger
from engine.value_network.cache import FOLDER, Form, LogitCache, cache_place, check_room
from engine.value_network.networks import FrozenBase, logit_columns
from engine.value_network.recipe import ValueRecipe

_log = get_logger("value_network")
_STEPS = 4096
"""Steps whose examples are looked up at a time."""
_SIGN_SECONDS = 5.0
"""Between two signs of life."""


def base_of(recipe: ValueRecipe, steps: Indices, total: int) -> Indices:
    """The number of the base that each step is learnt with, of so many steps in `total`."""
    count = len(recipe.bases)
    return steps % count if recipe.curriculum == "alternate" else np.minimum(steps * count // total, count - 1)


def kept_bases(
    assignment: Assignment, store: TokenStore, total: int, vocabulary: int, device: Any, rank: int, workers: int
) -> list[LogitCache]:
    """What is kept of each base, whole: what was missing is computed, each worker its share. A collective.

    Raises `RecipeError` or `StorageError` where there is no room.
    """
    recipe, home = assignment.recipe, UPath(assignment.home)
    place = cache_place(recipe, home)
    caches = [
        LogitCache(
            Path(str(place)),
            assignment.models[f"base {at}"],
            Form.of(recipe.cache, min(logit_columns(reference), vocabulary), recipe.base_dtype),
            store,
            numbers,
            vocabulary=vocabulary,
            everywhere=_everywhere(recipe),
        )
        for at, (reference, numbers) in enumerate(zip(recipe.bases, _wanted(recipe, store, total), strict=True), 1)
    ]
    size = sum(each.bytes_of(each.missing()) for each in caches)
    check_room(size, recipe.cache, place)
    agree(True)  # nobody writes before all have looked
    if rank == 0 and size:
        _log.info("the bases are run once", gigabytes=round(size / 1e9, 2), into=str(place / FOLDER))
    with MetricsWriter(home) if rank == 0 else nullcontext() as metrics:
        for cache, reference in zip(caches, recipe.bases, strict=True):
            _make(cache, reference, recipe, store, (device, rank, workers), metrics)
    agree(True)
    return caches


def cache_facts(recipe: ValueRecipe, home: UPath, dataset: Dataset | None) -> dict[str, str]:
    """What a dry run tells of the room that is needed, about. Raises as `kept_bases`."""
    if recipe.cache.keep == "none":
        return {}
    place = cache_place(recipe, home)
    each = [Form.of(recipe.cache, logit_columns(base), recipe.base_dtype).record.itemsize for base in recipe.bases]
    where = "every token" if _everywhere(recipe) else "a token with loss"
    told = f"{max(each) / 1e3:,.1f} kB for {where}"
    if dataset is None:
        check_room(0, recipe.cache, place)
        return {"logits of the bases": f"{told}; how much in all is known once rows are tokenised"}
    known = dataset.manifest.statistics
    positions = known["tokens" if _everywhere(recipe) else "loss_tokens"]
    examples, held = dataset.rows, known["held_out"]
    learnt, drawn = examples - held, total_steps(recipe.training, examples - held) * recipe.training.examples
    read = min(learnt, drawn / len(recipe.bases)) + min(held, recipe.training.measured)
    size = int(sum(each) * positions * read / max(examples, 1))
    check_room(size, recipe.cache, place)
    return {"logits of the bases": f"{told}; about {size / 1e9:,.2f} GB in {place / FOLDER} while training"}


def _make(
    cache: LogitCache, reference: str, recipe: ValueRecipe, store: TokenStore, place: tuple[Any, int, int], metrics: Any
) -> None:
    """This worker's share of the parts that are missing."""
    device, rank, workers = place
    mine = [part for part in cache.missing() if part % workers == rank]
    if not mine:
        return
    base = FrozenBase(reference, recipe.base_dtype, cache.columns, device)
    examples = PackedExamples(store, recipe.parallel.tokens_per_device)
    examples.apart = keeps_apart(base.lm)
    for part in mine:
        with cache.held(part) as missing:
            if missing:
                cache.make(part, base, _seen(examples.of(cache.examples(part), 0, 1).rows, metrics), device)


def _seen(rows: Any, metrics: Any) -> Iterator[Row]:
    """Rows, with a sign of life now and then: the driver takes silence for a worker that hangs."""
    at = time.monotonic()
    for number, row in enumerate(rows, 1):
        yield row
        if metrics and time.monotonic() - at > _SIGN_SECONDS:
            metrics.log(0, **{"bases/rows of this part": number})
            at = time.monotonic()


def _everywhere(recipe: ValueRecipe) -> bool:
    """Whether logits are needed where nothing is learnt, too."""
    penalised = recipe.penalty.positions == "all" and recipe.penalty.weight > 0
    return recipe.connection.startswith("cascade") or (recipe.connection == "linear_probe" and penalised)


def _wanted(recipe: ValueRecipe, store: TokenStore, total: int) -> list[Indices]:
    """Numbers of the examples that are read with each base, ascending."""
    a_step, train = recipe.training.examples, store.train
    order = DataOrder(len(train), recipe.seed, recipe.training.shuffle)
    read = np.zeros((len(recipe.bases), len(store.loss_tokens)), bool)
    for first in range(0, total, _STEPS):
        steps = np.arange(first, min(first + _STEPS, total))
        indices, epochs = order.take(first * a_step, len(steps) * a_step)
        read[np.repeat(base_of(recipe, steps, total), a_step), train[indices, epochs % train.shape[1]]] = True
    read[:, store.held_out[:, 0]] = True
    return [np.flatnonzero(each) for each in read]
