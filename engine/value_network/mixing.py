"""The formulas of inverse value learning: logits of a frozen base and of a value network, mixed and learnt.

    z = z_base + beta * z_value,   p = softmax(z)                                    (arXiv 2410.21027; beta is ours)
    loss = cross-entropy of z + weight * mean over positions of |z_value|_1 / V      (its released code; l2: ours)

Sampling temperature, top-p and penalties act on the sum. Left out: where logits come from. Called by the training
(`engine.value_network.losses`), the reference (`engine.value_network.reference`) and the vLLM architecture.

Shapes: V vocabulary, L positions; ... any leading dimensions.
"""

import math
from typing import Any, Literal

import torch

Norm = Literal["l1", "l2"]


def combine_logits(base: Any, value: Any, beta: Any = 1.0) -> torch.Tensor:
    """`base + beta * value`, (..., V), in the number format of `base`; computed in float32 at least.

    `beta` is a number, or holds one per row: its shape is that of the first dimensions of `base`. Where it is 0 the
    result is `base` bit for bit, whatever `value` holds. Raises `ValueError` for shapes that do not fit and for a beta
    that is no finite number.
    """
    base, value = torch.as_tensor(base), torch.as_tensor(value)
    if base.shape != value.shape:
        raise ValueError(f"base has shape {tuple(base.shape)} and value {tuple(value.shape)}")
    if isinstance(beta, int | float):
        if not math.isfinite(beta):
            raise ValueError(f"beta is {beta}, which is no finite number")
        return base if beta == 0 else _sum(base, value, beta)
    beta = torch.as_tensor(beta, device=base.device)
    if beta.shape != base.shape[: beta.ndim] or beta.ndim >= max(base.ndim, 1):
        raise ValueError(f"beta has shape {tuple(beta.shape)} and base {tuple(base.shape)}: one beta per row")
    if not beta.isfinite().all():
        raise ValueError("beta holds what is no finite number")
    return mix(base, value, beta.reshape(*beta.shape, *[1] * (base.ndim - beta.ndim)))


def mix(base: torch.Tensor, value: torch.Tensor, beta: torch.Tensor) -> torch.Tensor:
    """`combine_logits` of tensors that fit, unchecked: nothing is read back from a GPU."""
    return torch.where(beta == 0, base, _sum(base, value, beta))


def _sum(base: torch.Tensor, value: torch.Tensor, beta: Any) -> torch.Tensor:
    wide = torch.promote_types(base.dtype, torch.float32) if base.is_floating_point() else torch.float32
    mixed: torch.Tensor = base.to(wide) + beta * value.to(wide)
    return mixed.to(base.dtype) if base.is_floating_point() else mixed


def penalty(value_LV: torch.Tensor, norm: Norm = "l1") -> torch.Tensor:
    """The cost of value logits at each position, (L,): their mean magnitude (l1), or root of their mean square (l2)."""
    value_LV = value_LV.float()
    if norm == "l1":
        return value_LV.abs().mean(-1)
    return value_LV.square().mean(-1).sqrt()


def soft_embedding(base_LV: torch.Tensor, embedding_VW: torch.Tensor) -> torch.Tensor:
    """The expected embedding of what the base would write next, `softmax(z_base) @ E`, (L, W)."""
    return base_LV.float().softmax(-1).to(embedding_VW.dtype) @ embedding_VW
