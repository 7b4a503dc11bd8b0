"""Examples that share a row, as tensors: nothing of one reaches another.

Attention goes example by example (`engine.finetune.attention`), or by positions that begin anew at each, from which
transformers makes a mask where none is given; targets are the next tokens that have loss, and none across the seam.
Only rows of one length are stacked, so a row stands alone: (1, T). Left out: which examples share a row
(`engine.finetune.packing`). Called by the learner.

Shapes: T tokens of a row, L tokens with loss, W width, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.finetune.attention import LENGTHS, is_packed
from engine.finetune.formats import Example

if TYPE_CHECKING:
    import torch

IGNORED = -100
"""A target that is none."""


@dataclass(frozen=True)
class Row:
    """A micro-batch: ids, positions and targets, (1, T) each; a target is `IGNORED` where nothing is to be learnt."""

    ids_1T: "torch.Tensor"
    positions_1T: "torch.Tensor"
    targets_1T: "torch.Tensor"
    lengths: tuple[int, ...] = ()
    """Tokens of each example, T together."""
    numbers: tuple[int, ...] = ()
    """Their numbers in the store they come from, if they do."""

    def to(self, device: Any) -> "Row":
        """The same on a device."""
        ids_1T, positions_1T, targets_1T = (
            each.to(device) for each in (self.ids_1T, self.positions_1T, self.targets_1T)
        )
        return replace(self, ids_1T=ids_1T, positions_1T=positions_1T, targets_1T=targets_1T)


def make_row(examples: Sequence[Example]) -> Row:
    """Examples one after the other. Without any it is a row of one token from which nothing is learnt: a worker that
    has no part in a micro-batch still takes part in its collectives."""
    import torch

    ids, positions, targets = [], [], []
    for example in examples:
        tokens = np.asarray(example.ids, np.int64)
        wanted = np.full(len(tokens), IGNORED, np.int64)
        for start, end in example.loss:
            first = max(start, 1)
            wanted[first - 1 : end - 1] = tokens[first:end]
        ids.append(tokens)
        positions.append(np.arange(len(tokens)))
        targets.append(wanted)
    if not examples:
        ids, positions, targets = [np.zeros(1, np.int64)], [np.zeros(1, np.int64)], [np.full(1, IGNORED, np.int64)]
    lengths = tuple(len(each) for each in ids)
    ids_T, positions_T, targets_T = (torch.from_numpy(np.concatenate(each)) for each in (ids, positions, targets))
    return Row(ids_T[None], positions_T[None], targets_T[None], lengths)


def next_token_losses(model: Any, row: Row) -> "torch.Tensor":
    """Cross-entropy in nats of each target, (L,), in float32; the head is applied where there is a target only.

    `model` is a causal LM of transformers or what DeepSpeed makes of one; called through its own forward, as ZeRO-3
    gathers parameters there.
    """
    import torch

    keep_L, targets_L = learnt(row)
    logits_LV = _outputs(model, row, keep_L).flatten(0, 1)
    return torch.nn.functional.cross_entropy(logits_LV.float(), targets_L, reduction="none", ignore_index=IGNORED)


def next_token_loss(model: Any, row: Row) -> "torch.Tensor":
    """The sum of `next_token_losses`, without its logits in memory where the model's head allows it."""
    from engine.finetune.head import loss_head

    head = loss_head(model)
    if head is None:
        return next_token_losses(model, row).sum()
    keep_L, targets_L = learnt(row)
    with head.learning(targets_L):
        loss: torch.Tensor = _outputs(model, row, keep_L)
    return loss


def learnt(row: Row) -> tuple["torch.Tensor", "torch.Tensor"]:
    """Positions that have a target, and the targets; one without, where there is none."""
    import torch

    at_L = (row.targets_1T[0] != IGNORED).nonzero()[:, 0]
    keep_L = at_L if len(at_L) else torch.zeros(1, dtype=torch.long, device=at_L.device)
    return keep_L, row.targets_1T[0, keep_L]


def _outputs(model: Any, row: Row, keep_L: "torch.Tensor") -> Any:
    """What the head gives at these positions."""
    apart = {LENGTHS: row.lengths} if is_packed(model) else {}
    return model(
        input_ids=row.ids_1T, position_ids=row.positions_1T, use_cache=False, logits_to_keep=keep_L, **apart
    ).logits
