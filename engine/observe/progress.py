"""A progress bar with rate and time left on a terminal, a plain line every ten seconds elsewhere.

    with Progress("lintseq", total=2104, unit="programs", done=420) as progress:
        progress.advance(8, kept=7)

What was done before a resume counts as done but not towards the rate.

Left out: progress inside workers; the driver advances by what they committed. Called by every job with long work.
"""

import contextlib
import sys
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

from engine.observe.clock import duration

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

_LINE_SECONDS = 10.0
# The rate looks back this far: long enough to smooth over shards, short enough to forget a slow start.
_WINDOW_SECONDS = 60.0
_SAMPLE_SECONDS = 1.0


class Progress:
    """Shows how far a job is, as a context manager; `total` may be unknown (None) and may turn out too low.

    `now` is the clock in seconds, for tests.
    """

    def __init__(
        self,
        description: str,
        total: int | None,
        unit: str,
        *,
        done: int = 0,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._description, self._total, self._unit = description, total, unit
        self._done = self._first = done
        self._now = now
        self._shown: dict[str, object] = {}
        self._ending: str | None = None
        self._bar: RichProgress | None = None
        self._start = self._line_at = now()
        self._samples: deque[tuple[float, int]] = deque([(self._start, done)])

    def __enter__(self) -> "Progress":
        self._start = self._line_at = self._now()
        self._samples = deque([(self._start, self._done)])
        if sys.stderr.isatty():
            self._bar = _bar(self)
            self._task = self._bar.add_task("", total=self._total, completed=self._done)
            self._bar.start()
        return self

    def advance(self, n: int = 1, **shown: object) -> None:
        """Count `n` more as done; keywords (`kept=7`, `loss="1.32"`) are shown at the end until replaced."""
        self._done += n
        self._shown.update(shown)
        now = self._now()
        if now - self._samples[-1][0] >= _SAMPLE_SECONDS:
            self._samples.append((now, self._done))
            while len(self._samples) > 2 and now - self._samples[1][0] >= _WINDOW_SECONDS:
                self._samples.popleft()
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done)
        elif now - self._line_at >= _LINE_SECONDS:
            self._line_at = now
            _write(f"{self._description}  {self.status()}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        elapsed = duration(self._now() - self._start)
        self._ending = f"stopped after {elapsed}" if kind is not None else f"in {elapsed}"
        if self._bar is not None:
            self._bar.stop()
        else:
            _write(f"{self._description}  {self.status()}")

    def status(self) -> str:
        """How far, how fast and how much longer: `420/2104 programs  20%  35.2/s  48 s left`.

        At the end the rate is the mean over all new work, and the time it took stands in the place of the time left.
        """
        now = self._now()
        since, before = (self._start, self._first) if self._ending else self._samples[0]
        rate = (self._done - before) / (now - since) if now > since else 0.0
        if self._total is None:
            parts = [f"{self._done} {self._unit}"]
        else:
            percent = min(100 * self._done // self._total, 100) if self._total else 100
            parts = [f"{self._done}/{self._total} {self._unit}", f"{percent}%"]
        if rate > 0:
            parts.append(_rate(rate))
        if self._ending:
            parts.append(self._ending)
        elif self._total is None:
            parts.append(duration(now - self._start))
        elif rate > 0:
            parts.append(f"{duration(max(self._total - self._done, 0) / rate)} left")
        return "  ".join([*parts, *(f"{name} {value}" for name, value in self._shown.items())])


def _rate(per_second: float) -> str:
    if per_second >= 100:
        return f"{per_second:.0f}/s"
    if per_second >= 1:
        return f"{per_second:.1f}/s"
    return f"{per_second * 60:.1f}/min" if per_second * 60 >= 1 else f"{per_second * 3600:.1f}/h"


def _write(line: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # nobody listens any more; the work goes on
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()


def _bar(progress: Progress) -> "RichProgress":
    from rich.console import Console
    from rich.progress import BarColumn, ProgressColumn, Task
    from rich.progress import Progress as RichProgress
    from rich.text import Text

    class Words(ProgressColumn):
        """Text as it is: a description is no markup, and the rate is ours, not rich's."""

        def __init__(self, words: Callable[[], str], style: str) -> None:
            super().__init__()
            self._words, self._style = words, style

        def render(self, task: Task) -> Text:
            return Text(self._words(), style=self._style, no_wrap=True, overflow="ellipsis")

    columns: list[Any] = [
        Words(lambda: progress._description, "bold"),
        BarColumn(bar_width=24, complete_style="cyan", finished_style="green"),
        Words(progress.status, ""),
    ]
    return RichProgress(*columns, console=Console(stderr=True), refresh_per_second=4)
