"""Settings that make vLLM serve a base with a value network; and the check that the two belong together.

Left out: the engine itself (vLLM), HTTP (`serve_apps`). Called by `engine.value_network.generation`,
`engine.value_network.endpoint`, `engine.value_network.responses` and `engine.value_network.reference`.
"""

from pathlib import Path
from typing import Any

from engine.errors import SourceError
from engine.models import load_tokenizer, resolve
from engine.value_network.card import CARD, Card, read_card, vocabulary_fingerprint
from engine.value_network.plugin import ARCHITECTURE

PROCESSOR = "engine.value_network.betas:BetaProcessor"
"""What hears of requests' betas (`engine.value_network.betas`), by the name vLLM imports it by."""
SERVED = ("residual", "linear_probe")
"""Connections that vLLM can run: the others need the base's logits before the value network begins."""
_WRITERS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
"""How architectures are named that write text."""


def vllm_settings(base: str, value: str) -> tuple[Path, dict[str, Any]]:
    """The directory of the base, and what else `engine.models.start_vllm` is given.

    Raises `SourceError` for a pair that does not fit.
    """
    from transformers import AutoConfig

    folder, added = checked_base(base), resolve(value)
    card = checked_card(base, value)
    check_served(value, card)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    overrides: dict[str, Any] = {
        "architectures": [ARCHITECTURE],
        "base_architectures": list(config.architectures),
        "value_network": str(added),
    }
    settings: dict[str, Any] = {
        "hf_overrides": overrides,
        "logits_processors": [PROCESSOR],
    }
    if card.connection != "linear_probe":
        settings["beside"] = [added]
    return folder, settings


def checked_base(reference: str) -> Path:
    """The directory of a model that writes by itself. Raises `SourceError` for one that is not there, for a value
    network and for what is no language model."""
    from transformers import AutoConfig

    folder = resolve(reference)
    if (folder / CARD).exists():
        raise SourceError(
            f"{reference} is a value network, which says nothing by itself.",
            "Give it as value, and as the model one that it was trained beside.",
        )
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    kinds = list(config.architectures or ())
    if kinds and not any(each.endswith(_WRITERS) for each in kinds):
        raise SourceError(f"{reference} is a {kinds[0]}, which writes no text.", "Take one such as pkg:smollm2-135m.")
    return folder


def checked_card(base: str, value: str) -> Card:
    """The card of a value network. Raises `SourceError` where it is none, or its tokens are not those of the base."""
    card = read_card(resolve(value))
    if card.vocabulary != vocabulary_fingerprint(load_tokenizer(base)):
        raise SourceError(
            f"{value} and {base} have different tokenizers: the same id is another token there.",
            "Put it beside a base of its own family.",
        )
    return card


def check_served(value: str, card: Card, remedy: str = "") -> None:
    """Raise `SourceError` for a connection that vLLM cannot run."""
    if card.connection not in SERVED:
        raise SourceError(
            f"{value} is connected as {card.connection}, which waits for the base's logits: vLLM cannot run it.",
            remedy or f"Train one with connection {' or '.join(SERVED)}.",
        )
