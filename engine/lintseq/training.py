"""Edit sequences as tokens to train on: which have loss, what is cut when they are too long, how long they are.

A training text is `to_training_text` and the end-of-sequence token. `<|diff|>` is one added token, so a tokenizer
splits every text there and nothing merges across it: the tokens of `prompt_text` are the first tokens of the training
text, and what is tokenised edit by edit is what the whole text gives. The instruction is tokenised as inference does
it, with the special tokens a template wrote and a beginning-of-sequence token if the tokenizer adds one. In edits
everything but `<|diff|>` is text: code that mentions `<|im_end|>` spells it and does not end the sequence. Code that
mentions `<|diff|>` holds the token; text is split into edits only at a `<|diff|>` that begins a line, which in code
it never does.

Left out: batches, padding, labels, the model and its embeddings, and where a tokenizer comes from (`engine.models`);
texts are valid Unicode, as Arrow's are. Called by `engine.finetune`, and for the lengths by the LintSeq stage and its
report. Nothing here imports `transformers` before `counting_tokenizer` or `add_diff_token` is called.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Literal

from engine.errors import SourceError
from engine.lintseq.text import DIFF_TOKEN, prompt_text, to_training_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TEXTS_AT_ONCE = 256
"""A tokenizer's answer takes many times the memory of its text; this many texts keep that small."""
_PROBE = f"{DIFF_TOKEN}@@ -0,0 +1,2 @@\n+def f(É):\n+\treturn  'a' , 1\n+\n{DIFF_TOKEN}\n{DIFF_TOKEN}"


@dataclass(frozen=True, slots=True)
class TrainingExample:
    """The tokens of one training text.

    `loss_from` is the first token that has loss, `loss_from_char` the first character of `to_training_text` that has:
    what comes before is the prompt. `edits` counts the edits that are whole, `truncated` says that something was cut
    off. `exact` says that the tokens of the edits decode to the edits, those cut off included; a byte-level vocabulary
    silently drops a byte it lacks (SmolLM2's has none for six control characters and for planes 4 to 11). The caller
    drops an example that is not exact, because it teaches another program, and one where `loss_from` is
    `len(input_ids)`, because nothing is left to learn.
    """

    input_ids: list[int]
    loss_from: int
    loss_from_char: int
    edits: int
    truncated: bool
    exact: bool


