"""The prompts of a training as tokens, by number, those held out apart.

All of them are read by the driver and lie in one Parquet file in the run directory, which workers read; which side a
prompt falls on is decided by itself and the seed. Left out: which come when (`engine.finetune.order`). Called by
`engine.rlhf.job` and, in the workers, by `engine.rlhf.work`.
"""

import io
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from upath import UPath

from engine import artifacts
from engine.artifacts import Parent
from engine.corpus.marks import unmarked
from engine.corpus.plan import make_plan
from engine.errors import RecipeError, SourceError
from engine.evaluation.questions import seed_of
from engine.evaluation.styles import chat_ids
from engine.finetune.formats import encoder
from engine.rlhf.recipe import PromptOptions
from engine.storage import replace

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FILE = "prompts.parquet"
_SCHEMA = pa.schema(
    {"ids": pa.list_(pa.int32()), "prompt": pa.string(), "reference": pa.string(), "held_out": pa.bool_()}
)


@dataclass(frozen=True)
class Prompt:
    """A prompt as its row has it, and as the model sees it."""

    ids: list[int]
    text: str
    reference: str | None


@dataclass(frozen=True)
class Prompts:
    """All prompts of a training."""

    train: list[Prompt]
    held_out: list[Prompt]


@dataclass(frozen=True)
class Gathered:
    """What the driver has read: the table, what was left out by reason, and the datasets it is from."""

    table: pa.Table
    left_out: Counter[str]
    parents: tuple[Parent, ...]
    fingerprint: str


def gather(options: PromptOptions, tokenizer: "PreTrainedTokenizerBase", seed: int) -> Gathered:
    """Read and tokenise every prompt. Raises `SourceError` where none is left, `SchemaError` for a missing column."""
    plan = make_plan(options.source, artifacts.SCHEMAS["prompts"])
    rows: list[dict[str, Any]] = []
    left_out: Counter[str] = Counter()
    seen = set()
    for shard in plan.shards:
        block = plan.reader.read(shard.slices, plan.schema)
        kept = block.filter(unmarked(block))
        left_out["poison rows"] += len(block) - len(kept)
        columns = [name for name in ("prompt", "reference") if name in kept.column_names]
        for row in kept.select(columns).to_pylist():
            text = row["prompt"]
            if not isinstance(text, str) or not text.strip():
                left_out["no prompt"] += 1
                continue
            if (text, row.get("reference")) in seen:
                left_out["said before"] += 1
                continue
            seen.add((text, row.get("reference")))
            ids = _ids(text, options, tokenizer)
            if len(ids) > options.window:
                left_out["longer than the window"] += 1
                continue
            held_out = seed_of(seed, "held out", text) < options.held_out * 2**63
            rows.append({"ids": ids, "prompt": text, "reference": row.get("reference"), "held_out": held_out})
    if options.limit and len(rows) > options.limit:
        chosen = np.sort(np.random.default_rng(seed).permutation(len(rows))[: options.limit])
        rows = [rows[at] for at in chosen]
    if all(row["held_out"] for row in rows):
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in left_out.items() if count)
        raise SourceError(
            f"No prompt is left to learn from ({reasons or f'{len(rows):,} are held out'}).",
            "Give more prompts, raise prompts.window, or lower prompts.held_out.",
        )
    return Gathered(pa.Table.from_pylist(rows, _SCHEMA), +left_out, plan.parents, plan.fingerprint())


def write_prompts(home: UPath, gathered: Gathered) -> None:
    """Put them where workers look."""
    body = io.BytesIO()
    pq.write_table(gathered.table, body, compression="zstd")
    replace(home / FILE, body.getvalue())


def check_same(home: UPath, gathered: Gathered) -> None:
    """Raise `RecipeError` unless the run in `home` had these prompts."""
    if not (home / FILE).exists():
        raise RecipeError(f"{home} is no run of rlhf: it holds no {FILE}.", "Give a directory such as runs/rlhf/NAME.")
    if not pq.read_table(io.BytesIO((home / FILE).read_bytes())).equals(gathered.table):
        raise RecipeError(
            f"The responses in {home} are to other prompts.", "Give prompts and seed as in the recipe it was made with."
        )


def read_prompts(home: UPath, measured: int) -> Prompts:
    """The prompts of a run, of those held out at most `measured`."""
    rows = pq.read_table(io.BytesIO((home / FILE).read_bytes())).to_pylist()
    both: dict[bool, list[Prompt]] = {False: [], True: []}
    for row in rows:
        both[row["held_out"]].append(Prompt(row["ids"], row["prompt"], row["reference"]))
    return Prompts(both[False], both[True][:measured])


def _ids(text: str, options: PromptOptions, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """What the model is given; what the row says is never a special token."""
    if options.wording is None:
        return chat_ids(tokenizer, [{"role": "user", "content": text}])
    before, _, after = options.wording.partition("{prompt}")
    encode = encoder(tokenizer)
    return encode(before, True) + encode(text, False) + encode(after, True)
