"""The rule by which a long text becomes snippets: cuts between tokens, nothing lost, teacher and student see the same.

It works on the tokenizer itself, without `transformers`, which the readers' processes would import for nothing else.
Left out: what a snippet's score says of its text (`engine.sieve.student` joins them). Called by the stream of snippets
and the student.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from engine.models import load_tokenizer, resolve

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def load_cutter(model: str) -> "Tokenizer":
    """The tokenizer of a model reference, to cut with. Raises `SourceError`."""
    from tokenizers import Tokenizer

    file = resolve(model) / "tokenizer.json"
    return Tokenizer.from_file(str(file)) if file.is_file() else load_tokenizer(model).backend_tokenizer


def pieces(cutter: "Tokenizer", texts: Sequence[str], max_tokens: int, long: str = "split") -> list[list[str]]:
    """Each text cut into snippets of at most `max_tokens` tokens, special ones included; at least one snippet each.

    `split`: pieces joined are the text. `truncate`: the first piece alone. Cut anew, a piece may tokenise a little
    differently at its ends; what is too long by that is read up to its end.
    """
    # What a tokenizer was saved with would cut or fill texts before we see them.
    cutter.no_truncation()
    cutter.no_padding()
    room = max_tokens - cutter.num_special_tokens_to_add(False)
    found = cutter.encode_batch_fast(list(texts), add_special_tokens=False) if texts else []
    # The fast call keeps no offsets, which only the few long texts need.
    return [
        [text] if len(each) <= room else _cut(text, cutter.encode(text, add_special_tokens=False).offsets, room, long)
        for text, each in zip(texts, found, strict=True)
    ]


def _cut(text: str, offsets: Sequence[tuple[int, int]], room: int, long: str) -> list[str]:
    starts = [0] + [offsets[at][0] for at in range(room, len(offsets), room)]
    ends = [*starts[1:], len(text)]
    cut = [text[start:end] for start, end in zip(starts, ends, strict=True) if end > start]
    return cut[:1] if long == "truncate" else cut
