"""A search, from the recipe to the best recipe: check, propose, run trials on Ray Tune, rank, report.

    RUN/trials.jsonl   what is known of each trial        RUN/trials/JOB/NUMBER   its run, as the job makes it
    RUN/shared         datasets of tokens, made once      RUN/best_recipe.yaml, leaderboard.csv, report.html

Ray Tune's own state is thrown away with each call: it is made anew from trials.jsonl, finished trials are not repeated,
and those that were running go on from their own checkpoints.

Left out: what a trial does (`tuning.trial`) and what is written at the end (`tuning.outputs`). Called by `jobs.tune`.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from engine.cluster import session
from engine.config import Recipe, read_yaml, set_key
from engine.corpus.ledger import Identity, Ledger
from engine.errors import HeadraceError, Interrupted, RecipeError, ResourceError
from engine.observe import Progress, Stopwatch
from engine.resources import Capacity, Demand, capacity, preflight
from engine.runs import Invocation, Outcome, Run, set_aside
from engine.storage import is_local
from tuning.history import FILE, History, Trial
from tuning.outputs import BEST, facts_of, write_outputs
from tuning.recipe import TuneRecipe
from tuning.schedulers import check_scheduler, config_of, make_scheduler
from tuning.space import Space
from tuning.trial import Plan
from tuning.tuner import DRIVER_MEMORY, run_trials

_HARMLESS = ("optimiser.", "learning.", "training.", "macro.", "guards.", "critic.learning_rate", "tasks.", "seed")
"""Keys that change nothing of what a trial asks of the cluster."""


def run_search(recipe: TuneRecipe, call: Invocation, load_job: Callable[[str], Any]) -> Outcome:
    """Carry out a search; `load_job` gives a job's module by name. Raises `HeadraceError`s only, save for bugs."""
    return Search(recipe, call, load_job).run()


