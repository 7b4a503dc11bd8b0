"""A job over a corpus, from the recipe to the published dataset: plan, claim, stream, commit, publish, report.

    plan ---> ledger (what is done?) ---> stream of the rest ---> records ---> manifest ---> report

Everything committed survives a kill at any moment: the next call with the same recipe finds the records, skips those
shards before reading and goes on. Calling it once more after it has published changes nothing.

Left out: what the stages compute (the method rooms) and how the outcome is shown (`jobs.cli`). Called by `jobs`.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
from upath import UPath

from engine import artifacts
from engine.cluster import Session, session
from engine.corpus.block import part_name
from engine.corpus.ceiling import codec_ceiling
from engine.corpus.conditions import check_conditions
from engine.corpus.config import FilterConfig, SourceConfig
from engine.corpus.duplicates import HashSink, find_duplicates
from engine.corpus.ledger import Identity, Ledger, Record
from engine.corpus.plan import Plan, make_plan
from engine.corpus.publication import make_manifest, published_before
from engine.corpus.recipe import DataRecipe, StreamRecipe
from engine.corpus.report import closing_sections, common_sections
from engine.corpus.sink import Sink
from engine.corpus.stream import FUSED_CPUS, IO_CPUS, Read, Stage, alone, stream
from engine.corpus.tally import Tally
from engine.errors import HeadraceError, Interrupted, RecipeError, ResumeRefused
from engine.observe import MetricsWriter, Progress, Report, Stopwatch, configure_logging, get_logger
from engine.resources import Capacity, Demand, capacity, local_capacity, preflight
from engine.runs import Invocation, Outcome, Run, set_aside
from engine.storage import is_local, make_directory, names, writable

_KB = 1000

_log = get_logger("corpus")


@dataclass(frozen=True)
class Workshop:
    """What a job may use to make what its stages need: its run directory and plan, how shards are read, its clock."""

    home: UPath
    plan: Plan
    read: Read
    recipe: StreamRecipe
    watch: Stopwatch


@dataclass(frozen=True)
class Transform:
    """One kind of job over a corpus: the schemas at both ends and what happens in between.

    `stages(cores)` builds the actor stages for a number of cores; `statistics` counts over a finished part (counts add
    up over parts); `narrate` adds the job's own sections to the report. `first` makes what the stages need, with Ray
    up and the run claimed; it is called each time there are shards left, and resumes by itself. `uses` are models the
    output depends on, name -> fingerprint; `models` tells those of the manifest once the stages have run. `source` is
    what is read where the recipe does not say. `after` works on what was published, before the report; it is called
    again where it did not come to its end, with the stopwatch, and resumes by itself.
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
    first: Callable[[Workshop], None] | None = None
    first_demands: Sequence[Demand] = ()
    uses: Mapping[str, str] = field(default_factory=dict)
    models: Callable[[], Mapping[str, str]] = dict
    source: SourceConfig | None = None
    after: Callable[[artifacts.Dataset, Stopwatch], None] | None = None
    limited_by_codec: bool = True
    """Whether reading and writing could be what limits it, so that its rate is compared with theirs alone."""

    def demands(self, cores: int) -> list[Demand]:
        """All that must be schedulable at once for the job to move."""
        stages = self.stages(cores)
        if alone(stages):  # one actor carries a shard through all of them
            count, memory = min(stage.actors for stage in stages), sum(stage.memory for stage in stages)
            name = " and ".join(stage.name for stage in stages)
            return [Demand(f"{name} actors", count, cpus=max(stage.cpus for stage in stages), memory=memory)]
        actors = [
            Demand(f"{stage.name} actors", stage.actors, cpus=stage.cpus, gpus=stage.gpus, memory=stage.memory)
            for stage in stages
        ]
        return [Demand("readers and writers", 1, cpus=IO_CPUS if stages else FUSED_CPUS), *actors]


