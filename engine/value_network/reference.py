"""Base and value network in transformers: every connection, each with a cache of its own, one token at a time.

What vLLM's architecture is compared with, what cascades run on, and what there is where vLLM does not know a model.
Left out: the vLLM architecture (`engine.value_network.architecture`) and how tokens are drawn. Called by
`engine.value_network.generation`, and by tests.

Shapes: B rows, T tokens, V vocabulary, W width.
"""

from typing import Any

import torch

from engine.models import load_causal_lm, resolve
from engine.value_network.card import Card, read_card
from engine.value_network.mixing import combine_logits, soft_embedding
from engine.value_network.networks import fit, load_probe


class Mixture:
    """A base and a value network; `logits` reads some tokens more of the same rows each time it is called."""

    def __init__(self, base: str, value: str, dtype: str = "float32", device: Any = "cpu") -> None:
        folder = resolve(value)
        self.card: Card = read_card(folder)
        self.base: Any = load_causal_lm(base, dtype).to(device)
        if self.card.connection == "linear_probe":
            self.value: Any = load_probe(folder).to(device, getattr(torch, dtype))
        else:
            self.value = load_causal_lm(value, dtype).to(device)
        self.forget()

    def forget(self) -> None:
        """Begin with other rows."""
        from transformers import DynamicCache

        probe = self.card.connection == "linear_probe"
        self._base_cache = DynamicCache(config=self.base.config)
        self._value_cache = None if probe else DynamicCache(config=self.value.config)

    @torch.inference_mode()
    def logits(self, ids_BT: torch.Tensor, mask_BS: torch.Tensor | None = None, beta: Any = 1.0) -> torch.Tensor:
        """Mixed logits of these tokens, (B, T, V), after those read before; `mask_BS` covers both, 0 where a row is
        padded on the left. `beta` is a number or one per row."""
        given = {} if mask_BS is None else _places(mask_BS, ids_BT.shape[1])
        base_BTV = self.base(input_ids=ids_BT, past_key_values=self._base_cache, use_cache=True, **given).logits
        if self.card.connection == "linear_probe":
            value_BTV = self.value(base_BTV)
        else:
            read = self._read(ids_BT, base_BTV)
            value_BTV = self.value(**read, past_key_values=self._value_cache, use_cache=True, **given).logits
        have = value_BTV.shape[-1]
        if have < base_BTV.shape[-1]:
            value_BTV = torch.nn.functional.pad(value_BTV, (0, base_BTV.shape[-1] - have))
        return combine_logits(base_BTV, value_BTV[..., : base_BTV.shape[-1]], beta)

    def _read(self, ids_BT: torch.Tensor, base_BTV: torch.Tensor) -> dict[str, torch.Tensor]:
        """What the value network's first layer is given."""
        if self.card.connection == "residual":
            return {"input_ids": ids_BT}
        embedding = self.value.get_input_embeddings()
        soft_BTW = soft_embedding(fit(base_BTV, embedding.num_embeddings), embedding.weight)
        soft_BTW = soft_BTW * getattr(embedding, "embed_scale", 1.0)
        plus = self.card.connection == "cascade_plus"
        return {"inputs_embeds": soft_BTW + embedding(ids_BT) if plus else soft_BTW}


def _places(mask_BS: torch.Tensor, tokens: int) -> dict[str, torch.Tensor]:
    """Mask and positions of the last tokens, padding on the left not counted."""
    return {"attention_mask": mask_BS, "position_ids": (mask_BS.cumsum(1) - 1).clamp(min=0)[:, -tokens:]}
