"""How well a model foresees a text: the negative log-probability of its tokens, in nats.

    nats per token     depends on the tokenizer: to compare checkpoints of one model
    bits per byte      does not: to compare any two models

Each text stands alone, from its own beginning. Left out: which texts and which of their tokens
(`engine.evaluation.questions`). Called by the stage that measures.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from engine.finetune.batches import make_row, next_token_losses
from engine.finetune.formats import Example
from engine.models import load_causal_lm

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Floats = npt.NDArray[np.float64]


class Perplexity:
    """Measures with a model loaded in this process. Raises `SourceError` as loading does."""

    def __init__(self, reference: str, *, dtype: str = "float32", device: str = "cpu") -> None:
        self._model: PreTrainedModel = load_causal_lm(reference, dtype).to(device)
        self._device = device

    def nats(self, ids: Sequence[int], loss: Sequence[int]) -> tuple[float, int]:
        """Nats of all tokens in the half-open ranges `loss` (start, end, start, end, ...), and how many tokens."""
        import torch

        ranges = list(zip(loss[::2], loss[1::2], strict=True))
        row: Any = make_row([Example(list(ids), ranges)]).to(self._device)
        with torch.inference_mode():
            losses_L = next_token_losses(self._model, row)
        count = sum(end - max(start, 1) for start, end in ranges)
        return float(losses_L.double().sum()) if count else 0.0, count


def ratio(amounts: Floats, counts: Floats, *, seed: int = 0, rounds: int = 2000) -> tuple[float, float, float]:
    """sum(amounts) / sum(counts) over texts, and its bootstrap interval (texts are drawn again); nan without counts."""
    if not counts.sum():
        return float("nan"), float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, len(counts), (rounds, len(counts)))
    below = counts[drawn].sum(1)
    found = amounts[drawn].sum(1)[below > 0] / below[below > 0]
    low, high = np.quantile(found, [0.025, 0.975])
    return float(amounts.sum() / counts.sum()), float(low), float(high)
