"""Run directories and what a job hands back.

    RUNS/JOB/NAME/   recipe.yaml (resolved)  metrics.jsonl  tensorboard/  report.html  log.jsonl  ledger/  checkpoints/

Left out: what a job does in it. Called by every job's engine half and by `jobs.cli`, which shows the outcome.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from upath import UPath

from engine.config import Recipe, write_yaml
from engine.errors import StorageError
from engine.observe import Share
from engine.resources import Demand
from engine.storage import is_local, make_directory, replace, storage_errors, writable


@dataclass(frozen=True)
class Invocation:
    """How a job was called: what the recipe does not say.

    `command` is the line that repeats the call (for resume hints), `address` a Ray cluster or None for a private one,
    `fresh` sets an earlier run of the same name aside first.
    """

    command: str
    address: str | None = None
    dry_run: bool = False
    fresh: bool = False


@dataclass(frozen=True)
class Outcome:
    """What a job did: what it published, the facts worth printing, and where the time went."""

    job: str
    output: UPath
    facts: Mapping[str, str]
    shares: Sequence[Share] = ()
    hints: Mapping[str, str] = field(default_factory=dict)
    report: UPath | None = None
    published: bool = True
    reused: bool = False
    next_command: str = ""
    demands: Sequence[Demand] = ()
    """What has to be alive at once while the job's longest part runs; told by a dry run of a job that trains."""


class Run:
    """The directory of one run of one job."""

    def __init__(self, job: str, recipe: Recipe) -> None:
        self.job = job
        self.recipe = recipe
        self.path = writable(recipe.runs) / job / recipe.name

    def open(self) -> None:
        """Make the directory and write the resolved recipe. Raises `StorageError` where that cannot be done."""
        make_directory(self.path)
        replace(self.path / "recipe.yaml", write_yaml(self.recipe.model_dump(mode="json")).encode())


def set_aside(path: UPath) -> None:
    """Move what is at a path out of the way, to a name with a time stamp; nothing is deleted."""
    if not path.exists():
        return
    if not is_local(path):
        raise StorageError(f"{path} cannot be set aside: object stores do not rename.", "Choose another name=...")
    stamp = f"{time.strftime('%Y%m%dT%H%M%S')}-{time.time_ns() // 1000 % 1_000_000:06d}"
    with storage_errors(path):
        path.rename(path.parent / f"{path.name}.before-{stamp}")
