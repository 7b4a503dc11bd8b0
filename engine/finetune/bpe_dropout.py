"""BPE-dropout (arXiv 1910.13267): the same text as other tokens each epoch, the same ones wherever it is computed.

Words are merged as the tokenizer merges them, except that at each step every merge that could be made is left out with
a given chance (the paper's algorithm 1). The chances come from a counter-based generator keyed by seed, row and epoch,
so any worker and any retry gives the same ids; at rate 0 they are the tokenizer's own. Decoding gives the text back at
every rate, as far as the vocabulary has all its characters.

The tokenizer's own dropout is not used: its chances cannot be seeded. Left out: what is tokenised, and masks
(`engine.finetune.formats`). Called by it.
"""

import json
import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.errors import SourceError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_DRAWS = 256
_REMEDY = "Leave out bpe_dropout, or take a model with a plain BPE tokenizer, such as pkg:smollm2-135m."


class BpeDropout:
    """Encodes with dropout. Raises `SourceError` for a tokenizer that is not BPE or whose words depend on more."""

    def __init__(self, backend: "Tokenizer") -> None:
        description: dict[str, Any] = json.loads(backend.to_str())
        model = description["model"]
        plain = not (model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"))
        if model.get("type") != "BPE" or not plain or backend.pre_tokenizer is None or backend.normalizer is not None:
            raise SourceError("BPE-dropout needs a BPE tokenizer that cuts words without changing them.", _REMEDY)
        added = [each for each in description["added_tokens"] if each["content"]]
        if any(each["lstrip"] or each["rstrip"] or each["single_word"] for each in added):
            raise SourceError("BPE-dropout needs added tokens that leave the text beside them alone.", _REMEDY)
        self._words = backend.pre_tokenizer
        self._vocabulary: dict[str, int] = model["vocab"]
        pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
        self._ranks = {(left, right): rank for rank, (left, right) in enumerate(pairs)}
        self._added = {each["content"]: int(each["id"]) for each in added}
        self._all = _between(each["content"] for each in added)
        self._ordinary = _between(each["content"] for each in added if not each["special"])
        self._whole = lru_cache(maxsize=1 << 16)(self._merged)

    def encode(self, text: str, rate: float, *, seed: int, row: int, epoch: int, special: bool = True) -> list[int]:
        """Token ids of a text, none added at its ends; `rate` in [0, 1) is the chance of a merge to be left out.

        Without `special` a special token in the text is spelt like any other word.
        """
        if not 0 <= rate < 1:
            raise ValueError(f"a dropout rate of {rate} is not in [0, 1)")
        draws = _draws(seed, row, epoch) if rate else iter(())
        found: list[int] = []
        cut = self._all if special else self._ordinary
        for at, part in enumerate(cut.split(text)):
            if at % 2:
                found.append(self._added[part])
            elif part:
                for word, _ in self._words.pre_tokenize_str(part):
                    found += self._dropped(word, rate, draws) if rate else self._whole(word)
        return found

    def _merged(self, word: str) -> tuple[int, ...]:
        return tuple(self._dropped(word, 0.0, iter(())))

    def _dropped(self, word: str, rate: float, draws: Iterator[float]) -> list[int]:
        """One word's ids: the best of the merges that are not left out, until none is left in."""
        symbols, ranks = list(word), self._ranks
        while len(symbols) > 1:
            best, at = len(ranks), -1
            for left in range(len(symbols) - 1):
                rank = ranks.get((symbols[left], symbols[left + 1]))
                if rank is not None and (not rate or next(draws) >= rate) and rank < best:
                    best, at = rank, left
            if at < 0:
                break
            symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
        return [self._vocabulary[symbol] for symbol in symbols if symbol in self._vocabulary]


def _between(tokens: Iterable[str]) -> re.Pattern[str]:
    """Cuts a text at these, the longest first, and keeps them; nothing is cut where there are none."""
    longest_first = sorted(tokens, key=len, reverse=True)
    return re.compile("(" + "|".join(map(re.escape, longest_first)) + ")" if longest_first else "(?!)")


def _draws(seed: int, row: int, epoch: int) -> Iterator[float]:
    """Uniform numbers in [0, 1) that depend on the three numbers alone."""
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, row, epoch])))
    while True:
        yield from generator.random(_DRAWS).tolist()
