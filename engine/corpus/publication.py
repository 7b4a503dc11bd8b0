"""What a run over a corpus publishes: the manifest made from its records, and whether it is there already.

Left out: the act of publishing (`engine.artifacts`). Called by `engine.corpus.transform`.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import pyarrow.parquet as pq
from upath import UPath

from engine.artifacts import Dataset, Manifest, code_version, is_dataset, read_dataset
from engine.corpus.ledger import Identity, Record
from engine.corpus.plan import Plan
from engine.corpus.recipe import StreamRecipe
from engine.corpus.report import merge_counts
from engine.errors import ArtifactError, Outdated, ResumeRefused


def published_before(output: UPath, identity: Identity, changed: Callable[[], str]) -> Dataset | None:
    """The dataset at the output if it is what this run would make. Raises as `check_published`."""
    try:
        if not is_dataset(output):
            return None
    except ArtifactError:  # one that is still being built
        return None
    dataset = read_dataset(output)
    check_published(output, dataset.manifest, identity, changed)
    return dataset


def check_published(output: UPath, found: Any, identity: Identity, changed: Callable[[], str]) -> None:
    """Whether a manifest is of what this run would make: raises `ResumeRefused` for another job's, `Outdated` for one
    from another recipe or input; `changed` says what of them is another (`Ledger.changed`)."""
    if found.job != identity.job:
        raise ResumeRefused(
            f"{output} was published by another job, {found.job}.", "Choose another output=... or name=..."
        )
    for what, ours, theirs in (
        ("recipe", identity.recipe_fingerprint, found.recipe_fingerprint),
        ("input", identity.inputs_fingerprint, found.inputs_fingerprint),
    ):
        if ours != theirs:
            which = changed()
            raise Outdated(
                f"{output} was published from another {what}" + (f" (changed: {which})." if which else "."),
                "Choose another name=... (or output=...), or add --fresh to set it aside and start over.",
            )


def make_manifest(
    plan: Plan,
    records: Mapping[int, Record],
    staging: UPath,
    identity: Identity,
    recipe: StreamRecipe,
    schema_name: str,
    models: Mapping[str, str],
) -> Manifest:
    """The manifest of a finished run: its parts in plan order, what the records count, the models that took part."""
    ordered = [records[shard.index] for shard in plan.shards]
    parts = tuple(record.part for record in ordered if record.part)
    counts: Counter[str] = Counter({"read": 0, "quarantined": 0})
    for record in ordered:
        counts.update({"read": record.rows_in, "quarantined": record.quarantined})
        counts.update({f"dropped: {reason}": count for reason, count in record.dropped.items()})
    counts.update({f"skipped files: {reason}": count for reason, count in plan.skipped.items()})
    return Manifest(
        schema_name=schema_name,
        columns=_columns(staging / parts[0].file) if parts else {},
        rows=sum(part.rows for part in parts),
        parts=parts,
        parents=plan.parents,
        job=identity.job,
        recipe=recipe.model_dump(mode="json"),
        recipe_fingerprint=identity.recipe_fingerprint,
        inputs_fingerprint=identity.inputs_fingerprint,
        code_version=code_version(),
        seed=recipe.seed,
        models=dict(models),
        counts=dict(counts),
        statistics=merge_counts([record.statistics for record in ordered]),
    )


def _columns(path: UPath) -> dict[str, str]:
    with path.open("rb") as file:
        return {field.name: str(field.type) for field in pq.read_schema(file)}
