"""The questions of an evaluation: every answer that is wanted and every text that is measured, one row each.

They are all there before anything is generated, so that their number is known, and are published as a dataset of their
own, named by its contents: rows carry token ids and seeds, hence what is measured is decided here, once.

    humaneval   problem x style x variant x sample
    prompts     row x variant x sample
    heldout     row x variant

A variant is `clean` or a perturbation; samples of all variants have the seeds of the clean ones. A question that leaves
no room for an answer in the window is left out and counted; of HumanEval none may be. Left out: reading sources
(`engine.evaluation.drawing`) and answering (`engine.evaluation.stages`). Called by `engine.evaluation.planning`.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from engine.errors import RecipeError
from engine.evaluation.humaneval import Problem, problems
from engine.evaluation.options import Perturbation, RobustnessOptions
from engine.evaluation.perturbation import perturb, perturb_function
from engine.evaluation.recipe import EvaluationRecipe
from engine.evaluation.styles import asked, bare_ids, chat_ids, wording
from engine.finetune.formats import Example, chat_pieces, edit_example, encoder, fit, program_pieces, to_example
from engine.lintseq.text import DIFF_TOKEN

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CLEAN = "clean"
TOO_LONG = "no room in the window"
SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "task": pa.string(),
        "problem": pa.string(),
        "style": pa.string(),
        "variant": pa.string(),
        "sample": pa.int32(),
        "seed": pa.int64(),
        "prompt": pa.string(),
        "reference": pa.string(),
        "ids": pa.list_(pa.int32()),
        "loss": pa.list_(pa.int32()),
        "bytes": pa.int32(),
    }
)


@dataclass(frozen=True)
class Question:
    """One row: what is asked, as text and as tokens; of a held-out text also the ranges with loss and their bytes."""

    task: str
    problem: str
    style: str
    variant: str
    sample: int
    seed: int
    prompt: str
    ids: Sequence[int]
    reference: str | None = None
    loss: Sequence[int] = ()
    bytes: int = 0

    @property
    def id(self) -> str:
        """Its name: the same question has it in every evaluation."""
        return f"{self.task}/{self.problem}/{self.style}/{self.variant}/{self.sample}"


@dataclass
class Questions:
    """Some of them in order, and how many were left out, by reason."""

    rows: list[Question] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)


def to_table(rows: Sequence[Question]) -> pa.Table:
    """Questions as `SCHEMA` has them."""
    columns = {name: [getattr(row, name) for row in rows] for name in SCHEMA.names}
    return pa.table({name: pa.array(columns[name], SCHEMA.field(name).type) for name in SCHEMA.names})


def humaneval_questions(recipe: EvaluationRecipe, tokenizer: "PreTrainedTokenizerBase", window: int) -> list[Question]:
    """HumanEval as the recipe asks for it. Raises `RecipeError` for a problem that there is not, or that leaves no
    room for an answer, `SourceError` for a style that the tokenizer cannot write."""
    options = recipe.humaneval
    if options is None:
        return []
    found = []
    for problem in chosen(options.only, options.problems):
        for variant, wanted in _variants(recipe.robustness, options.samples):
            disturbed = problem
            if variant != CLEAN:
                rate, seed = _noise(recipe, problem.name, variant)
                prompt = perturb_function(variant, problem.prompt, problem.entry_point, rate=rate, seed=seed)
                disturbed = replace(problem, prompt=prompt)
            for style in options.styles:
                text = wording(style, disturbed, options)
                ids = asked(style, text, tokenizer)
                if len(ids) + recipe.sampling.max_tokens > window:
                    raise RecipeError(
                        f"{problem.name} takes {len(ids)} tokens, which leaves no {recipe.sampling.max_tokens} for an"
                        f" answer in a window of {window}.",
                        "Lower sampling.max_tokens or raise engine.window, as far as the model's own window goes.",
                    )
                for sample in range(wanted):
                    seed = seed_of(recipe.seed, "humaneval", problem.name, style, sample)
                    found.append(
                        Question("humaneval", problem.name, style, variant, sample, seed, text, ids, problem.solution)
                    )
    return found


def chosen(only: Sequence[str], first: int | None) -> list[Problem]:
    """The problems of these names, or the first so many. Raises `RecipeError` for an unknown name."""
    known = {problem.name: problem for problem in problems()}
    unknown = [name for name in only if name not in known]
    if unknown:
        raise RecipeError(
            f"HumanEval has no problem {unknown[0]!r}.", f"Its problems are HumanEval/0 to HumanEval/{len(known) - 1}."
        )
    return ([known[name] for name in dict.fromkeys(only)] or list(known.values()))[:first]


def prompt_questions(
    recipe: EvaluationRecipe, rows: Sequence[Mapping[str, Any]], tokenizer: "PreTrainedTokenizerBase", window: int
) -> Questions:
    """Questions for rows of the section `prompts`: mappings with `key` (their name) and `prompt` or `messages`."""
    options, found = recipe.prompts, Questions()
    assert options
    for row in rows:
        turns = turns_of(row)
        if turns is None:
            found.left_out["no prompt"] += 1
            continue
        for variant, wanted in _variants(recipe.robustness, options.samples):
            if variant != CLEAN:
                rate, seed = _noise(recipe, row["key"], variant)
                last = perturb(variant, turns[-1]["content"], rate=rate, seed=seed)
            said = turns if variant == CLEAN else [*turns[:-1], {**turns[-1], "content": last}]
            text = "\n\n".join(turn["content"] for turn in said)
            ids = chat_ids(tokenizer, said) if options.chat else bare_ids(tokenizer, text)
            if not ids or len(ids) + recipe.sampling.max_tokens > window:
                found.left_out[TOO_LONG] += wanted
                continue
            style = "chat" if options.chat else "plain"
            for sample in range(wanted):
                seed = seed_of(recipe.seed, "prompts", row["key"], style, sample)
                question = Question("prompts", row["key"], style, variant, sample, seed, text, ids, reference_of(row))
                found.rows.append(question)
    return found


def heldout_questions(
    recipe: EvaluationRecipe, rows: Sequence[Mapping[str, Any]], tokenizer: "PreTrainedTokenizerBase"
) -> Questions:
    """Texts of the section `heldout`, cut to its window; each row's `key` is its name.

    Of documents every token has loss but the first, of other rows what training gives loss. Robustness disturbs the
    question only, so it leaves documents out. Bytes are those of the text that has loss; its end is no text.
    """
    options, found = recipe.heldout, Questions()
    assert options
    if options.rows == "edit_sequences" and DIFF_TOKEN not in tokenizer.get_vocab():
        raise RecipeError(
            f"The model {recipe.model} has no token {DIFF_TOKEN}, so it never learnt to read edits.",
            "Measure it on heldout.rows=instructions, or train it with format: edits.",
        )
    for row in rows:
        disturbed = recipe.robustness if options.rows != "documents" else None
        for variant, _ in _variants(disturbed, 1):
            changed = {**row, "messages": _exchange(row)} if options.rows == "responses" else dict(row)
            if variant != CLEAN:
                rate, seed = _noise(recipe, row["key"], variant)
                changed = _disturbed(changed, variant, rate, seed)
            try:
                example = _example(options.rows, changed, tokenizer, options.window)
            except ValueError as error:
                example = str(error)
            if isinstance(example, str):
                found.left_out[example] += 1
                continue
            ranges = [(max(start, 1), end) for start, end in example.loss]
            said = [tokenizer.decode(example.ids[start:end], skip_special_tokens=True) for start, end in ranges]
            question = Question(
                "heldout", row["key"], options.rows, variant, 0, 0, tokenizer.decode(example.ids[:200]), example.ids,
                loss=[edge for both in ranges for edge in both], bytes=sum(len(text.encode()) for text in said),
            )  # fmt: skip
            found.rows.append(question)
    return found


def seed_of(*parts: object) -> int:
    """A seed in [0, 2**63) from whatever names a question."""
    key = "\0".join(map(str, parts)).encode(errors="replace")
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") >> 1


def _variants(robustness: RobustnessOptions | None, samples: int) -> Iterator[tuple[Any, int]]:
    """Each variant and how many answers are drawn for it."""
    yield CLEAN, samples
    for kind in robustness.kinds if robustness else ():
        yield kind, min(robustness.samples, samples) if robustness else 0


def _noise(recipe: EvaluationRecipe, name: str, variant: Perturbation) -> tuple[float, int]:
    assert recipe.robustness
    return recipe.robustness.rate, seed_of(recipe.seed, "noise", variant, name)


def turns_of(row: Mapping[str, Any]) -> list[dict[str, str]] | None:
    """The conversation up to where the assistant is to answer; None where nobody asks."""
    if "messages" not in row:
        return [{"role": "user", "content": row["prompt"]}] if (row["prompt"] or "").strip() else None
    turns = [{"role": each["role"], "content": each["content"] or ""} for each in row["messages"] or ()]
    while turns and turns[-1]["role"] == "assistant":
        turns.pop()
    return turns or None


def _exchange(row: Mapping[str, Any]) -> list[dict[str, str]]:
    """A prompt and its response as a conversation."""
    return [{"role": "user", "content": row["prompt"] or ""}, {"role": "assistant", "content": row["response"] or ""}]


def reference_of(row: Mapping[str, Any]) -> str | None:
    """The answer that a row has itself, if it has one."""
    if "messages" in row:
        last = (row["messages"] or [{}])[-1]
        return last.get("content") if last.get("role") == "assistant" else None
    return row.get("reference")


def _disturbed(row: dict[str, Any], variant: Perturbation, rate: float, seed: int) -> dict[str, Any]:
    if "messages" in row:
        turns = [dict(each) for each in row["messages"] or ()]
        for turn in turns:
            if turn["role"] == "user":
                turn["content"] = perturb(variant, turn["content"] or "", rate=rate, seed=seed)
        return {**row, "messages": turns}
    return {**row, "instruction": perturb(variant, row["instruction"] or "", rate=rate, seed=seed)}


def _example(rows: str, row: Mapping[str, Any], tokenizer: "PreTrainedTokenizerBase", window: int) -> Example | str:
    if rows == "edit_sequences":
        return edit_example(tokenizer, row["instruction"] or "", row["edits"] or [], window, "truncate")
    if rows == "documents":
        ids = bare_ids(tokenizer, row["text"] or "")
        return fit(Example(ids, [(0, len(ids))]), window, "truncate")
    if rows == "instructions":
        pieces = program_pieces(tokenizer, row["instruction"] or "", row["program"] or "")
    else:
        pieces = chat_pieces(tokenizer, row["messages"] or [])
    return fit(to_example(pieces, encoder(tokenizer)), window, "truncate")
