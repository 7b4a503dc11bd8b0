"""The tokenise stage: rows of a training schema in, a dataset of tokens out, through Ray Data and exactly once.

    chat        demonstrations (messages)        edits       edit_sequences       pairs    preferences
    responses   prompt, response                 programs    instructions         labels   text, label
    text        documents, cut into windows

A published row is one example: `ids`, `loss` (start and end of each range with loss, one after the other), `copy`
(0 but with BPE-dropout, which spells a row anew for each epoch; 0 the chosen and 1 the rejected of a pair), `held_out`,
`label` and, where the input has it, `task`. What is held out is decided by the prompt and the seed, so all answers to
a prompt, all paths of a program and both kinds of demonstration of it fall on one side.

Left out: training (`engine.finetune.loop`). Called by `engine.finetune.job`.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from engine.config import knob
from engine.corpus.config import FilterConfig
from engine.corpus.marks import DROP, ERROR, QUARANTINE, SOURCE_PART, SOURCE_ROW
from engine.corpus.recipe import DataRecipe
from engine.errors import SourceError
from engine.finetune.bpe_dropout import BpeDropout
from engine.finetune.formats import (
    NOT_SPELT,
    TEMPLATES,
    Encode,
    Example,
    chat_pieces,
    dropping,
    edit_example,
    encoder,
    fit,
    program_pieces,
    scored_ids,
    spells,
    text_examples,
    to_example,
)
from engine.finetune.options import Format, TokenOptions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SCHEMA: dict[Format, str] = {
    "chat": "demonstrations",
    "responses": "responses",
    "edits": "edit_sequences",
    "programs": "instructions",
    "text": "documents",
    "pairs": "preferences",
    "labels": "labels",
}
"""Which schema a format reads."""
_KEY: dict[Format, tuple[str, ...]] = {
    "chat": ("messages",),
    "responses": ("prompt",),
    "edits": ("instruction", "program"),
    "programs": ("instruction", "program"),
    "text": ("text",),
    "pairs": ("prompt",),
    "labels": ("text",),
}
"""What says on which side a row falls."""
_ADDED = {
    "ids": pa.list_(pa.int32()),
    "loss": pa.list_(pa.int32()),
    "copy": pa.int32(),
    "held_out": pa.bool_(),
    "label": pa.float32(),
}
_KEPT = ("task", SOURCE_PART, SOURCE_ROW)
OTHER_LABEL = "another label"
"""Why a row is dropped whose label is none of the recipe's classes."""
BIN = 32
"""Lengths of examples are counted in steps of this."""

GivenAway = Callable[[Sequence[str]], Mapping[str, int]]
"""Texts -> the names of what they hold and must not be trained on."""


class TokensRecipe(DataRecipe):
    """What tokens depend on: the part of a training's recipe that, changed, makes them anew."""

    model: str = knob(...)
    format: Format
    tokens: TokenOptions = Field(default_factory=TokenOptions)
    copies: int = 1
    classes: dict[str, Literal[0, 1]] = Field(default_factory=dict)
    filters: FilterConfig = Field(default_factory=FilterConfig)


@dataclass(frozen=True)
class _Row:
    """One example to publish, or the reason why there is none."""

    example: Example | None
    copy: int = 0
    held_out: bool = False
    label: float | None = None
    drop: str | None = None
    error: str | None = None


def tokenizer_for(model: str, format: Format, options: TokenOptions) -> "PreTrainedTokenizerBase":
    """The tokenizer as training uses it: its diff token added for edits, its template replaced where one is given.

    Raises `SourceError` where it cannot write this format.
    """
    from engine.lintseq.training import add_diff_token
    from engine.models import load_tokenizer

    tokenizer = load_tokenizer(model)
    if options.chat_template:
        try:
            with open(options.chat_template, encoding="utf-8") as file:
                tokenizer.chat_template = file.read()
        except (OSError, UnicodeDecodeError) as error:
            raise SourceError(
                f"The chat template {options.chat_template} cannot be read ({error}).", "Give a Jinja file in UTF-8."
            ) from None
    if format in ("chat", "responses"):
        try:
            chat_pieces(tokenizer, [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}])
        except ValueError as error:
            raise SourceError(f"The tokenizer of {model} cannot write conversations: {error}.", TEMPLATES) from None
    if format == "edits":
        add_diff_token(tokenizer)
    elif tokenizer.eos_token_id is None and format in ("programs", "text"):
        raise SourceError(
            f"The tokenizer of {model} has no end-of-sequence token.",
            "Give a causal language model; if it is one, set its tokenizer's `eos_token`.",
        )
    if options.bpe_dropout:
        BpeDropout(tokenizer.backend_tokenizer)
    return tokenizer


