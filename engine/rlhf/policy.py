"""The policy, its reference and what both share, in one causal LM: log-probabilities of given tokens.

Only the last layers learn if the recipe says so. What lies below them, the trunk, is the same for policy and
reference and in every epoch, so it runs once per step, without gradients, and its hidden states are kept. The
reference is the model with its adapter switched off, or frozen copies of what learns. The head is applied
where a response token is to be predicted and nowhere else.

Left out: losses (`engine.rlhf.losses`) and optimising (`engine.rlhf.learner`, which calls this).

Shapes: T tokens of a row, N of them written by the policy, W width.
"""

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch

from engine.errors import RecipeError
from engine.finetune.attention import LENGTHS, is_packed, keeps_apart, use_packed_attention
from engine.finetune.head import loss_head, use_loss_head

if TYPE_CHECKING:
    from torch import Tensor

Part = Literal["policy", "reference", "trunk"]


@dataclass(frozen=True)
class PolicyRow:
    """Prompts with their responses, one after the other: ids and positions (1, T), tokens of each example, and which
    places predict a written token (N,), and that token (N,). `hidden_1TW` is what the trunk makes of it."""

    ids_1T: "Tensor"
    positions_1T: "Tensor"
    lengths: tuple[int, ...]
    predicting_N: "Tensor"
    target_N: "Tensor"
    hidden_1TW: "Tensor | None" = None

    def to(self, device: Any) -> "PolicyRow":
        """The same on a device."""
        named = ("ids_1T", "positions_1T", "predicting_N", "target_N", "hidden_1TW")
        tensors = {name: getattr(self, name) for name in named}
        return replace(self, **{name: each.to(device) for name, each in tensors.items() if each is not None})

    def with_hidden(self, hidden_1TW: "Tensor") -> "PolicyRow":
        """The same with the trunk's work done."""
        return replace(self, hidden_1TW=hidden_1TW)


class Policy(torch.nn.Module):
    """A causal LM (or what PEFT made of one) of which the layers from `frozen` on learn."""

    def __init__(self, lm: Any, *, frozen: int = 0, temperature: float = 1.0) -> None:
        super().__init__()
        self.lm = use_loss_head(use_packed_attention(lm))
        self.frozen, self.temperature = frozen, temperature
        inner = lm.get_base_model() if hasattr(lm, "get_base_model") else lm
        self._body: list[Any] = [inner.get_decoder()]  # in a list, for it is a part of `lm` already
        self._reference: list[Any] = []
        self._adapter = hasattr(lm, "disable_adapter")
        self._before = [] if self._adapter else self._copies()
        self.apart = keeps_apart(lm)
        self._features: Tensor | None = None
        self.body.register_forward_hook(self._see)

    @property
    def body(self) -> Any:
        """The decoder: embedding, layers, norm."""
        return self._body[0]

    def forward(self, row: PolicyRow, part: Part = "policy", temperature: float | None = None) -> "Tensor":
        """Natural log-probabilities of the row's targets, (N,) in float32, at the policy's temperature or another; of
        the trunk its hidden states (1, T, W)."""
        temperature = temperature or self.temperature
        if part == "trunk":
            with torch.no_grad(), self._layers(list(self.body.layers[: self.frozen]), norm=False):
                hidden: Tensor = self.body(input_ids=row.ids_1T, **self._about(row)).last_hidden_state
            return hidden
        if part == "reference":
            with torch.no_grad(), self._as_reference(row):
                return self._logp(row, self._whole or self.lm, temperature)
        with self._layers(self._upper(row)):
            return self._logp(row, self.lm, temperature)

    def features(self) -> "Tensor":
        """The last hidden states of the row that was looked at last, (T, W), after the norm; no gradient."""
        assert self._features is not None
        return self._features

    @property
    def width(self) -> int:
        """Numbers of a hidden state."""
        return int(self.body.config.hidden_size)

    def trained(self) -> Iterator[str]:
        """Names of the parameters that learn."""
        return (name for name, each in self.lm.named_parameters() if each.requires_grad)

    def _copies(self) -> list[Any]:
        """What learns, as it is now: layers, or all of the model where more than layers learn."""
        upper = {id(each) for layer in self.body.layers[self.frozen :] for each in layer.parameters()}
        if all(id(each) in upper for each in self.lm.parameters() if each.requires_grad):
            return [copy.deepcopy(each).requires_grad_(False) for each in self.body.layers[self.frozen :]]
        whole = copy.deepcopy(self.lm).requires_grad_(False)
        whole.get_decoder().register_forward_hook(self._see)
        self._reference.append(whole)
        return []

    @property
    def _whole(self) -> Any:
        return self._reference[0] if self._reference else None

    def _logp(self, row: PolicyRow, lm: Any, temperature: float) -> "Tensor":
        inputs = {"inputs_embeds": row.hidden_1TW} if row.hidden_1TW is not None else {"input_ids": row.ids_1T}
        head, predicting_N, target_N = loss_head(lm), row.predicting_N, row.target_N
        if not len(target_N):  # a worker without a part still takes part in its collectives
            predicting_N, target_N = predicting_N.new_zeros(1), target_N.new_zeros(1)
        arguments = {**inputs, **self._about(row), "logits_to_keep": predicting_N}
        if head is not None:
            with head.learning(target_N, each=True, temperature=temperature):
                logp_N: Tensor = -lm(**arguments).logits
        else:
            logits_NV = lm(**arguments).logits[0].float() / temperature
            logp_N = -torch.nn.functional.cross_entropy(logits_NV, target_N, reduction="none")
        return logp_N[: len(row.target_N)] if len(row.target_N) else logp_N * 0

    def _about(self, row: PolicyRow) -> dict[str, Any]:
        apart = {LENGTHS: row.lengths} if is_packed(self.lm) else {}
        return {"position_ids": row.positions_1T, "use_cache": False, **apart}

    def _upper(self, row: PolicyRow) -> list[Any]:
        return list(self.body.layers[self.frozen :] if row.hidden_1TW is not None else self.body.layers)

    @contextlib.contextmanager
    def _as_reference(self, row: PolicyRow) -> Iterator[None]:
        for each in (*self._reference, *self._before):  # DeepSpeed moves what is trained, and these are not
            each.to(row.ids_1T.device)
        if self._whole is not None:
            yield
        elif self._adapter:
            with self.lm.disable_adapter(), self._layers(self._upper(row)):
                yield
        else:
            below = [] if row.hidden_1TW is not None else list(self.body.layers[: self.frozen])
            with self._layers([*below, *self._before]):
                yield

    @contextlib.contextmanager
    def _layers(self, some: list[Any], *, norm: bool = True) -> Iterator[None]:
        """Let the body have these layers alone for the length of a `with` block; its parameters keep their names."""
        body = self.body
        layers, last = body._modules["layers"], body._modules["norm"]
        body._modules["layers"] = torch.nn.ModuleList(some)
        if not norm:
            body._modules["norm"] = torch.nn.Identity()
        try:
            yield
        finally:
            body._modules["layers"], body._modules["norm"] = layers, last

    def _see(self, body: Any, inputs: Any, output: Any) -> None:
        self._features = output.last_hidden_state[0].detach()


