"""Rows of any training schema as tokens: which text a model is trained on, and which of its tokens have loss.

    demonstrations   `messages`, or `prompt` and `response`, through the tokenizer's chat template; loss on what the
                     assistant says, the token that ends its turn included
    edit_sequences   LintSeq's text format (`engine.lintseq.training`); loss on the edits
    instructions     instruction, newline, program, end of sequence; loss on the program
    documents        the text and the end of sequence, cut into windows; loss on all of it
    preferences      prompt and answer as a conversation where there is a template, else as they stand; no loss of
                     their own, since they are compared

A text is tokenised piece by piece, cut where loss begins and ends, so that a prompt has the very tokens it has when the
model is asked. What is longer than the window is dropped or truncated, by the recipe; what has no loss is dropped; both
are counted. Left out: where rows come from and where tokens go (`engine.finetune.tokenise`). Called by it, and by
whoever asks or scores a model in the format it was trained on.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from engine.errors import SourceError
from engine.finetune.bpe_dropout import BpeDropout
from engine.lintseq.training import training_example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Encode = Callable[[str, bool], list[int]]
"""Text and whether special tokens in it are meant -> ids."""

NOT_SPELT = "not spelt by the vocabulary"

TEMPLATES = "Give chat_template, a Jinja file, or take a model that brings one, such as pkg:smollm2-135m."


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


def beginning(tokenizer: "PreTrainedTokenizerBase") -> str:
    """The beginning-of-sequence token, if the tokenizer puts it before a text by itself."""
    first = tokenizer("a", verbose=False)["input_ids"][0]
    return str(tokenizer.bos_token) if tokenizer.bos_token and first == tokenizer.bos_token_id else ""


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
    came before; `ValueError` for a conversation that says nothing or that the template refuses.
    """
    if tokenizer.chat_template is None:
        raise SourceError(f"The tokenizer {tokenizer.name_or_path} has no chat template.", TEMPLATES)
    if not messages or not any(each["role"] == "assistant" and (each["content"] or "").strip() for each in messages):
        raise ValueError("no turn of the assistant")
    if any(each["content"] is None for each in messages):
        raise ValueError("a turn without content")
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
                TEMPLATES,
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
        Piece(f"{beginning(tokenizer)}{instruction}\n", loss=False, special=True),
        Piece(program, loss=True, special=False),
        Piece(eos, loss=True, special=True),
    ]


def edit_example(
    tokenizer: "PreTrainedTokenizerBase",
    instruction: str,
    edits: Sequence[str],
    window: int,
    long: Literal["drop", "truncate"],
    encode: Encode | None = None,
) -> Example | str:
    """An instruction and its edits, or the reason why they are dropped; too long ones are cut after a whole edit.

    The tokenizer knows the diff token (`engine.lintseq.add_diff_token`); `encode` spells in its place.
    """
    front = beginning(tokenizer)

    def spell(text: str, special: bool) -> list[int]:
        assert encode is not None
        return encode(front + text if special else text, special)

    made = training_example(tokenizer, instruction, edits, max_tokens=window, spell=spell if encode else None)
    if not made.exact:
        return NOT_SPELT
    if made.truncated and (long == "drop" or not made.edits):
        return "longer than the window"
    return Example(made.input_ids, [(made.loss_from, len(made.input_ids))])


def text_examples(tokenizer: "PreTrainedTokenizerBase", text: str, window: int) -> list[Example | str]:
    """A text and the end of sequence, cut into windows one after the other, each with loss on all its tokens."""
    ids = encoder(tokenizer)(text, False)
    ids = [*([tokenizer.bos_token_id] if beginning(tokenizer) else []), *ids, tokenizer.eos_token_id]
    pieces = [ids[start : start + window] for start in range(0, len(ids), window)]
    examples = [Example(piece, [(0, len(piece))]) for piece in pieces if len(piece) > 1]
    return [*examples] if examples and text.strip() else ["nothing to learn"]


def scored_ids(tokenizer: "PreTrainedTokenizerBase", prompt: str, answer: str) -> list[int]:
    """The tokens a reward model scores: a conversation where there is a template and a prompt; else prompt and answer
    with the tokenizer's own special tokens, the end of sequence added where it ends a text with neither that nor a
    separator."""
    if prompt and tokenizer.chat_template:
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
        return encoder(tokenizer)(_rendered(tokenizer, turns, asked=False), True)
    separated = tokenizer.sep_token_id is not None
    arguments = (prompt, answer) if prompt and separated else (prompt + answer,)
    ids: list[int] = tokenizer(*arguments, split_special_tokens=True, verbose=False)["input_ids"]
    ends = tokenizer.eos_token_id
    return ids if separated or ends is None or (ids and ids[-1] == ends) else [*ids, ends]


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


def spells(tokenizer: "PreTrainedTokenizerBase", example: Example, pieces: Sequence[Piece]) -> bool:
    """Whether the tokens give the text back: a vocabulary that lacks a byte drops it in silence."""
    text = tokenizer.decode(example.ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return bool(text == "".join(piece.text for piece in pieces))


def _rendered(tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Mapping[str, str]], *, asked: bool) -> str:
    try:
        text: Any = tokenizer.apply_chat_template(
            [dict(each) for each in messages], tokenize=False, add_generation_prompt=asked
        )
    # Templates are programs: they raise what they like at conversations that they do not foresee.
    except Exception as error:
        why = str(error).strip().partition("\n")[0][:200]
        raise ValueError(f"the chat template refuses the conversation ({why})") from error
    return str(text)


def _endings(tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """Tokens that may end a turn."""
    return [str(token) for token in tokenizer.all_special_tokens]
