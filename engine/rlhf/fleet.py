"""Engines in actors as one: they draw a step's responses between them, and come and go meanwhile.

    healthy   holds the version that is asked for, verified since it was given it
    stale     answers, and is being given that version
    away      does not answer: it is starting, it died and Ray starts it anew, or it was killed; looked for now and then
    lost      cannot start: given up

An engine does one thing at a time (a `_Wait`): it is looked for, is brought up to date, or draws a part of the prompts.
All of them are waited for at once, so none holds up another. One that is late is killed, which brings it back as new; a
part that it had goes to the next one that is healthy.

Left out: engines and their actors, and how a version is verified (`engine.rlhf.rollouts`); how weights travel
(`engine.rlhf.transport`). A transport that delivers by itself, as `engine.rlhf.native` does, holds up all engines for
that long. Called by `engine.rlhf.work`, by one thread at a time.
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np

from engine.cluster import reason
from engine.errors import DeadlineExceeded, HeadraceError
from engine.observe import get_logger
from engine.rlhf.engines import Drawing, Written
from engine.rlhf.rollouts import Probe, Verifier
from engine.rlhf.transport import ObjectStore, Parcel, WeightTransport

_log = get_logger("rlhf")
_SHARE = 4
"""Parts that an engine's prompts are handed over in at the most: what a death costs is one of them."""
_BACK_SECONDS = 1.0
"""Between two looks whether an engine is back."""
_PATIENCE = 5.0
"""Seconds that a sync waits for an engine to answer where others do."""
_TAKING = 1 / 3
"""Part of the longest wait that taking weights may last: an engine that wedged can be started anew within one sync."""
_WEDGED, _DIED = 2, 5
"""Engines that may wedge, and that may die, over the same prompts."""
_STAYS = "The last checkpoint stays: the same command goes on from it."

State = Literal["healthy", "stale", "away", "lost"]


@dataclass(frozen=True)
class _Wait:
    """A call, how many seconds it may take, and what is said of the engine if it takes longer."""

    ref: Any
    seconds: float
    late: str


_Task = Generator[_Wait, Any, None]
"""What an engine does: yields calls, is sent what they return, and thrown what they raise."""


class _Away(Exception):
    """An engine is gone; `why` goes on from its name. `state` is what it is now, `wedged` whether it was killed."""

    def __init__(self, why: str, state: State = "away", *, wedged: bool = False) -> None:
        super().__init__(why)
        self.why, self.state, self.wedged = why, state, wedged


class _Engine:
    """An actor, its state, and what it does."""

    def __init__(self, number: int, handle: Any) -> None:
        self.number, self.handle = number, handle
        self.state: State = "away"
        self.why = ""
        """What took it away, once that is known."""
        self.wait: _Wait | None = None
        self.until = 0.0
        """When its call is late, or when it is to be looked for."""
        self._task: _Task | None = None

    def __str__(self) -> str:
        return f"Engine {self.number}"

    def begin(self, task: _Task) -> None:
        """Do something."""
        self._task = task
        self._go(task.__next__)

    def forget(self) -> None:
        """Do no more of what it does, unless it is being looked for. What it does with an answer is not done."""
        if self.wait and self.state != "away":
            assert self._task
            self._task.close()
            self.wait, self.until = None, 0.0

    def hear(self) -> None:
        """Its call has ended: go on. Raises `HeadraceError`s."""
        import ray

        assert self.wait
        assert self._task
        try:
            found = ray.get(self.wait.ref)
        except ray.exceptions.RayError as error:
            self._go(partial(self._task.throw, _told(self, error)))
        else:
            self._go(partial(self._task.send, found))

    def kill(self) -> None:
        """Its call is late: Ray is to start it anew. Raises `HeadraceError`s."""
        import ray

        assert self.wait
        assert self._task
        ray.kill(self.handle, no_restart=False)
        self._go(partial(self._task.throw, _Away(self.wait.late, wedged=True)))

    def _go(self, resume: Callable[[], _Wait]) -> None:
        self.wait, self.until = None, 0.0
        try:
            self.wait = resume()
            self.until = time.monotonic() + self.wait.seconds
        except StopIteration:
            pass
        except _Away as away:
            if self.state != "away" or away.wedged:
                _log.warning("an engine is away", engine=self.number, why=away.why)
            # That a killed one does not answer is no news.
            self.why = away.why if away.wedged or away.state == "lost" else self.why or away.why
            self.state = away.state
            self.until = time.monotonic() + _BACK_SECONDS
        except HeadraceError:
            self.state, self.why = "away", "failed"
            raise


