"""An RLHF job, from the recipe to the published policy: prompts, engines, rewards, training, report.

    driver     prompts.parquet; owns the actors of engines and rewards, so that they outlive a training worker
    workers    the loop (`engine.rlhf.loop`), on Ray Train: RUN/checkpoints --> RUN/model, RUN/model-critic

A recipe or an input that has changed since is refused, and a second driver is turned away while the first one lives.

Left out: what a worker does (`engine.rlhf.work`) and the recipe's keys. Called by `jobs.rlhf`.
"""

import hashlib
import json
import os
from contextlib import ExitStack
from typing import Any

from upath import UPath

from engine import artifacts
from engine.artifacts import Model, Parent
from engine.cluster import session
from engine.corpus.ledger import Identity, Ledger
from engine.corpus.transform import room
from engine.errors import RecipeError
from engine.finetune.checkpoints import Checkpoints, State
from engine.finetune.reruns import interruptible, is_published, published_before
from engine.finetune.workers import run_workers
from engine.models import check_scorer, fingerprint, load_tokenizer, portable, resolve
from engine.models.generation import window
from engine.observe import Stopwatch, configure_logging, read_metrics
from engine.resources import Demand, capacity, preflight, usable_cpus
from engine.rlhf.gains import gains
from engine.rlhf.memory import needs
from engine.rlhf.prompts import check_same, gather, write_prompts
from engine.rlhf.recipe import RlhfRecipe
from engine.rlhf.report import HINTS, write_report
from engine.rlhf.rewards import make_reward
from engine.rlhf.rollouts import start_engines
from engine.rlhf.work import Assignment, ScorerActor, critic_place, train_worker
from engine.runs import Invocation, Outcome, Run, set_aside
from engine.storage import locate, writable

_SCORER_CPUS = 0.25
_SHOWN = ("reward", "kl", "held_out/reward")


def run_rlhf(recipe: RlhfRecipe, call: Invocation) -> Outcome:
    """Carry out the job. Raises `HeadraceError`s only, save for bugs."""
    return _Job(recipe, call).run()


