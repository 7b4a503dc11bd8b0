"""A job over a corpus, from the recipe to the published dataset: plan, claim, stream, commit, publish, report.

    plan ---> ledger (what is done?) ---> stream of the rest ---> records ---> manifest ---> report

Everything committed survives a kill at any moment: the next call with the same recipe finds the records, skips those
shards before reading and goes on. Calling it once more after it has published changes nothing.

Left out: what the stages compute (the method rooms) and how the outcome is shown (`jobs.cli`). Called by `jobs`.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from upath import UPath

from engine import artifacts
from engine.cluster import Session, session
from engine.corpus.ceiling import codec_ceiling
from engine.corpus.config import FilterConfig
from engine.corpus.duplicates import HashSink, find_duplicates
from engine.corpus.ledger import Identity, Ledger, Record
from engine.corpus.plan import Plan, make_plan
from engine.corpus.recipe import DataRecipe
from engine.corpus.report import closing_sections, common_sections, merge_counts
from engine.corpus.sink import Sink
from engine.corpus.stream import Read, Stage, stream
from engine.errors import ArtifactError, Interrupted, QuarantineExceeded, ResumeRefused
from engine.observe import MetricsWriter, Progress, Report, Stopwatch, configure_logging
from engine.resources import Capacity, Demand, capacity, local_capacity, preflight
from engine.runs import Invocation, Outcome, Run, set_aside
from engine.storage import locate, make_directory, names

_KB = 1000

_TOLERATED = 10
"""Poison rows that never stop a job, so that a small input with a few bad lines still goes through."""


@dataclass(frozen=True)
class Transform:
    """One kind of job over a corpus: the schemas at both ends and what happens in between.

    `stages(cores)` builds the actor stages for a number of cores; `statistics` counts over a finished part (counts add
    up over parts); `narrate` adds the job's own sections to the report.
    """

    job: str
    reads: str
    writes: str
    content: str
    """The column that filters, duplicates and language identification look at."""
    stages: Callable[[int], Sequence[Stage]] = lambda cores: ()
    filters: FilterConfig = field(default_factory=FilterConfig)
    statistics: Callable[[pa.Table], dict[str, Any]] | None = None
    narrate: Callable[[Report, artifacts.Dataset], None] | None = None
    hints: Mapping[str, str] = field(default_factory=dict)

    def demands(self, cores: int) -> list[Demand]:
        """All that must be schedulable at once for the job to move."""
        stages = self.stages(cores)
        io = Demand("readers and writers", 1, cpus=0.25 if stages else 1.0)
        return [io, *(Demand(f"{s.name} actors", s.actors, cpus=s.cpus, gpus=s.gpus, memory=s.memory) for s in stages)]


def run_transform(transform: Transform, recipe: DataRecipe, call: Invocation) -> Outcome:
    """Carry out a job over a corpus; see the module's text. Raises `HeadraceError`s only, save for bugs."""
    watch = Stopwatch()
    here = Run(transform.job, recipe)
    output = locate(recipe.output) if recipe.output else here.path / "dataset"
    if call.fresh and not call.dry_run:
        set_aside(here.path)
        set_aside(output)
        artifacts.discard_staging(output)
    with watch.phase("plan"):
        plan = make_plan(recipe.source, artifacts.SCHEMAS[transform.reads])
    identity = Identity(
        job=transform.job,
        recipe_fingerprint=recipe.fingerprint(),
        inputs_fingerprint=plan.fingerprint(),
        shards=len(plan.shards),
    )
    published = _already_published(output, identity)
    if call.dry_run:
        return _forecast(transform, recipe, plan, output, Ledger(here.path), published is not None)
    if published:
        return _outcome(transform, recipe, published, watch, here.path, reused=True)

    here.open()
    configure_logging(here.path)
    ledger = Ledger(here.path)
    ledger.identify(identity, recipe.model_dump(mode="json"), {file.name: file.fingerprint for file in plan.files})
    with ledger.claimed() as claimed, MetricsWriter(here.path) as metrics, _interruptible(claimed, plan, call):
        done = claimed.records()
        staging = artifacts.open_staging(output)
        _check_parts(staging, done, here.path)
        if len(done) < len(plan.shards):
            with ExitStack() as stack:
                with watch.phase("start Ray"):
                    ray_session = stack.enter_context(session(call.address, cpus=recipe.workers))
                done |= _stream(transform, recipe, plan, claimed, done, staging, here.path, ray_session, watch, metrics)
        with watch.phase("publish"):
            manifest = _manifest(transform, recipe, plan, identity, done, staging)
            published = artifacts.publish(staging, output, manifest)
        rate = _rate(done.values())
    return _outcome(transform, recipe, published, watch, here.path, rate=rate)


