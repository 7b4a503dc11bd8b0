"""LoRA (arXiv 2106.09685) through PEFT: an adapter around a model, saved alone, merged when the model is published.

Left out: training it (`engine.finetune.learner` trains whatever has gradients). Called by the tasks.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.errors import RecipeError
from engine.finetune.options import LoraOptions


def with_adapter(
    model: Any,
    options: LoraOptions,
    *,
    new_tokens: Sequence[int] = (),
    head: Sequence[str] = (),
    saved: Path | None = None,
    layers: Sequence[int] | None = None,
) -> Any:
    """The model with an adapter, a new one (from torch's seed) or the one saved; all else is frozen.

    `new_tokens` are rows of the embedding that nobody has trained yet: they are trained whole. So are the modules named
    in `head`. `layers` are the numbers of those that get one; if not given, `options.layers` says how many of the last.
    Raises `RecipeError` for `targets` or layers that the model has not.
    """
    from peft import LoraConfig, PeftModel, get_peft_model

    if saved:
        return PeftModel.from_pretrained(model, saved, is_trainable=True)
    if layers is None and options.layers:
        layers = _last(model, options.layers)
    embedding = next(name for name, each in model.named_modules() if each is model.get_input_embeddings())
    config = LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        target_modules=options.targets if layers is None else _within(model, options.targets, layers),
        exclude_modules=list(head) or None,
        modules_to_save=list(head) or None,
        trainable_token_indices={embedding.rpartition(".")[2]: list(new_tokens)} if new_tokens else None,
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        linear = sorted(
            {name.rpartition(".")[2] for name, each in model.named_modules() if hasattr(each, "in_features")}
        )
        raise RecipeError(
            f"lora.targets does not fit the model ({str(error).partition(chr(10))[0][:150].rstrip('.')}).",
            f"Name some of: {', '.join(linear)}.",
        ) from None


def _last(model: Any, count: int) -> range:
    """Numbers of the last so many layers."""
    layers = model.config.get_text_config().num_hidden_layers
    if count > layers:
        raise RecipeError(f"lora.layers is {count}, and the model has {layers} layers.", f"Give {layers} or fewer.")
    return range(layers - count, layers)


def _within(model: Any, targets: list[str] | str, layers: Sequence[int]) -> list[str]:
    """Full names of the linear layers that are meant, in these layers of the model."""
    numbers = {str(each) for each in layers}
    return [
        name
        for name, each in model.named_modules()
        if hasattr(each, "in_features")
        and numbers & set(name.split("."))
        and (isinstance(targets, str) or name.rpartition(".")[2] in targets)
    ]


def save_adapter(model: Any, weights: dict[str, Any], folder: Path) -> None:
    """Write the adapter alone."""
    model.save_pretrained(folder, state_dict=weights, safe_serialization=True, save_embedding_layers=False)


def merged(model: Any) -> Any:
    """The model with the adapter's difference added to its own weights, nothing of PEFT left."""
    return model.merge_and_unload()
