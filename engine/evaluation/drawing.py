"""Rows drawn from a source for an evaluation: a few, the same ones for the same seed, in bounded memory.

Up to 32 shards are visited in an order drawn from the seed; of each, as many rows as are wanted in all are drawn and
held, and rows are then taken from the shards in turn. So a source of many files is met broadly, and a corpus of any
size costs no more than 32 shards to read.

Left out: what becomes of the rows (`engine.evaluation.questions`). Called by `engine.evaluation.planning`.
"""

from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np

from engine import artifacts
from engine.artifacts import Parent
from engine.corpus.config import SourceConfig
from engine.corpus.marks import SOURCE_PART, SOURCE_ROW, unmarked
from engine.corpus.plan import make_plan
from engine.corpus.sources import check_unchanged

_SHARDS = 32


@dataclass(frozen=True)
class Drawn:
    """Rows with a `key` each, that names where they came from; how many were poison; the datasets they are from."""

    rows: list[dict[str, Any]]
    poison: int
    parents: tuple[Parent, ...]


def draw(source: SourceConfig, schema: str, limit: int, seed: int) -> Drawn:
    """`limit` rows of a source, or all if it has fewer in the shards that are visited.

    Raises `SourceError` where there is nothing to read, `SchemaError` for a missing column.
    """
    required = artifacts.SCHEMAS[schema]
    plan = make_plan(source, required)
    rng = np.random.default_rng(seed)
    wanted = {*required, "reference", SOURCE_PART, SOURCE_ROW}
    groups: list[list[dict[str, Any]]] = []
    poison = 0
    for number in rng.permutation(len(plan.shards))[:_SHARDS]:
        shard = plan.shards[int(number)]
        for file in {each.file for each in shard.slices}:
            check_unchanged(file)
        block = plan.reader.read(shard.slices, plan.schema)
        kept = block.filter(unmarked(block))
        poison += len(block) - len(kept)
        kept = kept.select([name for name in kept.column_names if name in wanted])
        groups.append(kept.take(rng.permutation(len(kept))[:limit]).to_pylist())
    taken = [row for turn in zip_longest(*groups) for row in turn if row is not None][:limit]
    for row in taken:
        row["key"] = f"{row.pop(SOURCE_PART)}:{row.pop(SOURCE_ROW)}"
    return Drawn(taken, poison, plan.parents)
