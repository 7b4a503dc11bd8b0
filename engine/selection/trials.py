"""Real trainings of subsets, each once: what they gave is written down, and their checkpoints are removed.

Left out: the training itself (`engine.selection.job` makes it of `engine.finetune`). Called for the method `trained`.
"""

import hashlib
import json
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from upath import UPath

from engine.storage import is_local, make_directory, replace

Train = Callable[[list[str], UPath], float]
"""Names of tasks and a directory for runs -> the target's loss."""


class Trials:
    """RUN/trials: one small file for each subset that was trained."""

    def __init__(self, home: UPath, train: Train, tasks: Sequence[str]) -> None:
        self._folder, self._train, self._tasks = home / "trials", train, tuple(tasks)

    def score(self, subsets: Sequence[Sequence[int]]) -> npt.NDArray[np.float64]:
        """The losses of subsets (places of their tasks), trained where they have not been; no task: infinite, since
        there is nothing to train on."""
        return np.array([self._one(sorted(self._tasks[at] for at in each)) if each else np.inf for each in subsets])

    def _one(self, subset: list[str]) -> float:
        make_directory(self._folder)
        name = hashlib.sha256(json.dumps(subset).encode()).hexdigest()[:16]
        noted = self._folder / f"{name}.json"
        if not noted.exists():
            runs = self._folder / name
            loss = self._train(subset, runs)
            replace(noted, json.dumps({"tasks": subset, "loss": loss}).encode())
            if is_local(runs):
                runs.rmdir(recursive=True)
        return float(json.loads(noted.read_bytes())["loss"])
