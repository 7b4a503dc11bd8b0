"""What a training worker of RLHF does: sets the table for the loop, runs it, and publishes what it came to.

Left out: the loop (`engine.rlhf.loop`), and who starts workers, engines and rewards (`engine.rlhf.job`).
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from upath import UPath

from engine.artifacts import Parent, is_model, publish_model, read_model
from engine.cluster import answer
from engine.finetune.checkpoints import Checkpoints, State
from engine.finetune.loop import agree
from engine.finetune.lora import with_adapter
from engine.finetune.work import staging_for
from engine.models import load_causal_lm, load_tokenizer, load_values, resolve, save_model
from engine.observe import MetricsWriter
from engine.rlhf.critic import Critic, ValueHead, ValueModel
from engine.rlhf.engines import make_engine
from engine.rlhf.fleet import ActorRollouts
from engine.rlhf.learner import PolicyLearner
from engine.rlhf.loop import Loop, Seats
from engine.rlhf.native import Native
from engine.rlhf.policy import Policy, check_split, freeze, without_dropout
from engine.rlhf.prompts import read_prompts
from engine.rlhf.recipe import RlhfRecipe
from engine.rlhf.rewards import Answer, CombinedReward
from engine.rlhf.rollouts import LocalRollouts, Rollouts
from engine.rlhf.transport import ObjectStore
from engine.rlhf.weights import (
    export_critic,
    for_engines,
    load_value_head,
    load_weights,
    names_for_engines,
    save_weights,
)


@dataclass(frozen=True)
class Assignment:
    """All that a worker has to know; `engines` and `scorer` are actors of the driver's."""

    recipe: RlhfRecipe
    home: str
    output: str
    threads: int
    inputs_fingerprint: str
    base_fingerprint: str
    parents: tuple[Parent, ...]
    engines: tuple[Any, ...]
    scorer: Any


class ScorerActor:
    """The rewards, and those that only watch, in a process of their own; made when they are first asked, so that what
    is wrong with one is the answer. `keys` are variables of the driver's environment that they need."""

    def __init__(self, recipe: RlhfRecipe, keys: Mapping[str, str]) -> None:
        os.environ.update(keys)
        self._recipe = recipe
        self._made: tuple[CombinedReward, CombinedReward] | None = None

    def scores(self, answers: list[Answer], watched: bool) -> tuple[list[float], dict[str, list[float]]]:
        """The sums, and everybody's own scores by name."""
        if self._made is None:
            self._made = CombinedReward(self._recipe.rewards), CombinedReward(self._recipe.watched)
        rewards, watching = self._made
        sums, apart = rewards.scores(answers)
        return sums, apart | (watching.scores(answers)[1] if watched else {})


class _Scorer:
    """The loop's side of it."""

    def __init__(self, actor: Any, seconds: float) -> None:
        self._actor, self._seconds = actor, seconds

    def scores(self, answers: list[Answer], watched: bool) -> tuple[list[float], dict[str, list[float]]]:
        found: tuple[list[float], dict[str, list[float]]] = answer(
            self._actor.scores.remote(answers, watched),
            self._seconds,
            who="The rewards' process",
            task=f"score {len(answers):,} responses",
            key="stall_seconds",
        )
        return found


def train_worker(assignment: Assignment) -> None:
    """Train, in one of the workers. Raises `HeadraceError`s."""
    import torch

    recipe, home = assignment.recipe, UPath(assignment.home)
    torch.set_num_threads(assignment.threads)
    first = torch.distributed.get_rank() == 0
    checkpoints = Checkpoints(home, torch.distributed.get_rank(), agree)
    state = checkpoints.latest() or State()
    policy, critic = _models(recipe)
    if state.steps:
        with checkpoints.weights(state.steps) as folder:
            load_weights(policy, critic, folder)
    learner = PolicyLearner(
        policy,
        critic,
        learning=recipe.learning,
        macro=recipe.macro,
        critic_options=recipe.critic,
        optimiser=recipe.optimiser,
        parallel=recipe.parallel,
        seed=recipe.seed,
        bf16=recipe.dtype == "bfloat16",
    )
    if state.steps and not state.ended:
        with checkpoints.optimiser(state.steps, *learner.parts) as folder:
            learner.load(folder)
    halves = recipe.rollout.sync == "adapter"
    seats = Seats(
        recipe=recipe,
        home=home,
        learner=learner,
        prompts=read_prompts(home, recipe.prompts.measured),
        tokenizer=load_tokenizer(recipe.model),
        saves=lambda weights, values, folder: save_weights(policy, weights, values, folder),
        learnt=set(policy.trained()),
        sent=names_for_engines(policy, halves=halves),
        for_engines=lambda weights: for_engines(policy, weights, halves=halves),
        rollouts=_rollouts(assignment) if first and not state.ended and not recipe.rollout.recorded else None,
        scorer=_Scorer(assignment.scorer, recipe.stall_seconds) if first else None,
    )
    if first:
        with MetricsWriter(home) as metrics:
            state = Loop(seats, checkpoints, state).run(metrics)
    else:
        state = Loop(seats, checkpoints, state).run(None)
    weights, values = learner.weights(names_for_engines(policy)), learner.critic_weights()
    if weights is not None:
        _publish(assignment, state, for_engines(policy, weights), critic, values, seats.tokenizer)


