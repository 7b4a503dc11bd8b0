"""Base and value network in transformers: every connection, each with a cache of its own, one token at a time.

What vLLM's architecture is compared with, what cascades and bridges between vocabularies run on, and what there is
where vLLM does not know a model. Left out: the vLLM architecture (`engine.value_network.architecture`) and how tokens
are drawn. Called by `engine.value_network.generation`, tests and benchmarks.

Shapes: B rows, T tokens, S tokens read so far, V vocabulary, W width.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from engine.errors import SourceError
from engine.models import load_causal_lm, load_tokenizer, resolve
from engine.value_network.bridge import Bridge, load_bridge
from engine.value_network.card import Card, read_card, vocabulary_fingerprint
from engine.value_network.mixing import combine_logits, soft_embedding
from engine.value_network.networks import fit, load_probe
from engine.value_network.retelling import Listener, Retelling
from engine.value_network.serving import checked_card

Told = tuple[Sequence[int], int]
"""Tokens of the value network, and how many tokens of the base they stand for at the beginning of a row."""


class Mixture:
    """A base and a value network; `logits` reads some tokens more of the same rows each time it is called.

    With a `bridge`, a directory that holds one, their tokenizers differ: answer and logits are in the base's tokens,
    and the value network reads the same text in its own (`engine.value_network.retelling`). Raises `SourceError` for
    other tokenizers than the value network's or the bridge's, and for a bridge to a connection that reads the base's
    logits.
    """

    def __init__(
        self, base: str, value: str, dtype: str = "float32", device: Any = "cpu", bridge: str | Path | None = None
    ) -> None:
        folder = resolve(value)
        self.card: Card = read_card(folder) if bridge else checked_card(base, value)
        self._bridge = checked_bridge(base, value, Path(bridge)) if bridge else None
        self.base: Any = load_causal_lm(base, dtype).to(device)
        if self.card.connection == "linear_probe":
            self.value: Any = load_probe(folder).to(device, getattr(torch, dtype))
        else:
            self.value = load_causal_lm(value, dtype).to(device)
        self.forget()

    def forget(self, told: Sequence[Told] = ()) -> None:
        """Begin with other rows; with a bridge, each may be `told` otherwise at its beginning."""
        from transformers import DynamicCache

        apart = self.card.connection == "linear_probe" or self._bridge
        self._base_cache = DynamicCache(config=self.base.config)
        self._value_cache = None if apart else DynamicCache(config=self.value.config)
        self._told, self._listeners = told, list[Listener]()

    @torch.inference_mode()
    def logits(self, ids_BT: torch.Tensor, mask_BS: torch.Tensor | None = None, beta: Any = 1.0) -> torch.Tensor:
        """Mixed logits of these tokens, (B, T, V), after those read before; `mask_BS` covers both, 0 where a row is
        padded on the left. `beta` is a number or one per row."""
        given = {} if mask_BS is None else _places(mask_BS, ids_BT.shape[1])
        base_BTV = self.base(input_ids=ids_BT, past_key_values=self._base_cache, use_cache=True, **given).logits
        if self._bridge:
            value_BTV = self._heard(ids_BT, mask_BS)
        elif self.card.connection == "linear_probe":
            value_BTV = self.value(base_BTV)
        else:
            read = self._read(ids_BT, base_BTV)
            value_BTV = self.value(**read, past_key_values=self._value_cache, use_cache=True, **given).logits
        have = value_BTV.shape[-1]
        if have < base_BTV.shape[-1]:
            value_BTV = torch.nn.functional.pad(value_BTV, (0, base_BTV.shape[-1] - have))
        return combine_logits(base_BTV, value_BTV[..., : base_BTV.shape[-1]], beta)

    def logprobs(self, prompt: Sequence[int], response: Sequence[int], beta: float = 1.0, told: Any = ()) -> float:
        """Log-probability of a response after a prompt in nats, both in the base's tokens; `told`, with a bridge, is
        the prompt in the value network's, in its own chat template for example."""
        self.forget([(told, len(prompt))] if told else ())
        ids_T = torch.tensor([*prompt, *response], device=self.base.device)
        logp_TV = self.logits(ids_T[None, :-1], None, beta)[0, len(prompt) - 1 :].float().log_softmax(-1)
        return float(logp_TV.gather(1, ids_T[len(prompt) :, None]).double().sum())

    def _heard(self, ids_BT: torch.Tensor, mask_BS: torch.Tensor | None) -> torch.Tensor:
        """Logits of the value network by way of the bridge, (B, T, V); zeros where a row is padded."""
        assert self._bridge
        if not self._listeners:
            told = self._told or [((), 0)] * len(ids_BT)
            self._listeners = [Listener(self.value, *self._bridge, *each) for each in told]
        real_BT = torch.ones_like(ids_BT) if mask_BS is None else mask_BS[:, -ids_BT.shape[1] :]
        found_BTV: torch.Tensor = self.base.get_output_embeddings().weight.new_zeros(
            (*ids_BT.shape, len(self._bridge[0].index))
        )
        for row, (listener, real_T) in enumerate(zip(self._listeners, real_BT.bool(), strict=True)):
            if bool(real_T.any()):
                found_BTV[row, real_T] = listener.logits(ids_BT[row, real_T].tolist())
        return found_BTV

    def _read(self, ids_BT: torch.Tensor, base_BTV: torch.Tensor) -> dict[str, torch.Tensor]:
        """What the value network's first layer is given."""
        if self.card.connection == "residual":
            return {"input_ids": ids_BT}
        embedding = self.value.get_input_embeddings()
        soft_BTW = soft_embedding(fit(base_BTV, embedding.num_embeddings), embedding.weight)
        soft_BTW = soft_BTW * getattr(embedding, "embed_scale", 1.0)
        plus = self.card.connection == "cascade_plus"
        return {"inputs_embeds": soft_BTW + embedding(ids_BT) if plus else soft_BTW}


def checked_bridge(base: str, value: str, folder: Path) -> tuple[Bridge, Retelling]:
    """The bridge in a directory, and how texts are told over it. Raises `SourceError` where it is not for these two."""
    bridge, card = load_bridge(folder), read_card(resolve(value))
    ours, theirs = load_tokenizer(base), load_tokenizer(value)
    if card.connection != "residual":
        raise SourceError(
            f"{value} is connected as {card.connection}, which reads the logits of a base of its own tokens.",
            "Train one with connection residual.",
        )
    if card.vocabulary != vocabulary_fingerprint(theirs):
        raise SourceError(f"The tokenizer of {value} is not the one it was trained with.", "Publish it again.")
    bridge.check(vocabulary_fingerprint(ours), card.vocabulary)
    return bridge, Retelling(ours, theirs)


def _places(mask_BS: torch.Tensor, tokens: int) -> dict[str, torch.Tensor]:
    """Mask and positions of the last tokens, padding on the left not counted."""
    return {"attention_mask": mask_BS, "position_ids": (mask_BS.cumsum(1) - 1).clamp(min=0)[:, -tokens:]}
