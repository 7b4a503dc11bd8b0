"""Rows of any training schema as tokens: which text a model is trained on, and which of its tokens have loss.

    demonstrations   `messages`, or `prompt` and `response`, through the tokenizer's chat template; loss on what the
                     assistant says, the token that ends its turn included
    edit_sequences   LintSeq's text format (`engine.lintseq.training`); loss on the edits
    instructions     instruction, newline, program, end of sequence; loss on the program

A text is tokenised piece by piece, cut where loss begins and ends, so that a prompt has the very tokens it has when the
model is asked. What is longer than the window is dropped or truncated, by the recipe; what has no loss is dropped; both
are counted. Left out: where rows come from and where tokens go (`engine.finetune.tokens`). Called by it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from engine.errors import SourceError
from engine.finetune.bpe_dropout import BpeDropout

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Encode = Callable[[str, bool], list[int]]
"""Text and whether special tokens in it are meant -> ids."""

_TEMPLATES = "Give chat_template, a Jinja file, or take a model that brings one, such as pkg:smollm2-135m."


@dataclass(frozen=True, slots=True)
class Example:
    """Tokens of one text, and the half-open ranges of those that have loss."""

    ids: list[int]
    loss: list[tuple[int, int]] = field(default_factory=list)

    @property
    def loss_tokens(self) -> int:
        """How many tokens have loss; the first is never predicted."""
        return sum(max(end - max(start, 1), 0) for start, end in self.loss)


@dataclass(frozen=True, slots=True)
class Piece:
    """Part of a text: whether it has loss, and whether special tokens in it are meant."""

    text: str
    loss: bool
    special: bool


def encoder(tokenizer: "PreTrainedTokenizerBase") -> Encode:
    """The tokenizer's own ids, none added at the ends."""

    def encode(text: str, special: bool) -> list[int]:
        ids: list[int] = tokenizer(text, add_special_tokens=False, split_special_tokens=not special, verbose=False)[
            "input_ids"
        ]
        return ids

    return encode


def dropping(dropout: BpeDropout, rate: float, *, seed: int, row: int, epoch: int) -> Encode:
    """Ids with BPE-dropout. The pieces of a text draw from one stream each, told apart by their number."""
    number = 0

    def encode(text: str, special: bool) -> list[int]:
        nonlocal number
        number += 1
        return dropout.encode(text, rate, seed=seed, row=row, epoch=epoch * 65_536 + number, special=special)

    return encode


def chat_pieces(tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Mapping[str, str]]) -> list[Piece]:
    """A conversation as its template writes it, cut around what the assistant says.

    The template is rendered up to each of the assistant's turns, as it is when the model is asked, and past it; the
    difference is the turn. Raises `SourceError` for a tokenizer without a template, one whose template rewrites what
    came before, and one that refuses the conversation; `ValueError` for a conversation that says nothing.
    """
    if tokenizer.chat_template is None:
        raise SourceError(f"The tokenizer {tokenizer.name_or_path} has no chat template.", _TEMPLATES)
    if not messages or not any(each["role"] == "assistant" and each["content"].strip() for each in messages):
        raise ValueError("no turn of the assistant")
    pieces: list[Piece] = []
    done = ""
    for at, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = _rendered(tokenizer, messages[:at], asked=True)
        after = _rendered(tokenizer, messages[: at + 1], asked=False)
        if not (before.startswith(done) and after.startswith(before)):
            raise SourceError(
                f"The chat template of {tokenizer.name_or_path} writes earlier turns anew once later ones come, so"
                " what the assistant says cannot be told from the prompt.",
                _TEMPLATES,
            )
        # A line break after the token that ends the turn is the template's, not the assistant's.
        turn = after[len(before) :]
        said = turn.rstrip("\n") if turn.rstrip("\n").endswith(tuple(_endings(tokenizer))) else turn
        pieces += [Piece(before[len(done) :], loss=False, special=True), Piece(said, loss=True, special=True)]
        done = before + said
    return pieces


def program_pieces(tokenizer: "PreTrainedTokenizerBase", instruction: str, program: str) -> list[Piece]:
    """An instruction and the whole program; special tokens in the program are text."""
    eos = str(tokenizer.eos_token)
    return [
        Piece(f"{tokenizer.bos_token or ''}{instruction}\n", loss=False, special=True),
        Piece(program, loss=True, special=False),
        Piece(eos, loss=True, special=True),
    ]


def to_example(pieces: Sequence[Piece], encode: Encode) -> Example:
    """Tokens of the pieces, one after the other."""
    ids: list[int] = []
    loss: list[tuple[int, int]] = []
    for piece in pieces:
        start = len(ids)
        ids += encode(piece.text, piece.special)
        if piece.loss and len(ids) > start:
            loss = (
                [*loss[:-1], (loss[-1][0], len(ids))] if loss and loss[-1][1] == start else [*loss, (start, len(ids))]
            )
    return Example(ids, loss)


def fit(example: Example, window: int, long: Literal["drop", "truncate"]) -> Example | str:
    """The example if it fits the window; else its first tokens, or the reason why it is dropped."""
    if len(example.ids) > window:
        if long == "drop":
            return "longer than the window"
        loss = [(start, min(end, window)) for start, end in example.loss if start < window]
        example = Example(example.ids[:window], loss)
    return example if example.loss_tokens else "nothing to learn"


def _rendered(tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Mapping[str, str]], *, asked: bool) -> str:
    try:
        text: Any = tokenizer.apply_chat_template(
            [dict(each) for each in messages], tokenize=False, add_generation_prompt=asked
        )
    # Templates are programs: they raise what they like at conversations that they do not foresee.
    except Exception as error:
        why = str(error).strip().partition("\n")[0][:200]
        raise SourceError(
            f"The chat template of {tokenizer.name_or_path} refuses a conversation ({why}).", _TEMPLATES
        ) from error
    return str(text)


def _endings(tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """Tokens that may end a turn."""
    return [str(token) for token in tokenizer.all_special_tokens]
