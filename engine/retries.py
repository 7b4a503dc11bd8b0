"""Retries, all of them: what may be tried again, how often, and how long to wait in between.

    infrastructure   the other side was busy, gone or slow: try again after a growing, jittered wait, within a deadline
    data             the answer itself is no good: trying again gives the same, so the caller counts it and goes on

Left out: which failure belongs to which class; the caller says so. Called by the teachers of `engine.sieve`.
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


class Infrastructure(Exception):
    """A failure worth another try; `wait` is what the other side asked for, in seconds."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason, wait)
        self.reason = reason
        self.wait = wait

    def __str__(self) -> str:
        return self.reason


@dataclass(frozen=True)
class Patience:
    """How long to keep trying: at most `attempts` calls and `seconds` in all, waiting between `first` and `longest`."""

    attempts: int = 6
    seconds: float = 300.0
    first: float = 0.5
    longest: float = 30.0

    def call(self, attempt: Callable[[], T], pause: Callable[[float], object] = time.sleep) -> T:
        """What `attempt` returns; it raises `Infrastructure` where another try may help.

        The last `Infrastructure` is raised when patience has run out, and at once where the other side asks for a
        wait beyond it. Waits double, each between half and all of its length by chance, so that many callers do not
        come back at once; the chance is added to a wait that the other side asks for, since it tells all of them the
        same. `pause` waits a number of seconds (an event's `wait` can be cut short).
        """
        end = time.monotonic() + self.seconds
        for tried in range(max(self.attempts, 1)):
            try:
                return attempt()
            except Infrastructure as failure:
                own = min(self.first * 2**tried, self.longest)
                wait = own * random.uniform(0.5, 1.0)
                if failure.wait is not None:
                    wait = max(wait, failure.wait + self.first * random.random())
                if tried + 1 >= self.attempts or time.monotonic() + wait > end:
                    raise
            # Outside the handler, so that a wait does not keep the failure and what hangs on it alive.
            pause(wait)
        raise AssertionError("at least one attempt is made")
