"""A cache of directories on this machine: each is built once, by whoever comes first, and whole or not at all.

A directory is built beside its place under another name and renamed when it is complete, so neither a second process
nor a kill ever shows half of one. A lock keeps others waiting instead of doing the same work at the same time.

Left out: what is kept there. Called by `engine.artifacts.models`, `engine.models.packaged` and, for the lock alone,
`engine.value_network.cache`.
"""

import contextlib
import fcntl
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from engine.errors import DeadlineExceeded

_ABANDONED_SECONDS = 86_400
"""A half-built directory this old belongs to nobody: building takes minutes."""


_PATIENCE_SECONDS = 3_600


def cache_folder() -> Path:
    """Where models converted or copied to this machine are kept: `$HEADRACE_CACHE`, else `~/.cache/headrace`."""
    return Path(os.environ.get("HEADRACE_CACHE") or "~/.cache/headrace").expanduser()


def build_once(folder: Path, build: Callable[[Path], None]) -> Path:
    """The directory, made by `build(empty directory)` if it is not there yet. Raises what `build` raises."""
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with alone(folder):
        if folder.is_dir():
            return folder
        _remove_abandoned(folder)
        building = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
        try:
            building.mkdir()
            build(building)
            _settle(building, folder)
        finally:
            shutil.rmtree(building, ignore_errors=True)
    return folder


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold a lock beside a place that several processes may be making; it ends with the process. Where the file
    system has none, the work may be done twice.

    Raises `DeadlineExceeded` if another process does not come to an end with it.
    """
    end = time.monotonic() + _PATIENCE_SECONDS
    with folder.with_name(f".{folder.name}.lock").open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    raise DeadlineExceeded(
                        f"Another process has been making {folder} for {_PATIENCE_SECONDS:,} s.",
                        "End it and run the same command again.",
                    ) from None
                time.sleep(0.1)
            except OSError:
                break
        yield


def _remove_abandoned(folder: Path) -> None:
    for each in folder.parent.glob(f".{folder.name}.????????"):
        with contextlib.suppress(OSError):
            if time.time() - each.stat().st_mtime > _ABANDONED_SECONDS:
                shutil.rmtree(each)


def _settle(building: Path, folder: Path) -> None:
    """Give the directory its name; if another process was quicker, its copy stays."""
    try:
        building.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
