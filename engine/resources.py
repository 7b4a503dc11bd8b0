"""What a job asks for, what the cluster has or may grow to, and the refusal of what could never be scheduled.

Ray lets a task that fits nowhere wait for ever, so every job states its whole `Demand` first and `preflight` packs it
onto the nodes there are and the nodes the autoscaler may add, largest units first, as Ray's own schedulers do (a set
that only a cleverer packing could place is refused: Ray would not find that packing either). What other jobs hold at
the moment is not subtracted: they end, and then there is room.

Left out: connecting (`engine.cluster`). Called by every job, also by its `--dry-run`, and by `engine.cluster` for the
shape of a private Ray; importing this module imports no Ray.
"""

import glob
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from engine.errors import ResourceError

MIB = 2**20
GIB = 2**30
_UNKNOWN = 2**62
"""Memory of a node whose configuration does not state it: anything fits."""


@dataclass(frozen=True)
class Demand:
    """`count` actors, tasks or workers alive at once, each holding so much of one node."""

    what: str
    """Plural noun for the user: `learners`."""
    count: int
    cpus: float = 1
    gpus: float = 0
    memory: int = 0
    """Bytes each; 0 means it asks Ray for none."""
    key: str = ""
    """Recipe key that sets the count, where there is one."""

    def __str__(self) -> str:
        needs = [f"{self.cpus:g} CPU"] if self.cpus else []
        needs += [f"{self.gpus:g} GPU"] if self.gpus else []
        needs += [f"{self.memory / 1e9:.1f} GB"] if self.memory else []
        return f"{self.count} {self.what}" + (f" of {', '.join(needs)} each" if needs else "")


@dataclass(frozen=True)
class Node:
    """One machine: CPUs, GPUs, bytes of memory Ray may give out."""

    cpus: float
    gpus: float = 0
    memory: int = _UNKNOWN


@dataclass(frozen=True)
class Growth:
    """Up to `count` more machines of one kind."""

    node: Node
    count: int


@dataclass(frozen=True)
class Capacity:
    """The nodes there are and the ones an autoscaler may add, at most `limit` of them in all."""

    now: tuple[Node, ...]
    growth: tuple[Growth, ...] = ()
    limit: int = 0

    def __str__(self) -> str:
        return _describe(self)

    @property
    def cores(self) -> int:
        """Whole CPUs there are now, at least one."""
        return max(1, int(sum(node.cpus for node in self.now)))

    @property
    def most_cores(self) -> int:
        """Whole CPUs there may be once the autoscaler has added all the machines without GPUs that it may."""
        added = [each.node.cpus for each in self.growth if not each.node.gpus for _ in range(each.count)]
        present = sum(node.cpus for node in self.now)
        return max(1, int(present + sum(sorted(added, reverse=True)[: self.limit])))


def local_capacity(*, cpus: float | None = None, object_store: int | None = None) -> Capacity:
    """What a private Ray on this machine has, found without Ray; `cpus` and `object_store` (bytes) as for a session.

    Raises `ResourceError` for numbers that make no sense.
    """
    if cpus is not None and not (cpus > 0 and math.isfinite(cpus)):
        raise ResourceError(f"A Ray with {cpus:g} CPUs can do nothing.", "Give a positive number of CPUs.")
    store = object_store_size() if object_store is None else object_store
    memory = max(_available_memory() - store, 128 * MIB)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = len(glob.glob("/dev/nvidia[0-9]*"))
    if visible is not None:
        gpus = min(gpus, len([each for each in visible.split(",") if each.strip() not in ("", "-1")]))
    return Capacity((Node(cpus or float(usable_cpus()), gpus, memory),))


def capacity(session: Any) -> Capacity:
    """What the cluster of a live `engine.cluster.Session` has, with the autoscaler's maximum where it can be learnt."""
    import ray

    from engine.cluster import autoscaling_config

    alive = [each["Resources"] for each in ray.nodes() if each["Alive"]]
    now = tuple(_node(each) for each in alive)
    workers = [_node(each) for each in alive if "node:__internal_head__" not in each]
    config = None if session.private else autoscaling_config(session.address)
    return Capacity(now) if config is None else planned(now, workers, config)


def planned(now: Sequence[Node], workers: Iterable[Node], config: Mapping[str, Any]) -> Capacity:
    """Capacity under an autoscaling configuration (the `ray up` format); `workers` are the nodes it already counts."""
    kinds = {
        name: Growth(_node(kind["resources"]), int(kind.get("max_workers", config.get("max_workers", 0))))
        for name, kind in config.get("available_node_types", {}).items()
        if kind.get("resources") and name != config.get("head_node_type")
    }
    limit = int(config.get("max_workers", 0))
    for worker in workers:
        limit -= 1
        for name, kind in kinds.items():
            if kind.count and (kind.node.cpus, kind.node.gpus) == (worker.cpus, worker.gpus):
                kinds[name] = replace(kind, count=kind.count - 1)
                break
    return Capacity(tuple(now), tuple(each for each in kinds.values() if each.count > 0), max(limit, 0))


