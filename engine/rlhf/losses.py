"""Losses of PPO with macro actions, as sums over a micro-batch: the learner divides by what the whole step counts.

Clipped surrogate (PPO, arXiv 1707.06347), with the ratio per token and a macro's advantage at each (what MA-RLHF's
code does), or with the joint ratio of the macro's tokens (what its paper writes): then a macro counts once. Value loss
with the clipped change of DeepSpeed-Chat, per token or on the macro's value.

Left out: advantages (`engine.rlhf.credit`). Called by `engine.rlhf.learner`.

Shapes: N tokens with loss in a micro-batch, in order; M of their macros, numbered 0 to M - 1 in `macro_N`.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

CLIP = 0.2
_MOST = 20.0
"""Largest log-ratio: far beyond any clip, and its exponential still has a gradient that is a number."""


def policy_loss(
    logp_N: "Tensor", old_N: "Tensor", advantage_N: "Tensor", *, clip: float = CLIP, macro_N: "Tensor | None" = None,
    weight_N: "Tensor | None" = None,
) -> "tuple[Tensor, Tensor]":  # fmt: skip
    """The sum of -min(r A, clip(r) A), and how many terms were clipped, both scalars.

    With `macro_N`, r is a macro's joint ratio, and there is one term per macro; else one per token. `weight_N` are
    importance weights of the tokens' samples (one-step-off rollouts), constants.
    """
    import torch

    log_ratio_N = logp_N - old_N
    if macro_N is not None:
        macros = int(macro_N.max()) + 1 if len(macro_N) else 0
        first_M = torch.full((macros,), len(macro_N), device=macro_N.device).scatter_reduce(
            0, macro_N, torch.arange(len(macro_N), device=macro_N.device), "amin"
        )
        log_ratio_N = torch.zeros(macros, dtype=log_ratio_N.dtype, device=macro_N.device).index_add(
            0, macro_N, log_ratio_N
        )
        advantage_N = advantage_N[first_M]
        weight_N = None if weight_N is None else weight_N[first_M]
    ratio_N = log_ratio_N.clamp(-_MOST, _MOST).exp()
    plain_N, clipped_N = ratio_N * advantage_N, ratio_N.clamp(1 - clip, 1 + clip) * advantage_N
    terms_N = torch.minimum(plain_N, clipped_N)
    if weight_N is not None:
        terms_N = terms_N * weight_N
    return -terms_N.sum(), (clipped_N < plain_N).sum()


def value_loss(value_N: "Tensor", old_N: "Tensor", return_N: "Tensor", *, clip: float | None = CLIP) -> "Tensor":
    """Half the sum of squared errors, each the larger of the value's and of the value's clipped to +-`clip` around the
    old one: a scalar. For macros give their values and returns, one each."""
    import torch

    error_N = (value_N - return_N).square()
    if clip is not None:
        clipped_N = old_N + (value_N - old_N).clamp(-clip, clip)
        error_N = torch.maximum(error_N, (clipped_N - return_N).square())
    return 0.5 * error_N.sum()


def kl_estimate(logp_N: "Tensor", reference_N: "Tensor") -> "Tensor":
    """Schulman's low-variance estimate of KL(policy, reference) at each token, (N,): exp(-d) - 1 + d for the log-ratio
    d; never negative (GRPO's loss term). Its mean over the policy's tokens is that KL; its gradient is that of
    KL(reference, policy), which has the same minimum."""
    difference_N = (logp_N - reference_N).clamp(-_MOST, _MOST)
    return (-difference_N).exp() - 1 + difference_N
