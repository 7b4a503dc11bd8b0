"""Who draws responses for a training: engines in actors of their own or in this process, trusted only when verified.

    healthy   holds the version that is asked for, and was asked for a text's log-probabilities since it came
    stale     holds another: it has just been started (again), or a sync failed
    dead      its process is gone; Ray starts it anew, and then it is stale

Weights go out with a version. Each engine is then given a fixed text, and what it makes of it is compared with what
the learner makes of it: vLLM on a CPU can take new weights and go on computing with old ones. A difference, a missing
tensor or a missed deadline is tried once more; after that an error names the culprit. Nothing is ever drawn from other
weights than the version asked for. Prompts of an engine that dies are given to the others, or to itself once it is
back.

Left out: the engines themselves (`engine.rlhf.engines`), and how weights travel (`engine.rlhf.transport`). The actors
are the driver's (`engine.rlhf.job`), so that they outlive a training worker; the loop calls this.
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np

from engine.errors import DeadlineExceeded, HeadraceError
from engine.observe import get_logger
from engine.rlhf.adapters import Bases, merged
from engine.rlhf.engines import Drawing, RolloutEngine, Written, make_engine
from engine.rlhf.options import RolloutOptions
from engine.rlhf.transport import InProcess, ObjectStore, Parcel, WeightTransport, unpack
from engine.rlhf.waiting import answer, reason

_log = get_logger("rlhf")
_SHARE = 4
"""Parts that an engine's prompts are handed over in at the most: what a death costs is one of them."""
_BACK_SECONDS = 1.0
"""Between two looks whether an engine is back."""


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
        """Give every engine these weights and see that it works with them. Raises `HeadraceError`s."""


class _Verifier:
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
        """All engines were verified by this probe."""
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
        self._engine, self._transport, self._verifier = engine, InProcess(), _Verifier()

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

    def confirm(self, version: int) -> None:
        """What was loaded has been verified."""
        self._version = version


class ActorRollouts:
    """Engines in actors; `handles` are the driver's. `seconds` is the longest wait for any of them."""

    def __init__(self, handles: Sequence[Any], seconds: float, transport: WeightTransport | None = None) -> None:
        self._handles, self._seconds = list(handles), seconds
        self._transport = transport or ObjectStore()
        self._latest: tuple[Parcel, Probe] | None = None
        self._verifier = _Verifier()

    def generate(self, prompts: Sequence[list[int]], seeds: Sequence[int], drawing: Drawing) -> list[Written]:
        """See `Rollouts`."""
        assert self._latest, "weights are synced before anything is drawn"
        found: list[Written | None] = [None] * len(prompts)
        parts = min(len(prompts), len(self._handles) * (_SHARE if len(self._handles) > 1 else 1))
        todo = [part.tolist() for part in np.array_split(np.arange(len(prompts)), parts)]
        for part, written in self._everywhere(
            todo,
            lambda handle, part: handle.generate.remote(
                self._latest[0].version, [prompts[at] for at in part], [seeds[at] for at in part], drawing  # type: ignore[index]
            ),
        ):  # fmt: skip
            for at, each in zip(part, written, strict=True):
                found[at] = each
        return [each for each in found if each is not None]

    def sync(self, version: int, weights: Mapping[str, Any], probe: Probe) -> None:
        """See `Rollouts`."""
        self._latest = None  # a parcel that nobody holds gives its memory to the next one
        self._latest = self._transport.pack(version, weights), probe
        for number in range(len(self._handles)):
            self._bring(number)
        self._verifier.settle(probe)

    def _bring(self, number: int) -> None:
        """Give one engine the latest weights and verify them; one that is dead is waited for."""
        assert self._latest
        (parcel, probe), handle, who = self._latest, self._handles[number], f"Engine {number}"
        for again in (True, False):
            self._await(number)
            try:
                if (taken := self._transport.deliver(parcel, handle)) is not None:
                    self._wait(taken, who)
                found = self._wait(handle.logprobs.remote(probe.ids), who)
            except HeadraceError as error:
                if not again:
                    raise
                _log.warning("a sync is tried again", engine=number, why=error.problem)
                continue
            if self._verifier.check(found, probe, who, parcel.version, again=again):
                self._wait(handle.confirm.remote(parcel.version), who)
                return

    def _everywhere(
        self, todo: list[list[int]], ask: Callable[[Any, list[int]], Any]
    ) -> "list[tuple[list[int], list[Written]]]":
        """Have every part done by some engine, each at one part at a time; what a dead one had is done by another."""
        import ray

        done: list[tuple[list[int], list[Written]]] = []
        idle = list(range(len(self._handles)))
        busy: dict[Any, tuple[int, list[int]]] = {}
        end = time.monotonic() + self._seconds
        while todo or busy:
            while todo and idle:
                number = idle.pop(0)
                part = todo.pop(0)
                busy[ask(self._handles[number], part)] = (number, part)
            ready, _ = ray.wait(list(busy), timeout=max(end - time.monotonic(), 0))
            if not ready:
                number, part = next(iter(busy.values()))
                ray.kill(self._handles[number], no_restart=False)
                raise DeadlineExceeded(
                    f"Engine {number} has not answered {len(part):,} prompts for {self._seconds:g} s.",
                    "Raise rollout.stall_seconds if they may take that long; rerunning resumes.",
                )
            for ref in ready:
                number, part = busy.pop(ref)
                try:
                    written = ray.get(ref)
                except ray.exceptions.RayActorError:
                    _log.warning("an engine has died; its prompts go to another", engine=number, prompts=len(part))
                    written = None
                except ray.exceptions.RayTaskError as error:
                    raise HeadraceError(
                        f"Engine {number} failed ({str(error.cause)[:300]}).", "The last checkpoint stays."
                    ) from None
                if written is None:
                    todo.insert(0, part)
                    self._bring(number)
                else:
                    done.append((part, written))
                end = time.monotonic() + self._seconds
                idle.append(number)
        return done

    def _await(self, number: int) -> None:
        """Wait until an engine answers: it may just be starting, for the first time or again."""
        import ray

        end, why = time.monotonic() + self._seconds, "it is still starting"
        while time.monotonic() < end:
            try:
                ray.get(self._handles[number].version.remote(), timeout=max(end - time.monotonic(), 0.1))
                return
            except ray.exceptions.RayActorError as error:
                why = reason(error)
                if "creation task" in str(error):
                    break  # it cannot start
                time.sleep(_BACK_SECONDS)
            except ray.exceptions.GetTimeoutError:
                break
        raise DeadlineExceeded(
            f"Engine {number} does not answer within {self._seconds:g} s ({why}).",
            "Look at its log; the same command goes on from the last checkpoint.",
        )

    def _wait(self, ref: Any, who: str) -> Any:
        return answer(ref, self._seconds, who=who, task="take new weights", key="rollout.stall_seconds")


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