def _models(recipe: RlhfRecipe) -> tuple[Policy, Critic | None]:
    """The policy with its reference, and the critic, as they are before any step."""
    import torch

    torch.manual_seed(recipe.seed)
    lm: Any = without_dropout(load_causal_lm(recipe.model, recipe.dtype))
    frozen = freeze(lm, recipe.learning.layers)
    if recipe.lora:
        layers = range(frozen, frozen + recipe.learning.layers) if recipe.learning.layers else None
        lm = with_adapter(lm, recipe.lora, layers=layers)
    if recipe.parallel.recompute:
        lm.gradient_checkpointing_enable({"use_reentrant": False})
        lm.enable_input_require_grads()
    policy = Policy(lm, frozen=frozen, temperature=recipe.rollout.temperature)
    check_split(policy)
    if recipe.learning.advantage != "gae":
        return policy, None
    if recipe.critic.kind == "model":
        return policy, ValueModel(without_dropout(load_values(recipe.critic.model or recipe.model, recipe.dtype)))
    if recipe.critic.model:
        return policy, load_value_head(resolve(recipe.critic.model), policy.width)
    return policy, ValueHead(policy.width, recipe.critic.width)


def _rollouts(assignment: Assignment) -> Rollouts:
    recipe = assignment.recipe
    seconds, kind = recipe.rollout.stall_seconds, recipe.rollout.transport
    if assignment.engines:
        return ActorRollouts(
            assignment.engines, seconds, ObjectStore() if kind == "object_store" else Native(kind, seconds / 3)
        )
    longest = recipe.prompts.window + recipe.rollout.max_tokens
    engine = make_engine(
        recipe.rollout.engine, recipe.model, at_once=recipe.rollout.at_once, longest=longest, gpus=recipe.parallel.gpus
    )
    return LocalRollouts(engine)


def _publish(
    assignment: Assignment, state: State, weights: dict[str, Any], critic: Critic | None, values: Any, tokenizer: Any
) -> None:
    """The policy and the critic as models, whole or not at all."""
    recipe, output = assignment.recipe, UPath(assignment.output)
    measured = state.measured[-1].values if state.measured else {}
    about: dict[str, Any] = {
        "job": "rlhf",
        "recipe": recipe.model_dump(mode="json"),
        "recipe_fingerprint": recipe.fingerprint(),
        "inputs_fingerprint": assignment.inputs_fingerprint,
        "seed": recipe.seed,
        "parents": assignment.parents,
        "models": {"base": assignment.base_fingerprint},
        "counts": {"steps": state.steps, "responses": state.steps * recipe.rollout.prompts * recipe.rollout.samples},
        "metrics": {f"held-out {name}": value for name, value in measured.items() if name != "loss"},
    }
    if critic is not None:
        _publish_once(critic_place(output), about, lambda folder: export_critic(critic, values, tokenizer, folder))

    def write(folder: Path) -> None:
        lm: Any = load_causal_lm(recipe.model, recipe.dtype)
        strangers = lm.load_state_dict(weights, strict=False).unexpected_keys
        assert not strangers, f"what was learnt has names that the model has not, {strangers[0]} among them"
        save_model(lm, tokenizer, folder)

    _publish_once(output, about, write)


def critic_place(output: UPath) -> UPath:
    """Where the critic of a policy is published."""
    return output.parent / f"{output.name}-critic"


def _publish_once(output: UPath, about: dict[str, Any], write: Callable[[Path], None]) -> None:
    """Publish a model, unless an attempt that died after it has done so already."""
    if is_model(output) and read_model(output).manifest.inputs_fingerprint == about["inputs_fingerprint"]:
        return
    with staging_for(output) as staging:
        write(staging)
        publish_model(staging, output, **about)
