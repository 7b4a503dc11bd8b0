"""Attention for rows that several examples share: each attends to itself alone, and no work is done for the others.

With a mask, the attention of a row of T tokens costs T squared, whatever lies in it; example by example it costs the
sum of their squares, through the same kernel of torch. The lengths of a row's examples travel to the layers as an
argument of the model's forward. A model whose layers look at a window keeps its own attention, for which transformers
makes masks from positions that begin anew. One that carries a state along, or knows no positions, cannot share rows.

Left out: rows (`engine.finetune.batches`). Called by the tasks, and through transformers by the model's layers.
"""

import inspect
from collections.abc import Sequence
from typing import Any

NAME = "headrace_packed"
LENGTHS = "example_lengths"


def use_packed_attention(model: Any) -> Any:
    """Let a causal LM of transformers attend example by example, where it can; the model."""
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if getattr(config, "sliding_window", None) or kinds != {"full_attention"} or not model._supports_sdpa:
        return model

    def attend(
        module: Any, query: Any, key: Any, value: Any, mask: Any, *arguments: Any,
        example_lengths: Sequence[int] | None = None, **named: Any,
    ) -> Any:  # fmt: skip
        """Shapes as in transformers: (1, heads, T, width) each, and back (1, T, heads, width)."""
        import torch

        if example_lengths is None:
            return sdpa_attention_forward(module, query, key, value, mask, *arguments, **named)
        parts = zip(*(each.split(list(example_lengths), dim=2) for each in (query, key, value)), strict=True)
        found = [sdpa_attention_forward(module, *part, None, *arguments, **named)[0] for part in parts]
        return torch.cat(found, dim=1), None

    AttentionInterface.register(NAME, attend)
    model.set_attn_implementation(NAME)
    return model


def keeps_apart(model: Any) -> bool:
    """Whether examples that share a row stay apart in a causal LM, here or by positions that begin anew at each."""
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ())
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model  # what PEFT made of one
    told = "position_ids" in inspect.signature(inner.forward).parameters and not getattr(inner, "_is_stateful", False)
    return is_packed(model) or (told and kinds <= {"full_attention", "sliding_attention"})


def is_packed(model: Any) -> bool:
    """Whether a model (or what DeepSpeed or PEFT made of one) attends example by example."""
    inner = getattr(model, "module", model)  # DeepSpeed's engine has a `config` of its own
    return getattr(inner.config, "_attn_implementation", "") == NAME
