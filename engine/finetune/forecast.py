"""What a training will need in memory, from the model's shape alone: so that what cannot fit is refused first.

Weights, gradients, AdamW's averages and, in bfloat16, a float32 copy are counted exactly, shared among workers as ZeRO
shares them. Activations are an estimate for a decoder: what the layers keep of a micro-batch for the way back, and the
logits with their gradient in float32: those of a chunk of tokens (`engine.finetune.head`), or of all of them where the
model caps its logits. Left out: what Python and its libraries take, for which half a gigabyte is added. Called by
`engine.finetune.job` and `engine.rlhf.memory`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from engine.finetune.options import LoraOptions, ParallelOptions

_LIBRARIES = 0.5e9
_LOGITS = 12
"""Bytes per logit: its value, its probability, its gradient."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one worker, and the parameters they come from."""

    parameters: int
    trained: int
    weights: int
    gradients: int
    optimiser: int
    activations: int

    @property
    def total(self) -> int:
        """All of it."""
        return int(self.weights + self.gradients + self.optimiser + self.activations + _LIBRARIES)

    def __str__(self) -> str:
        parts = {"weights": self.weights, "gradients": self.gradients, "optimiser": self.optimiser}
        told = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in parts.items())
        return f"about {self.total / 1e9:.1f} GB ({told}, activations up to {self.activations / 1e9:.2f})"


def forecast(
    config: Any,
    dtype: str,
    parallel: ParallelOptions,
    lora: LoraOptions | None,
    *,
    window: int,
    scorer: bool,
    layers: int | None = None,
    beside: Sequence[Any] = (),
) -> Memory:
    """The memory of one worker; `config` is the model's, of transformers. `scorer`: one output instead of logits;
    `layers`: the last so many learn, and nothing else; `beside`: configurations of models that are only
    read."""
    import torch
    from transformers import AutoModel

    from engine.finetune.head import CHUNK

    with torch.device("meta"):
        body, *frozen = [AutoModel.from_config(each) for each in (config, *beside)]
    text = config.get_text_config()
    embedding = text.vocab_size * text.hidden_size
    head = 0 if scorer or getattr(config, "tie_word_embeddings", False) else embedding
    parameters = sum(each.numel() for each in body.parameters()) + head
    upper = body if layers is None else body.get_decoder().layers[-layers:]
    trained = parameters if layers is None else sum(each.numel() for each in upper.parameters())
    if lora:
        linear = [each for each in upper.modules() if isinstance(each, torch.nn.Linear)]
        trained = sum(lora.rank * (each.in_features + each.out_features) for each in linear)
    width = 2 if dtype == "bfloat16" else 4
    shared = parallel.least
    weights = parameters * width // (shared if parallel.zero == 3 else 1)
    # Each worker has all of them; a head that is not the embedding is counted too.
    for other, read in zip(beside, frozen, strict=True):
        apart = 0 if getattr(other, "tie_word_embeddings", False) else read.get_input_embeddings().weight.numel()
        weights += (sum(each.numel() for each in read.parameters()) + apart) * width
    gradients = trained * width // (shared if parallel.zero >= 2 else 1)
    copies = 8 + (4 if width == 2 or parallel.zero else 0)
    optimiser = trained * copies // (shared if parallel.zero else 1)
    tokens = max(parallel.tokens_per_device, window)
    inner = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
    per_token = (layers or text.num_hidden_layers) * (
        text.hidden_size if parallel.recompute else 10 * text.hidden_size + 5 * inner
    )
    capped = getattr(text, "final_logit_softcapping", None)
    logits = 0 if scorer else (tokens if capped else min(tokens, CHUNK)) * text.vocab_size * _LOGITS
    activations = tokens * per_token * width + logits + (0 if scorer or capped else embedding * 4)
    return Memory(parameters, trained, weights, gradients, optimiser, int(activations))
