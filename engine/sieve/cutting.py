"""The rule by which a long text becomes snippets: cuts between tokens, nothing lost, teacher and student see the same.

Left out: what a snippet's score says of its text (`engine.sieve.student` joins them). Called by the stream of snippets
and the student.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def pieces(
    tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str], max_tokens: int, long: str = "split"
) -> list[list[str]]:
    """Each text cut into snippets of at most `max_tokens` tokens, special ones included; at least one snippet each.

    `split`: pieces joined are the text. `truncate`: the first piece alone. Cut anew, a piece may tokenise a little
    differently at its ends; what is too long by that is read up to its end.
    """
    if not texts:
        return []
    room = max_tokens - tokenizer.num_special_tokens_to_add()
    offsets = tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True, verbose=False)[
        "offset_mapping"
    ]
    return [_cut(text, each, room, long) for text, each in zip(texts, offsets, strict=True)]


def _cut(text: str, offsets: Sequence[tuple[int, int]], room: int, long: str) -> list[str]:
    if len(offsets) <= room:
        return [text]
    starts = [0] + [offsets[at][0] for at in range(room, len(offsets), room)]
    ends = [*starts[1:], len(text)]
    cut = [text[start:end] for start, end in zip(starts, ends, strict=True) if end > start]
    return cut[:1] if long == "truncate" else cut
