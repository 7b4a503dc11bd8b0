"""A model's files written anew: settings as they are, weights in another number type.

No class of model is needed, so that heads, encoders and kinds that nobody here loads come through whole; and a model
and what was made from it have one tokenizer to the byte.

Left out: GGUF (`engine.models.gguf_files`) and publishing. Called by `engine.models.derived`.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from engine.artifacts import MANIFEST
from engine.errors import SourceError
from engine.models.inventory import weight_files

_SETTINGS = ("*.json", "*.txt", "*.model", "*.jinja", "LICENSE*", "NOTICE*")
_INDEX = "model.safetensors.index.json"


def copy_settings(source: Path, folder: Path) -> None:
    """Copy configuration, tokenizer, chat template and licence into a directory, as they are."""
    for pattern in _SETTINGS:
        for file in source.glob(pattern):
            if file.is_file() and file.name not in (MANIFEST, _INDEX):
                shutil.copyfile(file, folder / file.name)


def copy_weights(source: Path, folder: Path, dtype: str | None, reference: str) -> None:
    """Write every file of weights again, its floating-point tensors as `dtype`, and say so in `config.json`.

    `dtype` is float32, bfloat16 or float16, None for what is stored; tensors of whole numbers stay as they are. One
    file is in memory at a time. Raises `SourceError` for weights that are packed or do not fit the type; for a damaged
    file safetensors' own error.
    """
    from safetensors.torch import load_file, save_file

    config = json.loads((source / "config.json").read_bytes())
    if dtype and config.get("quantization_config"):
        raise SourceError(
            f"The weights of {reference} are quantised, and packed.",
            "Leave --dtype out, or convert the model it was made from.",
        )
    files = weight_files(source)
    size = 0
    where: dict[str, str] = {}
    for name in files:
        tensors = load_file(source / name)
        if dtype:
            tensors = {key: _cast(tensor, dtype, f"{key} of {reference}") for key, tensor in tensors.items()}
        save_file(tensors, folder / name, metadata={"format": "pt"})
        where |= dict.fromkeys(tensors, name)
        size += sum(tensor.nbytes for tensor in tensors.values())
    if files != ["model.safetensors"]:
        index = {"metadata": {"total_size": size}, "weight_map": where}
        (folder / _INDEX).write_text(json.dumps(index, indent=1))
    if dtype:
        (folder / "config.json").write_text(json.dumps(_with_dtype(config, dtype), indent=2))


def _cast(tensor: Any, dtype: str, what: str) -> Any:
    import torch

    if not tensor.is_floating_point():
        return tensor
    cast = tensor.to(getattr(torch, dtype))
    if dtype == "float16" and not torch.equal(cast.isfinite(), tensor.isfinite()):
        raise SourceError(f"{what} holds numbers too large for float16.", "Choose --dtype bfloat16 or float32.")
    return cast


def _with_dtype(config: dict[str, Any], dtype: str) -> dict[str, Any]:
    """The configuration with its type changed, in its parts too."""
    changed = {key: _with_dtype(value, dtype) if key.endswith("_config") and isinstance(value, dict) else value
               for key, value in config.items() if key != "torch_dtype"}  # fmt: skip
    return {**changed, "dtype": dtype} if {"dtype", "torch_dtype", "model_type"} & config.keys() else changed