def without_dropout(model: Any) -> Any:
    """The model with nothing left out at random: a ratio of new to old policy has to be 1 before anything is learnt."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if name.endswith(("dropout", "dropout_rate", "dropout_p")) and isinstance(value, float):
                setattr(module, name, 0.0)
    return model


def freeze(lm: Any, layers: int | None) -> int:
    """Let the last so many layers of a causal LM learn (all of it if None) and nothing else; the number of those
    below. Raises `RecipeError` for a model whose layers cannot be told apart."""
    if layers is None:
        return 0
    body = lm.get_decoder()
    if not isinstance(getattr(body, "layers", None), torch.nn.ModuleList) or not hasattr(body, "norm"):
        raise RecipeError(f"The layers of {type(lm).__name__} cannot be told apart.", "Leave out learning.layers.")
    if layers > len(body.layers):
        raise RecipeError(
            f"learning.layers is {layers}, and the model has {len(body.layers)}.", "Choose fewer, or leave it out."
        )
    lm.requires_grad_(False)
    for each in body.layers[len(body.layers) - layers :]:
        each.requires_grad_(True)
    return len(body.layers) - layers


def check_split(policy: Policy) -> None:
    """Raise `RecipeError` where trunk and upper layers together are not the model (some scale what goes in)."""
    if not policy.frozen:
        return
    ids_1T = torch.arange(1, 9)[None]
    row = PolicyRow(ids_1T, torch.arange(8)[None], (8,), torch.arange(7), ids_1T[0, 1:])
    with torch.no_grad():
        whole, parts = policy(row), policy(row.with_hidden(policy(row, "trunk")))
    if not torch.allclose(whole, parts, atol=1e-4 if whole.dtype == torch.float32 else 1e-2):
        raise RecipeError(
            f"{type(policy.lm).__name__} gives other log-probabilities when its lower layers run apart.",
            "Leave out learning.layers: then all of it learns.",
        )
