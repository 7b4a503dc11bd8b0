"""The loop of RLHF, run by every training worker alike; the first one talks to engines and rewards.

    generate    responses to the step's prompts, from the version of the weights that was synced last
    look        log-probabilities under policy and reference, values (`engine.rlhf.learner`)
    score       what the responses are worth (`engine.rlhf.rewards`)
    credit      macros, their rewards and advantages (`engine.rlhf.assessment`)
    learn       optimiser steps
    sync        the new weights to the engines, verified
    evaluate    held-out prompts
    save        a checkpoint

Which prompts a step asks, and with which seeds, depends on its number alone, so a training that was killed goes on
from its last checkpoint and asks what it would have asked. A step's responses are on disk before they are learnt from:
a resume does not draw them again, and any step can be learnt from once more without an engine.

Left out: who starts all this (`engine.rlhf.work`, `engine.rlhf.job`).

Shapes: B responses of a step, T tokens of the longest.
"""

import contextlib
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from upath import UPath

from engine.errors import HeadraceError
from engine.evaluation.questions import seed_of
from engine.finetune.checkpoints import Checkpoints, Measured, State
from engine.finetune.order import DataOrder
from engine.observe import MetricsWriter
from engine.rlhf.assessment import Assessor
from engine.rlhf.credit import Macros
from engine.rlhf.engines import Drawing
from engine.rlhf.exchange import broadcast
from engine.rlhf.experience import Experience, Response, read_step, write_step
from engine.rlhf.learner import Looked, PolicyLearner, Sample
from engine.rlhf.prompts import Prompt, Prompts
from engine.rlhf.recipe import RlhfRecipe
from engine.rlhf.report import MACRO
from engine.rlhf.rewards import Answer
from engine.rlhf.rollouts import Probe, Rollouts
from engine.rlhf.segmenters import Floats
from engine.storage import locate

_KL, _SUM = "kl coefficient", "reward"
_PROBE = "The quick brown fox jumps over the lazy dog, and 12 + 30 = 42."


class Scorer(Protocol):
    """Who scores: the rewards, and those that only watch."""

    def scores(self, answers: list[Answer], watched: bool) -> tuple[list[float], dict[str, list[float]]]:
        """The sums, and everybody's own scores by name."""


class Saves(Protocol):
    """Writes a policy's and a critic's weights as the run keeps them."""

    def __call__(self, policy: dict[str, Any], critic: dict[str, Any] | None, folder: Path) -> None:
        """Into a directory."""


@dataclass(frozen=True)
class Seats:
    """What a worker is given; `rollouts` and `scorer` on the first one only. `published(weights)` are those of the
    policy as engines know them."""

    recipe: RlhfRecipe
    home: UPath
    learner: PolicyLearner
    prompts: Prompts
    tokenizer: Any
    saves: Saves
    learnt: Collection[str]
    """Names of the weights that a checkpoint keeps ..."""
    sent: Collection[str]
    """... and of those that `for_engines` makes into what engines are given."""
    for_engines: Callable[[dict[str, Any]], Mapping[str, Any]]
    rollouts: Rollouts | None
    scorer: Scorer | None


