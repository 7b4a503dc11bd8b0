"""A head that gives the loss in place of logits, a few hundred tokens at a time: those of a row never lie in memory.

A row of 2,048 tokens of SmolLM2 has 400 MB of logits, and as much again for their probabilities and their gradient;
filling fresh memory with them took a fifth of a step. torch's `linear_cross_entropy` computes loss and gradient chunk
by chunk. It is called inside the head's own forward, since that is where ZeRO 3 gathers the head's weights.

Left out: which tokens have loss (`engine.finetune.batches`). Called by it and by the tasks.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import LinearCrossEntropyOptions
from torch.nn.functional import linear_cross_entropy

from engine.finetune.batches import IGNORED

CHUNK = 256
"""Tokens at a time on a CPU; torch's own choice there takes more than twice as long."""


class LossHead(torch.nn.Linear):
    """A linear layer that, while it is `learning`, gives the cross-entropy of its outputs."""

    targets: torch.Tensor | None = None
    each = False
    temperature = 1.0

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(..., width) -> logits (..., vocabulary); or the loss in nats, a scalar, or `each` target's, (L,)."""
        if self.targets is None:
            return super().forward(hidden)
        if self.temperature != 1:
            hidden = hidden / self.temperature
        on_cpu = hidden.device.type == "cpu"
        options = LinearCrossEntropyOptions(batch_chunk_size=CHUNK) if on_cpu else LinearCrossEntropyOptions()
        # A sum in half precision would lose its digits; token by token the gradient is computed on the way back.
        reduction = "sum" if hidden.dtype == torch.float32 and not self.each else "none"
        found = linear_cross_entropy(
            hidden.flatten(0, -2), self.weight, self.targets, reduction=reduction, ignore_index=IGNORED, options=options
        )
        return found.float() if self.each else found.float().sum()

    @contextmanager
    def learning(self, targets_L: torch.Tensor, *, each: bool = False, temperature: float = 1.0) -> Iterator[None]:
        """Give the loss of these targets, not logits, for the length of a `with` block; `temperature` divides
        logits."""
        self.targets, self.each, self.temperature = targets_L, each, temperature
        try:
            yield
        finally:
            self.targets = None


def use_loss_head(model: Any) -> Any:
    """Make the head of a causal LM a `LossHead` where its logits are the model's, unscaled and uncapped; the model."""
    if (head := plain_head(model)) is not None:
        head.__class__ = LossHead
    return model


def loss_head(model: Any) -> LossHead | None:
    """The head of a model (or of what DeepSpeed made of one), if it gives losses."""
    head = getattr(model, "module", model).get_output_embeddings()
    return head if isinstance(head, LossHead) else None


def plain_head(model: Any) -> torch.nn.Linear | None:
    """The head of a causal LM where what it gives are the model's logits, unscaled and uncapped."""
    head = model.get_output_embeddings()
    plain = type(head) is torch.nn.Linear and head.bias is None and _gives_logits(model, head)
    return head if plain else None


def _gives_logits(model: Any, head: torch.nn.Linear) -> bool:
    given: list[torch.Tensor] = []
    hook = head.register_forward_hook(lambda module, inputs, output: given.append(output))
    try:
        with torch.no_grad():
            ids = torch.zeros((1, 2), dtype=torch.long, device=head.weight.device)
            logits = model(input_ids=ids, use_cache=False).logits
    finally:
        hook.remove()
    return len(given) == 1 and logits is given[0]
