"""Responses to prompts: a shard of prompts in, the same rows with what the model wrote out; and what that takes.

Each row comes out `samples` times, with `response`, `finish_reason` (stop: it came to an end by itself; length: it was
cut off), `tokens`, `sample` and `seed`; of messages the conversation grows by the answer. An answer that the row had
already is in `reference`. Seeds depend on the recipe's and on where a row came from, and a shard is asked as a whole:
one that is done again after a kill is written again as it was.

Left out: reading and writing (`engine.corpus`), and the models (`engine.value_network.generation`). Called by
`jobs.generate`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from engine.corpus import SourceConfig, Stage
from engine.corpus.marks import QUARANTINE, SOURCE_PART, SOURCE_ROW, mark, unmarked
from engine.errors import SourceError
from engine.evaluation.questions import reference_of, seed_of, turns_of
from engine.evaluation.styles import bare_ids, chat_ids
from engine.models import (
    Generated,
    Sampling,
    TransformersGenerator,
    VllmGenerator,
    fingerprint,
    load_tokenizer,
    portable,
    resolve,
)
from engine.models.generation import PROCESS_BYTES, cache_bytes, window
from engine.models.inventory import describe_model
from engine.resources import usable_cpus
from engine.value_network.card import Card, read_card
from engine.value_network.generate_recipe import GenerateRecipe
from engine.value_network.serving import SERVED, check_served, checked_base, checked_card

SHARD_MB = 0.05
"""Megabytes of prompts in a shard, unless the recipe says otherwise: a few minutes' work for a core."""
_TURNS = pa.list_(pa.struct({"role": pa.string(), "content": pa.string()}))
_ADDED = {
    "response": pa.string(),
    "finish_reason": pa.string(),
    "tokens": pa.int32(),
    "sample": pa.int32(),
    "seed": pa.int64(),
}
_LONGEST_ERROR = 500

