"""A private Ray: started by this process, seen by nobody else, gone with it.

Each has its own directory below the system's temporary one, free ports and its share of shared memory. The directory
is locked while its driver lives, so whatever a dead one left behind is recognised and cleared at the next start.

Left out: connecting to a running cluster (`engine.cluster.connection`, the only caller).
"""

import fcntl
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from engine.cluster import reaper
from engine.cluster.access import ensure_token, use_token
from engine.cluster.driver import driver
from engine.errors import ClusterError
from engine.resources import MIB, local_capacity, object_store_size, shared_memory

_PREFIX = "headrace-"
_LONGEST_BASE = 12
"""Ray's socket paths add up to 90 characters to this base, and a socket path ends at 107 (103 on macOS)."""


@contextmanager
def private_ray(cpus: float | None, object_store: int | None, dashboard: bool) -> Iterator[Path]:
    """Start Ray on this machine; yields Ray's own directory. `object_store` in bytes. Raises `ClusterError`.

    To be entered from the main thread: the kernel ties Ray's servers to the thread that starts them.
    """
    here = local_capacity(cpus=cpus, object_store=object_store).now[0]
    store = object_store_size() if object_store is None else object_store
    shared = shared_memory()
    if object_store is not None and shared is not None and object_store > shared:
        raise ClusterError(
            f"An object store of {object_store // MIB} MiB does not fit the {shared // MIB} MiB free in /dev/shm.",
            "Ask for less, or enlarge /dev/shm (docker run --shm-size).",
        )
    sweep()
    if os.environ.get("RAY_AUTH_MODE", "token").lower() == "token":
        ensure_token()
        use_token()

    def refused(reason: str) -> ClusterError:
        return ClusterError(
            f"Ray does not start on this machine: {reason}", "`headrace doctor` checks memory, disk and versions."
        )

    with (
        _directory() as directory,
        _reaper(directory),
        driver(
            refused,
            address="local",
            num_cpus=int(here.cpus) if here.cpus == int(here.cpus) else here.cpus,
            _memory=here.memory,
            object_store_memory=store,
            include_dashboard=dashboard,
            dashboard_host="127.0.0.1",
            _temp_dir=str(directory / reaper.INNER),
        ),
    ):
        yield directory / reaper.INNER


def sweep() -> None:
    """Clear away private sessions of this user whose drivers are dead."""
    for lock in _base().glob(f"{_PREFIX}[0-9]*-*/lock"):
        with suppress(OSError):
            # A lock can be taken once its driver is gone; a driver takes its own in the moment it makes it.
            if lock.stat().st_uid == os.getuid() and time.time() - lock.stat().st_mtime > 10:
                with open(lock, "r+") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    reaper.clear(str(lock.parent))


@contextmanager
def _directory() -> Iterator[Path]:
    try:
        directory = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=_base()))
        lock = open(directory / "lock", "w")  # noqa: SIM115
    except OSError as error:
        raise ClusterError(
            f"Ray needs a temporary directory in {_base()}: {error.strerror}.", "Set TMPDIR to one that can be written."
        ) from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield directory


@contextmanager
def _reaper(directory: Path) -> Iterator[None]:
    command = [sys.executable, "-P", reaper.__file__, str(os.getpid()), str(directory)]
    # A session of its own, so that Ctrl-C in the terminal does not reach it.
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        yield
    finally:
        assert process.stdin is not None
        process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=reaper.PATIENCE + 5)


def _base() -> Path:
    base = Path(tempfile.gettempdir()).resolve()
    return base if len(str(base)) <= _LONGEST_BASE else Path("/tmp").resolve()
