"""Who draws responses for a training: engines in actors of their own or in this process, trusted only when verified.

Weights go out with a version. Each engine is then given a fixed text, and what it makes of it is compared with what
the learner makes of it: vLLM on a CPU can take new weights and go on computing with old ones. A difference, a missing
tensor is tried once more; after that an error names the culprit. Nothing is ever drawn from other weights than the
version asked for.

Left out: the engines themselves (`engine.rlhf.engines`), how weights travel (`engine.rlhf.transport`), and several
actors working together, though one dies or wedges (`engine.rlhf.fleet`). The actors are the driver's
(`engine.rlhf.job`), so that they outlive a training worker; the loop calls this.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np

from engine.errors import HeadraceError
from engine.observe import get_logger
from engine.rlhf.adapters import Bases, merged
from engine.rlhf.engines import Drawing, RolloutEngine, Written, make_engine
from engine.rlhf.options import RolloutOptions
from engine.rlhf.transport import InProcess, Parcel, unpack

_log = get_logger("rlhf")


@dataclass(frozen=True)
class Probe:
    """A text as tokens, the log-probability of each but the first as the learner has it, and how far an engine may be
    from that."""

    ids: list[int]
    logprobs: list[float]
    tolerance: float


class Rollouts(Protocol):
    """What the loop knows of engines."""

    def generate(self, prompts: Sequence[list[int]], seeds: Sequence[int], drawing: Drawing) -> list[Written]:
        """Responses from the version that was synced last. Raises `HeadraceError`s."""

    def sync(self, version: int, weights: Mapping[str, Any], probe: Probe) -> None:
        """Give engines these weights and see that they work with them; who has not got them draws nothing. Raises
        `HeadraceError`s."""


class Verifier:
    """Tells whether an engine computes with the weights it was given last, from what it makes of the probe."""

    def __init__(self) -> None:
        self._before: list[float] | None = None
        self._noise = 0.0

    def check(self, found: Sequence[float], probe: Probe, who: str, version: int, *, again: bool) -> bool:
        """Whether it does; the second time, an error says that it does not."""
        worst = _apart(found, probe.logprobs)
        old = self._keeps_old(found, probe)
        if worst <= probe.tolerance and not old:
            self._noise = max(self._noise, worst) if self._before is None else self._noise
            return True
        if not again:
            which = "the ones before" if old else "others"
            raise HeadraceError(
                f"{who} was given version {version} of the weights and computes with {which}:"
                f" its log-probabilities of a fixed text differ by up to {worst:.3g} (guards.probe is"
                f" {probe.tolerance:g}).",
                "Its number format differs, or it keeps old weights; nothing was drawn from it.",
            )
        _log.warning("a sync is tried again", engine=who, version=version, difference=worst)
        return False

    def settle(self, probe: Probe) -> None:
        """What comes now is another version than this probe's."""
        self._before = list(probe.logprobs)

    def _keeps_old(self, found: Sequence[float], probe: Probe) -> bool:
        """Whether it is nearer to what the weights before made of the text; told only where the difference between
        the two is well above that of an engine with the right weights."""
        if self._before is None or _apart(self._before, probe.logprobs) <= 4 * self._noise:
            return False
        return _apart(found, self._before) < _apart(found, probe.logprobs)


class LocalRollouts:
    """One engine in this process."""

    def __init__(self, engine: RolloutEngine) -> None:
        self._engine, self._transport, self._verifier = engine, InProcess(), Verifier()

    def generate(self, prompts: Sequence[list[int]], seeds: Sequence[int], drawing: Drawing) -> list[Written]:
        """See `Rollouts`."""
        return self._engine.generate(prompts, seeds, drawing)

    def sync(self, version: int, weights: Mapping[str, Any], probe: Probe) -> None:
        """See `Rollouts`."""
        for again in (True, False):
            self._transport.deliver(self._transport.pack(version, weights), self._engine)
            found = self._engine.logprobs(probe.ids)
            if self._verifier.check(found, probe, "The engine", version, again=again):
                self._verifier.settle(probe)
                return


class EngineActor:
    """An engine in a process of its own; says which version it holds, and refuses to draw from any other. `bases` are
    what adapters are added to, where those come alone."""

    def __init__(self, make: Callable[[], RolloutEngine], bases: Callable[[], Bases] | None = None) -> None:
        self._engine = make()
        self._bases = bases() if bases else None
        self._version: int | None = None

    def version(self) -> tuple[int | None, int]:
        """The version that is held (None: not verified) and this process's id."""
        return self._version, os.getpid()

    def generate(
        self, version: int, prompts: list[list[int]], seeds: list[int], drawing: Drawing
    ) -> list[Written] | None:
        """Responses; None where it holds another version."""
        return self._engine.generate(prompts, seeds, drawing) if version == self._version else None

    def load(self, parcel: Parcel) -> None:
        """Take weights. The version holds once `confirm` has said so."""
        self._version = None
        weights = unpack(parcel)
        self._engine.load(merged(weights, self._bases) if self._bases else weights)

    def transfer(self, method: str, *arguments: Any) -> None:
        """A part of vLLM's own transfer (`engine.rlhf.native`), which is the engine's workers' to do."""
        self._version = None
        self._engine.engine.collective_rpc(method, args=arguments)  # type: ignore[attr-defined]

    def logprobs(self, ids: list[int]) -> list[float]:
        """What is made of a text."""
        return self._engine.logprobs(ids)

    def confirm(self, version: int, process: int) -> bool:
        """What was loaded has been verified; False in another process than that, started anew meanwhile."""
        if process != os.getpid():
            return False
        self._version = version
        return True


def start_engines(options: RolloutOptions, model: str, longest: int, threads: int, dtype: str) -> list[Any]:
    """The driver's actors; Ray starts one that dies anew. `dtype` is the learner's."""
    import ray

    actor = ray.remote(
        num_cpus=options.share,
        num_gpus=options.gpus,
        max_restarts=-1,
        runtime_env={"env_vars": {"OMP_NUM_THREADS": str(threads)}},
    )(EngineActor)
    make = partial(
        make_engine,
        options.engine,
        model,
        at_once=options.at_once,
        longest=longest,
        gpus=options.gpus,
        native=None if options.transport == "object_store" else options.transport,
    )
    bases = partial(Bases, model, dtype) if options.sync == "adapter" else None
    return [actor.remote(make, bases) for _ in range(options.engines)]


def _apart(ours: Sequence[float], theirs: Sequence[float]) -> float:
    return float(np.abs(np.subtract(ours, theirs)).max(initial=0.0))