class Tokenise:
    """The stage's actor; `recipe` says everything, `given_away` finds what must not be trained on."""

    def __init__(self, *, recipe: TokensRecipe, given_away: GivenAway | None = None) -> None:
        self._recipe, self._options, self._given_away = recipe, recipe.tokens, given_away
        self._tokenizer: Any = tokenizer_for(recipe.model, recipe.format, recipe.tokens)
        self._plain = encoder(self._tokenizer)
        self._dropout = BpeDropout(self._tokenizer.backend_tokenizer) if recipe.tokens.bpe_dropout else None

    def __call__(self, block: pa.Table) -> pa.Table:
        """One row per example, a marked row once with nulls. Raises `SourceError` for what must not be trained on."""
        drops, errors = block[DROP].to_pylist(), block[ERROR].to_pylist()
        columns = [name for name in block.column_names if name not in (DROP, ERROR)]
        found: list[_Row] = []
        source: list[int] = []
        for at, row in enumerate(block.select(columns).to_pylist()):
            made = [_Row(None, drop=drops[at], error=errors[at])] if drops[at] is not None else self._row(row)
            found += made
            source += [at] * len(made)
        kept = block.select([name for name in _KEPT if name in columns]).take(pa.array(source, pa.int64()))
        values: dict[str, list[Any]] = {
            "ids": [row.example.ids if row.example else None for row in found],
            "loss": [[edge for both in row.example.loss for edge in both] if row.example else None for row in found],
            "copy": [row.copy for row in found],
            "held_out": [row.held_out for row in found],
            "label": [row.label for row in found],
            DROP: [row.drop for row in found],
            ERROR: [row.error for row in found],
        }
        for name, kind in {**_ADDED, DROP: pa.string(), ERROR: pa.string()}.items():
            kept = kept.append_column(name, pa.array(values[name], kind))
        return kept

    def _row(self, row: dict[str, Any]) -> list[_Row]:
        """The examples of a row, or one mark in their place."""
        format = self._recipe.format
        try:
            text = _words(row, format)
            if self._given_away and (names := self._given_away([text])):
                return [self._forbidden(row, min(names))]
            held_out = _share(self._recipe.seed, _key(row, format)) < self._options.held_out
            copies = 1 if held_out and format != "pairs" else self._recipe.copies
            examples = self._examples(row, copies, _number(row), held_out)
        except (ValueError, TypeError, KeyError) as error:
            return [_Row(None, drop=QUARANTINE, error=f"{type(error).__name__}: {error}"[:500])]
        for each in examples:
            if isinstance(each, str):
                return [_Row(None, drop=each)]
        label = self._recipe.classes.get(str(row["label"])) if format == "labels" else None
        if format == "labels" and label is None:
            return [_Row(None, drop=OTHER_LABEL)]
        # The pieces of a text are examples of their own; so many of anything else are copies of one.
        copy_of = (lambda at: 0) if format == "text" else (lambda at: at)
        return [
            _Row(each, copy_of(at), held_out, label) for at, each in enumerate(examples) if isinstance(each, Example)
        ]

    def _forbidden(self, row: dict[str, Any], name: str) -> _Row:
        if self._options.humaneval == "drop":
            return _Row(None, drop="holds a problem of HumanEval")
        raise SourceError(
            f"{row[SOURCE_PART]} [{row[SOURCE_ROW]}] holds {name}, which is for evaluation only.",
            "Take it out of the training data, or set tokens.humaneval=drop.",
        )

    def _examples(self, row: dict[str, Any], copies: int, number: int, held_out: bool) -> Sequence[Example | str]:
        format, window = self._recipe.format, self._options.window
        if format == "text":
            return text_examples(self._tokenizer, row["text"], window)
        if format in ("pairs", "labels"):
            prompt = row["prompt"] if format == "pairs" else ""
            answers = [row["chosen"], row["rejected"]] if format == "pairs" else [row["text"]]
            return [self._scored(prompt, answer) for answer in answers]
        return [self._learnt(row, self._plain if held_out else self._encode(number, copy)) for copy in range(copies)]

    def _encode(self, number: int, copy: int) -> Encode:
        """How a copy is spelt."""
        if self._dropout is None:
            return self._plain
        rate, seed = self._options.bpe_dropout, self._recipe.seed
        return dropping(self._dropout, rate, seed=seed, row=number, epoch=copy)

    def _learnt(self, row: dict[str, Any], encode: Encode) -> Example | str:
        tokenizer, options, format = self._tokenizer, self._options, self._recipe.format
        if format in ("chat", "responses"):
            messages = row["messages"] if format == "chat" else _turns(row["prompt"], row["response"])
            return fit(to_example(chat_pieces(tokenizer, messages), encode), options.window, options.long)
        if format == "edits":
            spell = None if encode is self._plain else encode
            return edit_example(tokenizer, row["instruction"], row["edits"], options.window, options.long, spell)
        pieces = program_pieces(tokenizer, row["instruction"], row["program"])
        example = to_example(pieces, encode)
        if not spells(tokenizer, example, pieces):
            return NOT_SPELT
        return fit(example, options.window, options.long)

    def _scored(self, prompt: str, answer: str) -> Example | str:
        ids = scored_ids(self._tokenizer, prompt, answer)
        if len(ids) > self._options.window:
            if self._options.long == "drop":
                return "longer than the window"
            ids = ids[: self._options.window]
        return Example(ids) if ids else "nothing to learn"


