"""Weights from GPU to GPU by vLLM's own transfer: over NCCL, or by CUDA IPC where learner and engine share a GPU.

Each delivery is a group of two, made and closed again, so an engine that died or was started anew since is nobody
else's trouble. Never run: it needs a GPU on both sides. Left out: whether what arrived is what was sent
(`engine.rlhf.rollouts`), and the way through Ray's object store (`engine.rlhf.transport`). Called by
`engine.rlhf.fleet`.
"""

import socket
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as Late
from typing import Any

from engine.errors import DeadlineExceeded
from engine.rlhf.transport import Parcel


class Native:
    """`kind` is nccl or ipc; `seconds` the longest that a delivery may take."""

    def __init__(self, kind: str, seconds: float) -> None:
        self._kind, self._seconds = kind, seconds
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="weights")

    def pack(self, version: int, weights: Mapping[str, Any]) -> Parcel:
        """See `engine.rlhf.transport.WeightTransport`."""
        return Parcel(version, tuple(weights), {name: each.detach().cuda() for name, each in weights.items()})

    def deliver(self, parcel: Parcel, handle: Any) -> None:
        """See `engine.rlhf.transport.WeightTransport`."""
        sending = self._pool.submit(self._send, parcel.contents, handle)
        try:
            sending.result(self._seconds)
        except Late:
            raise DeadlineExceeded(
                f"An engine has not taken the new weights over {self._kind} within {self._seconds:g} s.",
                "Set rollout.transport: object_store if the GPUs cannot reach each other; the last checkpoint stays.",
            ) from None

    def _send(self, weights: Mapping[str, Any], handle: Any) -> None:
        from vllm.distributed.weight_transfer import WeightTransferTrainerFactory

        trainer = WeightTransferTrainerFactory.trainer_init(
            self._about(), client=_Client(handle, self._seconds), source=source(weights)
        )
        try:
            trainer.send_weights()
        finally:
            trainer.shutdown()
            handle.transfer.remote("shutdown_weight_transfer_engine")

    def _about(self) -> Any:
        import ray

        if self._kind == "ipc":
            from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo

            return IPCTrainerInitInfo(rank=0, packed=True)
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

        with socket.socket() as free:
            free.bind(("", 0))
            port = free.getsockname()[1]
        return NCCLTrainerInitInfo(
            rank=0, master_address=ray.util.get_node_ip_address(), master_port=port, world_size=2, packed=True
        )


class _Client:
    """What vLLM's sender calls on the receiving side, handed to an `EngineActor`."""

    def __init__(self, handle: Any, seconds: float) -> None:
        self._handle, self._seconds = handle, seconds

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self._call("init_weight_transfer_engine", init_info)

    def start_weight_update(self) -> None:
        self._call("start_weight_update")

    def update_weights(self, update_info: Any) -> None:
        self._call("update_weights", update_info)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._call("finish_weight_update")

    def _call(self, method: str, *arguments: Any) -> None:
        import ray

        ray.get(self._handle.transfer.remote(method, *arguments), timeout=self._seconds)


def source(weights: Mapping[str, Any]) -> Any:
    """Tensors by name as vLLM's sender wants them."""
    from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource

    class Source(WeightSource):  # type: ignore[misc]
        def metadata(self) -> list[ParamMeta]:
            return [ParamMeta(name, each.dtype, tuple(each.shape)) for name, each in weights.items()]

        def __iter__(self) -> Iterator[tuple[str, Any]]:
            return iter(weights.items())

    return Source()