def run_transform(transform: Transform, recipe: StreamRecipe, call: Invocation) -> Outcome:
    """Carry out a job over a corpus; see the module's text. Raises `HeadraceError`s only, save for bugs."""
    return _Job(transform, recipe, call).run()


class _Job:
    """One call of a job: what it was given, what it planned, and where it works."""

    def __init__(self, transform: Transform, recipe: StreamRecipe, call: Invocation) -> None:
        self.transform = transform
        self.recipe = recipe
        self.call = call
        self.watch = Stopwatch()
        self.home = Run(transform.job, recipe)
        self.output = writable(recipe.output) if recipe.output else self.home.path / "dataset"
        source = transform.source or (recipe.source if isinstance(recipe, DataRecipe) else None)
        assert source, "either the recipe or the job says what is read"
        with self.watch.phase("plan"):
            self.plan = make_plan(source, artifacts.SCHEMAS[transform.reads])
            check_conditions(transform.filters.where, self.plan.schema)
        self.identity = Identity(
            job=transform.job,
            recipe_fingerprint=recipe.fingerprint(),
            inputs_fingerprint=_combined(self.plan.fingerprint(), transform.uses),
            shards=len(self.plan.shards),
        )
        self._check_output()

    def run(self) -> Outcome:
        """Do what is left to do; nothing, for a dry run."""
        if self.call.dry_run:
            return self._forecast()
        if self.call.fresh:
            self._set_aside()
        if published := published_before(self.output, self.identity, self._changed):
            return self._outcome(published)
        staging = artifacts.open_staging(self.output)
        ledger = Ledger(self.home.path)
        ledger.identify(self.identity, *self._origin())
        with ledger.claimed() as claimed, self._interruptible(claimed):
            self.home.open()
            configure_logging(self.home.path)
            done = claimed.records()
            self._check_parts(staging, done)
            tally = Tally(self.plan, done.values())
            tally.check(self.recipe.max_quarantine, self.home.path / "quarantine")
            if len(done) < len(self.plan.shards):
                with ExitStack() as stack:
                    with self.watch.phase("start Ray"):
                        ray_session = stack.enter_context(session(self.call.address, cpus=self.recipe.workers))
                    self._stream(claimed, done, tally, staging, ray_session)
            with self.watch.phase("publish"):
                manifest = make_manifest(
                    self.plan, done, staging, self.identity, self.recipe, self.transform.writes, self.transform.models()
                )
                published = artifacts.publish(staging, self.output, manifest)
            # Still under the claim: a second run with --fresh would move the directory away under the report.
            return self._outcome(published, tally.rate)

    def _changed(self) -> str:
        return Ledger(self.home.path).changed(self.identity, *self._origin())

    def _check_output(self) -> None:
        """Raise `RecipeError` where publishing (or --fresh) would move the input or the run itself."""
        above = f"{self.output}/"
        held = [file.name for file in self.plan.files if file.uri.startswith(above)]
        if f"{self.home.path}/".startswith(above) or held:
            what = f"the input {held[0]}" if held else "the run directory"
            raise RecipeError(f"The output {self.output} holds {what}.", "Choose another output=...")

    def _set_aside(self) -> None:
        """Move an earlier run and its output out of the way. Raises `RunBusy` if it is still running."""
        Ledger(self.home.path).check_free()
        set_aside(self.home.path)
        if artifacts.is_dataset(self.output):  # a directory of anything else is not ours to move
            set_aside(self.output)
        artifacts.discard_staging(self.output)

    @contextmanager
    def _interruptible(self, ledger: Ledger) -> Iterator[None]:
        """Turn Ctrl-C into a sentence that says what is kept and how to go on."""
        try:
            yield
        except KeyboardInterrupt:
            kept = f"{len(ledger.records()):,} of {len(self.plan.shards):,} shards are committed"
            raise Interrupted(f"Interrupted; {kept} and kept.", f"Resume with: {self.call.command}") from None

    def _check_parts(self, staging: UPath, done: Mapping[int, Record]) -> None:
        """See that every committed part is still there before building on it."""
        present = set(names(staging))
        parts = [record.part for record in done.values() if record.part]
        missing = [each.file for each in parts if each.file not in present]
        if is_local(staging):  # parts are not synced one by one: after a power failure one may be short
            missing += [each.file for each in parts if each.file in present and _size(staging, each.file) != each.bytes]
        if missing:
            raise ResumeRefused(
                f"{len(missing)} committed parts of {self.home.path} are not whole in {staging} (first {missing[0]}).",
                "Put them back, or add --fresh to set the run aside and start over.",
            )

    def _stream(
        self, ledger: Ledger, done: dict[int, Record], tally: Tally, staging: UPath, ray_session: Session
    ) -> None:
        """Run every shard that has no record in `done`, and put its record there."""
        recipe, transform, plan = self.recipe, self.transform, self.plan
        room = capacity(ray_session)
        cores = self._cores(room)
        preflight(transform.demands(cores), room)
        read = Read(plan.reader, plan.schema, transform.content, transform.filters)
        if transform.filters.exact_duplicates:
            with self.watch.phase("duplicates"):
                read = self._without_duplicates(read, self.home.path / "duplicates" / ledger.run)
        if transform.first:
            preflight(transform.first_demands, room)
            transform.first(Workshop(self.home.path, plan, read, recipe, self.watch))
        sink = Sink(staging, self.home.path, ledger, keep_dropped=recipe.keep_dropped, statistics=transform.statistics)
        todo = [shard for shard in plan.shards if shard.index not in done]
        results = stream(
            todo,
            read,
            transform.stages(cores),
            sink,
            stall_seconds=recipe.stall_seconds,
            cores=recipe.workers,
            actors_at_once=room.cores,
        )
        with (
            self.watch.phase("stream"),
            MetricsWriter(self.home.path) as metrics,
            Progress(transform.job, plan.size // _KB, "kB", done=tally.size // _KB) as progress,
            closing(results),
        ):
            for row in results:
                record = done[row["shard"]] = Record.model_validate_json(row["record"])
                shown = tally.size // _KB
                tally.add(record)
                progress.advance(tally.size // _KB - shown, rows=tally.rows)
                metrics.log(tally.shards, rows=tally.rows, rows_out=tally.rows_out, quarantined=tally.quarantined)
                self.watch.split("stream", record.seconds)
                tally.check(recipe.max_quarantine, self.home.path / "quarantine")
        assert len(done) == len(plan.shards), "the stream ended before all shards came out of it"

    def _without_duplicates(self, read: Read, folder: UPath) -> Read:
        """Run the hashing pass over the shards that have no sidecar yet, and point the read at what it found."""
        make_directory(folder)
        present = set(names(folder))
        todo = [shard for shard in self.plan.shards if f"{part_name(shard.index)}.parquet" not in present]
        # Equal texts meet the same fate in the other filters, but not here: one may stay where the first one goes.
        plain = replace(read, filters=FilterConfig(where=read.filters.where))
        sink = HashSink(folder, read.column)
        with Progress("hash", len(todo), "shards") as progress:
            knobs = self.recipe
            for _ in stream(todo, plain, (), sink, stall_seconds=knobs.stall_seconds, cores=knobs.workers):
                progress.advance()
        find_duplicates(folder, [shard.index for shard in self.plan.shards])
        return replace(read, duplicates=folder)

    def _forecast(self) -> Outcome:
        """What a run would do, for `--dry-run`: derived numbers, demand, memory, and what is already there."""
        plan, transform = self.plan, self.transform
        published, done = None, 0
        if not self.call.fresh:
            published = published_before(self.output, self.identity, self._changed)
            ledger = Ledger(self.home.path)
            if not published:
                ledger.check_identity(self.identity, *self._origin())
            done = len(ledger.records())
        room = self._room()
        needed = transform.demands(self._cores(room))
        preflight(transform.first_demands, room)
        preflight(needed, room)
        largest = max(shard.size for shard in plan.shards)
        facts = {
            "input": f"{len(plan.files):,} files, about {plan.size / 1e6:,.1f} MB uncompressed",
            "shards": f"{len(plan.shards):,} ({done:,} committed already), largest {largest / 1e6:.1f} MB",
            **({"demand at first": "; ".join(map(str, transform.first_demands))} if transform.first_demands else {}),
            "demand": "; ".join(str(demand) for demand in needed),
            "memory per worker": f"about {(4 * largest + 400e6) / 1e9:.1f} GB",
            "output": f"{transform.writes} at {self.output}" + (" (published already)" if published else ""),
        }
        demands = max(needed, transform.first_demands, key=lambda each: sum(one.count * one.cpus for one in each))
        return Outcome(
            transform.job, self.output, facts, published=False, reused=published is not None, demands=demands
        )

    def _outcome(self, dataset: artifacts.Dataset, rate: float | None = None) -> Outcome:
        """The facts of a published dataset and its report; no rate: it was there from before, perhaps with a report."""
        transform, watch = self.transform, self.watch
        counts = dataset.manifest.counts
        facts = {"rows": f"{dataset.rows:,}", "read": f"{counts['read']:,}"}
        facts.update({name: f"{count:,}" for name, count in sorted(counts.items()) if name != "read" and count})
        report = self.home.path / "report.html"
        if rate is None and report.exists():
            return Outcome(transform.job, dataset.path, facts, report=report, reused=True)
        if rate is not None and transform.limited_by_codec:
            inputs = [each for shard in self.plan.shards for each in shard.slices if each.file.format == "parquet"]
            ceiling = None
            with watch.phase("measure ceiling"):
                try:
                    ceiling = codec_ceiling(dataset, inputs)
                except (OSError, pa.ArrowInvalid, HeadraceError) as error:
                    # An input may have gone since; what is published does not fail for a measurement.
                    _log.warning("codec ceiling not measured", why=str(error))
            facts["rate"] = f"{rate:,.2f} MB per core-second"
            if ceiling:
                of = "input and output" if inputs else "output"  # formats other than Parquet have no codec of their own
                facts["codec ceiling"] = (
                    f"{ceiling.both:,.0f} MB per core-second on the {of}; reached {rate / ceiling.both:.1%}"
                )
        if transform.after:
            transform.after(dataset, watch)
        with watch.phase("report"):
            page = common_sections(transform.job, self.recipe, dataset, facts, watch.shares(), transform.hints)
            if transform.narrate:
                transform.narrate(page, dataset)
            closing_sections(page, dataset, transform.content)
            page.write(report)
        shares = watch.shares()
        return Outcome(transform.job, dataset.path, facts, shares, transform.hints, report, reused=rate is None)

    def _origin(self) -> tuple[dict[str, Any], dict[str, str]]:
        """The resolved recipe and the input files' fingerprints, by which a refusal names what changed."""
        inputs = {file.name: file.fingerprint for file in self.plan.files}
        return self.recipe.model_dump(mode="json"), {**inputs, **self.transform.uses}

    def _room(self) -> Capacity:
        return room(self.call.address, self.recipe.workers)

    def _cores(self, room: Capacity) -> int:
        """Cores to work on: as the recipe says, else all there are or the autoscaler may add."""
        return self.recipe.workers or room.most_cores


def room(address: str | None, cores: int | None = None) -> Capacity:
    """What a job would find: the cluster at an address, else this machine, or so many cores of it."""
    if not address:
        return local_capacity(cpus=cores)
    with session(address) as ray_session:
        return capacity(ray_session)


def _combined(inputs: str, models: Mapping[str, str]) -> str:
    """A fingerprint of the inputs and the models an output depends on."""
    if not models:
        return inputs
    return hashlib.sha256(json.dumps([inputs, sorted(models.items())]).encode()).hexdigest()[:16]


def _size(folder: UPath, name: str) -> int:
    return int((folder / name).stat().st_size)
