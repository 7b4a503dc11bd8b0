"""The stream: shards through Ray Data, one shard one block from the read to the sink.

    read + prefilters  -->  annotator actors (if any)  -->  sink

Without actors the three fuse into one task per shard. Actors that need no GPU read and write their shards themselves
(a LintSeq job of 51 CPU-seconds took 47 so, one run each); either way no row enters the object store.
Only GPU actors are fed by tasks that read and emptied by tasks that write. Blocks are never merged or split, so what
reaches the sink is a whole shard. Results come back one small row per shard, as they finish; a stream that stands still
for too long ends with the names of the shards it waited for.

Left out: which shards to run and what their results mean (`engine.corpus.transform`). Called by it and by
`engine.corpus.duplicates`.
"""

import gc
import itertools
import logging
import os
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext, Datasource, ExecutionResources, ReadTask
from ray.data.block import BlockMetadata
from ray.data.exceptions import ExecutionTimeoutError
from upath import UPath

from engine.corpus.block import EMPTY, BlockInfo
from engine.corpus.conditions import apply_conditions
from engine.corpus.config import FilterConfig
from engine.corpus.duplicates import mark_duplicates
from engine.corpus.marks import DROP
from engine.corpus.plan import Shard
from engine.corpus.prefilters import apply_filters
from engine.corpus.readers import Reader
from engine.corpus.sources import check_unchanged
from engine.errors import DeadlineExceeded, HeadraceError

_TASKS_PER_ACTOR = 2
"""Shards given to an actor at a time: the next one arrives while it works on the one before."""

IO_CPUS = 0.25
"""Share of a core that a read or write task asks for beside actors, so that actors can never starve them."""

FUSED_CPUS = 0.66
"""The same for a read, filter and write task without actors: three on two cores, so that none of them idles while Ray
hands out the next shard (one run each: 60 % of the codec ceiling, against 55 % with one per core and 49 % with two)."""


_Sink = Callable[[pa.Table], pa.Table]


@dataclass(frozen=True)
class Stage:
    """A stage of stateful actors: `actor(**arguments)` maps a block to a block, marked rows and all.

    `cpus` stays below one so that on a laptop reads and writes still find room beside one actor per core.
    """

    name: str
    actor: Callable[..., Callable[[pa.Table], pa.Table]]
    arguments: dict[str, Any]
    actors: int
    cpus: float = 0.75
    gpus: float = 0.0
    memory: int = 0


@dataclass(frozen=True)
class Read:
    """How a shard becomes a marked block: reader, schema, the column that filters look at, and the filters."""

    reader: Reader
    schema: pa.Schema
    column: str
    filters: FilterConfig = field(default_factory=FilterConfig)
    duplicates: UPath | None = None

    def __call__(self, shard: Shard) -> pa.Table:
        """Read one shard. A shard without rows becomes one marked row, since Ray Data forgets empty blocks."""
        pa.set_cpu_count(1)
        started = time.thread_time()
        for file in {each.file for each in shard.slices}:
            check_unchanged(file)
        block = self.reader.read(shard.slices, self.schema)
        size = block.select(self.schema.names).nbytes
        info = BlockInfo(shard.index, shard.describe(), shard.fingerprint(), len(block), size)
        if not len(block):
            nothing = pa.table({each.name: pa.nulls(1, each.type) for each in block.schema})
            position = nothing.schema.get_field_index(DROP)
            return info.attach(nothing.set_column(position, DROP, pa.array([EMPTY])))
        read = time.thread_time()
        block = apply_conditions(block, self.filters.where)
        block = apply_filters(block, self.column, self.filters)
        if self.duplicates:
            block = mark_duplicates(block, self.duplicates, info.part)
        return info.attach(block, read=read - started, filter=time.thread_time() - read)


def stream(
    shards: Sequence[Shard],
    read: Read,
    stages: Sequence[Stage],
    sink: _Sink,
    *,
    stall_seconds: float,
    cores: int | None = None,
    actors_at_once: int = 1,
    cpus: float = FUSED_CPUS,
) -> Generator[dict[str, Any], None, None]:
    """Run shards through the stages and yield each shard's result, a row of the sink's one-row tables, as it comes.

    `cores` bounds the logical cores in use; without it the whole cluster is. Pools of actors start at
    `actors_at_once` and grow to the stage's number as an autoscaler makes room. Without stages a task asks for `cpus`
    of a core. Closing the iterator ends what runs.
    Raises the `HeadraceError` a worker raised, or `DeadlineExceeded` if nothing moves for `stall_seconds`.
    """
    if not shards:
        return
    _settle(DataContext.get_current(), stall_seconds, cores)
    if alone(stages):
        data = _by_actors(shards, read, stages, sink, actors_at_once)
    else:
        data = _by_tasks(shards, read, stages, sink, actors_at_once, IO_CPUS if stages else cpus)
    waiting = {shard.index: shard for shard in shards}
    try:
        # Not `iter_batches`: the thread it reads with outlives a reader that stops early, and ends a process that has
        # left Ray by then.
        for bundle in data.iter_internal_ref_bundles():
            for row in pa.concat_tables(ray.get(list(bundle.block_refs))).to_pylist():
                waiting.pop(row["shard"], None)
                yield row
    except ExecutionTimeoutError:
        first = ", ".join(shard.describe() for shard in itertools.islice(waiting.values(), 3))
        raise DeadlineExceeded(
            f"Nothing moved for {stall_seconds:g} s; {len(waiting)} shards are unfinished, first {first}.",
            "Look at those inputs, or raise stall_seconds if one shard may take that long; rerunning resumes.",
        ) from None
    except Exception as error:
        ours = user_error(error)
        if ours is None:
            raise
        raise ours from None


