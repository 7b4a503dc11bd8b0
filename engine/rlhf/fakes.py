"""An engine that draws nothing: for tests of what surrounds engines, where deaths and lies have to come on cue.

It writes the last token of a prompt over and over, and its log-probabilities are the sum of its weights, so a sync that
did not arrive shows. What it is to do wrong next is read from a file, a word per line, each done once: `broken` (fail
when it starts), `gone` (never get started), `die` (in the middle of generating), `hang` (there), `jam` (hang when it
takes weights), `stale` (take weights and keep the old ones), `drop` (lose a tensor).
"""

import os
import time
from collections.abc import Sequence
from pathlib import Path

from engine.rlhf.engines import Drawing, Weights, Written

_FOR_EVER = 3600.0


class FakeEngine:
    """See `engine.rlhf.engines.RolloutEngine`; `script` is the file."""

    def __init__(self, script: Path) -> None:
        self._script = script
        self._weights: dict[str, float] = {}
        if self._told("broken"):
            raise RuntimeError("no model here")
        if self._told("gone"):
            time.sleep(_FOR_EVER)

    def generate(self, prompts: Sequence[list[int]], seeds: Sequence[int], drawing: Drawing) -> list[Written]:
        """As many tokens as are allowed."""
        if self._told("die"):
            os._exit(1)
        if self._told("hang"):
            time.sleep(_FOR_EVER)
        count = drawing.max_tokens
        return [Written([prompt[-1]] * count, [self._sum] * count, False) for prompt in prompts]

    def logprobs(self, ids: list[int]) -> list[float]:
        """The same for every token."""
        return [self._sum] * (len(ids) - 1)

    def load(self, weights: Weights) -> None:
        """Take the tensors' sums."""
        if self._told("jam"):
            time.sleep(_FOR_EVER)
        dropped = self._told("drop")
        given = {name: float(tensor.sum()) for name, tensor in weights}
        if not self._told("stale"):
            self._weights |= dict(list(given.items())[dropped:])

    @property
    def _sum(self) -> float:
        return sum(self._weights.values())

    def _told(self, word: str) -> bool:
        """Whether the script's next word is this one; it is crossed out."""
        words = self._script.read_text().split() if self._script.exists() else []
        if words[:1] != [word]:
            return False
        self._script.write_text("\n".join(words[1:]))
        return True
