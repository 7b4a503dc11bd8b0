"""The focal loss of a student (Lin et al., 2017), with class weights.

Left out: optimisers. Called by `engine.sieve.training`.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def focal_loss(logits_B: "torch.Tensor", labels_B: "torch.Tensor", alpha: float, gamma: float) -> "torch.Tensor":
    """`-alpha_t (1 - p_t)^gamma ln p_t` of each item, shape (B,); alpha weighs passes, 1 - alpha fails."""
    import torch
    from torch.nn.functional import binary_cross_entropy_with_logits

    entropy_B = binary_cross_entropy_with_logits(logits_B, labels_B, reduction="none")
    alpha_B = torch.where(labels_B > 0.5, alpha, 1 - alpha)
    # 1 - p_t = -expm1(-entropy), exact where p_t is close to one.
    return alpha_B * (-torch.expm1(-entropy_B)).pow(gamma) * entropy_B


def class_weight(passes: int, total: int) -> float:
    """Alpha that gives both classes the same weight: the smoothed share of fails."""
    return 1 - (passes + 0.5) / (total + 1)