def add_diff_token(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Make `<|diff|>` one ordinary added token of a tokenizer; True if its vocabulary grew by it.

    Where it grew past the rows of the model's embeddings, these have to grow too, as in the reference to a multiple
    of 16: `model.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=16)`. The token is not special, so
    decoding without special tokens keeps it, and it takes no space or newline beside it. Raises `SourceError` where
    no training text could be made: the tokenizer does not give a text back exactly, has `<|diff|>` as another kind of
    token, has no end-of-sequence token, or is a slow one.
    """
    from tokenizers import AddedToken

    before = len(tokenizer)
    token = AddedToken(DIFF_TOKEN, single_word=False, lstrip=False, rstrip=False, normalized=False, special=False)
    tokenizer.add_tokens([token])
    named = tokenizer.name_or_path or type(tokenizer).__name__
    if tokenizer.eos_token_id is None:
        raise SourceError(f"The tokenizer {named} has no end-of-sequence token.", "Set its `eos_token`.")
    ids = next(_tokens(tokenizer, [_PROBE]))
    if ids.count(tokenizer.convert_tokens_to_ids(DIFF_TOKEN)) != _PROBE.count(DIFF_TOKEN):
        raise SourceError(
            f"The tokenizer {named} does not keep {DIFF_TOKEN} as one ordinary token.",
            "Give a fast tokenizer (one with tokenizer.json) that has no special token of this name.",
        )
    if _text(tokenizer, ids) != _PROBE:
        raise SourceError(
            f"The tokenizer {named} changes the code it is given, so its tokens do not give the same program back.",
            "Give one that keeps spaces, newlines and capitals, such as that of any byte-level model.",
        )
    return len(tokenizer) > before


def counting_tokenizer(reference: str) -> "PreTrainedTokenizerBase":
    """A model's tokenizer that knows the diff token, for `token_lengths`. Raises `SourceError`."""
    from engine.models import load_tokenizer

    tokenizer = load_tokenizer(reference)
    add_diff_token(tokenizer)
    return tokenizer


def training_example(
    tokenizer: "PreTrainedTokenizerBase",
    instruction: str,
    edits: Sequence[str],
    *,
    max_tokens: int = 1024,
    truncation: Literal["edit", "token"] = "edit",
    spell: Callable[[str, bool], list[int]] | None = None,
) -> TrainingExample:
    """The tokens of a training text, at most `max_tokens` of them; the tokenizer has been through `add_diff_token`.

    `spell` makes tokens in the tokenizer's place (BPE-dropout): of the prompt, in which special tokens are meant (its
    second argument) and before which it puts what the tokenizer puts there, then of each edit behind a diff token.

    What is too long keeps its first tokens. `edit` keeps as many whole edits as fit, each with the diff token that
    ends it, and never the ending (two empty edits and the end of sequence), because the program is not finished
    there. Where not one edit fits it keeps of the prompt what fits, without any token that has loss. `token` cuts
    at `max_tokens`, as the reference does.
    """
    diff, eos = _marks(tokenizer)
    # The newline before a diff token belongs to the piece it ends; the last empty edit has none to follow.
    pieces = [f"{DIFF_TOKEN}{edit}\n" for edit in (*edits, "")]
    if spell is None:
        prompt, tokens = next(_prompts(tokenizer, [instruction], diff)), [*_tokens(tokenizer, pieces), [diff]]
    else:
        prompt, tokens = spell(prompt_text(instruction), True), [*(spell(each, False) for each in pieces), [diff]]
    ends = list(accumulate((len(each) for each in tokens[: len(edits)]), initial=len(prompt)))
    ids = prompt[:-1]
    for each in tokens:
        ids += each
    # The diff token that ends the prompt comes first: some decoders strip the space a text begins with.
    exact = _text(tokenizer, ids[len(prompt) - 1 :]) == to_training_text("", edits)[1:]
    ids.append(eos)
    whole, truncated = len(edits), len(ids) > max_tokens
    if truncated:
        # ends[k] counts the tokens up to the diff token that ends the k-th edit; ends[0] those of the prompt.
        whole = max(sum(end <= max_tokens for end in ends) - 1, 0)
        ids = ids[: min(ends[whole], max_tokens) if truncation == "edit" else max_tokens]
    return TrainingExample(
        ids, min(len(prompt), len(ids)), len(prompt_text(instruction)), whole, truncated=truncated, exact=exact
    )


def token_lengths(
    tokenizer: "PreTrainedTokenizerBase", instructions: Sequence[str], edit_lists: Sequence[Sequence[str]]
) -> list[int]:
    """Tokens of each training text when nothing is cut, the end of sequence included.

    The same numbers as those of `training_example` without a limit, tokenised 256 texts at a time.
    """
    diff, _ = _marks(tokenizer)
    prompts = _prompts(tokenizer, instructions, diff)
    completions = _tokens(tokenizer, [to_training_text("", edits)[1:] for edits in edit_lists])
    # The completion begins with the diff token that ends the prompt; in its place the end of sequence is counted.
    return [len(prompt) + len(completion) for prompt, completion in zip(prompts, completions, strict=True)]


def share_within(counts: Mapping[int, int], max_tokens: int) -> float:
    """The share of texts of at most `max_tokens` tokens; `counts` maps a length to its texts. No texts: 1."""
    total = sum(counts.values())
    return sum(count for length, count in counts.items() if length <= max_tokens) / total if total else 1.0


def length_quantiles(counts: Mapping[int, int], fractions: Sequence[float] = (0.5, 0.9, 0.99, 1.0)) -> list[int]:
    """For each fraction the smallest length that this share of the texts does not exceed; no texts, no quantiles."""
    ordered = sorted(counts.items())
    reached = list(accumulate(count for _, count in ordered))
    if not reached or not reached[-1]:
        return []
    return [
        next(length for (length, _), sofar in zip(ordered, reached, strict=True) if sofar and sofar >= at * reached[-1])
        for at in fractions
    ]


def _marks(tokenizer: "PreTrainedTokenizerBase") -> tuple[int, int]:
    """The tokens that begin an edit and end a text."""
    diff, eos = tokenizer.convert_tokens_to_ids(DIFF_TOKEN), tokenizer.eos_token_id
    if diff is None or diff == tokenizer.unk_token_id or eos is None:
        raise ValueError("the tokenizer has not been through add_diff_token")
    return diff, eos


def _prompts(tokenizer: "PreTrainedTokenizerBase", instructions: Sequence[str], diff: int) -> Iterator[list[int]]:
    """The tokens of each prompt, which end with a diff token; what a tokenizer appends to every text is not theirs."""
    for ids in _tokens(tokenizer, [prompt_text(each) for each in instructions], special=True):
        while ids[-1] != diff:
            ids.pop()
        yield ids


def _tokens(
    tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str], *, special: bool = False
) -> Iterator[list[int]]:
    """The tokens of each text; `special` adds what the tokenizer adds, and takes special tokens in the text as such."""
    for start in range(0, len(texts), _TEXTS_AT_ONCE):
        yield from tokenizer(
            list(texts[start : start + _TEXTS_AT_ONCE]),
            add_special_tokens=special,
            split_special_tokens=not special,
            return_attention_mask=False,
            verbose=False,
        )["input_ids"]


def _text(tokenizer: "PreTrainedTokenizerBase", ids: list[int]) -> str:
    """What tokens say, special ones included."""
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
