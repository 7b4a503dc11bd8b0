"""From a value network's vocabulary to a base's: to each token of the base one of the value network, and a weight.

    z(b) = z_base(b) + beta * weight(b) * z_value(index(b))

Two tokens that are the same bytes are matched, with weight 1. What is left is matched by what both tokenizers make of
texts: a token of the base goes with the token that the value network's tokenizer has most often where it begins,
weighed as the paper's code weighs counts (each row less its mean, columns scaled to at most 1, the largest of a row
kept). That code aligns by edit distance; characters in common places need none (ours). It also leaves open whether the
sum is taken in the base's vocabulary or the other: this is the base's (ours), so base and answer have one tokenizer.

Left out: the value network reading text in its own tokens (`engine.value_network.retelling`). Called by
`headrace bridge` and `engine.value_network.reference`.

Shapes: B tokens of the base, V of the value network.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from upath import UPath

from engine.artifacts import SCHEMAS
from engine.corpus import SourceConfig, make_plan
from engine.corpus.marks import unmarked
from engine.errors import SourceError
from engine.models import load_tokenizer, resolve
from engine.storage import make_directory, replace
from engine.value_network.card import CARD, read_card, vocabulary_fingerprint
from engine.value_network.networks import logit_columns
from engine.value_network.recipe import BridgeTexts

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

FILE = "bridge.safetensors"
_SPACE = "\u2581"
"""What stands for a space in vocabularies of SentencePiece."""


@dataclass(frozen=True)
class Bridge:
    """`index` and `weight`, (B,) each; a weight of 0 is a token that nothing is known of. The fingerprints are those of
    both vocabularies (`engine.value_network.card.vocabulary_fingerprint`)."""

    index: npt.NDArray[np.int64]
    weight: npt.NDArray[np.float32]
    exact: int
    """Tokens of the base that the value network has too."""
    base: str
    value: str

    def __str__(self) -> str:
        aligned = int((self.weight > 0).sum()) - self.exact
        count = len(self.index)
        return (
            f"{self.exact:,} of {count:,} tokens the same ({self.exact / count:.0%}), {aligned:,} aligned by text,"
            f" {count - self.exact - aligned:,} left to the base"
        )

    def __call__(self, value_logits: "torch.Tensor") -> "torch.Tensor":
        """The value network's logits, (..., V), as the base's vocabulary has them, (..., B)."""
        import torch

        index = torch.from_numpy(self.index).to(value_logits.device)
        weight = torch.from_numpy(self.weight).to(value_logits)
        return value_logits.index_select(-1, index) * weight

    def check(self, base: str, value: str) -> None:
        """Raise `SourceError` unless it was made for these two, given by their vocabularies' fingerprints."""
        if (self.base, self.value) != (base, value):
            raise SourceError(
                "The bridge was made for other tokenizers than those of base and value network.",
                "Make one for this pair with headrace bridge.",
            )

    def save(self, folder: Path) -> None:
        """Write it, as a whole or not at all."""
        from safetensors.numpy import save

        about = {"base": self.base, "value": self.value, "exact": str(self.exact)}
        make_directory(UPath(folder))
        replace(UPath(folder / FILE), save({"index": self.index, "weight": self.weight}, about))