def alone(stages: Sequence[Stage]) -> bool:
    """Whether actors of these stages read and write their shards themselves."""
    return bool(stages) and not any(stage.gpus for stage in stages)


_WHOLE = {"batch_size": None, "batch_format": "pyarrow", "zero_copy_batch": True}


def _by_actors(
    shards: Sequence[Shard], read: Read, stages: Sequence[Stage], sink: _Sink, actors_at_once: int
) -> "ray.data.Dataset":
    """One pool of actors in which a shard goes all the way; what is handed to them are numbers of shards."""
    given = ray.put((shards, read, stages, sink))
    most = min(min(stage.actors for stage in stages), len(shards))
    numbers = ray.data.from_arrow([pa.table({"number": [number]}) for number in range(len(shards))])
    return numbers.map_batches(
        _AllTheWay,
        fn_constructor_args=([given],),
        compute=_pool(most, actors_at_once),
        num_cpus=max(stage.cpus for stage in stages),
        memory=sum(stage.memory for stage in stages) or None,
        **_WHOLE,
    )


def _by_tasks(
    shards: Sequence[Shard], read: Read, stages: Sequence[Stage], sink: _Sink, actors_at_once: int, io_cpus: float
) -> "ray.data.Dataset":
    """Tasks that read and write, and a pool of actors for each stage in between."""
    data = ray.data.read_datasource(_Shards(shards, read), override_num_blocks=len(shards), num_cpus=io_cpus)
    for stage in stages:
        data = data.map_batches(
            _Staged,
            fn_constructor_args=(stage.name, stage.actor, stage.arguments),
            compute=_pool(min(stage.actors, len(shards)), actors_at_once),
            num_cpus=stage.cpus,
            num_gpus=stage.gpus or None,
            memory=stage.memory or None,
            **_WHOLE,
        )
    return data.map_batches(sink, num_cpus=io_cpus, **_WHOLE)


def _pool(most: int, at_once: int) -> ActorPoolStrategy:
    return ActorPoolStrategy(min_size=min(most, at_once), max_size=most, max_tasks_in_flight_per_actor=_TASKS_PER_ACTOR)


class _Shards(Datasource):  # type: ignore[misc]
    """One read task per shard; what all tasks share is put in the object store once."""

    def __init__(self, shards: Sequence[Shard], read: Read) -> None:
        super().__init__()
        self._shards = shards
        self._read = ray.put(read)

    def estimate_inmemory_data_size(self) -> int:
        return sum(shard.size for shard in self._shards)

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: DataContext | None = None
    ) -> list[ReadTask]:
        return [
            ReadTask(_reading(self._read, shard), BlockMetadata(None, shard.size, None, None)) for shard in self._shards
        ]


def _reading(read: "ray.ObjectRef[Read]", shard: Shard) -> Callable[[], Iterable[pa.Table]]:
    return lambda: [ray.get(read)(shard)]


class _Staged:
    """An annotator inside an actor: keeps the block's identity and adds the stage's CPU time."""

    def __init__(self, name: str, actor: Callable[..., Any], arguments: dict[str, Any]) -> None:
        self.name = name
        self.annotate = actor(**arguments)

    def __call__(self, block: pa.Table) -> pa.Table:
        started = os.times()  # a stage may use threads and processes of its own
        info = BlockInfo.of(block)
        annotated = self.annotate(block)
        return info.attach(annotated, **{self.name: sum(os.times()[:4]) - sum(started[:4])})


class _AllTheWay:
    """Reads, annotates and writes whole shards inside one actor."""

    def __init__(self, given: "list[ray.ObjectRef[Any]]") -> None:
        self.shards, self.read, stages, self.sink = ray.get(given[0])
        self.stages = [_Staged(stage.name, stage.actor, stage.arguments) for stage in stages]
        # What has been imported stays; collections need not look through it again (5 % of LintSeq's time).
        gc.freeze()

    def __call__(self, number: pa.Table) -> pa.Table:
        block = self.read(self.shards[number["number"][0].as_py()])
        for stage in self.stages:
            block = stage(block)
        return self.sink(block)


def _settle(context: DataContext, stall_seconds: float, cores: int | None) -> None:
    # No block shaping: one shard stays one block. Our own progress bar replaces Ray's.
    context.target_max_block_size = None
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # Otherwise an error of a stage or the sink comes back inside one of Ray Data's, without its class.
    context.raise_original_map_exception = True
    context.execution_no_progress_timeout_s = stall_seconds
    context.execution_options.resource_limits = ExecutionResources.for_limits(cpu=cores)
    # What goes wrong comes back as an exception; Ray Data would print it too, traceback and all. Its log file keeps it.
    log = logging.getLogger("ray.data")
    log.setLevel(logging.ERROR)
    for handler in log.handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setLevel(logging.CRITICAL + 1)


def user_error(error: BaseException) -> HeadraceError | None:
    """The `HeadraceError` inside whatever Ray wrapped around it."""
    seen: list[BaseException] = [error]
    while seen:
        each = seen.pop()
        if isinstance(each, HeadraceError):
            # Ray raises a class derived from both its own error and ours; hand on a plain one of ours.
            ours = next(base for base in type(each).__mro__ if base.__module__ == HeadraceError.__module__)
            plain: HeadraceError = ours(each.problem, each.remedy)
            return plain
        # An actor that fails as it starts has what failed among its arguments.
        inside = (each.__cause__, getattr(each, "cause", None), *each.args)
        seen += [inner for inner in inside if isinstance(inner, BaseException)]
    return None
