"""Margins: how sure a model is of an answer, as the number of which the estimates take the first order.

The margin of a token is the logit of its probability, f = log(p / (1 - p)), and log(1 + exp(-f)) = -log p is its loss;
that of an example is the mean over the tokens of its answer (GradEx, arXiv 2409.19458, section 3).

Left out: the model (`engine.selection.gradients`). Called by it and by the estimates.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from engine.finetune.batches import IGNORED

if TYPE_CHECKING:
    import torch

    from engine.finetune.batches import Row

_TINY = 1e-12


def token_margins(losses: "torch.Tensor") -> "torch.Tensor":
    """Margins of tokens from their losses -log p in nats, (L,) -> (L,): -l - log(1 - exp(-l))."""
    losses = losses.double().clamp_min(_TINY)  # of a token that is certain the margin would be infinite
    return -losses - (-(-losses).expm1()).log()


def example_margins(losses: "torch.Tensor", row: "Row") -> "torch.Tensor":
    """Mean margins of a packed row's examples, (n,), from the losses of its tokens with loss, (L,)."""
    import torch

    return torch.stack([token_margins(part).mean() for part in torch.split(losses, answer_lengths(row))])


def answer_lengths(row: "Row") -> list[int]:
    """Tokens with loss of each of a row's examples."""
    import torch

    return [int((part != IGNORED).sum()) for part in torch.split(row.targets_1T[0], [*row.lengths])]


def margin_of(probabilities: Any, *, clip: bool = False) -> npt.NDArray[np.float64]:
    """log(p / (1 - p)), of any shape. `clip` does what the released code does first: what is above .9 loses .01, what
    is below .001 gains .01."""
    p = np.asarray(probabilities, np.float64)
    if clip:
        p = np.where(p > 0.9, p - 0.01, np.where(p < 0.001, p + 0.01, p))
    return np.asarray(np.log(p) - np.log1p(-p))


def losses_of(margins: Any) -> npt.NDArray[np.float64]:
    """log(1 + exp(-f)), in nats, of any shape."""
    return np.logaddexp(0.0, -np.asarray(margins, np.float64))