def load_bridge(folder: Path) -> Bridge:
    """What `Bridge.save` wrote. Raises `SourceError` where there is none."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(folder / FILE, framework="numpy") as file:
            about = file.metadata()
            found = {name: file.get_tensor(name) for name in ("index", "weight")}
        return Bridge(**found, exact=int(about["exact"]), base=about["base"], value=about["value"])
    except (OSError, SafetensorError, KeyError) as error:
        raise SourceError(
            f"{folder} holds no bridge between vocabularies ({type(error).__name__}).",
            "Make one with headrace bridge.",
        ) from None


def bridge_models(base: str, value: str, texts: BridgeTexts) -> Bridge:
    """A bridge from a value network to a base, aligned by texts.

    Raises `SourceError` where either has no tokenizer of its own that says where tokens lie, where the value network
    reads logits, and for texts that are not there.
    """
    folder = resolve(value)
    if (folder / CARD).exists() and read_card(folder).connection != "residual":
        raise SourceError(
            f"{value} reads the logits of a base of its own tokens, so no bridge leads from it.",
            "Train one with connection residual.",
        )
    columns = logit_columns(base), logit_columns(value)
    read = islice(_texts(texts.source), texts.most)
    return make_bridge(load_tokenizer(base), load_tokenizer(value), read, columns)


def _texts(source: SourceConfig) -> Iterator[str]:
    plan = make_plan(source, SCHEMAS["documents"])
    for shard in plan.shards:
        block = plan.reader.read(shard.slices, plan.schema)
        yield from (text for text in block.filter(unmarked(block))["text"].to_pylist() if text)


def make_bridge(
    base: "PreTrainedTokenizerBase", value: "PreTrainedTokenizerBase", texts: Iterable[str], columns: tuple[int, int]
) -> Bridge:
    """A bridge for logits of so many columns (B, V), which may be more than the tokenizers have tokens."""
    index = np.zeros(columns[0], np.int64)
    weight = np.zeros(columns[0], np.float32)
    # Tokenizers may know tokens that no logit stands for, such as those of pictures.
    known = {spelt: at for at, spelt in sorted(spellings(value).items(), reverse=True) if at < columns[1]}
    for at, spelt in spellings(base).items():
        if spelt in known and at < columns[0]:
            index[at], weight[at] = known[spelt], 1.0
    exact = int((weight > 0).sum())
    counts = counted(base, value, texts)
    counts = Counter({pair: count for pair, count in counts.items() if pair[0] < columns[0] and pair[1] < columns[1]})
    aligned = weighed(counts, columns)
    for at, (other, share) in aligned.items():
        if not weight[at]:
            index[at], weight[at] = other, share
    return Bridge(index, weight, exact, vocabulary_fingerprint(base), vocabulary_fingerprint(value))


def counted(
    base: "PreTrainedTokenizerBase", value: "PreTrainedTokenizerBase", texts: Iterable[str]
) -> Counter[tuple[int, int]]:
    """How often a token of the base and one of the value network begin at the same character."""
    counts: Counter[tuple[int, int]] = Counter()
    for text in texts:
        ours, theirs = _begins(base, text), _begins(value, text)
        counts.update((at, theirs[start]) for start, at in ours.items() if start in theirs)
    return counts


def weighed(counts: Mapping[tuple[int, int], int], columns: tuple[int, int]) -> dict[int, tuple[int, float]]:
    """Token of the base -> token of the value network and weight in (0, 1], from counts C (B, V) as the paper's code
    does: each row less its mean, columns scaled from 0 to their largest, the largest of each row kept."""
    sums: Counter[int] = Counter()
    for (ours, _), count in counts.items():
        sums[ours] += count
    centred = {pair: count - sums[pair[0]] / columns[1] for pair, count in counts.items()}
    largest: dict[int, float] = {}
    for (_, theirs), more in centred.items():
        largest[theirs] = max(largest.get(theirs, 0.0), more)
    best: dict[int, tuple[int, float]] = {}
    for (ours, theirs), more in sorted(centred.items()):
        share = more / largest[theirs] if largest[theirs] > 0 else 0.0
        if share > best.get(ours, (0, 0.0))[1]:
            best[ours] = (theirs, share)
    return best


def spellings(tokenizer: "PreTrainedTokenizerBase") -> dict[int, bytes | str]:
    """What each token spells: bytes; of special tokens their name, or the part they play (the end of a text)."""
    bytewise = "ByteLevel" in str(_decoder(tokenizer))
    letters = _letters() if bytewise else {}
    added = tokenizer.added_tokens_decoder.items()
    special = {*tokenizer.all_special_ids, *(at for at, each in added if each.special)}
    found: dict[int, bytes | str] = {}
    for token, at in tokenizer.get_vocab().items():
        if at == tokenizer.eos_token_id:
            found[at] = "end"
        elif at in special:
            found[at] = token
        elif bytewise and all(letter in letters for letter in token):
            found[at] = bytes(letters[letter] for letter in token)
        elif token.startswith("<0x") and token.endswith(">") and len(token) == 6:
            found[at] = bytes([int(token[3:5], 16)])
        else:
            found[at] = token.replace(_SPACE, " ").encode()
    return found


def _begins(tokenizer: "PreTrainedTokenizerBase", text: str) -> dict[int, int]:
    """The token that begins at each character where one does."""
    said = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    places = zip(said["input_ids"], said["offset_mapping"], strict=True)
    return {start: at for at, (start, end) in places if end > start}


def _decoder(tokenizer: Any) -> Any:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise SourceError(
            f"The tokenizer of {tokenizer.name_or_path} does not say where in a text its tokens lie.",
            "Give a model with a tokenizer.json.",
        )
    return backend.decoder


def _letters() -> dict[str, int]:
    """The letter that stands for each byte in vocabularies of bytes, and back (GPT-2's convention)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + at): byte for at, byte in enumerate(others)}
