"""Weights from the learner to the engines: in buckets through Ray's object store, or handed over in one process.

    ObjectStore   one copy into shared memory, read in place by every engine of the machine, fetched by those elsewhere
    InProcess     the tensors themselves
    (`engine.rlhf.native`: from GPU to GPU)

A parcel says which names it holds, so a tensor that is lost on the way is named. Left out: whether what arrived is
what was sent (`engine.rlhf.rollouts` compares log-probabilities of a text). Called by
`engine.rlhf.fleet`.
"""

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from engine.errors import HeadraceError

BUCKET_BYTES = 256 << 20
"""Bytes of an object, unless a single tensor is larger."""


@dataclass(frozen=True)
class Parcel:
    """Weights on their way: a version, what they are called, and how they are to be had."""

    version: int
    names: tuple[str, ...]
    contents: Any


class WeightTransport(Protocol):
    """On the learner's side."""

    def pack(self, version: int, weights: Mapping[str, Any]) -> Parcel:
        """Make tensors available."""

    def deliver(self, parcel: Parcel, engine: Any) -> Any:
        """Have an engine take them; what is returned, if anything, is waited for. Raises `HeadraceError`s."""


class InProcess:
    """For an engine in the learner's process."""

    def pack(self, version: int, weights: Mapping[str, Any]) -> Parcel:
        """See `WeightTransport`."""
        return Parcel(version, tuple(weights), weights)

    def deliver(self, parcel: Parcel, engine: Any) -> None:
        """See `WeightTransport`; `engine` is a `RolloutEngine`."""
        engine.load(parcel.contents.items())


class ObjectStore:
    """Through shared memory; the objects live as long as the parcel. The engine's actor unpacks them."""

    def pack(self, version: int, weights: Mapping[str, Any]) -> Parcel:
        """See `WeightTransport`."""
        import ray

        refs: list[Any] = []
        bucket: dict[str, Any] = {}
        size = 0
        for name, tensor in weights.items():
            array, kind = _as_array(tensor)
            if bucket and size + array.nbytes > BUCKET_BYTES:
                refs.append(ray.put(bucket))
                bucket, size = {}, 0
            bucket[name] = (array, kind)
            size += array.nbytes
        if bucket:
            refs.append(ray.put(bucket))
        return Parcel(version, tuple(weights), refs)

    def deliver(self, parcel: Parcel, engine: Any) -> Any:
        """See `WeightTransport`; `engine` is the handle of an `EngineActor`."""
        return engine.load.remote(parcel)


def unpack(parcel: Parcel) -> Iterator[tuple[str, Any]]:
    """The tensors of a parcel from the object store, read-only. Raises `HeadraceError` where one is missing."""
    import ray

    missing = set(parcel.names)
    for ref in parcel.contents:
        for name, (array, kind) in ray.get(ref).items():
            missing.discard(name)
            yield name, _as_tensor(array, kind)
    if missing:
        raise HeadraceError(
            f"{min(missing)} is missing in version {parcel.version} of the weights, {len(missing)} of"
            f" {len(parcel.names)} tensors in all.",
            "Nothing is drawn from weights in part; run the same command again: it goes on from the last checkpoint.",
        )


def _as_array(tensor: Any) -> tuple[Any, str]:
    """A tensor as numpy has it, without copying where it is on the CPU; numpy knows no bfloat16."""
    import torch

    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.uint16).numpy(), "bfloat16"
    return tensor.numpy(), ""


def _as_tensor(array: Any, kind: str) -> Any:
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of shared memory, which is read-only: who gets these only reads them
        tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if kind else tensor
