"""Which request of vLLM's batch has which beta, as its older runner tells logits processors before each step.

Left out: what beta does (`engine.value_network.architecture`), and vLLM's newer runner
(`engine.value_network.betas_gpu`). Both halves live in one process: the runner's.

Shapes: R requests, V vocabulary.
"""

from typing import Any

from vllm.v1.sample.logits_processor import LogitsProcessor, MoveDirectionality
from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as NewerLogitsProcessor

from engine.value_network.card import BETA, checked_beta

DEFAULT = 1.0


def beta_of(params: Any) -> float:
    """The beta of a request's sampling parameters. Raises `ValueError` for what is none."""
    return checked_beta((params.extra_args or {}).get(BETA, DEFAULT))


class Betas:
    """The betas of a batch by the place of each request."""

    def __init__(self) -> None:
        self._by_place: dict[int, float] = {}

    def update(self, change: Any) -> None:
        """Follow what vLLM says has changed: first who has gone, then who has come, then who has moved."""
        for place in change.removed:
            self._by_place.pop(place, None)
        for place, params, _, _ in change.added:
            self._by_place[place] = beta_of(params)
        for one, other, direction in change.moved:
            first, second = self._by_place.pop(one, None), self._by_place.pop(other, None)
            if first is not None:
                self._by_place[other] = first
            if second is not None and direction == MoveDirectionality.SWAP:
                self._by_place[one] = second

    def of_batch(self, requests: int) -> list[float]:
        """The betas of the first so many places, (R,)."""
        return [self._by_place.get(place, DEFAULT) for place in range(requests)]


BETAS = Betas()
"""Those of this process's engine."""


class BetaProcessor(LogitsProcessor, NewerLogitsProcessor):  # type: ignore[misc]
    """Changes no logits: it only hears of requests. Both runners take it, each by an interface of its own; the newer
    one has it check betas and no more."""

    def __init__(self, vllm_config: Any, *_: Any) -> None:
        self._betas = BETAS

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """Refuse a wrong beta before the request goes anywhere."""
        beta_of(sampling_params)

    def apply(self, logits: Any, *_: Any) -> Any:
        """Logits as they are."""
        return logits

    def add_request(self, req_idx: int, sampling_params: Any) -> bool:
        """Of the newer runner: whether logits are changed."""
        return False

    def is_argmax_invariant(self) -> bool:
        """It is."""
        return True

    def update_state(self, batch_update: Any) -> None:
        """Called before each step."""
        if batch_update:
            self._betas.update(batch_update)
