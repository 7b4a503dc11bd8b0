"""Fewer layers: which of a decoder's layers stay, and a loaded model cut down to them in place.

The rule: N layers evenly spaced from the first to the last, both of which always stay. Layer i of the pruned model is
layer `i * (T - 1) / (N - 1)` of the T there were, halves rounded up: of 30 layers 8 are 0, 4, 8, 12, 17, 21, 25, 29.

Left out: loading, saving and the check that what was saved is what was pruned (`engine.models.derived`, which calls
this), and the healing that a pruned model needs before it writes well.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from engine.errors import RecipeError, SourceError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_POSITIONS = ("layer_idx", "layer_id", "layer_index")
"""What modules call their place among the layers: it is where they keep their keys and values."""


def kept_layers(total: int, keep: int) -> list[int]:
    """Indices of the layers that stay, in order; `keep` of `total`.

    Raises `RecipeError` unless `keep` is at least 2 (the first and the last) and at most `total`.
    """
    if not 2 <= keep <= total:
        raise RecipeError(
            f"Of {total} layers {keep} cannot be kept.",
            f"Keep 2 to {total}." if total >= 2 else "Such a model cannot be pruned.",
        )
    gaps = keep - 1
    return [(2 * at * (total - 1) + gaps) // (2 * gaps) for at in range(keep)]


def prune_layers(model: "PreTrainedModel", keep: int) -> list[int]:
    """Keep `keep` of a decoder's layers, evenly spaced, and make its configuration say so; returns their old indices.

    Lists in the configuration with one entry per layer (`layer_types` and its like) are cut the same way, and layers
    learn their new places, so that the KV cache works. Raises `RecipeError` for a wrong number, `SourceError` for a
    model whose layers cannot be told.
    """
    config = model.config.get_text_config(decoder=True)
    total = getattr(config, "num_hidden_layers", 0)
    kept = kept_layers(total, keep)
    layers = _layers(model.get_decoder(), total)
    for new, old in enumerate(kept):
        for module in layers[old].modules():
            for name in _POSITIONS:
                if vars(module).get(name) == old:
                    setattr(module, name, new)
    for old in reversed(range(total)):
        if old not in kept:
            del layers[old]
    _cut_config(config, total, kept)
    return kept


def _layers(decoder: Any, total: int) -> Any:
    """The one list of modules with as many entries as there are layers; lists inside of it do not count."""
    from torch.nn import ModuleList

    found: dict[str, Any] = {}
    for name, module in decoder.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if isinstance(module, ModuleList) and len(module) == total and not inside:
            found[name] = module
    if len(found) != 1:
        raise SourceError(
            f"{type(decoder).__name__} has {len(found) or 'no'} lists of {total} modules; one is needed, of layers.",
            "Prune a decoder like Llama, Qwen2, Gemma 3 or GPT-2.",
        )
    return next(iter(found.values()))


def _cut_config(config: Any, total: int, kept: Sequence[int]) -> None:
    for name, value in config.to_dict().items():
        per_layer = "layer" in name or name.endswith("_types")
        if per_layer and isinstance(value, list | tuple) and len(value) == total:
            setattr(config, name, [value[at] for at in kept])
    config.num_hidden_layers = len(kept)
