"""The `chosen_tasks` artifact: a dataset with a row for each candidate, and what was estimated in its manifest.

`sft` takes it (`tasks: {chosen: ...}`). Left out: choosing (`engine.selection.methods`). Called by
`engine.selection.job`.
"""

import hashlib
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from upath import UPath

from engine.artifacts import Dataset, Manifest, Parent, Part, code_version, open_staging, publish
from engine.corpus.ledger import Identity
from engine.selection.estimator import Estimator
from engine.selection.methods import Chosen
from engine.selection.recipe import SelectRecipe
from engine.storage import replace


def publish_choice(
    output: UPath,
    recipe: SelectRecipe,
    identity: Identity,
    estimator: Estimator,
    chosen: Chosen,
    tokens: Dataset,
    models: Mapping[str, str],
) -> Dataset:
    """Publish what was chosen; the last step of the job."""
    counts = np.bincount(estimator.task_numbers, minlength=len(estimator.tasks))
    ranks = {task: rank for rank, task in enumerate(chosen.choice.chosen, 1)}
    table = pa.table(
        {
            "task": pa.array(estimator.tasks, pa.string()),
            "chosen": [task in ranks for task in range(len(counts))],
            "rank": pa.array([ranks.get(task) for task in range(len(counts))], pa.int32()),
            "examples": pa.array(counts, pa.int64()),
            "mark": _numbers(chosen.choice.marks),
            "effect": _numbers(chosen.effects),
            "effect_error": _numbers(chosen.errors),
            "bootstrap_share": _numbers(chosen.shares),
        }
    )
    stream = pa.BufferOutputStream()
    pq.write_table(table, stream, compression="zstd")
    body: bytes = stream.getvalue().to_pybytes()
    part = Part(
        name="part-000000", file="part-000000.parquet", rows=len(table), bytes=len(body),
        sha256=hashlib.sha256(body).hexdigest(),
    )  # fmt: skip
    manifest = Manifest(
        schema_name="chosen_tasks",
        columns={field.name: str(field.type) for field in table.schema},
        rows=len(table),
        parts=(part,),
        parents=(Parent(uri=str(tokens.path), fingerprint=tokens.fingerprint),),
        job="select-tasks",
        recipe=recipe.model_dump(mode="json"),
        recipe_fingerprint=identity.recipe_fingerprint,
        inputs_fingerprint=identity.inputs_fingerprint,
        code_version=code_version(),
        seed=recipe.seed,
        models=dict(models),
        statistics=_estimates(estimator, chosen),
    )
    staging = open_staging(output)
    replace(staging / part.file, body)
    return publish(staging, output, manifest)


def chosen_names(dataset: Dataset) -> list[str]:
    """The chosen tasks, in the order in which they were chosen."""
    with (dataset.path / dataset.parts[0].file).open("rb") as file:
        rows = pq.read_table(file, columns=["task", "chosen", "rank"]).to_pylist()
    return [row["task"] for row in sorted((row for row in rows if row["chosen"]), key=lambda row: row["rank"])]


def _estimates(estimator: Estimator, chosen: Chosen) -> dict[str, Any]:
    """Estimated losses in nats, with standard errors: of what was chosen and of other ways to choose."""
    rest = {
        name: {"tasks": [estimator.tasks[task] for task in sorted(tasks)], "loss": loss, "error": error}
        for name, (tasks, loss, error) in chosen.compared.items()
    }
    return {"loss": chosen.loss, "error": chosen.uncertainty, "others": rest}


def _numbers(values: Any) -> pa.Array:
    """Numbers, null where there is none."""
    return pa.array(
        [None if math.isnan(value) or math.isinf(value) else float(value) for value in values], pa.float64()
    )
