"""Where the time went: phases on the driver, worker seconds inside a phase, shares that add up to the wall clock.

    watch = Stopwatch()
    with watch.phase("plan"): ...
    with watch.phase("stream"): ...
    watch.split("stream", {"read": 12.5, "lint": 80.1})     # worker seconds, from the actors
    print(bottleneck(watch.shares(), {"lint": "add workers or choose the fast linter."}))

Shares are counted in ticks of 2^-20 s, whole numbers, so their seconds add up exactly, in any order of adding.

Left out: measuring inside the workers (the stages count their own seconds). Called by every job.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

_TICKS = 2**20
OTHER = "other"


class Share(NamedTuple):
    """One part of the wall clock: its seconds, and its share of the whole between 0 and 1."""

    name: str
    seconds: float
    share: float


class Stopwatch:
    """Measures phases that follow one another, from its construction on."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._start = now()
        self._phases: dict[str, float] = {}
        self._splits: dict[str, dict[str, float]] = {}
        self._open: tuple[str, float] | None = None

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time inside the block as this phase; a name may come back and adds up. Phases do not nest."""
        assert self._open is None, f"phase {name!r} begins inside {self._open}"
        self._open = (name, self._now())
        self._phases.setdefault(name, 0.0)
        try:
            yield
        finally:
            self._phases[name] += self._now() - self._open[1]
            self._open = None

    def split(self, phase: str, worker_seconds: Mapping[str, float]) -> None:
        """Divide a phase's wall time in proportion to the seconds workers spent on each part; repeated calls add up.

        A phase whose parts sum to zero stays whole. Raises `ValueError` for seconds that are negative or not finite.
        """
        parts = self._splits.setdefault(phase, {})
        for name, seconds in worker_seconds.items():
            if not (math.isfinite(seconds) and seconds >= 0):
                raise ValueError(f"{seconds} worker seconds for {name!r}")
            parts[name] = parts.get(name, 0.0) + seconds

    def shares(self) -> list[Share]:
        """The parts of the wall clock so far, in the order they began, what no phase covered as `other` at the end."""
        now = self._now()
        phases = dict(self._phases)
        if self._open is not None:
            phases[self._open[0]] += now - self._open[1]
        wall = now - self._start
        whole = round(wall * _TICKS)
        covered = apportion([*phases.values(), max(wall - sum(phases.values()), 0.0)], whole)
        ticks: dict[str, int] = {}
        for (name, _), counted in zip(phases.items(), covered, strict=False):
            parts = self._splits.get(name, {})
            if sum(parts.values()) == 0.0:
                parts = {name: 1.0}
            for part, share in zip(parts, apportion(list(parts.values()), counted), strict=True):
                ticks[part] = ticks.get(part, 0) + share
        rest = ticks.pop(OTHER, 0) + covered[-1]
        if rest:
            ticks[OTHER] = rest
        return [Share(name, count / _TICKS, count / whole if whole else 0.0) for name, count in ticks.items()]


def bottleneck(shares: Sequence[Share], hints: Mapping[str, str] | None = None) -> str:
    """One line that names the largest share and, where there is a hint for it, what to do about it."""
    wall = sum(share.seconds for share in shares)
    if not wall:
        return "Bottleneck: nothing was measured"
    largest = max(shares, key=lambda share: share.seconds)
    hint = (hints or {}).get(largest.name)
    line = f"Bottleneck: {largest.name} took {round(100 * largest.seconds / wall)} % of {duration(wall)}"
    return f"{line}; {hint}" if hint else line


def apportion(weights: Sequence[float], whole: int) -> list[int]:
    """Whole numbers in proportion to the weights (each >= 0) that add up to `whole`, by the largest remainder.

    All zero where the weights are, save that the last then takes everything.
    """
    total = math.fsum(weights)
    if not total:
        return [0] * (len(weights) - 1) + [whole] if weights else []
    quotas = [weight / total * whole for weight in weights]
    counts = [math.floor(quota) for quota in quotas]
    by_remainder = sorted(range(len(weights)), key=lambda i: counts[i] - quotas[i])
    for i in by_remainder[: whole - sum(counts)]:
        counts[i] += 1
    return counts


def duration(seconds: float) -> str:
    """A length of time to read: `0.42 s`, `9.5 s`, `48 s`, `3 min 20 s`, `2 h 05 min`."""
    if seconds < 1:
        return f"{seconds:.2f} s"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 100:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"
