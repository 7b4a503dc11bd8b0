"""An evaluation before it starts: all its questions, what they will take at the most, and the stages that answer them.

Left out: the stream (`engine.corpus.run_transform`) and what the answers add up to (`engine.evaluation.results`).
Called by `jobs.evaluate`.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from engine import artifacts
from engine.artifacts import Manifest, Parent, Part, read_dataset
from engine.corpus import SourceConfig, Stage
from engine.errors import SourceError
from engine.evaluation.drawing import draw
from engine.evaluation.questions import (
    CLEAN,
    Question,
    heldout_questions,
    humaneval_questions,
    prompt_questions,
    to_table,
)
from engine.evaluation.recipe import EvaluationRecipe
from engine.evaluation.results import REFERENCE
from engine.evaluation.sandbox import Sandbox
from engine.evaluation.stages import Checking, Generating, Measuring, Rewarding
from engine.models import check_scorer, fingerprint, load_tokenizer, portable, resolve
from engine.models.generation import PROCESS_BYTES, cache_bytes, window
from engine.observe import duration
from engine.resources import usable_cpus
from engine.storage import locate, writable

_NOUNS = {"humaneval": "problems", "prompts": "prompts"}


@dataclass(frozen=True)
class Planned:
    """The questions of an evaluation, the models it depends on (name -> fingerprint), and what it takes."""

    recipe: EvaluationRecipe
    questions: Sequence[Question]
    left_out: Counter[str]
    parents: tuple[Parent, ...]
    uses: dict[str, str]
    memory: Mapping[str, int]
    """Bytes that a stage takes, by its name; one actor may hold them all."""

    def publish(self, place: str) -> SourceConfig:
        """Publish the questions below a place, under a name made of their contents, unless they are there; the source
        that reads them.

        A row group is a shard, so that a kill costs no more than `engine.shard` rows of each actor.
        """
        table = to_table(self.questions)
        stream = pa.BufferOutputStream()
        pq.write_table(table, stream, compression="zstd", row_group_size=self.recipe.engine.shard)
        body: bytes = stream.getvalue().to_pybytes()
        digest = hashlib.sha256(body).hexdigest()
        output = writable(place) / digest[:16]
        if not artifacts.is_dataset(output):
            staging = artifacts.open_staging(output)
            part = Part(name="part-000000", file="part-000000.parquet", rows=len(table), bytes=len(body), sha256=digest)
            (staging / part.file).write_bytes(body)
            artifacts.publish(staging, output, self._manifest(table, part))
        return SourceConfig(paths=[str(output)], roots=[str(output)], shard_mb=1e-6)

    def _manifest(self, table: pa.Table, part: Part) -> Manifest:
        return Manifest(
            schema_name="questions",
            columns={field.name: str(field.type) for field in table.schema},
            rows=len(table),
            parts=(part,),
            parents=self.parents,
            job="evaluate",
            recipe=self.recipe.model_dump(mode="json"),
            recipe_fingerprint=self.recipe.fingerprint(),
            inputs_fingerprint=part.sha256[:16],
            code_version=artifacts.code_version(),
            seed=self.recipe.seed,
            models=self.uses,
            counts={f"left out: {reason}": count for reason, count in self.left_out.items()},
        )

    def budget(self) -> dict[str, str]:
        """What will be generated and measured, at the most, in words."""
        options, most = self.recipe.engine, self.recipe.sampling.max_tokens
        asked = [each for each in self.questions if each.task != "heldout"]
        facts = {}
        for task in dict.fromkeys(each.task for each in self.questions):
            rows = [each for each in self.questions if each.task == task]
            names = len({each.problem for each in rows})
            kinds = Counter(each.variant for each in rows)
            noisy = ", ".join(f"{count:,} {kind}" for kind, count in kinds.items() if kind != CLEAN)
            what = "texts" if task == "heldout" else f"answers to {names:,} {_NOUNS[task]}"
            facts[task] = f"{len(rows):,} {what}" + (f", of them disturbed: {noisy}" if noisy else "")
        if self.left_out:
            facts["left out"] = ", ".join(f"{count:,} {reason}" for reason, count in self.left_out.items())
        if asked:
            facts["tokens written"] = f"at most {len(asked) * most:,} ({most:,} an answer)"
        if self.recipe.judge:
            facts["judge"] = f"at most {2 * self.recipe.judge.pairs:,} questions, each pair in both orders"
        facts["tokens read"] = f"{sum(len(each.ids) for each in self.questions):,}"
        if asked:
            seconds = len(asked) * most / (options.tokens_per_second * options.actors)
            facts["time to write"] = f"at most {duration(seconds)} at {options.tokens_per_second:g} tokens/s an actor"
        facts["memory per actor"] = f"about {sum(self.memory.values()) / 1e9:.1f} GB"
        return facts

    def stages(self) -> Callable[[int], list[Stage]]:
        """The stages of the stream, for a number of cores; only those that have something to do."""
        recipe, tasks = self.recipe, {each.task for each in self.questions}
        options, model = recipe.engine, portable(recipe.model)
        # What a GPU holds is not taken from main memory.
        memory = {name: 0 if options.gpus else size for name, size in self.memory.items()}

        def stages(cores: int) -> list[Stage]:
            found = []
            own = 1 if options.gpus else max(1, min(cores, usable_cpus()) // options.actors)
            share: dict[str, Any] = {"actors": options.actors, "cpus": options.cpus or own, "gpus": options.gpus}
            if tasks & {"humaneval", "prompts"}:
                generating = {"model": model, "options": options, "sampling": recipe.sampling}
                found.append(Stage("generate", Generating, generating, **share, memory=memory["generate"]))
            if "humaneval" in tasks:
                # Beside GPUs there are cores to spare for the sandbox; without, the same actor does it all.
                beside = {"actors": max(1, cores - options.actors), "cpus": 1} if options.gpus else share
                found.append(Stage("check", Checking, {"sandbox": recipe.sandbox}, **beside))
            if "heldout" in tasks:
                measuring = {"model": model, "gpus": options.gpus}
                found.append(Stage("measure", Measuring, measuring, **share, memory=memory["measure"]))
            if recipe.reward and "prompts" in tasks:
                scorer = recipe.reward.model_copy(update={"model": portable(recipe.reward.model)})
                rewarding = {"options": scorer, "gpus": options.gpus}
                found.append(Stage("reward", Rewarding, rewarding, **share, memory=memory["reward"]))
            return found

        return stages


def prepare(recipe: EvaluationRecipe) -> Planned:
    """Draw the rows and write all the questions. Raises `HeadraceError`s for whatever cannot be evaluated."""
    from transformers import AutoConfig

    folder = resolve(recipe.model)
    tokenizer = load_tokenizer(recipe.model)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    room = min(recipe.engine.window, window(config))
    if recipe.humaneval:
        Sandbox(recipe.sandbox)  # less isolation than is asked for is told here, before Ray starts
    found = humaneval_questions(recipe, tokenizer, room)
    left_out: Counter[str] = Counter()
    parents: dict[str, Parent] = {}
    for section in (recipe.prompts, recipe.heldout):
        if section is None:
            continue
        drawn = draw(section.source, section.rows, section.limit, recipe.seed)
        if section is recipe.prompts:
            written = prompt_questions(recipe, drawn.rows, tokenizer, room)
        else:
            written = heldout_questions(recipe, drawn.rows, tokenizer)
        found += written.rows
        left_out.update(written.left_out)
        left_out.update({"poison rows": drawn.poison} if drawn.poison else {})
        parents.update({parent.uri: parent for parent in drawn.parents})
    if not found:
        reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
        raise SourceError(f"No question is left to ask ({reasons}).", "Look at the sources, and at engine.window.")
    uses = {"model": fingerprint(folder)}
    if recipe.reward:
        check_scorer(recipe.reward.model)
        uses["reward"] = fingerprint(resolve(recipe.reward.model))
    if recipe.judge and recipe.judge.against != REFERENCE:
        uses["against"] = read_dataset(locate(recipe.judge.against)).fingerprint
    weights, memory = _weights(recipe.model), {}
    if recipe.humaneval or recipe.prompts:
        cache = cache_bytes(config, recipe.engine.at_once, room) if recipe.engine.kind == "vllm" else 0
        memory["generate"] = int(weights + cache)
    if recipe.heldout:
        memory["measure"] = weights
    if recipe.reward and recipe.prompts:
        memory["reward"] = _weights(recipe.reward.model)
    memory = {name: size + (0 if at else PROCESS_BYTES) for at, (name, size) in enumerate(memory.items())}
    return Planned(recipe, found, left_out, tuple(parents.values()), uses, memory)


def _weights(reference: str) -> int:
    """Bytes of a model's weights in float32."""
    folder = resolve(reference)
    config = json.loads((folder / "config.json").read_text())
    halves = str(config.get("dtype") or config.get("torch_dtype")) in ("bfloat16", "float16")
    return sum(file.stat().st_size for file in folder.glob("*.safetensors")) * (2 if halves else 1)
