"""The one way a job gets its Ray: `with session(address) as ray_session:`.

No address means a private Ray of this process, or, inside a job submitted through the Ray Jobs API, the cluster it
was submitted to. Left out: how a private Ray is kept (`engine.cluster.private`), who may connect
(`engine.cluster.access`). Called by every job and by `engine.doctor`.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import psutil

from engine.cluster.access import is_loopback, probe, use_token
from engine.cluster.driver import driver
from engine.cluster.private import private_ray
from engine.cluster.stderr import without_noise
from engine.errors import ClusterError


@dataclass(frozen=True)
class Session:
    """A Ray this process is connected to."""

    address: str
    """`ip:port` of the cluster."""
    private: bool
    """Started by this session and stopped with it."""
    dashboard: str | None
    """URL of the dashboard, None where there is none."""
    directory: Path | None
    """The temporary directory of a private Ray (logs lie in session_latest/logs)."""


@contextmanager
def session(
    address: str | None,
    *,
    cpus: float | None = None,
    object_store: int | None = None,
    dashboard: bool = False,
    deadline: float = 15.0,
) -> Iterator[Session]:
    """Connect this process to Ray for the length of a `with` block; to be entered from the main thread.

    `address`: None for a private Ray (or the RAY_ADDRESS a submitted job is given), `local` for a private one in any
    case, `auto` for the cluster running on this machine, or `ip:port`. `cpus` (may be fractional) and `object_store`
    (bytes; by default a quarter of memory, at most 2 GiB) shape a private Ray only. A Ray this process is already
    connected to is used as it is and left running. Raises `ClusterError`, at the latest after `deadline` seconds for
    an address that does not answer.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # These are errors of results nobody asks for (Ray Data's own bookkeeping); what we ask for raises.
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    # Processes of one machine take turns: threads that spin while they wait for work would take the others' cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # A search has many processes that hardly do anything, and Ray keeps telling how many they are.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "PYTHON worker processes have been started")
    import ray

    logging.getLogger("ray").setLevel(logging.WARNING)
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    if ray.is_initialized():
        yield _describe(private=False, directory=None)
        return
    with (
        without_noise(),
        private_ray(cpus, object_store, dashboard)
        if address == "local"
        else _connected(address, deadline) as directory,
    ):
        yield _describe(private=address == "local", directory=directory)


def resolve(address: str) -> str:
    """`ip:port` of the cluster that `auto` or an address means. Raises `ClusterError`."""
    if "://" in address:
        use = "`headrace submit` takes it" if address.startswith("http") else "Ray Client cannot carry these jobs"
        raise ClusterError(
            f"{address} is not the address of a cluster's own port: {use}.",
            "Give ip:port or `auto` on a machine of the cluster, or submit: headrace submit JOB RECIPE --address URL.",
        )
    from ray._private.services import canonicalize_bootstrap_address

    try:
        found = canonicalize_bootstrap_address(address)
    except ConnectionError:
        raise ClusterError("No Ray runs on this machine.", "Start one: ray start --head.") from None
    except (ValueError, OSError):
        found = None
    host, _, port = (found or "").rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ClusterError(f"{address!r} is no address of a Ray cluster.", "Give ip:port, or `auto`.")
    return f"{host}:{port}"


@contextmanager
def _connected(address: str, deadline: float) -> Iterator[None]:
    target = resolve(address)
    use_token()
    alive = probe(target, deadline=deadline, called=target if address == "auto" else address)
    if not alive.nodes:
        raise ClusterError(f"The Ray at {target} has no live node.", "Wait until one has joined, or start it again.")
    ours = {each.address for each in chain.from_iterable(psutil.net_if_addrs().values())}
    if not any(node in ours or is_loopback(node) for node in alive.nodes):
        raise ClusterError(
            f"This machine is not part of the cluster at {target}, and a Ray driver has to run on one of its nodes.",
            "Submit instead: headrace submit JOB RECIPE --address http://127.0.0.1:8265 (through an SSH tunnel).",
        )

    def refused(reason: str) -> ClusterError:
        return ClusterError(f"Ray at {target} does not take this driver: {reason}", "`headrace doctor` may say more.")

    with driver(refused, address=target):
        yield


def _describe(*, private: bool, directory: Path | None) -> Session:
    import ray

    context = ray.get_runtime_context()
    node = ray._private.worker.global_worker.node
    url = node.webui_url if node is not None else None
    return Session(context.gcs_address, private, f"http://{url}" if url else None, directory)