def preflight(demands: Sequence[Demand], capacity: Capacity) -> None:
    """Raise `ResourceError` if the demands could never all be alive at once.

    The sentence names the demand at fault, what it wants, what there is and may become, and a number that would fit.
    """
    wanted = [each for each in demands if each.count > 0]
    for demand in wanted:
        if not any(_fits(demand, node) for node in _kinds(capacity)):
            raise ResourceError(
                f"Each of the {demand.what} wants {_amounts(demand)} on one node; no node of {capacity} offers that.",
                _smaller(demand, capacity),
            )
    if not _pack(wanted, capacity):
        culprit = _culprit(wanted, capacity)
        others = [each for each in wanted if each is not culprit]
        beside = f" beside {_total(others)} for {_names(others)}" if others else ""
        wants = f"{culprit.count} of {_amounts(culprit)} each" if culprit.count > 1 else _amounts(culprit)
        raise ResourceError(
            f"The {culprit.what} want {wants}{beside}, and that does not fit {capacity}.",
            _fewer(culprit, others, capacity),
        )


def usable_cpus() -> int:
    """CPUs this process may use: its affinity, bounded by the container's quota; at least 1."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _cgroup("cpu.max").partition(" ")
    if quota.isdigit() and period.isdigit():
        count = min(count, math.ceil(int(quota) / int(period)))
    return max(count, 1)


def object_store_size() -> int:
    """Bytes for a private Ray's object store: a quarter of memory, at most 2 GiB, and within /dev/shm if that helps."""
    size = min(2 * GIB, _total_memory() // 4)
    shared = shared_memory()
    # Below Ray's minimum there is no point in fitting: it then keeps the store in files and says so.
    if shared is not None and shared >= 128 * MIB:
        size = min(size, int(shared * 0.8))
    return size


def shared_memory() -> int | None:
    """Free bytes of /dev/shm; None on systems without it."""
    try:
        return psutil.disk_usage("/dev/shm").free
    except OSError:
        return None


def _total_memory() -> int:
    limit = _cgroup("memory.max")
    total = int(psutil.virtual_memory().total)
    return min(total, int(limit)) if limit.isdigit() else total


def _available_memory() -> int:
    limit, used = _cgroup("memory.max"), _cgroup("memory.current")
    available = int(psutil.virtual_memory().available)
    return min(available, int(limit) - int(used)) if limit.isdigit() and used.isdigit() else available


def _cgroup(name: str) -> str:
    try:
        return Path("/sys/fs/cgroup", name).read_text().strip()
    except OSError:
        return ""


def _node(resources: Mapping[str, Any]) -> Node:
    memory = resources.get("memory")
    return Node(
        float(resources.get("CPU", 0)), float(resources.get("GPU", 0)), _UNKNOWN if memory is None else int(memory)
    )


def _units(cpus: float, gpus: float, memory: int) -> tuple[int, int, int]:
    # Ray counts CPUs and GPUs in ten-thousandths; so do we, or 3 x 0.1 would not fit 0.3.
    return round(cpus * 10_000), round(gpus * 10_000), memory


def _fits(demand: Demand, node: Node) -> bool:
    need, have = _need(demand), _units(node.cpus, node.gpus, node.memory)
    return all(n <= h for n, h in zip(need, have, strict=True))


def _need(demand: Demand) -> tuple[int, int, int]:
    return _units(demand.cpus, demand.gpus, demand.memory)


def _room(need: tuple[int, ...], have: Sequence[int]) -> int:
    return min((h // n for n, h in zip(need, have, strict=True) if n), default=_UNKNOWN)


def _kinds(capacity: Capacity) -> list[Node]:
    return [*capacity.now, *(each.node for each in capacity.growth if capacity.limit > 0)]


def _pack(demands: Sequence[Demand], capacity: Capacity) -> bool:
    """Whether every unit finds a node: largest first, present nodes before new ones."""
    free = [list(_units(each.cpus, each.gpus, each.memory)) for each in capacity.now]
    left = [each.count for each in capacity.growth]
    limit = capacity.limit
    # GPUs first: whatever needs none must not be what fills the few nodes that have them.
    for demand in sorted(demands, key=lambda each: (each.gpus, each.memory, each.cpus), reverse=True):
        need, rest = _need(demand), demand.count
        # The node with least GPUs first, for the same reason.
        for have in sorted(free, key=lambda each: (each[1], each[0])):
            rest -= _take(have, need, rest)
        while rest > 0:
            sizes = [_units(each.node.cpus, each.node.gpus, each.node.memory) for each in capacity.growth]
            rooms = [_room(need, size) if count else 0 for size, count in zip(sizes, left, strict=True)]
            if limit <= 0 or not any(rooms):
                return False
            best = max(range(len(rooms)), key=lambda kind: (min(rooms[kind], rest), -sizes[kind][1]))
            left[best] -= 1
            limit -= 1
            free.append(list(sizes[best]))
            rest -= _take(free[-1], need, rest)
    return True


def _take(have: list[int], need: tuple[int, ...], count: int) -> int:
    taken = min(count, _room(need, have))
    have[:] = [h - taken * n for n, h in zip(need, have, strict=True)]
    return taken


def _culprit(demands: Sequence[Demand], capacity: Capacity) -> Demand:
    """The demand with the largest part in the resource that is shortest."""
    grown = [*capacity.now, *(each.node for each in capacity.growth for _ in range(min(each.count, capacity.limit)))]
    have = [sum(column) for column in zip(*(_units(each.cpus, each.gpus, each.memory) for each in grown), strict=True)]
    want = [sum(each.count * _need(each)[axis] for each in demands) for axis in range(3)]
    shortest = max(range(3), key=lambda axis: want[axis] / max(have[axis], 1))
    return max(demands, key=lambda each: each.count * _need(each)[shortest])


def _smaller(demand: Demand, capacity: Capacity) -> str:
    nodes = _kinds(capacity)
    if demand.gpus and not any(node.gpus for node in nodes):
        return "Run it on a cluster with GPUs, or use a recipe that needs none."
    if demand.gpus > max((node.gpus for node in nodes), default=0):
        return f"Ask for at most {max(node.gpus for node in nodes):g} GPUs each."
    able = [node for node in nodes if node.gpus >= demand.gpus]
    largest = max(able, key=lambda node: (node.cpus, node.memory), default=Node(0, 0, 0))
    return f"Ask for at most {_amounts(Demand('', 1, largest.cpus, 0, largest.memory if demand.memory else 0))} each."


def _fewer(culprit: Demand, others: Sequence[Demand], capacity: Capacity) -> str:
    low, high = 0, culprit.count
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _pack([*others, replace(culprit, count=middle)], capacity) else (low, middle)
    if low:
        return f"Set `{culprit.key}` to at most {low}." if culprit.key else f"At most {low} of them would fit."
    for share in (0.5, 0.25, 0.1, 0.05):
        if share < culprit.cpus and _pack([*others, replace(culprit, cpus=share)], capacity):
            return f"With {share:g} CPU each they would fit."
    return "Use fewer or smaller actors, or a larger machine."


def _describe(capacity: Capacity) -> str:
    count = len(capacity.now)
    where = "this one node" if count == 1 else f"these {count} nodes"
    text = f"{where} ({_sum(capacity.now)})"
    if capacity.growth and capacity.limit:
        more = [node for each in capacity.growth for node in [each.node] * min(each.count, capacity.limit)]
        text += f" and the {min(len(more), capacity.limit)} more the autoscaler may add ({_sum(more)})"
    return text


def _sum(nodes: Sequence[Node]) -> str:
    known = [node.memory for node in nodes if node.memory != _UNKNOWN]
    memory = sum(known) if len(known) == len(nodes) else 0
    text = _amounts(Demand("", 1, sum(node.cpus for node in nodes), sum(node.gpus for node in nodes), memory))
    return text if any(node.gpus for node in nodes) else f"{text}, no GPU"


def _total(demands: Sequence[Demand]) -> str:
    return _amounts(
        Demand(
            "",
            1,
            sum(each.count * each.cpus for each in demands),
            sum(each.count * each.gpus for each in demands),
            sum(each.count * each.memory for each in demands),
        )
    )


def _names(demands: Sequence[Demand]) -> str:
    names = [each.what for each in demands]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _amounts(demand: Demand) -> str:
    parts = [f"{demand.cpus:g} {'CPU' if demand.cpus <= 1 else 'CPUs'}"] if demand.cpus or not demand.gpus else []
    if demand.gpus:
        parts.append(f"{demand.gpus:g} {'GPU' if demand.gpus <= 1 else 'GPUs'}")
    if demand.memory and demand.memory != _UNKNOWN:
        size = demand.memory
        parts.append(f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / MIB:.0f} MiB")
    return " and ".join(parts) if len(parts) < 3 else f"{parts[0]}, {parts[1]} and {parts[2]}"
