"""What a value network says of itself: how it is connected, and to which vocabulary its logits belong.

Left out: its weights. Written beside them by the training, read by whoever puts it beside a base.
"""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pydantic

from engine.config import Section
from engine.errors import SourceError
from engine.models import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CARD = "value_network.json"
BETA = "value_beta"
"""The name under which a request says how much of the value network's logits is added."""
MOST_BETA = 1000.0
"""Far more than makes sense. In float16, in which vLLM may carry it, 65,504 is the end, and in float32 a product with
logits may be infinite: then they are no numbers any more."""


class Card(Section):
    """The card of a value network."""

    connection: Literal["residual", "cascade", "cascade_plus", "linear_probe"]
    vocabulary: str
    """Fingerprint of what each id stands for."""

    def write(self, folder: Path) -> None:
        """Put it beside the weights."""
        (folder / CARD).write_text(self.model_dump_json(indent=1))


def read_card(folder: Path) -> Card:
    """The card in a directory. Raises `SourceError` where there is none."""
    try:
        return Card.model_validate_json((folder / CARD).read_bytes())
    except FileNotFoundError:
        raise SourceError(
            f"{folder} is no value network: it has no {CARD}.", "Give what `headrace value-network` published."
        ) from None
    except pydantic.ValidationError as error:
        raise SourceError(f"{CARD} in {folder} is damaged ({error.errors()[0]['msg']}).", "Publish it again.") from None


def checked_beta(said: Any) -> float:
    """What a request says of beta, as a number. Raises `ValueError` for what is no number from 0 to `MOST_BETA`."""
    # JSON has no other numbers; true would pass for one.
    if isinstance(said, bool) or not isinstance(said, int | float) or not 0 <= said <= MOST_BETA:
        raise ValueError(f"{BETA} must be a number of at least 0 and at most {MOST_BETA:g}, not {_shown(said)}.")
    return float(said)


def _shown(said: Any) -> str:
    try:
        return repr(str(said)[:40])
    except ValueError:  # Python writes out no whole number of thousands of digits
        return "one of thousands of digits"


def vocabulary_fingerprint(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Hash (16 hex digits) of which token each id stands for: equal where ids mean the same, whatever the files say."""
    listed = sorted((at, token) for token, at in tokenizer.get_vocab().items())
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()[:16]


def check_same_vocabulary(value: str, bases: list[str]) -> None:
    """Raise `SourceError` for a base whose ids stand for other tokens than those of the value network's start."""
    ours = vocabulary_fingerprint(load_tokenizer(value))
    for base in bases:
        if vocabulary_fingerprint(load_tokenizer(base)) != ours:
            raise SourceError(
                f"{base} and {value} have different tokenizers: the same id is another token there.",
                "Train with bases of the value network's own family.",
            )