class Loop:
    """One worker's loop. Raises `HeadraceError`s on every worker alike."""

    def __init__(self, seats: Seats, checkpoints: Checkpoints, state: State) -> None:
        self.seats, self.recipe, self.learner = seats, seats.recipe, seats.learner
        self.checkpoints, self.state = checkpoints, state
        self.rank = torch.distributed.get_rank()
        self.order = DataOrder(len(seats.prompts.train), self.recipe.seed)
        self.assessor = Assessor(self.recipe, seats.tokenizer)
        self.beta = state.extra.get(_KL, self.recipe.learning.kl)
        self.spent: dict[str, float] = {}
        self._ahead: Future[Experience] | None = None
        self._version = state.steps
        recorded = self.recipe.rollout.recorded
        self._record = locate(recorded) if recorded else None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="rollouts")

    def run(self, metrics: MetricsWriter | None) -> State:
        """To the end, or to the reason why it ends before."""
        if self.state.ended:
            return self.state
        self.sync()
        if not self.state.steps:
            self.evaluate(metrics)
        while not self.state.ended:
            started, step = time.monotonic(), self.state.steps
            self.spent = {}
            with self._timed("generate"):
                experience = self.generate(step)
            with self._timed("look"):
                looked = self.look(experience, step)
            with self._timed("score"):
                scores, apart = self.score(experience)
            with self._timed("credit"):
                credited, told = self.assessor(experience, looked, scores, self.beta)
            with self._timed("learn"):
                told |= self.learner.learn(credited)
            self._advance(told, credited.macros)
            with self._timed("sync"):
                self.sync()
            seconds = time.monotonic() - started
            self.state = self.state.model_copy(update={"seconds": self.state.seconds + seconds})
            self._tell(metrics, told, apart, seconds)
            ended = self._why_to_end(told)
            if ended or self.state.steps % self.recipe.learning.measure_every == 0:
                self.evaluate(metrics)
            self.state = self.state.model_copy(update={"ended": ended})
            if ended or self.state.steps % self.recipe.learning.checkpoint_every == 0:
                self.save()
        return self.state

    def generate(self, step: int) -> Experience:
        """The step's responses: those on disk where an earlier attempt has drawn them, else new ones."""

        def drawn() -> Any:
            ahead, self._ahead = self._ahead, None
            experience = ahead.result() if ahead else self._drawn(step, self._version)
            if self._behind and step + 1 < self.recipe.learning.steps:
                self._ahead = self._pool.submit(self._drawn, step + 1, self._version)
            return experience.to_json()

        return Experience.from_json(self._by_first(drawn))

    def look(self, experience: Experience, step: int) -> Looked:
        """What the learner makes of the responses; the first time, whether that is what the engine made of them."""
        samples = [Sample(self._prompt(each).ids, each.ids) for each in experience.responses]
        self.learner.prepare(samples, step)
        looked = self.learner.look()
        written = experience.written()
        apart = float(np.abs(looked.logp - experience.logprobs())[written].mean()) if written.any() else 0.0
        if self._record is not None and experience.version == step and apart > self.recipe.mismatch:
            raise HeadraceError(
                f"The responses of step {step + 1:,} in {self._record} are not this policy's: log-probabilities differ"
                f" by {apart:.3g} on average (guards.mismatch is {self.recipe.mismatch:g}).",
                "What was recorded is learnt from again only with the model, seed and settings of then.",
            )
        # Responses that have scores have been looked at before: scoring comes after this.
        if not experience.scores and experience.version == step and apart > self.recipe.mismatch:
            raise HeadraceError(
                f"Engine and learner disagree about the same tokens of step {step + 1:,}: log-probabilities differ"
                f" by {apart:.3g} on average (guards.mismatch is {self.recipe.mismatch:g}).",
                "Likely causes: another number format, another temperature, stale weights, or another template.",
            )
        return looked

    def score(self, experience: Experience) -> tuple[Floats, dict[str, float]]:
        """The responses' scores, (B,), and the mean of each reward."""

        def scored() -> Any:
            scores = experience.scores
            if not scores:
                assert self.seats.scorer
                answers = [self._answer(self._prompt(each), each) for each in experience.responses]
                sums, apart = self.seats.scorer.scores(answers, False)
                scores = {_SUM: sums, **apart}
                write_step(self.seats.home, replace(experience, scores=scores))
            means = {name: float(np.mean(values)) for name, values in scores.items() if name != _SUM}
            return [scores[_SUM], means]

        sums, apart = self._by_first(scored)
        missing = self.recipe.learning.missing_end
        if missing is not None:
            pairs = zip(sums, experience.responses, strict=True)
            sums = [score if each.finished else missing for score, each in pairs]
        return np.array(sums, np.float64), apart

    def sync(self) -> None:
        """Give the engines the learner's weights, and see that they compute with them."""
        if self._record is not None:
            return
        ids = self.seats.tokenizer(_PROBE, add_special_tokens=False)["input_ids"]
        logprobs = self.learner.logprobs(ids)
        weights = self.learner.weights(self.seats.sent)

        def synced() -> Any:
            assert self.seats.rollouts
            if self._ahead:
                self._ahead.result()  # nothing is drawn while weights change
            assert weights is not None
            probe = Probe(ids, logprobs, self.recipe.probe)
            self.seats.rollouts.sync(self.state.steps, self.seats.for_engines(weights), probe)
            return None

        self._by_first(synced)
        self._version = self.state.steps

    def evaluate(self, metrics: MetricsWriter | None) -> None:
        """Responses to the held-out prompts, and what they are worth."""
        prompts, options = self.seats.prompts.held_out, self.recipe.prompts
        if not prompts or self._record is not None:
            return
        step = self.state.steps
        asked = [(at, number) for at in range(len(prompts)) for number in range(options.measured_samples)]

        def answered() -> Any:
            assert self.seats.rollouts
            assert self.seats.scorer
            seeds = [seed_of(self.recipe.seed, "measured", *each) for each in asked]
            found = self.seats.rollouts.generate([prompts[at].ids for at, _ in asked], seeds, self._drawing)
            responses = [
                Response(-1, at, number, each.ids, each.logprobs, each.finished, self._text(each.ids))
                for (at, number), each in zip(asked, found, strict=True)
            ]
            answers = [
                Answer(prompts[each.prompt].text, each.text, prompts[each.prompt].reference) for each in responses
            ]
            sums, apart = self.seats.scorer.scores(answers, True)
            return Experience(step, self._version, responses, {_SUM: sums, **apart}).to_json()

        experience = Experience.from_json(self._by_first(answered))
        self.learner.prepare([Sample(prompts[each.prompt].ids, each.ids) for each in experience.responses], step)
        looked = self.learner.look()
        words = [each.text.split() for each in experience.responses]
        pairs = [pair for some in words for pair in pairwise(some)]
        values = {
            **{
                name if name == _SUM else f"reward/{name}": float(np.mean(each))
                for name, each in experience.scores.items()
            },
            "kl": float((looked.logp - looked.reference).sum(1).mean()),
            "length": float(experience.written().sum(1).mean()),
            "distinct_2": len(set(pairs)) / max(len(pairs), 1),
        }
        measured = Measured(step=step, values={"loss": -values["reward"], **values})
        self.state = self.state.model_copy(update={"measured": (*self.state.measured, measured)})
        if self.rank == 0:
            write_step(self.seats.home, experience, held_out=True)
            if metrics:
                metrics.log(step, **{f"held_out/{name}": value for name, value in values.items()})

    def save(self) -> None:
        """A checkpoint of all that the next step needs."""

        def write(folder: Path, weights: Path) -> None:
            self.learner.save(folder)
            policy, critic = self.learner.weights(self.seats.learnt), self.learner.critic_weights()
            if policy is not None:
                self.seats.saves(policy, critic, weights)

        self.checkpoints.save(self.state, write)

    @property
    def _behind(self) -> int:
        """How many versions old the weights may be that a step's responses come from."""
        return int(self.recipe.rollout.asynchronous)

    @property
    def _drawing(self) -> Drawing:
        return Drawing(self.recipe.rollout.temperature, self.recipe.rollout.max_tokens)

    def _drawn(self, step: int, version: int) -> Experience:
        """A step's responses as an earlier attempt has drawn them, if they are no older than they may be."""
        kept = read_step(self.seats.home if self._record is None else self._record, step)
        if kept is not None and step - self._behind <= kept.version <= step:
            return kept
        if self._record is not None:
            raise HeadraceError(
                f"{self._record} holds no responses of step {step + 1:,} that could be learnt from.",
                "Set learning.steps to as many as it has, and rollout.asynchronous as it was.",
            )
        return self._draw(step, version)

    def _draw(self, step: int, version: int) -> Experience:
        """Ask the engines, and keep what they say; on the first worker."""
        assert self.seats.rollouts
        count, samples = self.recipe.rollout.prompts, self.recipe.rollout.samples
        indices, epochs = self.order.take(step * count, count)
        pairs = zip(epochs.tolist(), indices.tolist(), strict=True)
        keys = [(epoch, at, number) for epoch, at in pairs for number in range(samples)]
        seeds = [seed_of(self.recipe.seed, "drawn", *key) for key in keys]
        asked = [self.seats.prompts.train[at].ids for _, at, _ in keys]
        found = self.seats.rollouts.generate(asked, seeds, self._drawing)
        responses = [
            Response(*key, each.ids, each.logprobs, each.finished, self._text(each.ids))
            for key, each in zip(keys, found, strict=True)
        ]
        experience = Experience(step, version, responses)
        write_step(self.seats.home, experience)
        return experience

    def _advance(self, told: dict[str, float], macros: Macros) -> None:
        """One step further, with the coefficient that the next one is to have, and macros counted by their length."""
        learning, before = self.recipe.learning, self.state
        if learning.kl_target:
            error = np.clip(told["kl"] / learning.kl_target - 1, -0.2, 0.2)
            count = self.recipe.rollout.prompts * self.recipe.rollout.samples
            self.beta *= float(1 + error * count / learning.kl_horizon)
        extra = {**before.extra, _KL: self.beta}
        for length, count in enumerate(np.bincount(macros.length_BK[macros.length_BK > 0])):
            if count:
                name = f"{MACRO}{length}"
                extra[name] = extra.get(name, 0) + float(count)
        self.state = before.model_copy(update={"steps": before.steps + 1, "extra": extra})

    def _tell(
        self, metrics: MetricsWriter | None, told: dict[str, float], apart: dict[str, float], seconds: float
    ) -> None:
        if metrics is None:
            return
        spent = {f"seconds/{name}": value for name, value in self.spent.items()}
        each = {f"reward/{name}": value for name, value in apart.items()}
        metrics.log(self.state.steps, **told, **each, **spent, **{"seconds/step": seconds})

    def _why_to_end(self, told: dict[str, float]) -> str:
        guards = self.recipe.guards
        if self.state.steps == self.recipe.learning.steps:
            return "all steps are done"
        if guards.max_kl and told["kl"] > guards.max_kl:
            return f"responses are {told['kl']:.1f} nats from the reference, more than guards.max_kl"
        if guards.min_entropy and told["entropy"] < guards.min_entropy:
            return f"tokens have {told['entropy']:.2f} nats of entropy, less than guards.min_entropy"
        return ""

    def _prompt(self, response: Response) -> Prompt:
        return self.seats.prompts.train[response.prompt]

    def _answer(self, prompt: Prompt, response: Response) -> Answer:
        return Answer(prompt.text, response.text, prompt.reference)

    def _text(self, ids: list[int]) -> str:
        return str(self.seats.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    @contextlib.contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.spent[name] = self.spent.get(name, 0.0) + time.monotonic() - started

    def _by_first(self, work: Callable[[], Any]) -> Any:
        """What the first worker finds, on all of them; what goes wrong there goes wrong everywhere."""
        said: dict[str, Any] = {}
        failed: HeadraceError | None = None
        if self.rank == 0:
            try:
                said = {"found": work()}
            except HeadraceError as error:
                failed, said = error, {"problem": error.problem, "remedy": error.remedy}
        if torch.distributed.get_world_size() > 1:
            said = broadcast(said)
        if failed:
            raise failed
        if "problem" in said:
            raise HeadraceError(said["problem"], said["remedy"])
        return said["found"]
