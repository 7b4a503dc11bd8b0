"""Loss and gradient of mixed logits, a few hundred positions at a time: those of a row never lie in memory.

The gradient is taken on the way: with p the softmax of `z_base + z_value`, that of the cross-entropy by `z_value` is p
less one at the target, whatever the base; the penalty adds its own. So the way back costs two matrix products and no
logits are kept. It happens inside the head's own forward, since that is where ZeRO 3 gathers the head's weights.

Left out: who runs base and value network (`engine.value_network.networks`). Called by them.

Shapes: L positions, V vocabulary, W width.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from engine.finetune.batches import IGNORED
from engine.value_network.mixing import Norm, penalty

CHUNK = 256
"""Positions at a time."""

BaseLogits = Callable[[slice], torch.Tensor]
"""Positions -> logits of the frozen base there, (positions, V), without gradient."""


@dataclass(frozen=True)
class Goal:
    """What a row is to come to: the base's logits, the next tokens (`IGNORED` where there is none to learn, (L,)), and
    what a position's penalty weighs."""

    base: BaseLogits
    targets_L: torch.Tensor
    weight: float
    norm: Norm


def mixed_loss(value_lV: torch.Tensor, goal: Goal, at: slice) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum of losses of some positions, a scalar, and its gradient by their value logits, (l, V); in float32."""
    value_lV = value_lV.float()
    targets_l = goal.targets_L[at]
    learnt_l = targets_l != IGNORED
    logp_lV = (goal.base(at).float() + value_lV).log_softmax(-1)
    picked_l1 = targets_l.clamp(min=0)[:, None]
    loss = -(logp_lV.gather(1, picked_l1)[:, 0] * learnt_l).sum()
    gradient_lV = logp_lV.exp_()
    gradient_lV.scatter_add_(1, picked_l1, gradient_lV.new_full(picked_l1.shape, -1.0))
    gradient_lV *= learnt_l[:, None]
    if goal.weight:
        share = goal.weight / value_lV.shape[1]
        loss = loss + goal.weight * penalty(value_lV, goal.norm).sum()
        if goal.norm == "l1":
            gradient_lV.add_(value_lV.sign(), alpha=share)
        else:
            root_l1 = value_lV.square().mean(-1, keepdim=True).sqrt()
            gradient_lV += share * value_lV / root_l1.clamp(min=torch.finfo(torch.float32).tiny)
    return loss, gradient_lV


class ValueHead(torch.nn.Linear):
    """A linear layer that, while it is `learning`, gives the loss of the mix instead of its logits."""

    goal: Goal | None = None

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(..., W) -> logits (..., V); or the loss in nats, a scalar."""
        if self.goal is None:
            return super().forward(hidden)
        loss: torch.Tensor = _LinearLoss.apply(hidden.flatten(0, -2), self.weight, self.goal)  # type: ignore[no-untyped-call]
        return loss

    @contextmanager
    def learning(self, goal: Goal) -> Iterator[None]:
        """Give a loss for the length of a `with` block."""
        self.goal = goal
        try:
            yield
        finally:
            self.goal = None


def dense_loss(value_LV: torch.Tensor, goal: Goal) -> torch.Tensor:
    """The same loss of logits that lie there as a whole: for heads that scale or cap them, and for probes."""
    loss: torch.Tensor = _DenseLoss.apply(value_LV, goal)  # type: ignore[no-untyped-call]
    return loss


class _LinearLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_LW: torch.Tensor, weight_VW: torch.Tensor, goal: Goal) -> torch.Tensor:
        total = hidden_LW.new_zeros((), dtype=torch.float32)
        wanted = any(ctx.needs_input_grad[:2])
        by_hidden_LW = torch.empty_like(hidden_LW) if wanted else None
        by_weight_VW = torch.zeros_like(weight_VW) if wanted and ctx.needs_input_grad[1] else None
        for start in range(0, len(hidden_LW), CHUNK):
            at = slice(start, start + CHUNK)
            loss, gradient_lV = mixed_loss(hidden_LW[at] @ weight_VW.T, goal, at)
            total += loss
            if by_hidden_LW is not None:
                gradient_lV = gradient_lV.to(weight_VW.dtype)
                torch.matmul(gradient_lV, weight_VW, out=by_hidden_LW[at])
                if by_weight_VW is not None:
                    by_weight_VW.addmm_(gradient_lV.T, hidden_LW[at])
        ctx.save_for_backward(by_hidden_LW, by_weight_VW)
        return total

    @staticmethod
    def backward(ctx: Any, *outer: torch.Tensor) -> tuple[Any, ...]:
        found = tuple(None if each is None else each.mul_(outer[0].to(each.dtype)) for each in ctx.saved_tensors)
        return (*found, None)


class _DenseLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value_LV: torch.Tensor, goal: Goal) -> torch.Tensor:
        parts = [
            mixed_loss(value_LV[start : start + CHUNK], goal, slice(start, start + CHUNK))
            for start in range(0, len(value_LV), CHUNK)
        ]
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(torch.cat([gradient.to(value_LV.dtype) for _, gradient in parts]))
        return torch.stack([loss for loss, _ in parts]).sum()

    @staticmethod
    def backward(ctx: Any, *outer: torch.Tensor) -> tuple[Any, ...]:
        (gradient_LV,) = ctx.saved_tensors
        return gradient_LV * outer[0].to(gradient_LV.dtype), None
