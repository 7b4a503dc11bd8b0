"""A value network of another tokenizer beside a base: it reads the text of the base's tokens, spelt in its own.

After each token of the base it has read what the text so far is in its own tokens; where one more token of the base
changes how the end is spelt, its cache is cut back to what both spellings begin with. What it would write next becomes
logits of the base's tokens by a bridge. The paper leaves this open; it is ours.

A character that lies in several of the base's tokens is read with the last of them. A special token is the value
network's of the same name or part, or nothing. A prompt may be told anew: in the value network's own chat template,
say.

Left out: speed (rows one after the other, a text spelt anew at each token), so this is for measuring and not for
serving. Called by `engine.value_network.reference`.

Shapes: T tokens of a row, n of the value network's, B columns of the base's logits, V of the value network's.
"""

import codecs
from collections.abc import Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import torch

from engine.finetune.formats import encoder
from engine.value_network.bridge import Bridge, spellings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Retelling:
    """From tokens of a base to a value network's of the same text."""

    def __init__(self, base: "PreTrainedTokenizerBase", value: "PreTrainedTokenizerBase") -> None:
        self._spelt, self._encode = spellings(base), encoder(value)
        self._special = {spelt: at for at, spelt in spellings(value).items() if isinstance(spelt, str)}
        first = base("a", add_special_tokens=False)["input_ids"][0]
        self._adds_a_space = self._spelt[first][:1] == b" "
        opening = list(value("")["input_ids"])
        self._opening = opening if opening == [value.bos_token_id] else []

    def begun(self, ids: Sequence[int]) -> list[int]:
        """A text from its beginning, with what the value network's texts begin with."""
        found = self(ids)
        return found if self._opening and found[:1] == self._opening else self._opening + found

    def __call__(self, ids: Sequence[int]) -> list[int]:
        """The text of the base's tokens, in the value network's."""
        found: list[int] = []
        text = b""
        for at in ids:
            spelt = self._spelt.get(at, "")
            if isinstance(spelt, bytes):
                text += spelt
                continue
            found += self._respelt(text)
            text = b""
            if spelt in self._special:
                found.append(self._special[spelt])
        return found + self._respelt(text)

    def _respelt(self, text: bytes) -> list[int]:
        # Bytes at the end that are no whole character wait for the rest of it.
        said = codecs.getincrementaldecoder("utf-8")("replace").decode(text)
        return self._encode(said.removeprefix(" ") if self._adds_a_space else said, False)


class Listener:
    """A row's value network: what it has read, and its logits as the base has them. `told`, its own tokens, are read
    in place of the row's first `skipped` ones."""

    def __init__(
        self, model: Any, bridge: Bridge, retell: Retelling, told: Sequence[int] = (), skipped: int = 0
    ) -> None:
        self._model, self._bridge, self._retell = model, bridge, retell
        self._told, self._skipped = list(told), skipped
        self._ids: list[int] = []
        self._read: list[int] = []
        self._cache: Any = None

    def logits(self, ids: Sequence[int]) -> torch.Tensor:
        """Logits after each of the next tokens of the base, (T, B); zeros before there is anything to go by."""
        before = len(self._ids)
        self._ids += ids
        texts = [self._text(before + at + 1) for at in range(len(ids))]
        weight = self._model.get_input_embeddings().weight
        found_TB: torch.Tensor = weight.new_zeros((len(ids), len(self._bridge.index)))
        newest = texts[-1]
        if not newest:
            return found_TB
        new_nB = self._after(newest)
        start = len(newest) - len(new_nB)
        # From the end, since what is spelt otherwise cuts the cache back.
        for at, text in reversed(list(enumerate(texts))):
            if len(text) > start and newest[: len(text)] == text:
                found_TB[at] = new_nB[len(text) - 1 - start]
            elif text:
                found_TB[at] = self._after(text)[-1]
        return found_TB

    def _text(self, count: int) -> list[int]:
        """What is read once the row has so many tokens; nothing while it has those that were told otherwise."""
        if not self._skipped:
            return self._retell.begun(self._ids[:count])
        return self._told + self._retell(self._ids[self._skipped : count]) if count >= self._skipped else []

    def _after(self, text: list[int]) -> torch.Tensor:
        """Logits after the tokens of a text that are not read yet, (n, B), and after its last in any case."""
        from transformers import DynamicCache

        same = takewhile(lambda pair: pair[0] == pair[1], zip(self._read, text, strict=False))
        kept = min(sum(1 for _ in same), len(text) - 1)
        if self._cache is not None and kept < len(self._read):
            try:
                self._cache.crop(kept - len(self._read))
            except RuntimeError:  # a window, or a state that is carried along, has lost what came before
                self._cache = None
        if self._cache is None:
            self._cache, kept = DynamicCache(config=self._model.config), 0
        ids_1n = torch.tensor([text[kept:]], device=self._model.device)
        logits_nV = self._model(input_ids=ids_1n, past_key_values=self._cache, use_cache=True).logits[0]
        self._read = text
        return self._bridge(logits_nV)
