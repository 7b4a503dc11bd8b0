"""A fine-tuning job, from the recipe to the published model: tokenise, claim, train, publish, report.

    rows --tokenise--> RUN/tokenise/NAME/dataset --Ray Train--> RUN/checkpoints --> RUN/model, report.html

Both halves resume: the first shard by shard (`engine.corpus`), the second from its last checkpoint. A recipe or an
input that has changed since is refused, and a second driver is turned away while the first one lives.

Left out: what a worker does (`engine.finetune.work`) and the recipes' keys. Called by `jobs`.
"""

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from upath import UPath

from engine import artifacts
from engine.artifacts import Dataset, Model, read_dataset
from engine.cluster import session
from engine.corpus import Stage, Transform, make_plan, run_transform
from engine.corpus.ledger import Identity, Ledger
from engine.corpus.transform import room
from engine.errors import RecipeError, SourceError
from engine.finetune.checkpoints import Checkpoints, State
from engine.finetune.forecast import Memory, forecast
from engine.finetune.loop import total_steps
from engine.finetune.recipe import FineTuningRecipe
from engine.finetune.report import HINTS, write_report
from engine.finetune.reruns import after_others, interruptible, is_published, published_before
from engine.finetune.tasks import learnt_rows, with_named_tasks
from engine.finetune.tokenise import OTHER_LABEL, SCHEMA, GivenAway, Tokenise, TokensRecipe, statistics, tokenizer_for
from engine.finetune.work import Assignment, MakeTask, task_by_format, train_worker
from engine.finetune.workers import run_workers
from engine.models import fingerprint, portable, resolve, tokenizer_fingerprint
from engine.observe import Stopwatch, configure_logging
from engine.resources import Demand, capacity, preflight
from engine.runs import Invocation, Outcome, Run, set_aside
from engine.storage import is_local, writable


@dataclass(frozen=True)
class FineTuningJob:
    """One kind of job: its name, what must not be trained on, what is learnt, which other models that reads, by name,
    the configuration of what is trained, given the recipe and that of what it starts from, what else a dry run tells,
    given the recipe, the run directory and the dataset of tokens, if it is there, and what looks at that dataset before
    anything is learnt from it."""

    name: str
    given_away: GivenAway | None = None
    next_command: Callable[[UPath], str] = lambda model: ""
    make_task: MakeTask = task_by_format
    others: Callable[[Any], Mapping[str, str]] = lambda recipe: {}
    shape: Callable[[Any, Any], Any] = lambda recipe, config: config
    told: Callable[[Any, UPath, Dataset | None], Mapping[str, str]] = lambda recipe, home, dataset: {}
    check: Callable[[Dataset], None] = lambda dataset: None


def run_fine_tuning(job: FineTuningJob, recipe: FineTuningRecipe, call: Invocation) -> Outcome:
    """Carry out a fine-tuning job. Raises `HeadraceError`s only, save for bugs."""
    return FineTuningRun(job, recipe, call).run()