@dataclass
class _Work:
    """Prompts in parts, given by the prompts' numbers: those that nobody does yet, and what was found."""

    prompts: Sequence[list[int]]
    seeds: Sequence[int]
    drawing: Drawing
    todo: deque[list[int]]
    found: dict[int, Written] = field(default_factory=dict)
    losses: Counter[tuple[int, bool]] = field(default_factory=Counter)

    def give_back(self, part: list[int], engine: _Engine, away: _Away) -> None:
        """An engine is gone with a part. Raises `HeadraceError` if these prompts have cost too many engines."""
        self.todo.appendleft(part)
        self.losses[part[0], away.wedged] += 1
        if self.losses[part[0], True] >= _WEDGED:
            raise DeadlineExceeded(
                f"{engine} {away.why}, and the one that had them before had not either.",
                f"Raise rollout.stall_seconds if they may take that long. {_STAYS}",
            )
        if self.losses[part[0], False] >= _DIED:
            raise HeadraceError(
                f"{_DIED} engines have died over the same {len(part):,} prompts; {engine} {away.why}.",
                f"Look at its log: it may have run out of memory. {_STAYS}",
            )


class ActorRollouts:
    """Engines in actors; `handles` are the driver's. `seconds` is the longest wait for any of them."""

    def __init__(self, handles: Sequence[Any], seconds: float, transport: WeightTransport | None = None) -> None:
        self._engines = [_Engine(number, handle) for number, handle in enumerate(handles)]
        self._seconds = seconds
        self._transport = transport or ObjectStore()
        self._latest: tuple[Parcel, Probe] | None = None
        self._synced: Probe | None = None
        self._verifier = Verifier()

    def generate(self, prompts: Sequence[list[int]], seeds: Sequence[int], drawing: Drawing) -> list[Written]:
        """See `engine.rlhf.rollouts.Rollouts`. Raises `DeadlineExceeded` once no engine was healthy for `seconds`, or
        engines wedged twice over the same prompts."""
        parts = min(len(prompts), len(self._engines) * (_SHARE if len(self._engines) > 1 else 1))
        todo = deque(part.tolist() for part in np.array_split(np.arange(len(prompts)), parts))
        work = _Work(prompts, seeds, drawing, todo)
        for engine in self._engines:
            if engine.state == "healthy":
                engine.forget()  # what it draws for a call that failed
        ready = time.monotonic()
        while len(work.found) < len(prompts):
            healthy = [engine for engine in self._engines if engine.state == "healthy"]
            for engine in healthy:
                if not engine.wait and work.todo:
                    engine.begin(self._draw(engine, work))
            ready = time.monotonic() if healthy else ready
            self._turn(ready + self._seconds)
        return [work.found[at] for at in range(len(prompts))]

    def sync(self, version: int, weights: Mapping[str, Any], probe: Probe) -> None:
        """See `engine.rlhf.rollouts.Rollouts`. The first one waits for all engines to start, later ones for those that
        answer; the others are brought up to date when they are back. One at least has the weights afterwards.

        Raises `DeadlineExceeded` where none has them within `seconds`.
        """
        end, first = time.monotonic() + self._seconds, self._synced is None
        if self._synced:
            self._verifier.settle(self._synced)
        for engine in self._engines:
            engine.forget()
            if engine.state != "lost":
                engine.state = "away"
        self._latest = None  # a parcel that nobody holds gives its memory to the next one
        self._latest = self._transport.pack(version, weights), probe
        patience = end if first else time.monotonic() + _PATIENCE
        while True:
            now, states = time.monotonic(), {engine.state for engine in self._engines}
            if "healthy" in states and (now >= end or not ("stale" in states or ("away" in states and now < patience))):
                break
            self._turn(end if now >= patience else min(patience, end), end)
        self._synced = probe
        for engine in self._engines:
            if engine.state != "healthy":
                _log.warning("an engine has not the new weights yet", engine=engine.number, why=engine.why or "silent")

    def _turn(self, until: float, end: float | None = None) -> None:
        """Wait until an engine answers, is late or is to be looked for, and see to it; no longer than `until`. Raises
        `DeadlineExceeded` if no engine is healthy and there is none to come, or `end` (`until`) is over."""
        import ray

        now = time.monotonic()
        states = {engine.state for engine in self._engines}
        if states == {"lost"} or ("healthy" not in states and now >= (until if end is None else end)):
            raise self._nobody()
        for engine in self._engines:
            if engine.state in ("away", "stale") and not engine.wait and now >= engine.until:
                engine.begin(self._bring(engine))
        busy = {engine.wait.ref: engine for engine in self._engines if engine.wait}
        moments = [engine.until for engine in self._engines if engine.wait or engine.state == "away"]
        seconds = max(min([until, *moments]) - time.monotonic(), 0)
        if not busy:
            time.sleep(seconds)
            return
        ray.wait(list(busy), timeout=seconds)
        for ref in ray.wait(list(busy), num_returns=len(busy), timeout=0)[0]:
            busy.pop(ref).hear()
        for engine in busy.values():
            if time.monotonic() >= engine.until:
                engine.kill()

    def _draw(self, engine: _Engine, work: _Work) -> _Task:
        """Have a part of the prompts answered."""
        assert self._latest, "weights are synced before anything is drawn"
        part = work.todo.popleft()
        prompts, seeds = [work.prompts[at] for at in part], [work.seeds[at] for at in part]
        ref = engine.handle.generate.remote(self._latest[0].version, prompts, seeds, work.drawing)
        try:
            late = f"has not answered {len(part):,} prompts for {self._seconds:g} s"
            written = yield _Wait(ref, self._seconds, late)
        except _Away as away:
            work.give_back(part, engine, away)
            raise
        if written is None:
            work.todo.appendleft(part)
            raise _Away("was started anew")
        work.found.update(zip(part, written, strict=True))

    def _bring(self, engine: _Engine) -> _Task:
        """Wait for an engine to answer, give it the latest weights and verify them."""
        handle = engine.handle
        late = f"does not answer within {self._seconds:g} s"
        _, process = yield _Wait(handle.version.remote(), self._seconds, late)
        assert self._latest
        engine.state, engine.why, (parcel, probe) = "stale", "", self._latest
        taking = self._seconds * _TAKING
        late = f"took longer than {taking:.3g} s to take new weights"
        for again in (True, False):
            try:
                if (taken := self._deliver(parcel, engine)) is not None:
                    yield _Wait(taken, taking, late)
                found = yield _Wait(handle.logprobs.remote(probe.ids), taking, late)
            except HeadraceError as error:
                if not again:
                    raise
                _log.warning("a sync is tried again", engine=engine.number, why=error.problem)
                continue
            if self._verifier.check(found, probe, str(engine), parcel.version, again=again):
                if not (yield _Wait(handle.confirm.remote(parcel.version, process), taking, late)):
                    raise _Away("was started anew")
                engine.state = "healthy"
                return

    def _deliver(self, parcel: Parcel, engine: _Engine) -> Any:
        """See `WeightTransport.deliver`; an engine that a transport has waited for in vain is killed."""
        import ray

        try:
            return self._transport.deliver(parcel, engine.handle)
        except ray.exceptions.RayError as error:
            raise _told(engine, error) from None
        except DeadlineExceeded as error:
            ray.kill(engine.handle, no_restart=False)
            raise _Away(f"has not taken the weights: {error.problem.rstrip('.')}", wedged=True) from None

    def _nobody(self) -> HeadraceError:
        """There is no healthy engine."""
        silent = {"away": "does not answer yet", "stale": "has not taken the weights yet"}
        whys = "; ".join(f"{engine} {engine.why or silent[engine.state]}" for engine in self._engines)
        if all(engine.state == "lost" for engine in self._engines):
            return HeadraceError(f"There is no engine left: {whys}.", f"Look at its log. {_STAYS}")
        return DeadlineExceeded(
            f"No engine has been ready for {self._seconds:g} s: {whys}.",
            f"Look at its log; raise rollout.stall_seconds if it may take that long. {_STAYS}",
        )


def _told(engine: _Engine, error: Any) -> Exception:
    """What Ray says of a call, as it is treated here: an engine's own failure, or the end of its process."""
    import ray

    if isinstance(error, ray.exceptions.RayTaskError):
        if isinstance(error.cause, HeadraceError):
            return error.cause
        return HeadraceError(f"{engine} failed ({str(error.cause)[:300]}).", _STAYS)
    if "creation task" in str(error):
        return _Away(f"cannot start ({reason(error)})", "lost")
    return _Away(f"died ({reason(error)})")