def _stream(
    transform: Transform,
    recipe: DataRecipe,
    plan: Plan,
    ledger: Ledger,
    before: Mapping[int, Record],
    staging: UPath,
    run_dir: UPath,
    ray_session: Session,
    watch: Stopwatch,
    metrics: MetricsWriter,
) -> dict[int, Record]:
    """Run every shard that has no record in `before`; returns the new records."""
    room = capacity(ray_session)
    cores = recipe.workers or _cores(room)
    preflight(transform.demands(cores), room)
    read = Read(plan.reader, plan.schema, transform.content, transform.filters)
    if transform.filters.exact_duplicates:
        with watch.phase("duplicates"):
            read = _without_duplicates(read, plan, run_dir, recipe.stall_seconds)
    sink = Sink(staging, run_dir, ledger, keep_dropped=recipe.keep_dropped, statistics=transform.statistics)
    todo = [shard for shard in plan.shards if shard.index not in before]
    sizes = {shard.index: shard.size for shard in plan.shards}
    new: dict[int, Record] = {}
    tally = _Tally(plan.size)
    for index, record in before.items():
        tally.add(record, sizes[index])
    with watch.phase("stream"), Progress(transform.job, plan.size // _KB, "kB", done=tally.size // _KB) as progress:
        for row in stream(todo, read, transform.stages(cores), sink, stall_seconds=recipe.stall_seconds):
            record = Record.model_validate_json(row["record"])
            new[record.shard] = record
            shown = tally.size // _KB
            tally.add(record, sizes[record.shard])
            progress.advance(tally.size // _KB - shown, rows=tally.rows)
            metrics.log(len(before) + len(new), rows=tally.rows, rows_out=record.rows_out, quarantined=tally.poison)
            _check_quarantine(recipe, tally, run_dir)
    for record in new.values():
        watch.split("stream", record.seconds)
    return new


def _without_duplicates(read: Read, plan: Plan, run_dir: UPath, stall_seconds: float) -> Read:
    """Run the hashing pass over the shards that have no sidecar yet, and point the read at what it found."""
    folder = run_dir / "duplicates"
    make_directory(folder)
    present = set(names(folder))
    todo = [shard for shard in plan.shards if f"part-{shard.index:06d}.parquet" not in present]
    plain = Read(read.reader, read.schema, read.column)
    with Progress("hash", len(todo), "shards") as progress:
        for _ in stream(todo, plain, (), HashSink(folder, read.column), stall_seconds=stall_seconds):
            progress.advance()
    find_duplicates(folder, [shard.index for shard in plan.shards])
    return Read(read.reader, read.schema, read.column, read.filters, str(folder))


def _already_published(output: UPath, identity: Identity) -> artifacts.Dataset | None:
    """The dataset under this name if it is what this call would make. Raises `ResumeRefused` if it is another."""
    try:
        present = output.exists() and artifacts.is_dataset(output)
    except ArtifactError:
        return None
    if not present:
        return None
    dataset = artifacts.read_dataset(output)
    manifest = dataset.manifest
    if (
        manifest.recipe_fingerprint != identity.recipe_fingerprint
        or manifest.inputs_fingerprint != identity.inputs_fingerprint
    ):
        what = "recipe" if manifest.recipe_fingerprint != identity.recipe_fingerprint else "input"
        raise ResumeRefused(
            f"{output} was published from another {what}.",
            "Choose another name=... (or output=...), or add --fresh to set it aside and start over.",
        )
    return dataset


@contextmanager
def _interruptible(ledger: Ledger, plan: Plan, call: Invocation) -> Iterator[None]:
    """Turn Ctrl-C into a sentence that says what is kept and how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        kept = f"{len(ledger.records()):,} of {len(plan.shards):,} shards are committed"
        raise Interrupted(f"Interrupted; {kept} and kept.", f"Resume with: {call.command}") from None


def _check_parts(staging: UPath, done: Mapping[int, Record], run_dir: UPath) -> None:
    """See that every committed part is still there before building on it."""
    present = set(names(staging))
    missing = [record.part.file for record in done.values() if record.part and record.part.file not in present]
    if missing:
        raise ResumeRefused(
            f"{len(missing)} committed parts of {run_dir} are gone from {staging} (first {missing[0]}).",
            "Put them back, or add --fresh to set the run aside and start over.",
        )


@dataclass
class _Tally:
    """Running totals of a stream: rows read, rows in quarantine, and planned bytes done of `planned`."""

    planned: int
    rows: int = 0
    poison: int = 0
    size: int = 0

    def add(self, record: Record, size: int) -> None:
        self.rows += record.rows_in
        self.poison += record.quarantined
        self.size += size


def _check_quarantine(recipe: DataRecipe, tally: _Tally, run_dir: UPath) -> None:
    """Stop once the poison rows pass the recipe's share of the rows expected in all."""
    expected = tally.rows * tally.planned / max(1, tally.size)
    if tally.poison > max(_TOLERATED, recipe.max_quarantine * expected):
        raise QuarantineExceeded(
            f"{tally.poison} rows are in quarantine, more than max_quarantine={recipe.max_quarantine} allows.",
            f"Look at {run_dir / 'quarantine'}; correct the input, or raise max_quarantine and run again to resume.",
        )


def _cores(room: Capacity) -> int:
    """Cores to work on: all there are now, at least one."""
    return max(1, int(sum(node.cpus for node in room.now)))


def _rate(done: Collection[Record]) -> float:
    """Uncompressed megabytes of input per CPU-second of the workers."""
    worked = sum(sum(record.seconds.values()) for record in done)
    return sum(record.bytes_in for record in done) / max(worked, 1e-9) / 1e6


def _manifest(
    transform: Transform,
    recipe: DataRecipe,
    plan: Plan,
    identity: Identity,
    done: Mapping[int, Record],
    staging: UPath,
) -> artifacts.Manifest:
    records = [done[shard.index] for shard in plan.shards]
    parts = tuple(record.part for record in records if record.part)
    counts: Counter[str] = Counter({"read": 0, "quarantined": 0})
    for record in records:
        counts.update({"read": record.rows_in, "quarantined": record.quarantined})
        counts.update({f"dropped: {reason}": count for reason, count in record.dropped.items()})
    counts.update({f"skipped files: {reason}": count for reason, count in plan.skipped.items()})
    return artifacts.Manifest(
        schema_name=transform.writes,
        columns=_columns(staging / parts[0].file) if parts else {},
        rows=sum(part.rows for part in parts),
        parts=parts,
        parents=plan.parents,
        job=transform.job,
        recipe=recipe.model_dump(mode="json"),
        recipe_fingerprint=identity.recipe_fingerprint,
        inputs_fingerprint=identity.inputs_fingerprint,
        code_version=artifacts.code_version(),
        seed=recipe.seed,
        counts=dict(counts),
        statistics=merge_counts([record.statistics for record in records]),
    )


def _columns(path: UPath) -> dict[str, str]:
    with path.open("rb") as file:
        return {field.name: str(field.type) for field in pq.read_schema(file)}


def _facts(dataset: artifacts.Dataset) -> dict[str, str]:
    counts = dataset.manifest.counts
    facts = {"rows": f"{dataset.rows:,}", "read": f"{counts['read']:,}"}
    facts.update({name: f"{count:,}" for name, count in sorted(counts.items()) if name != "read" and count})
    return facts


def _forecast(
    transform: Transform, recipe: DataRecipe, plan: Plan, output: UPath, ledger: Ledger, published: bool
) -> Outcome:
    """What a run would do, for `--dry-run`: derived numbers, demand, memory, and what is already there."""
    room = local_capacity()
    cores = recipe.workers or _cores(room)
    preflight(transform.demands(cores), room)
    largest = max(shard.size for shard in plan.shards)
    done = len(ledger.records())
    facts = {
        "input": f"{len(plan.files):,} files, about {plan.size / 1e6:,.1f} MB uncompressed",
        "shards": f"{len(plan.shards):,} ({done:,} committed already), largest {largest / 1e6:.1f} MB",
        "demand": "; ".join(str(demand) for demand in transform.demands(cores)),
        "memory per worker": f"about {(4 * largest + 400e6) / 1e9:.1f} GB",
        "output": f"{transform.writes} at {output}" + (" (published already)" if published else ""),
    }
    return Outcome(transform.job, output, facts, published=False)


def _outcome(
    transform: Transform,
    recipe: DataRecipe,
    dataset: artifacts.Dataset,
    watch: Stopwatch,
    run_dir: UPath,
    *,
    rate: float | None = None,
    reused: bool = False,
) -> Outcome:
    """The facts of a published dataset and, unless it is there from before, its report."""
    facts = _facts(dataset)
    report = run_dir / "report.html"
    if reused and report.exists():
        return Outcome(transform.job, output=dataset.path, facts=facts, report=report, reused=True)
    if rate is not None:
        with watch.phase("measure ceiling"):
            ceiling = codec_ceiling(dataset)
        facts["rate"] = f"{rate:,.2f} MB per core-second"
        if ceiling:
            facts["codec ceiling"] = f"{ceiling.both:,.0f} MB per core-second; reached {rate / ceiling.both:.1%}"
    with watch.phase("report"):
        page = common_sections(transform.job, recipe, dataset, facts, watch.shares(), transform.hints)
        if transform.narrate:
            transform.narrate(page, dataset)
        closing_sections(page, dataset, transform.content)
        page.write(report)
    return Outcome(transform.job, dataset.path, facts, watch.shares(), transform.hints, report, reused=reused)
