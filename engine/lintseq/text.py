"""Edit sequences as training text, and generated text back as a program.

A text is the instruction, then `\\n<|diff|>` and the edit for every edit, then two empty edits; the end-of-sequence
token is the tokenizer's business. Every line of code in an edit stands behind a `+`, so no code can contain the
separator `\\n<|diff|>` and every sequence comes back exactly, whatever its code says.

Left out: tokens, truncation and loss masks (`engine.lintseq.training`). Called by that module, `engine.finetune`,
`engine.rlhf` and evaluation.
"""

import re
from collections.abc import Sequence
from typing import Literal

from engine.lintseq.diffs import HEADER, apply_edit_sequence

DIFF_TOKEN = "<|diff|>"
_SEPARATOR = "\n" + DIFF_TOKEN
# Two empty edits end a sequence: the model's way of saying that nothing is left to insert.
_ENDING = ("", "")


def to_training_text(instruction: str, edits: Sequence[str]) -> str:
    """Instruction and edits as one text, ended by two empty edits; it begins with `prompt_text(instruction)`."""
    return instruction + "".join(_SEPARATOR + edit for edit in (*edits, *_ENDING))


def prompt_text(instruction: str) -> str:
    """The text a model continues; what it writes is for `parse_completion`."""
    return instruction + _SEPARATOR


def parse_completion(text: str, eos: str = "") -> list[str]:
    """The edits in what a model wrote after `prompt_text`; the inverse of `to_training_text` without its prompt.

    `eos` is taken off once, where the text ends with exactly that; so are the two empty edits at the end, or as many
    of them as there are. What is no edit at all stays in the list: `resolve` decides about it.
    """
    edits = text.removesuffix(eos).split(_SEPARATOR)
    for _ in _ENDING:
        if edits and not edits[-1]:
            edits.pop()
    return edits


def resolve(edits: Sequence[str], *, malformed: Literal["skip", "strict"] = "skip") -> str:
    """The program that generated edits write.

    `strict` is `apply_edit_sequence`: it raises `MalformedEdit` at the first flaw. `skip` makes the best of it: text
    before the first header of an edit is ignored; a hunk whose header is damaged or announces a deletion, or with a
    line that does not begin with `+`, is left out, but empty lines at its end are ignored; the counts in a header are
    not checked; a place past the end means the end.
    """
    if malformed == "strict":
        return apply_edit_sequence(edits)
    if malformed != "skip":
        raise ValueError(f"malformed is 'skip' or 'strict', not {malformed!r}")
    state: list[str] = []
    for edit in edits:
        for hunk in re.split(r"\n(?=@@)", edit):
            header, *body = hunk.rstrip("\n").split("\n")
            match = HEADER.fullmatch(header)
            if match and all(row.startswith("+") for row in body):
                at = max(int(match[2]) - 1, 0)
                state[at:at] = [row[1:] for row in body]
    return "\n".join(state)
