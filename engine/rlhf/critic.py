"""What a state is worth: a value for each place that predicts a token, learnt beside the policy.

    ValueHead     two linear layers on the reference's last hidden states, which are computed anyway
    ValueModel    a model of its own with one output per token; it may start from a reward model

Left out: its loss (`engine.rlhf.losses`). Called by `engine.rlhf.learner`.

Shapes: T tokens of a row, N of them predict a written one, W width.
"""

from typing import TYPE_CHECKING, Any

import torch

from engine.finetune.attention import LENGTHS, is_packed, use_packed_attention
from engine.rlhf.policy import PolicyRow

if TYPE_CHECKING:
    from torch import Tensor


class Critic(torch.nn.Module):
    """Values from a row, or from features of its states; `own_body` where it needs none."""

    own_body = False

    def forward(self, row: PolicyRow, features_NW: "Tensor") -> "Tensor":
        """(N,), in float32."""
        raise NotImplementedError


class ValueHead(Critic):
    """A hidden layer of `hidden` on features of width `width`; it starts at zero everywhere."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.inner = torch.nn.Linear(width, hidden)
        self.outer = torch.nn.Linear(hidden, 1)
        torch.nn.init.zeros_(self.outer.weight)
        torch.nn.init.zeros_(self.outer.bias)

    def forward(self, row: PolicyRow, features_NW: "Tensor") -> "Tensor":
        """See `Critic`."""
        value_N: Tensor = self.outer(torch.nn.functional.gelu(self.inner(features_NW.float())))[:, 0]
        return value_N


class ValueModel(Critic):
    """A token classifier of one output (`...ForTokenClassification`)."""

    own_body = True

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = use_packed_attention(model)

    def forward(self, row: PolicyRow, features_NW: "Tensor | None" = None) -> "Tensor":
        """See `Critic`; features are not needed."""
        apart = {LENGTHS: row.lengths} if is_packed(self.model) else {}
        values_1T1 = self.model(input_ids=row.ids_1T, position_ids=row.positions_1T, **apart).logits
        value_N: Tensor = values_1T1[0, row.predicting_N, 0].float()
        return value_N if len(value_N) else values_1T1[0, :0, 0].float()
