"""What a training saw, step by step: the examples of each batch and what was probed there, in `trajectory.jsonl`.

From it one can tell which data led where: retrace a step, attribute a loss spike, replay an order. A resume cuts off
what came after its checkpoint, so each step stands there once. Left out: what an example's number means (the caller's
dataset). Called by training loops where a recipe asks for it.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

_FILE = "trajectory.jsonl"


class TrajectoryRecorder:
    """Appends a line per step to RUN/trajectory.jsonl on a local disk, going on after step `done`."""

    def __init__(self, run_dir: Path, done: int = 0) -> None:
        self._path = run_dir / _FILE
        kept = [line for line in _lines(self._path) if json.loads(line)["step"] <= done]
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text("".join(kept))

    def record(self, step: int, examples: Iterable[int], **probes: float) -> None:
        """Write down a step: the numbers of its examples, in their order, and any measured values."""
        line = {"step": step, "examples": [int(each) for each in examples], **probes}
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def read_trajectory(run_dir: Path) -> list[dict[str, Any]]:
    """Every step that was recorded, in order; none where there is no file."""
    return [json.loads(line) for line in _lines(run_dir / _FILE)]


def _lines(path: Path) -> Iterator[str]:
    """The whole lines of the file; one that a kill cut short is left out."""
    if path.exists():
        with path.open() as file:
            yield from (line for line in file if line.endswith("\n"))
