"""A LoRA adapter on its way to engines: its halves travel, and are added there to the model's own matrices.

A layer of the 7B class takes some 400 MB whole and 5 MB as an adapter of rank 16. Left out: how tensors travel
(`engine.rlhf.transport`), and whole matrices (`engine.rlhf.weights`). Called by it and by the engines' actors.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from engine.errors import HeadraceError
from engine.models import resolve

INNER, OUTER = "::inner", "::outer"
"""End the names of an adapter's halves, (rank, in) and (out, rank); scaled already."""


class Bases:
    """The matrices of a model on disk by the names of transformers, in a number format."""

    def __init__(self, model: str, dtype: str) -> None:
        self._folder, self._dtype = resolve(model), dtype
        index = self._folder / "model.safetensors.index.json"
        self._files: dict[str, str] = json.loads(index.read_text())["weight_map"] if index.exists() else {}

    def __call__(self, name: str) -> Any:
        """One matrix. Raises `HeadraceError` where the file calls it something else."""
        import torch
        from safetensors import SafetensorError, safe_open

        path: Path = self._folder / self._files.get(name, "model.safetensors")
        try:
            with safe_open(path, "pt") as file:
                return file.get_tensor(name).to(getattr(torch, self._dtype))
        except (OSError, SafetensorError) as error:
            raise HeadraceError(
                f"{path} holds no {name} to which the adapter could be added ({str(error)[:100]}).",
                "Set rollout.sync: merged; the last checkpoint stays.",
            ) from None


def merged(tensors: Iterable[tuple[str, Any]], bases: Bases) -> Iterator[tuple[str, Any]]:
    """Whole matrices from the halves of adapters; what is no half stays as it is."""
    inner: dict[str, Any] = {}
    for name, tensor in tensors:
        if name.endswith(INNER):
            inner[name.removesuffix(INNER)] = tensor
        elif name.endswith(OUTER):
            whole = name.removesuffix(OUTER)
            base = bases(whole)
            yield whole, base + (tensor @ inner.pop(whole)).to(base.dtype)
        else:
            yield name, tensor