class _Job:
    """One call of the job."""

    def __init__(self, recipe: RlhfRecipe, call: Invocation) -> None:
        self.recipe, self.call = _portable(recipe), call
        self.watch = Stopwatch()
        self.home = Run("rlhf", recipe)
        self.output = writable(recipe.output) if recipe.output else self.home.path / "model"
        with self.watch.phase("plan"):
            self.base = fingerprint(resolve(recipe.model))
            self._check_model()
            self.needs = needs(recipe)
            for reward in (*recipe.rewards, *recipe.watched):
                # What is wrong with one is told here, before Ray starts.
                if reward.model and reward.kind == "model":
                    check_scorer(reward.model)
                else:
                    make_reward(reward)
            self.gathered = gather(recipe.prompts, load_tokenizer(recipe.model), recipe.seed)
            if recipe.rollout.recorded:
                check_same(locate(recipe.rollout.recorded), self.gathered)
        named = [each.model for each in (*recipe.rewards, *recipe.watched)] + [recipe.critic.model]
        self.models = {each: fingerprint(resolve(each)) for each in named if each}
        self.identity = Identity(
            job="rlhf",
            recipe_fingerprint=recipe.fingerprint(),
            inputs_fingerprint=_hash(
                self.gathered.fingerprint, self.base, *(self.models[each] for each in named if each)
            ),
            shards=0,
        )

    def run(self) -> Outcome:
        """Do what is left to do; nothing, for a dry run."""
        if self.call.dry_run:
            return self._forecast()
        if self.call.fresh:
            Ledger(self.home.path).check_free()
            set_aside(self.home.path)
            for place in (self.output, critic_place(self.output)) if self.recipe.output else ():
                if is_published(place):
                    set_aside(place)
        if published := published_before(self.output, self.identity, self._changed):
            return self._outcome(published, reused=True)
        ledger = Ledger(self.home.path)
        ledger.identify(self.identity, *self._origin())
        with ExitStack() as stack:
            stack.enter_context(ledger.claimed())
            stack.enter_context(interruptible(self.home.path, self.call.command))
            self.home.open()
            configure_logging(self.home.path)
            write_prompts(self.home.path, self.gathered)
            ray_session = stack.enter_context(session(self.call.address))
            preflight(self._demands(), capacity(ray_session))
            with self.watch.phase("train"):
                self._train()
            return self._outcome(artifacts.read_model(self.output), reused=False)

    def _check_model(self) -> None:
        """Raise `RecipeError` where more layers are to learn than the model has, or more tokens to be read."""
        from transformers import AutoConfig

        folder = resolve(self.recipe.model)
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True).get_text_config()
        if (self.recipe.learning.layers or 0) > config.num_hidden_layers:
            raise RecipeError(
                f"learning.layers is {self.recipe.learning.layers}, and the model has {config.num_hidden_layers}.",
                "Choose fewer, or leave it out: then all of it learns.",
            )
        longest, most = self.recipe.prompts.window + self.recipe.rollout.max_tokens, window(config)
        if longest > most:
            raise RecipeError(
                f"prompts.window and rollout.max_tokens are {longest:,} tokens together, and the model reads {most:,}.",
                "Lower one of them.",
            )

    def _train(self) -> None:
        """Start engines and rewards, and train beside them."""
        import ray

        recipe = self.recipe
        engines: list[Any] = []
        if recipe.rollout.with_actors:
            longest = recipe.prompts.window + recipe.rollout.max_tokens
            engines = start_engines(recipe.rollout, recipe.model, longest, self._threads, recipe.dtype)
        # A reward function may lie here, or where the driver finds it.
        found = os.pathsep.join(filter(None, (os.getcwd(), os.environ.get("PYTHONPATH"))))
        environment = {"env_vars": {"PYTHONPATH": found}}
        named = [each.key_env for each in (*recipe.rewards, *recipe.watched) if each.key_env]
        scorer = ray.remote(num_cpus=_SCORER_CPUS, max_restarts=-1, max_task_retries=2, runtime_env=environment)(
            ScorerActor
        ).remote(recipe, {name: os.environ[name] for name in named if name in os.environ})
        try:
            run_workers(
                train_worker,
                self._assignment(engines, scorer),
                name="rlhf",
                home=self.home.path,
                parallel=recipe.parallel,
                restarts=recipe.learning.restarts,
                stall_seconds=recipe.stall_seconds,
                steps=recipe.learning.steps,
                shown=_SHOWN,
            )
        finally:
            for each in (*engines, scorer):
                ray.kill(each)

    def _assignment(self, engines: list[Any], scorer: Any) -> Assignment:
        return Assignment(
            recipe=self.recipe,
            home=str(self.home.path),
            output=str(self.output),
            threads=self._threads,
            inputs_fingerprint=self.identity.inputs_fingerprint,
            base_fingerprint=self.base,
            parents=(
                *self.gathered.parents,
                *(Parent(uri=each, fingerprint=self.models[each]) for each in sorted(self.models)),
                Parent(uri=self.recipe.model, fingerprint=self.base),
            ),
            engines=tuple(engines),
            scorer=scorer,
        )

    @property
    def _threads(self) -> int:
        """Learners and engines take turns, so each may have all cores of its machine."""
        return self.recipe.threads or max(1, usable_cpus() // self.recipe.parallel.workers)

    def _demands(self) -> list[Demand]:
        recipe, parallel = self.recipe, self.recipe.parallel
        key = "parallel.fewest" if parallel.fewest else "parallel.workers"
        # What a GPU holds is not taken from main memory, and how much it has Ray cannot say.
        within = 0 if recipe.rollout.with_actors or recipe.rollout.recorded else self.needs.engine
        memory = 0 if parallel.gpus else self.needs.learner + within
        found = [Demand("training workers", parallel.least, parallel.cpus, parallel.gpus, memory, key)]
        if recipe.rollout.with_actors:
            options = recipe.rollout
            memory = 0 if options.gpus else self.needs.engine
            found.append(Demand("engines", options.engines, options.share, options.gpus, memory, "rollout.engines"))
        return [*found, Demand("rewards", 1, _SCORER_CPUS)]

    def _origin(self) -> tuple[dict[str, Any], dict[str, str]]:
        """What the run is made from, by name, to tell what has changed."""
        return self.recipe.model_dump(mode="json"), {
            **self.models,
            "model": self.base,
            "prompts": self.gathered.fingerprint,
        }

    def _changed(self) -> str:
        return Ledger(self.home.path).changed(self.identity, *self._origin())

    def _forecast(self) -> Outcome:
        recipe, rollout = self.recipe, self.recipe.rollout
        published = None if self.call.fresh else published_before(self.output, self.identity, self._changed)
        preflight(self._demands(), room(self.call.address))
        held_out = sum(self.gathered.table["held_out"].to_pylist())
        count = rollout.prompts * rollout.samples
        facts = {
            "prompts": f"{len(self.gathered.table) - held_out:,} to learn from, {held_out:,} held out",
            **({"left out": _listed(self.gathered.left_out)} if self.gathered.left_out else {}),
            "a step": f"{count:,} responses of at most {rollout.max_tokens:,} tokens,"
            f" {recipe.learning.epochs * recipe.learning.minibatches} updates",
            "steps": f"{recipe.learning.steps:,}",
            "memory of a learner": str(self.needs),
            "demand": "; ".join(str(each) for each in self._demands()),
            "output": f"a model at {self.output}" + (" (published already)" if published else ""),
        }
        return Outcome(
            "rlhf", self.output, facts, published=False, reused=published is not None, demands=self._demands()
        )

    def _outcome(self, model: Model, *, reused: bool) -> Outcome:
        state = Checkpoints(self.home.path).latest() or State()
        metrics = model.manifest.metrics
        before = state.measured[0].values if state.measured else {}
        facts = {"steps": f"{state.steps:,} ({state.ended})"}
        compared = {each.name: each for each in gains(self.home.path, state.steps)}
        for name, value in sorted(metrics.items()):
            short = name.removeprefix("held-out ")
            gain, first = compared.get(short.removeprefix("reward/")), before.get(short)
            facts[name] = str(gain) if gain else f"{value:.4f}" + ("" if first is None else f" (before: {first:.4f})")
        if self.recipe.rollout.recorded:
            facts["against the recording"] = _compared(self.home.path, locate(self.recipe.rollout.recorded))
        report = self.home.path / "report.html"
        if not (reused and report.exists()):
            with self.watch.phase("report"):
                write_report(report, self.recipe, model, state, self.watch.shares())
        return Outcome(
            "rlhf",
            model.path,
            facts,
            () if reused else self.watch.shares(),
            HINTS,
            report,
            reused=reused,
            next_command="headrace evaluate jobs/recipes/evaluate_smoke.yaml"
            f" name=rlhf-{self.recipe.name} model={model.path}",
        )


def _portable(recipe: RlhfRecipe) -> RlhfRecipe:
    """The recipe with models named so that they are found from anywhere."""

    def moved(each: Any) -> Any:
        return each.model_copy(update={"model": portable(each.model)}) if each.model else each

    recorded = recipe.rollout.recorded
    update = {
        "model": portable(recipe.model),
        "rewards": [moved(each) for each in recipe.rewards],
        "watched": [moved(each) for each in recipe.watched],
        "critic": moved(recipe.critic),
        "rollout": recipe.rollout.model_copy(update={"recorded": recorded and portable(recorded)}),
    }
    return recipe.model_copy(update=update)


def _compared(home: UPath, record: UPath) -> str:
    """How far the losses of a training are from those of the one that was recorded."""
    ours, theirs = (
        {line["step"]: line["policy_loss"] for line in read_metrics(each) if "policy_loss" in line}
        for each in (home, record)
    )
    apart = [abs(ours[step] - theirs[step]) for step in ours.keys() & theirs.keys()]
    return f"losses of {len(apart):,} steps differ by {max(apart, default=0.0):.2g} at most"


def _listed(counts: Any) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in counts.items())


def _hash(*parts: str) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
