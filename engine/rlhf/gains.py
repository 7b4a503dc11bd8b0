"""What a training has changed on the held-out prompts: each score after the last step against before the first one.

Left out: drawing and scoring (the loop wrote both sets of answers to RUN/held_out). Called by the report and the job.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from upath import UPath

from engine.rlhf.experience import Experience, read_step


@dataclass(frozen=True)
class Gain:
    """A score's mean over prompts before and after, and their difference with its 95 % interval and p-value (paired t
    test over prompts, two-sided; several answers to a prompt are averaged first)."""

    name: str
    before: float
    after: float
    low: float
    high: float
    p: float
    prompts: int

    def __str__(self) -> str:
        moved = f"{self.after - self.before:+.3f}, {self.low:+.3f} to {self.high:+.3f}"
        return f"{self.before:.3f} to {self.after:.3f} ({moved}; p {self.p:.1g}, {self.prompts} prompts)"


def gains(home: UPath, steps: int) -> list[Gain]:
    """One for each score of the run; none before two prompts were looked at twice."""
    before, after = (read_step(home, step, held_out=True) for step in (0, steps))
    if not steps or before is None or after is None:
        return []
    found = (_gain(name, before, after) for name in before.scores if name in after.scores)
    return [each for each in found if each is not None]


def _gain(name: str, before: Experience, after: Experience) -> Gain | None:
    from scipy.stats import ttest_rel

    earlier, later = _by_prompt(before, name), _by_prompt(after, name)
    shared = sorted(earlier.keys() & later.keys())
    if len(shared) < 2:
        return None
    first, last = _column(earlier, shared), _column(later, shared)
    low = high = float((last - first).mean())
    p = 0.0 if low else 1.0
    if np.ptp(last - first) > 0:
        test = ttest_rel(last, first)
        (low, high), p = test.confidence_interval(0.95), float(test.pvalue)
    return Gain(name, float(first.mean()), float(last.mean()), float(low), float(high), p, len(shared))


def _by_prompt(experience: Experience, name: str) -> dict[int, list[float]]:
    found: dict[int, list[float]] = {}
    for response, score in zip(experience.responses, experience.scores[name], strict=True):
        found.setdefault(response.prompt, []).append(score)
    return found


def _column(scores: Mapping[int, Sequence[float]], prompts: Sequence[int]) -> np.ndarray:
    return np.array([np.mean(scores[prompt]) for prompt in prompts])
