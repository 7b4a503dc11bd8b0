"""The gradient of each example in a packed row, by one forward and one backward pass for all of them.

The gradient of a linear layer's weight is the sum over tokens of (gradient of the output) x (input). Nothing of an
example reaches another in its row (`engine.finetune.attention`), so the sum over its own tokens is the gradient of what
is taken of it alone. An adapter is such layers; where anything else is trained (rows of an embedding, say), or a layer
sees other tokens than the row's, examples need a row each.

Left out: what is taken of an example, and what becomes of gradients (`engine.selection.gradients`). Called by it.

Shapes: n examples of a row, T tokens, p trained parameters, in the order of `model.parameters()`.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from engine.finetune.batches import Row

if TYPE_CHECKING:
    import torch

Calls = dict[int, list[tuple[Any, Any]]]


class NotDivided(Exception):
    """The row's examples need a row each."""


class ExampleGradients:
    """Gradients of the trained parameters of a model."""

    def __init__(self, model: Any) -> None:
        import torch

        self.parameters = [each for each in model.parameters() if each.requires_grad]
        self._model = model
        owners = Counter(id(own) for each in model.modules() for own in each.parameters(recurse=False))
        linear = {id(each.weight): each for each in model.modules() if isinstance(each, torch.nn.Linear)}
        linear = {own: each for own, each in linear.items() if owners[own] == 1}  # not tied to an embedding
        self._layers = {at: linear[id(each)] for at, each in enumerate(self.parameters) if id(each) in linear}
        self._others = [at for at in range(len(self.parameters)) if at not in self._layers]

    def __call__(self, row: Row, taken: Callable[[Any, Row], "torch.Tensor"]) -> tuple["torch.Tensor", "torch.Tensor"]:
        """What `taken(model, row)` gives for each example, (n,), and its gradients, (n, p) in float32. Raises
        `NotDivided`."""
        import torch

        count, tokens = len(row.lengths), sum(row.lengths)
        with self._heard() as calls:
            values = taken(self._model, row)
        whole = all(len(each) == 1 and each[0][1].flatten(0, -2).shape[0] == tokens for each in calls.values())
        if count > 1 and (self._others or not whole):
            raise NotDivided
        outputs = [output for each in calls.values() for _, output in each]
        others = [self.parameters[at] for at in self._others]
        found = iter(torch.autograd.grad(values.sum(), [*outputs, *others], allow_unused=True))
        parts: dict[int, Any] = {}
        for at, each in calls.items():
            products = [_products(given, next(found), row.lengths) for given, _ in each]
            parts[at] = torch.stack(products).sum(0)
        parts |= dict(zip(self._others, found, strict=True))
        flat = [
            torch.zeros(count, each.numel()) if parts.get(at) is None else parts[at].reshape(count, -1).cpu()
            for at, each in enumerate(self.parameters)
        ]
        return values.detach(), torch.cat(flat, dim=1).float()

    @contextmanager
    def _heard(self) -> Iterator[Calls]:
        """What the layers are given and give, for the length of a `with` block."""
        calls: Calls = defaultdict(list)

        def hear(at: int) -> Any:
            return lambda layer, given, output: calls[at].append((given[0].detach(), output))

        handles = [layer.register_forward_hook(hear(at)) for at, layer in self._layers.items()]
        try:
            yield calls
        finally:
            for handle in handles:
                handle.remove()


def _products(given: "torch.Tensor", slope: "torch.Tensor | None", lengths: tuple[int, ...]) -> "torch.Tensor":
    """Gradients of a layer's weight by one call, (n, out, in)."""
    import torch

    given = given.flatten(0, -2).float()
    slope = given.new_zeros(len(given), 1) if slope is None else slope.flatten(0, -2).float()
    if len(lengths) == 1:
        return (slope.T @ given)[None]
    pairs = zip(torch.split(slope, [*lengths]), torch.split(given, [*lengths]), strict=True)
    return torch.stack([one.T @ other for one, other in pairs])
