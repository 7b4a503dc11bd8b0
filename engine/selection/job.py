"""Choosing tasks, from the recipe to the published choice: meta-training, gradients, estimates, selection, report.

    rows --tokens--> all candidates --meta-training--> RUNS/meta-training/NAME --gradients--> features of examples
         --regressions--> estimates of any subset --selection--> RUN/chosen_tasks, RUN/estimates.npz, report.html

Each part resumes: the training from its checkpoint, gradients from the feature cache, real trainings one by one. What a
change of the recipe does not touch is kept: another method on the same training computes nothing but the choice.

Left out: each part's own work, in the modules beside. Called by `jobs.select_tasks`.
"""

import hashlib
import json
from dataclasses import replace
from typing import Any

import numpy as np
from upath import UPath

from engine.artifacts import Dataset
from engine.cluster import session
from engine.config import write_yaml
from engine.corpus.ledger import Identity, Ledger
from engine.corpus.publication import published_before
from engine.errors import Outdated, RecipeError, SourceError
from engine.finetune import FineTuningJob, FineTuningRun, SftRecipe
from engine.finetune.checkpoints import State
from engine.finetune.loop import total_steps
from engine.finetune.options import TaskOptions
from engine.finetune.reruns import interruptible
from engine.finetune.store import TokenStore
from engine.finetune.tasks import learnt_rows
from engine.finetune.tokenise import GivenAway
from engine.observe import Stopwatch, configure_logging, get_logger
from engine.runs import Invocation, Outcome, Run, set_aside
from engine.selection.estimator import Budget, Estimator
from engine.selection.gradients import Described, Describers, Meta
from engine.selection.meta import MARGIN_LOSS, meta_task
from engine.selection.methods import Chosen, choose
from engine.selection.panel import Panel, look
from engine.selection.publication import chosen_names, publish_choice
from engine.selection.recipe import SelectRecipe
from engine.selection.report import HINTS, write_report
from engine.selection.trials import Trials
from engine.storage import replace as put
from engine.storage import writable

_log = get_logger("selection")
_SFT = "sft.yaml"
"""In the run directory: the recipe that trains on what was chosen."""
_REPO_RIDGE = 1e4
"""1 / C of the released code's logistic regression."""


def run_selection(recipe: SelectRecipe, call: Invocation, given_away: GivenAway) -> Outcome:
    """Carry out the job. Raises `HeadraceError`s only, save for bugs."""
    return _Job(recipe, call, given_away).run()