def statistics(table: pa.Table) -> dict[str, Any]:
    """Counts of a part: tokens, those with loss, examples held out, how long examples are (in steps of 32), and how
    many of each task are not held out."""
    held = 0
    lengths: dict[str, int] = {}
    tokens = loss = 0
    for ids, ranges, out in zip(
        table["ids"].to_pylist(), table["loss"].to_pylist(), table["held_out"].to_pylist(), strict=True
    ):
        held += out
        tokens += len(ids)
        loss += Example(ids, list(zip(ranges[::2], ranges[1::2], strict=True))).loss_tokens
        bin = str(len(ids) // BIN * BIN)
        lengths[bin] = lengths.get(bin, 0) + 1
    counts: dict[str, Any] = {"tokens": tokens, "loss_tokens": loss, "held_out": held, "lengths": lengths}
    if "task" in table.column_names:
        kept = table["task"].filter(pc.invert(table["held_out"])).cast(pa.string())
        counts["tasks"] = {each["values"]: each["counts"] for each in kept.value_counts().to_pylist()}
        counts["tasks"].pop(None, None)
    return counts


def _turns(prompt: str, response: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]


def _words(row: dict[str, Any], format: Format) -> str:
    """All that a row says, to be searched."""
    if format == "chat":
        return "\n".join(each["content"] or "" for each in row["messages"])
    if format == "edits":
        return f"{row['instruction']}\n{row['program']}"
    columns = {"responses": ("prompt", "response"), "pairs": ("prompt", "chosen", "rejected")}.get(format, _KEY[format])
    return "\n".join(_text(row, name) for name in columns)


def _key(row: dict[str, Any], format: Format) -> str:
    """What of a row says on which side it falls: its prompt, or all of it where that is empty."""
    if format == "chat":
        return str(next((each["content"] for each in row["messages"] if each["role"] == "user"), ""))
    key = "\0".join(_text(row, name) for name in _KEY[format])
    return key or _words(row, format)


def _text(row: dict[str, Any], name: str) -> str:
    if not isinstance(row[name], str):
        raise ValueError(f"{name} is null")
    return str(row[name])


def _number(row: dict[str, Any]) -> int:
    """A row's own number, the same wherever it is read: a hash (63 bits) of where it came from."""
    return _hash(f"{row[SOURCE_ROW]}:{row[SOURCE_PART]}") >> 1


def _share(seed: int, key: str) -> float:
    """A number in [0, 1) drawn by the seed and the key."""
    return _hash(f"{seed}:{key}") / 2**64


def _hash(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode(errors="replace"), digest_size=8).digest(), "big")