class Search:
    """One call of `headrace tune`."""

    def __init__(self, recipe: TuneRecipe, call: Invocation, load_job: Callable[[str], Any]) -> None:
        self.recipe, self.call, self.load_job = recipe, call, load_job
        self.watch = Stopwatch()
        self.home = Run("tune", recipe)
        if not is_local(self.home.path):
            raise RecipeError(
                f"A search is written line by line, which {self.home.path} does not take.", "Keep runs on a disk."
            )
        self.base = read_yaml(recipe.recipe) if isinstance(recipe.recipe, str) else recipe.recipe
        data = json.loads(json.dumps(self.base))
        for key, value in recipe.set.items():
            set_key(data, key, value)
        data["output"] = None  # trials publish in their own runs
        kind = load_job(recipe.job).RECIPE
        if "output" not in kind.model_fields:
            data.pop("output")
        self.space = Space(recipe, kind, data)
        self.metric, self.mode = recipe.measure
        self.proposer = self._proposer()
        first = self.make("000", self.proposer(0, [])[0])
        self.steps = _steps(first)
        check_scheduler(recipe.scheduler, self.steps, self.space)
        digest = hashlib.sha256(json.dumps(data, sort_keys=True, default=str).encode()).hexdigest()[:16]
        self.inputs = {recipe.where: digest}
        self.identity = Identity(
            job="tune", recipe_fingerprint=recipe.fingerprint(), inputs_fingerprint=digest, shards=0
        )

    def _proposer(self) -> Callable[[int, list[Trial]], tuple[dict[str, Any], dict[str, Any]]]:
        """What gives values, and notes on them, for a trial, given its number and those there are."""
        recipe, minimise = self.recipe, self.mode == "min"
        if recipe.search == "subsets":
            from tuning.subsets import SubsetProposer

            return SubsetProposer(recipe, self.space)

        def propose(number: int, known: list[Trial]) -> tuple[dict[str, Any], dict[str, Any]]:
            return self.space.propose(recipe.search, recipe.seed, number, known, minimise=minimise), {}

        return propose

    def make(self, name: str, values: Mapping[str, Any]) -> Recipe:
        """The recipe of a trial."""
        return _make(self.space, str(self.home.path.absolute()), name, values)

    def run(self) -> Outcome:
        """Do what is left to do; nothing, for a dry run."""
        if self.call.dry_run:
            return self._forecast()
        if self.call.fresh:
            Ledger(self.home.path).check_free()
            set_aside(self.home.path)
        ledger = Ledger(self.home.path)
        if not (self.home.path / FILE).exists():
            # What was refused before its first trial is no reason to refuse the recipe that mends it.
            ledger.check_free()
            shutil.rmtree(str(ledger.root), ignore_errors=True)
            ledger = Ledger(self.home.path)
        ledger.identify(self.identity, self.recipe.model_dump(mode="json"), self.inputs)
        with ledger.claimed():
            self.home.open()
            self.history = History(Path(str(self.home.path)), minimise=self.mode == "min")
            ended = sum(each.ended for each in self.history.trials.values())
            idle = ended == len(self.history.trials) and ended >= self.recipe.trials
            if not idle:
                self._search(ended)
            return self._outcome(reused=idle)

    def _search(self, ended: int) -> None:
        try:
            with session(self.call.address) as ray_session:
                with self.watch.phase("plan"):
                    demands = self._demands()
                    there = capacity(ray_session)
                    most = self._concurrency(demands, there)
                with self.watch.phase("trials"), Progress("tune", self.recipe.trials, "trials", done=ended) as progress:
                    self._tune(most, max(there.cores // most, 1), progress)
        except KeyboardInterrupt:
            done = sum(each.ended for each in self.history.trials.values())
            raise Interrupted(
                f"Interrupted; {done} of {self.recipe.trials} trials have ended, the others keep their checkpoints.",
                f"Resume with: {self.call.command}",
            ) from None

    def _tune(self, most: int, workers: int, progress: Progress) -> None:
        waiting = [each for each in self.history.trials.values() if not each.ended]
        run_trials(
            self._plan(workers),
            self.history,
            scheduler=partial(
                make_scheduler,
                self.recipe.scheduler,
                self.mode,
                self.steps,
                self.history,
                self.space,
                self.recipe.seed,
                most=most,
            ),
            # Ray's PBT takes no searcher: its first trials are told at once.
            at_once=self.recipe.scheduler.kind == "pbt",
            waiting=[config_of(each, again=int(self.recipe.scheduler.kind == "asha")) for each in waiting],
            begin=lambda: config_of(self._begin()),
            fresh=max(self.recipe.trials - len(self.history.trials), 0),
            most=most,
            progress=progress,
            said=getattr(self.proposer, "said", None),
        )

    def _plan(self, workers: int) -> Plan:
        snapshots = Path(str(self.home.path.absolute())) / "snapshots"
        if self.recipe.scheduler.kind == "pbt":
            snapshots.mkdir(exist_ok=True)
        return Plan(
            job=self.recipe.job,
            load_job=self.load_job,
            make=partial(_make, self.space, str(self.home.path.absolute()), workers=workers),
            metric=self.metric,
            command=self.call.command,
            cwd=os.getcwd(),
            runs=str(self.home.path.absolute() / "trials"),
            snapshots=str(snapshots) if self.recipe.scheduler.kind == "pbt" else "",
        )

    def _begin(self) -> Trial:
        """The next trial, set down before it begins."""
        known = list(self.history.trials.values())
        number = max(self.history.trials, default=0) + 1
        values, told = self.proposer(number, known)
        return self.history.start(number, values, told=told)

    def _demands(self) -> list[Demand]:
        """What a trial asks for, by a dry run of its job. Raises what is wrong with the base recipe or its inputs."""
        job, wanted = self.load_job(self.recipe.job), list[list[Demand]]()
        first = self.proposer(0, [])[0]
        candidates = [first]
        for key, each in self.space.ranges.items():
            if key in first and not key.startswith(_HARMLESS):
                candidates += [{**first, key: end} for end in each.ends]
        for values in candidates:
            told = job.run(self.make("000", values), Invocation(self.call.command, self.call.address, dry_run=True))
            wanted.append([*told.demands])
        largest = max(wanted, key=lambda each: (_sum(each, "gpus"), _sum(each, "cpus"), _sum(each, "memory")))
        return [*largest, Demand("drivers of trials", 1, cpus=0, memory=DRIVER_MEMORY)]

    def _concurrency(self, demands: list[Demand], there: Capacity) -> int:
        """How many trials run at once without waiting for one another's pieces. Raises `ResourceError` for none."""
        preflight(demands, there)
        wanted = min(self.recipe.concurrent or self.recipe.trials, self.recipe.trials)
        fits = 1
        for count in range(2, wanted + 1):
            try:
                preflight([replace(each, count=each.count * count) for each in demands], there)
            except ResourceError as error:
                if self.recipe.concurrent:
                    raise ResourceError(
                        f"{wanted} trials at once do not fit: {error.problem}", f"Set concurrent to at most {fits}."
                    ) from None
                break
            fits = count
        return fits

    def _forecast(self) -> Outcome:
        from engine.corpus.transform import room  # it loads Ray, which `session` has to set up first

        recipe = self.recipe
        demands, there = self._demands(), room(self.call.address)
        most = self._concurrency(demands, there)
        numbers = range(1, min(recipe.trials, 5) + 1)
        samples = {f"trial {at}": _listed(self.proposer(at, [])[0]) for at in numbers}
        facts = {
            "job": f"{recipe.job}, {recipe.where}",
            "compared by": f"{self.metric}, {'less' if self.mode == 'min' else 'more'} is better",
            **{f"space: {key}": _described(each) for key, each in self.space.ranges.items()},
            **samples,
            "trials": f"{recipe.trials}, {most} at once" + (f", {self.steps:,} steps each" if self.steps else ""),
            "scheduler": recipe.scheduler.kind,
            "demand of a trial": "; ".join(map(str, demands)),
            "output": str(self.home.path / BEST),
        }
        return Outcome("tune", self.home.path / BEST, facts, published=False)

    def _outcome(self, *, reused: bool) -> Outcome:
        ranked = self.history.ranked()
        failed = [each for each in ranked if each.state == "failed"]
        if len(failed) == len(ranked):
            first = min(failed, key=lambda each: each.number)
            raise HeadraceError(
                f"All {len(failed)} trials failed; the first because: {first.why}",
                "Correct the recipe, then add --fresh: trials that failed are not repeated.",
            )
        with self.watch.phase("report"):
            report = write_outputs(self, ranked)
        return Outcome(
            "tune",
            self.home.path / BEST,
            facts_of(self, ranked),
            () if reused else self.watch.shares(),
            {"trials": "more trials at once, a scheduler that stops the worse, or a smaller base recipe."},
            report,
            reused=reused,
            next_command=f"headrace {self.recipe.job} {self.home.path / BEST}",
        )


def _make(space: Space, home: str, name: str, values: Mapping[str, Any], workers: int | None = None) -> Recipe:
    """The recipe of a trial: its run lies in the search's, and what it makes of the inputs is shared by all. `workers`
    are its own while it reads, where the base recipe does not say: it must not want what other trials hold."""
    ours: dict[str, Any] = {"name": name, "runs": f"{home}/trials"}
    fields = space.kind.model_fields
    if workers and "workers" in fields and not space.base.get("workers"):
        ours["workers"] = workers
    if "shared" in fields:
        ours["shared"] = f"{home}/shared"
    elif "cache" in fields and not space.base.get("cache"):
        ours["cache"] = f"{home}/shared"
    return space.recipe(values, **ours)


def _sum(demands: Sequence[Demand], what: str) -> float:
    return float(sum(each.count * getattr(each, what) for each in demands))


def _steps(recipe: Any) -> int | None:
    """Steps of a whole trial where its recipe tells."""
    section = getattr(recipe, "training", None) or getattr(recipe, "learning", None)
    return getattr(section, "steps", None)


def _described(each: Any) -> str:
    ends = ", ".join(map(str, each.ends)) if each.kind == "choice" else f"{each.ends[0]} to {each.ends[1]}"
    when = "; when " + " and ".join(f"{key} is {value}" for key, value in each.when.items()) if each.when else ""
    return f"{each.kind}: {ends}{when}"


def _listed(values: Mapping[str, Any]) -> str:
    from tuning.space import shown

    return ", ".join(f"{key} {shown(value)}" for key, value in values.items())