class _Job:
    """One call of the job."""

    def __init__(self, recipe: SelectRecipe, call: Invocation, given_away: GivenAway) -> None:
        self.recipe, self.call = recipe, call
        self.watch = Stopwatch()
        self.home = Run("select-tasks", recipe)
        self.output = writable(recipe.output) if recipe.output else self.home.path / "chosen_tasks"
        self.kind = FineTuningJob(
            name="meta-training", given_away=given_away, make_task=meta_task, check=self._check_tasks
        )
        with self.watch.phase("plan"):
            self.meta = self._meta_run(fresh=False)
        self.identity = Identity(
            job="select-tasks",
            recipe_fingerprint=recipe.fingerprint(),
            inputs_fingerprint=self.meta.identity.inputs_fingerprint,
            shards=0,
        )

    def run(self) -> Outcome:
        """Do what is left to do; nothing, for a dry run."""
        if self.call.dry_run:
            return self._forecast()
        ledger = Ledger(self.home.path)
        if self.call.fresh:
            ledger.check_free()
            set_aside(self.home.path)
            if self.recipe.output:
                set_aside(self.output)
        if published := published_before(self.output, self.identity, self._changed):
            return self._outcome(published, reused=True)
        ledger = Ledger(self.home.path)
        ledger.identify(self.identity, *self._origin())
        with ledger.claimed(), interruptible(self.meta.home.path, self.call.command):
            self.home.open()
            with session(self.call.address):
                published = self._choose()
        return self._outcome(published, reused=False)

    def _choose(self) -> Dataset:
        recipe, watch = self.recipe, self.watch
        with watch.phase("meta-training"):
            dataset, state = self._meta_trained()
        configure_logging(self.home.path)
        store = TokenStore.of(dataset, recipe.training.measured).of_tasks(recipe.candidates, recipe.target, "others")
        tasks = [name for name in self._candidates(dataset) if name in store.task_names]
        numbers, target = store.train[:, 0].tolist(), store.held_out[:, 0].tolist()
        names = [store.task_names[task] for task in store.tasks[numbers]]
        meta = self._described_by(dataset, state)
        with Describers(
            meta, width=recipe.estimate.width, seed=recipe.seed, stall_seconds=recipe.stall_seconds
        ) as them:
            with watch.phase("gradients"):
                described, described_target = them.describe(numbers), them.describe(target)
            places = np.array([tasks.index(name) for name in names], np.int64)
            with watch.phase("estimates"):
                estimator = self._estimator(tuple(tasks), places, described, described_target, state, them)
                estimator.save(self.home.path)
            if recipe.select.method == "trained":
                them.rest()  # trainings need the CPUs
            with watch.phase("selection"):
                trials = Trials(self.home.path, self._trained, tasks)
                chosen = choose(recipe.select, estimator, described, described_target, trials.score, recipe.seed)
            with watch.phase("sanity panel"):
                panel = look(estimator, chosen, them, numbers, target, recipe.seed)
        put(
            self.home.path / _SFT,
            write_yaml(self._sft_recipe().model_dump(mode="json", exclude_defaults=True)).encode(),
        )
        with watch.phase("publish"):
            published = publish_choice(
                self.output,
                recipe,
                self.identity,
                estimator,
                chosen,
                dataset,
                self.meta.models | {"meta": meta.fingerprint},
            )
        self._report(published, estimator, chosen, panel, state)
        return published

    def _sft_recipe(self, **changes: Any) -> SftRecipe:
        """The recipe of `sft` that trains on what was chosen, with some keys changed."""
        shared = {name: getattr(self.recipe, name) for name in SftRecipe.model_fields}
        tasks = TaskOptions(chosen=str(self.output), target=self.recipe.target)
        return SftRecipe(**{**shared, "name": f"{self.recipe.name}-chosen", "tasks": tasks, "output": None, **changes})

    def _meta_run(self, *, fresh: bool, chosen: list[str] | None = None, **changes: Any) -> FineTuningRun:
        """The training of all candidates, or of some of them, measured on the rows that tasks are chosen by."""
        recipe = self.recipe
        tasks = TaskOptions(chosen=chosen or recipe.candidates, target=recipe.target, measured="others")
        own = self._sft_recipe(**{"name": recipe.name, "tasks": tasks, **changes})
        call = Invocation(self.call.command, self.call.address, fresh=fresh)
        return FineTuningRun(self.kind, own, call)

    def _meta_trained(self) -> tuple[Dataset, State]:
        try:
            return self.meta.learn()
        except Outdated:  # of another recipe: this run has been begun anew, and so is its training
            self.meta = self._meta_run(fresh=True)
            return self.meta.learn()

    def _trained(self, subset: list[str], folder: UPath) -> float:
        """The lowest loss on the target after a step of real training on a subset, nats per token."""
        run = self._meta_run(fresh=False, chosen=subset, runs=str(folder))
        _, state = run.learn()
        return min(each.values["loss"] for each in state.measured if each.step)

    def _candidates(self, dataset: Dataset) -> list[str]:
        return list(learnt_rows(TaskOptions(chosen=self.recipe.candidates, target=self.recipe.target), dataset))

    def _check_tasks(self, dataset: Dataset) -> None:
        """Before anything is learnt: are there rows of the target, and is there a choice?"""
        candidates = self._candidates(dataset)
        if self.recipe.target not in dataset.manifest.statistics.get("tasks", {}):
            raise SourceError(
                f"There is no row of the target {self.recipe.target!r} to choose tasks by.",
                f"Correct target; tasks with rows are {', '.join(candidates[:20]) or 'none'}.",
            )
        if len(candidates) < 2:
            raise SourceError(
                f"{candidates[0]} is the only task beside the target, so there is nothing to choose."
                if candidates
                else "No task beside the target has rows, so there is nothing to choose.",
                "Give rows of more tasks: the column `task` says which one a row is of.",
            )
        if self.recipe.select.method == "trained" and len(candidates) > 8:
            raise RecipeError(
                f"select.method is trained, and {len(candidates)} candidates would take hundreds of trainings.",
                "Name eight candidates at most, or choose by estimates: select.method=forward.",
            )

    def _described_by(self, dataset: Dataset, state: State) -> Meta:
        """What gradients are taken of; the fingerprint tells all that they depend on."""
        step = state.best or state.steps
        identity = self.meta.identity
        facts = [dataset.fingerprint, identity.recipe_fingerprint, identity.inputs_fingerprint, step]
        return Meta(
            recipe=self.meta.recipe,
            home=str(self.meta.home.path),
            step=step,
            tokens=str(dataset.path),
            fingerprint=hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16],
        )

    def _estimator(
        self,
        tasks: tuple[str, ...],
        places: Any,
        found: Described,
        target: Described,
        state: State,
        describers: Describers,
    ) -> Estimator:
        options, training = self.recipe.estimate, self.recipe.training
        base = options.mode == "offset" and options.start == "base"
        estimator = Estimator(
            tasks=tasks,
            margins=found.base_margins if base else found.margins,
            gradients=found.gradients,
            task_numbers=places,
            target_margins=target.base_margins if base else target.margins,
            target_gradients=target.gradients,
            budget=Budget(training.steps, training.epochs, training.examples, self.recipe.optimiser),
            ridge=options.ridge or (_REPO_RIDGE if options.mode == "repo" else None),
            mode=options.mode,
        )
        if options.mode == "repo":
            return replace(estimator, step_length=options.scale * describers.length())
        if estimator.ridge is not None:
            return estimator
        best, total = state.best or state.steps, total_steps(training, len(found.margins))
        measured = [
            (estimator.budget.after(each.step, total), each.values[MARGIN_LOSS])
            for each in state.measured
            if 0 < each.step <= best
        ]
        return estimator.calibrated(measured)

    def _origin(self) -> tuple[dict[str, Any], dict[str, str]]:
        return self.recipe.model_dump(mode="json"), {**self.meta.inputs, **self.meta.models}

    def _changed(self) -> str:
        return Ledger(self.home.path).changed(self.identity, *self._origin())

    def _forecast(self) -> Outcome:
        published = None if self.call.fresh else published_before(self.output, self.identity, self._changed)
        call = Invocation(self.call.command, self.call.address, dry_run=True)
        meta = FineTuningRun(self.kind, self.meta.recipe, call).run()
        facts = dict(meta.facts)
        facts.pop("output")
        method = self.recipe.select.method
        facts |= {
            "candidates": ", ".join(self.recipe.candidates or ["all but the target"]),
            "target": f"{self.recipe.target}, which is never learnt from",
            "gradients": f"of each example, projected to {self.recipe.estimate.width} numbers",
            "method": method + (": a training for every subset it looks at" if method == "trained" else ""),
            "output": f"chosen tasks at {self.output}" + (" (published already)" if published else ""),
        }
        return Outcome("select-tasks", self.output, facts, published=False, reused=published is not None)

    def _report(self, published: Dataset, estimator: Estimator, chosen: Chosen, panel: Panel, state: State) -> None:
        with self.watch.phase("report"):
            path = self.home.path / "report.html"
            write_report(path, self.recipe, estimator, chosen, panel, state, published, self.watch.shares())

    def _outcome(self, published: Dataset, *, reused: bool) -> Outcome:
        found = published.manifest.statistics
        names = chosen_names(published)
        facts = {
            "chosen": f"{len(names)} of {published.rows} tasks: {', '.join(names)}",
            "estimated loss": f"{found['loss']:.4f} ± {1.96 * found['error']:.4f} nats on {self.recipe.target}",
            **{
                f"estimated, {name}": f"{each['loss']:.4f} ± {1.96 * each['error']:.4f}"
                for name, each in found["others"].items()
            },
        }
        return Outcome(
            "select-tasks",
            published.path,
            facts,
            () if reused else self.watch.shares(),
            HINTS,
            self.home.path / "report.html",
            reused=reused,
            next_command=f"headrace sft {self.home.path / _SFT}",
        )