Engine = Literal["vllm", "transformers"]
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Prepared:
    """What a recipe comes to: the engine, the window in tokens, the models (role -> fingerprint), bytes of an actor."""

    recipe: GenerateRecipe
    engine: Engine
    longest: int
    uses: dict[str, str]
    memory: int

    @property
    def source(self) -> SourceConfig:
        """What is read, in shards of a size that suits."""
        source = self.recipe.source
        return source.model_copy(update={"shard_mb": source.shard_mb or SHARD_MB})

    def facts(self) -> dict[str, str]:
        """What follows from the recipe, in words."""
        chosen = " (auto)" if self.recipe.engine == "auto" else ""
        return {
            "engine": f"{self.engine}{chosen}, {self.recipe.at_once} sequences at once",
            "window": f"{self.longest:,} tokens, of which a response takes at most {self.recipe.sampling.max_tokens:,}",
            "memory per actor": "on its GPU" if self.recipe.gpus else f"about {self.memory / 1e9:.1f} GB",
        }

    def stages(self) -> Callable[[int], list[Stage]]:
        """The one stage of the stream, for a number of cores."""
        recipe = self.recipe
        models = {name: portable(each) for name in ("model", "value", "bridge") if (each := getattr(recipe, name))}
        arguments = {"recipe": recipe.model_copy(update=models), "engine": self.engine}

        def stages(cores: int) -> list[Stage]:
            own = 1 if recipe.gpus else max(1, min(cores, usable_cpus()) // recipe.actors)
            memory = 0 if recipe.gpus else self.memory
            share: dict[str, Any] = {"cpus": recipe.cpus or own, "gpus": recipe.gpus, "memory": memory}
            return [Stage("generate", Responding, arguments, actors=recipe.actors, **share)]

        return stages


def prepare_responses(recipe: GenerateRecipe) -> Prepared:
    """See that the models are there and belong together. Raises `SourceError` for whatever cannot be run."""
    from transformers import AutoConfig

    folder = checked_base(recipe.model)
    uses, held, engine = {"model": fingerprint(folder)}, [folder], recipe.engine
    if recipe.value:
        added = resolve(recipe.value)
        card = _card(recipe)
        uses["value"] = fingerprint(added)
        if recipe.bridge:
            uses["bridge"] = fingerprint(Path(recipe.bridge))
        held.append(added)
        if engine == "auto":
            engine = "vllm" if card.connection in SERVED and not recipe.bridge else "transformers"
        if engine == "vllm":
            check_served(recipe.value, card, "Set engine=transformers.")
    elif engine == "auto":
        engine = "vllm"
    if recipe.chat:
        try:
            chat_ids(load_tokenizer(recipe.model), [{"role": "user", "content": "?"}])
        except SourceError as error:
            raise SourceError(
                error.problem, "Set chat=false, or take a model with a template, such as pkg:smollm2-135m."
            ) from None
    weights = sum(4 * describe_model(each).parameters for each in held)
    if recipe.value and card.connection == "linear_probe":
        held.pop()  # it has neither a window nor a cache
    configs = [AutoConfig.from_pretrained(each, trust_remote_code=False, local_files_only=True) for each in held]
    longest = min(recipe.longest, *map(window, configs))
    memory = PROCESS_BYTES + weights + sum(cache_bytes(each, recipe.at_once, longest) for each in configs)
    return Prepared(recipe, engine, longest, uses, memory)


def _card(recipe: GenerateRecipe) -> Card:
    """The value network's, once it is sure that it belongs to the model."""
    assert recipe.value
    if recipe.bridge is None:
        return checked_card(recipe.model, recipe.value)
    from engine.value_network.reference import checked_bridge

    checked_bridge(recipe.model, recipe.value, Path(recipe.bridge))
    return read_card(resolve(recipe.value))


class Responding:
    """Writes responses to the prompts of a table; the models are loaded here."""

    def __init__(self, *, recipe: GenerateRecipe, engine: Engine) -> None:
        self._recipe = recipe
        self._sampling = Sampling(**{**recipe.sampling.model_dump(), "stop": tuple(recipe.sampling.stop)})
        self._generator = make_generator(recipe, engine)

    def __call__(self, block: pa.Table) -> pa.Table:
        """One row for each sample of each prompt, in order; a marked row once, with nulls for what it does not have.

        A prompt that cannot be asked is marked `quarantine` with the reason.
        """
        asks = "prompt" if self._recipe.rows == "prompts" else "messages"
        rows, live = block.select([asks, SOURCE_PART, SOURCE_ROW]).to_pylist(), unmarked(block).to_pylist()
        errors: list[str | None] = [None] * len(rows)
        asked: list[tuple[int, int, int, list[int]]] = []  # row, sample, seed, token ids
        for at in (at for at, alive in enumerate(live) if alive):
            try:
                ids = self._ids(rows[at])
            except (ValueError, SourceError) as error:
                why = error.problem if isinstance(error, SourceError) else str(error)
                errors[at] = " ".join(why.split())[:_LONGEST_ERROR].encode(errors="replace").decode()
                continue
            for sample in range(self._recipe.samples):
                seed = seed_of(self._recipe.seed, rows[at][SOURCE_PART], rows[at][SOURCE_ROW], sample)
                asked.append((at, sample, seed, ids))
        made: list[_Made] = [(at, {}) for at in range(len(rows)) if errors[at] or not live[at]]
        if asked:
            prompts, seeds = [ids for *_, ids in asked], [seed for *_, seed, _ in asked]
            written = self._generator.generate(prompts, self._sampling, seeds)
            for (at, sample, seed, _), each in zip(asked, written, strict=True):
                made.append((at, {**_written(each), "sample": sample, "seed": seed}))
        made.sort(key=lambda each: each[0])
        failed = pa.array([error is not None for error in errors])
        return self._table(mark(block, failed, QUARANTINE, pa.array(errors, pa.string())), rows, made)

    def _ids(self, row: Row) -> list[int]:
        """A prompt as the model sees it. Raises `ValueError` or `SourceError` for one that cannot be asked."""
        try:
            turns = turns_of(row)
        except (KeyError, TypeError):
            raise ValueError("the messages are no turns with a role and a content") from None
        if turns is None:
            raise ValueError("there is nothing in the prompt" if "prompt" in row else "nobody asks in the conversation")
        if not all(isinstance(each, str) for turn in turns for each in turn.values()):
            raise ValueError("a turn's role or content is no text")
        tokenizer = self._generator.tokenizer
        text = "\n\n".join(turn["content"] for turn in turns)
        ids = chat_ids(tokenizer, turns) if self._recipe.chat else bare_ids(tokenizer, text)
        if len(ids) >= self._generator.longest:
            raise ValueError(
                f"the prompt takes {len(ids):,} tokens, which leaves no room for a response in a window of"
                f" {self._generator.longest:,}"
            )
        return ids

    def _table(self, block: pa.Table, rows: Sequence[Row], made: "Sequence[_Made]") -> pa.Table:
        """The rows that were made, with the columns added."""
        names = block.column_names
        if self._recipe.rows == "prompts" and "response" in names and "reference" not in names:
            block = block.rename_columns(["reference" if name == "response" else name for name in names])
        output = block.drop_columns([name for name in _ADDED if name in block.column_names])
        output = output.take(pa.array([at for at, _ in made], pa.int64()))
        for name, kind in _ADDED.items():
            output = output.append_column(name, pa.array([values.get(name) for _, values in made], kind))
        if self._recipe.rows == "demonstrations":
            talks = pa.array([_talk(rows[at], values) for at, values in made], _TURNS)
            output = output.set_column(output.column_names.index("messages"), "messages", talks)
            if "reference" not in names:
                answers = [reference_of(rows[at]) if values else None for at, values in made]
                own = [each if isinstance(each, str) else None for each in answers]
                output = output.append_column("reference", pa.array(own, pa.string()))
        return output


_Made = tuple[int, dict[str, Any]]
"""The number of a row and what was made of it; nothing where it is marked."""


def make_generator(recipe: GenerateRecipe, engine: Engine) -> VllmGenerator | TransformersGenerator:
    """What the recipe asks for, loaded in this process. Raises `SourceError`."""
    size: dict[str, Any] = {"at_once": recipe.at_once, "longest": recipe.longest}
    if engine == "transformers":
        size |= {"dtype": "bfloat16", "device": "cuda"} if recipe.gpus else {}
    if recipe.value:
        from engine.value_network.generation import MixtureGenerator, ValueGenerator

        if engine == "vllm":
            return ValueGenerator(recipe.model, recipe.value, recipe.beta, **size)
        return MixtureGenerator(recipe.model, recipe.value, recipe.beta, bridge=recipe.bridge, **size)
    return VllmGenerator(recipe.model, **size) if engine == "vllm" else TransformersGenerator(recipe.model, **size)


def _written(generated: Generated) -> dict[str, Any]:
    return {
        "response": generated.text.encode(errors="replace").decode(),
        "finish_reason": "stop" if generated.finished else "length",
        "tokens": generated.tokens,
    }


def _talk(row: Row, values: Mapping[str, Any]) -> list[dict[str, str]]:
    """A conversation with the answer that was written; as far as it is one where there is none."""
    if values:
        return [*(turns_of(row) or ()), {"role": "assistant", "content": values["response"]}]
    turns = [each for each in row["messages"] or () if isinstance(each, dict)]
    return [{name: str(each.get(name)) for name in ("role", "content")} for each in turns]
