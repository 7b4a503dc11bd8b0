"""Checkpoints of a training: RUN/checkpoints/step-00000150, each whole or not at all.

    weights/                     as the task writes them: a Hugging Face directory, or an adapter alone
    worker-00000-of-00001...     what a worker's optimiser holds (`engine.finetune.pieces`)
    state.json                   the step and what is known so far; written last: without it, there is no checkpoint

Kept are the newest and, if it is another one, the weights of the best. What a kill or a full disk left is removed once
the next one is whole. Left out: when one is due (`engine.finetune.loop`). Called by it.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from upath import UPath

from engine.config import Section
from engine.errors import ArtifactError, HeadraceError, StorageError
from engine.finetune.pieces import PART
from engine.storage import is_local, make_directory, names, replace

_STATE, _WEIGHTS = "state.json", "weights"


class Measured(Section):
    """What was measured on held-out examples after a step; `loss` is what the best is chosen by."""

    step: int
    values: dict[str, float]


class State(Section):
    """Where a training is: all that weights and optimisers do not tell."""

    steps: int = 0
    seconds: float = 0.0
    """Time spent training, over all attempts."""
    tokens: int = 0
    """Tokens trained on, without and with loss."""
    measured: tuple[Measured, ...] = ()
    best: int | None = None
    """The step with the lowest held-out loss."""
    ended: str = ""
    """Why it has ended; empty while it has not."""
    extra: dict[str, float] = {}
    """What else a training remembers."""


class Checkpoints:
    """The checkpoints of one run. `agree` tells every worker whether all are well: a collective."""

    def __init__(self, home: UPath, rank: int = 0, agree: Callable[[bool], bool] = bool) -> None:
        self._folder = home / "checkpoints"
        self._rank, self._agree = rank, agree

    def latest(self) -> State | None:
        """The state of the newest whole checkpoint; None where there is none. Raises `ArtifactError` for damage."""
        steps = [step for step in self._steps() if (self._at(step) / _STATE).exists()]
        if not steps:
            return None
        path = self._at(max(steps)) / _STATE
        try:
            return State.model_validate_json(path.read_bytes())
        except ValueError:
            raise ArtifactError(
                f"{path} is damaged.", f"Remove {path.parent}: the checkpoint before it is used then."
            ) from None

    @contextlib.contextmanager
    def weights(self, step: int) -> Iterator[Path]:
        """The directory with a checkpoint's weights; a copy while the block runs if it is on another machine."""
        with self._here(step, lambda name: name == _WEIGHTS) as folder:
            yield folder / _WEIGHTS

    @contextlib.contextmanager
    def optimiser(self, step: int, *wanted: str) -> Iterator[Path]:
        """The directory with the optimisers' state, as `weights`; all of it, unless there are the files `wanted`."""
        parts = {name for name in names(self._at(step)) if name.startswith(PART)}
        with self._here(step, (set(wanted) if parts.issuperset(wanted) else parts).__contains__) as folder:
            yield folder

    @contextlib.contextmanager
    def _here(self, step: int, wanted: Callable[[str], bool]) -> Iterator[Path]:
        place = self._at(step)
        if is_local(place):
            yield Path(str(place))
            return
        with tempfile.TemporaryDirectory() as copy:
            for name in filter(wanted, names(place)):
                place.fs.get((place / name).path, f"{copy}/{name}", recursive=True)
            yield Path(copy)

    def save(self, state: State, write: Callable[[Path, Path], None]) -> None:
        """Add the checkpoint of a state; `write(folder, weights)` puts this worker's files into these directories.

        Raises `StorageError` on every worker if one of them could not write; the checkpoints of before stay then.
        """
        place = self._at(state.steps)

        def remove() -> None:
            if self._rank == 0:
                self._remove(place)

        def put() -> None:
            with self._writable(place) as folder:
                write(folder, folder / _WEIGHTS)
                _sync(folder)

        def commit() -> None:
            if self._rank == 0:
                replace(place / _STATE, state.model_dump_json().encode())
                self._tidy(state)

        for part in (remove, put, commit):  # nobody begins one before all have done the one before
            self._together(part, state.steps)

    def _together(self, part: Callable[[], None], step: int) -> None:
        """Do a part of the work, wait for the others, and raise if it went wrong anywhere."""
        failed = ""
        try:
            part()
        except HeadraceError as error:
            failed = str(error)
        # Writers of several libraries, each with exceptions of its own, and none may keep the others waiting.
        except Exception as error:  # noqa: BLE001
            failed = str(error).strip().partition("\n")[0][:200] or type(error).__name__
        if not self._agree(not failed):
            raise StorageError(
                f"The checkpoint of step {step:,} cannot be written to {self._at(step)}"
                f" ({failed or 'another worker failed'}).",
                "Free some space there, then run the same command again: it goes on from the checkpoint before.",
            )

    @contextlib.contextmanager
    def _writable(self, place: UPath) -> Iterator[Path]:
        if is_local(place):
            make_directory(place / _WEIGHTS)
            yield Path(str(place))
            return
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / _WEIGHTS).mkdir()
            yield Path(folder)
            for file in Path(folder).rglob("*"):
                if file.is_file():
                    place.fs.put_file(str(file), (place / file.relative_to(folder).as_posix()).path)

    def _tidy(self, state: State) -> None:
        """Remove all but the newest checkpoint and the best one's weights."""
        for step in self._steps():
            if step not in (state.steps, state.best):
                self._remove(self._at(step))
            elif step != state.steps:
                for name in names(self._at(step)):
                    if name.startswith(PART):
                        (self._at(step) / name).unlink(missing_ok=True)

    def _remove(self, place: UPath) -> None:
        if is_local(place):
            shutil.rmtree(str(place), ignore_errors=True)
        elif place.exists():
            place.fs.rm(place.path, recursive=True)

    def _at(self, step: int) -> UPath:
        return self._folder / f"step-{step:08d}"

    def _steps(self) -> list[int]:
        found = [name.removeprefix("step-") for name in names(self._folder) if name.startswith("step-")]
        return sorted(int(each) for each in found if each.isdigit())


def _sync(folder: Path) -> None:
    """Put files on the disk for good, so that a state never outlives what it stands for."""
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb") as open_file:
                os.fsync(open_file.fileno())