class FineTuningRun:
    """One call of a job: `run` to publish a model, `learn` for its checkpoints alone."""

    def __init__(self, job: FineTuningJob, recipe: FineTuningRecipe, call: Invocation) -> None:
        recipe, chosen = with_named_tasks(recipe)
        places: dict[str, Any] = {"model": portable(recipe.model)}
        if recipe.tokens.chat_template:
            template = os.path.abspath(recipe.tokens.chat_template)
            places["tokens"] = recipe.tokens.model_copy(update={"chat_template": template})
        self.job, self.recipe, self.call = job, recipe.model_copy(update=places), call
        self.watch = Stopwatch()
        self.home = Run(job.name, recipe)
        if recipe.training.trajectory and not is_local(self.home.path):
            raise RecipeError(
                f"training.trajectory is written line by line, which {self.home.path} does not take.",
                "Leave it out, or keep runs on a disk.",
            )
        self.output = writable(recipe.output) if recipe.output else self.home.path / "model"
        with self.watch.phase("plan"):
            plan = make_plan(recipe.source, artifacts.SCHEMAS[SCHEMA[recipe.format]])
            self.inputs = {file.name: file.fingerprint for file in plan.files}
            self.rows = plan.fingerprint()
            self.parents = (*plan.parents, *chosen)
            self.tokenizer = tokenizer_for(recipe.model, recipe.format, recipe.tokens)
            self.template = _hash(self.tokenizer.chat_template or "")
            folder = resolve(recipe.model)
            others = {name: str(resolve(each)) for name, each in job.others(recipe).items()}
            self.models = {name: fingerprint(Path(each)) for name, each in {"base": str(folder), **others}.items()}
            self.memory = self._memory(str(folder), list(others.values()))
        self.identity = Identity(
            job=job.name,
            recipe_fingerprint=recipe.fingerprint(),
            inputs_fingerprint=_hash(self.rows, *self.models.values(), tokenizer_fingerprint(folder), self.template),
            shards=0,
        )

    def run(self) -> Outcome:
        """Do what is left to do; nothing, for a dry run."""
        if self.call.dry_run:
            return self._forecast()
        self._make_way()
        if published := published_before(self.output, self.identity, self._changed):
            return self._outcome(published, reused=True)
        self._carry_out(publish=True)
        return self._outcome(artifacts.read_model(self.output), reused=False)

    def learn(self) -> tuple[Dataset, State]:
        """The dataset of tokens, and the state of the training when it has ended; no model is published."""
        self._make_way()
        return self._carry_out(publish=False)

    def _make_way(self) -> None:
        """Set an earlier run aside, if that is asked for."""
        if self.call.fresh:
            Ledger(self.home.path).check_free()
            set_aside(self.home.path)
            if self.recipe.output and is_published(self.output):
                set_aside(self.output)

    def _carry_out(self, *, publish: bool) -> tuple[Dataset, State]:
        ledger = Ledger(self.home.path)
        ledger.identify(self.identity, *self._origin())
        with ledger.claimed(), interruptible(self.home.path, self.call.command):
            self.home.open()
            configure_logging(self.home.path)
            with session(self.call.address) as ray_session:
                preflight(self._demands(), capacity(ray_session))
                dataset = self._tokenise()
                self.job.check(dataset)
                state = Checkpoints(self.home.path).latest()
                if publish or not (state and state.ended):
                    with self.watch.phase("train"):
                        run_workers(
                            train_worker,
                            self._assignment(dataset, publish),
                            name=self.job.name,
                            home=self.home.path,
                            parallel=self.recipe.parallel,
                            restarts=self.recipe.training.restarts,
                            stall_seconds=self.recipe.stall_seconds,
                            steps=total_steps(self.recipe.training, self._rows(dataset)),
                        )
        return dataset, Checkpoints(self.home.path).latest() or State()

    def _tokenise(self) -> Dataset:
        """The dataset of tokens, made or found. Raises `SourceError` where nothing is left to train on."""
        with self.watch.phase("tokenise"):
            transform, recipe = self._transform(), self._tokens_recipe()
            outcome = after_others(lambda: run_transform(transform, recipe, Invocation(self.call.command)))
            dataset = read_dataset(outcome.output)
        counts = dataset.manifest.counts
        dropped = {name: count for name, count in counts.items() if count and name != "read"}
        held = dataset.manifest.statistics.get("held_out", 0)
        if dataset.rows == held:
            why = ", ".join(f"{name} {count:,}" for name, count in dropped.items())
            why = why or f"all {held:,} examples are held out"
            quarantine = outcome.output.parent / "quarantine"
            remedy = f"Raise tokens.window, lower tokens.held_out, or look at {quarantine}."
            if counts.get(f"dropped: {OTHER_LABEL}"):
                remedy = "Say in classes which label is which, for example classes={good: 1, bad: 0}, and add --fresh."
            raise SourceError(f"Nothing is left to train on of {counts['read']:,} rows ({why}).", remedy)
        if self.recipe.tokens.held_out and not held:
            raise SourceError(
                f"None of {dataset.rows:,} examples is held out.", "Give more rows, or raise tokens.held_out."
            )
        return dataset

    def _transform(self) -> Transform:
        arguments: dict[str, Any] = {"recipe": self._tokens_recipe(), "given_away": self.job.given_away}
        return Transform(
            job="tokenise",
            reads=SCHEMA[self.recipe.format],
            writes="tokens",
            content="ids",
            stages=lambda cores: [Stage("tokenise", Tokenise, arguments, actors=cores)],
            filters=self.recipe.filters,
            statistics=statistics,
            uses={
                "tokenizer": tokenizer_fingerprint(resolve(self.recipe.model, weights=False)),
                "template": self.template,
            },
        )

    def _tokens_recipe(self) -> TokensRecipe:
        recipe, training = self.recipe, self.recipe.training
        copies = math.ceil(training.epochs) if recipe.tokens.bpe_dropout else 1
        shared = {
            name: getattr(recipe, name) for name in TokensRecipe.model_fields if name in type(recipe).model_fields
        }
        runs = {"runs": str(self.home.path), "output": None}
        tokens = TokensRecipe(**{**shared, **runs, "copies": copies})
        if recipe.shared:
            made_of = tokens.model_copy(update={"name": "shared"}).fingerprint()
            name = _hash(made_of, self.rows, self.template, tokenizer_fingerprint(resolve(recipe.model, weights=False)))
            tokens = tokens.model_copy(update={"name": name, "runs": str(writable(recipe.shared))})
        return tokens

    def _assignment(self, dataset: Dataset, publish: bool = True) -> Assignment:
        return Assignment(
            job=self.job.name,
            recipe=self.recipe,
            tokens=str(dataset.path),
            home=str(self.home.path),
            output=str(self.output),
            inputs_fingerprint=self.identity.inputs_fingerprint,
            parents=(*self.parents, artifacts.Parent(uri=str(dataset.path), fingerprint=dataset.fingerprint)),
            models=self.models,
            make_task=self.job.make_task,
            publish=publish,
        )

    def _rows(self, dataset: Dataset) -> int:
        """Examples to learn from in an epoch."""
        if self.recipe.tasks:
            return sum(learnt_rows(self.recipe.tasks, dataset).values())
        return int(dataset.rows - dataset.manifest.statistics["held_out"]) // self._tokens_recipe().copies

    def _memory(self, folder: str, others: list[str]) -> Memory:
        from transformers import AutoConfig

        recipe = self.recipe
        config, *beside = [
            AutoConfig.from_pretrained(each, trust_remote_code=False, local_files_only=True)
            for each in (folder, *others)
        ]
        scorer = recipe.format in ("pairs", "labels")
        return forecast(
            self.job.shape(recipe, config),
            recipe.training.dtype,
            recipe.parallel,
            recipe.lora,
            window=recipe.tokens.window,
            scorer=scorer,
            layers=recipe.lora.layers if recipe.lora else None,
            beside=beside,
        )

    def _demands(self) -> list[Demand]:
        parallel = self.recipe.parallel
        # What a GPU holds is not taken from main memory, and how much it has Ray cannot say.
        memory = 0 if parallel.gpus else self.memory.total
        key = "parallel.fewest" if parallel.fewest else "parallel.workers"
        return [Demand("training workers", parallel.least, parallel.cpus, parallel.gpus, memory, key)]

    def _origin(self) -> tuple[dict[str, Any], dict[str, str]]:
        """What the run is made from, by name, to tell what has changed."""
        models = {"model" if name == "base" else name: each for name, each in self.models.items()}
        return self.recipe.model_dump(mode="json"), {**self.inputs, **models}

    def _changed(self) -> str:
        return Ledger(self.home.path).changed(self.identity, *self._origin())

    def _forecast(self) -> Outcome:
        recipe = self.recipe
        published = None if self.call.fresh else published_before(self.output, self.identity, self._changed)
        tokens = run_transform(
            self._transform(), self._tokens_recipe(), Invocation(self.call.command, self.call.address, dry_run=True)
        )
        preflight(self._demands(), room(self.call.address))
        facts = dict(tokens.facts)
        facts.pop("output")
        known = read_dataset(tokens.output) if tokens.reused else None
        if known:
            steps = total_steps(recipe.training, self._rows(known))
            facts["steps"] = f"{steps:,} of {recipe.training.examples} examples"
        else:
            facts["steps"] = f"{recipe.training.steps or 'known once rows are tokenised'}"
        facts |= {
            "parameters": f"{self.memory.parameters:,}, trained {self.memory.trained:,}",
            "training": "; ".join(str(each) for each in self._demands()),
            "memory of a training worker": str(self.memory),
            **self.job.told(recipe, self.home.path, known),
            "output": f"a model at {self.output}" + (" (published already)" if published else ""),
        }
        return Outcome(
            self.job.name,
            self.output,
            facts,
            published=False,
            reused=published is not None,
            demands=self._demands(),
        )

    def _outcome(self, model: Model, *, reused: bool) -> Outcome:
        state = Checkpoints(self.home.path).latest() or State()
        facts = {
            "steps": f"{state.steps:,} ({state.ended})",
            "tokens": f"{state.tokens:,}, {state.tokens / max(state.seconds, 1e-9):,.0f}/s",
            **{name: f"{value:.4f}" for name, value in sorted(model.manifest.metrics.items())},
        }
        report = self.home.path / "report.html"
        if not (reused and report.exists()):
            with self.watch.phase("report"):
                dataset = read_dataset(Run("tokenise", self._tokens_recipe()).path / "dataset")
                write_report(
                    report, self.job.name, self.recipe, model, dataset, state, self.memory, self.watch.shares()
                )
        return Outcome(
            self.job.name,
            model.path,
            facts,
            () if reused else self.watch.shares(),
            HINTS,
            report,
            reused=reused,
            next_command=self.job.next_command(model.path),
        )


def _hash(*parts: str) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
