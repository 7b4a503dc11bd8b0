"""What a response is worth: rewards of every kind behind one interface, and their weighted sum.

    model      a sequence classifier with one output (`engine.evaluation.RewardModel`)
    function   the user's own, by import path
    http       an endpoint, asked again until patience runs out
    code       tests in the sandbox (`engine.rlhf.code_reward`)
    verifier   a task of reasoning-gym (`engine.rlhf.verifier`)

A reward that cannot score ends the run with one sentence: a made-up number would be learnt from. Left out: credit
(`engine.rlhf.credit`), and the actor that holds them. Called by the loop, through that actor.
"""

import importlib
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from scipy.special import expit

from engine.errors import HeadraceError, RecipeError, redact
from engine.retries import Infrastructure, Patience
from engine.rlhf.reward_options import RewardOptions

_BUSY = (408, 409, 425, 429)


@dataclass(frozen=True, slots=True)
class Answer:
    """A response to be scored: what was asked, what was written, and what the prompt's row says of it."""

    prompt: str
    response: str
    reference: str | None = None


class Reward(Protocol):
    """Who scores."""

    def scores(self, answers: Sequence[Answer]) -> list[float]:
        """One number each, in order; larger is better. Raises `HeadraceError` where it cannot."""


class CombinedReward:
    """The weighted sum of several; raises what making one of them raises."""

    def __init__(self, options: Sequence[RewardOptions]) -> None:
        labels = [each.label for each in options]
        if len(set(labels)) < len(labels):
            raise RecipeError("Two rewards have the same name.", "Give each a name of its own in rewards.")
        self._options = list(options)
        self._rewards = [make_reward(each) for each in options]

    def scores(self, answers: Sequence[Answer]) -> tuple[list[float], dict[str, list[float]]]:
        """The sums, and every reward's own scores by its name. Raises `HeadraceError` for a score that is no number."""
        apart: dict[str, list[float]] = {}
        sums = [0.0] * len(answers)
        for options, reward in zip(self._options, self._rewards, strict=True):
            found = reward.scores(answers) if answers else []
            if len(found) != len(answers) or not all(map(math.isfinite, found)):
                raise HeadraceError(
                    f"The reward {options.label} gave {_odd(found, len(answers))}.", "It must give one number each."
                )
            apart[options.label] = found
            most = options.clip or math.inf
            for at, score in enumerate(found):
                sums[at] += options.weight * max(-most, min(most, score))
        return sums, apart


def make_reward(options: RewardOptions) -> Reward:
    """The reward that a section asks for, ready to score. Raises `HeadraceError`s."""
    if options.kind == "code":
        from engine.rlhf.code_reward import CodeReward

        return CodeReward(options.sandbox)
    if options.kind == "verifier":
        from engine.rlhf.verifier import VerifierReward

        return VerifierReward(options)
    kinds: dict[str, Callable[[RewardOptions], Reward]] = {
        "model": ModelReward, "function": FunctionReward, "http": HttpReward,
    }  # fmt: skip
    return kinds[options.kind](options)


class ModelReward:
    """A sequence classifier loaded in this process. Raises `SourceError`."""

    def __init__(self, options: RewardOptions) -> None:
        from engine.evaluation import RewardModel

        assert options.model
        self._both, self._probability = options.reads == "both", options.probability
        self._model = RewardModel(options.model, window=options.window)

    def scores(self, answers: Sequence[Answer]) -> list[float]:
        """See `Reward`."""
        prompts = [each.prompt if self._both else "" for each in answers]
        found = self._model.scores(prompts, [each.response for each in answers])
        return [float(each) for each in expit(found)] if self._probability else found


class FunctionReward:
    """A function of the user's: `(prompts, responses, references) -> numbers`. Raises `RecipeError` for none such."""

    def __init__(self, options: RewardOptions) -> None:
        assert options.function
        module, _, name = options.function.partition(":")
        if os.getcwd() not in sys.path:  # a console script does not look where it is run from
            sys.path.append(os.getcwd())
        try:
            self._function = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise RecipeError(
                f"There is no reward function {options.function} ({error}).",
                "Name an installed module, or one in the directory the command is run from.",
            ) from None
        self._name = options.function

    def scores(self, answers: Sequence[Answer]) -> list[float]:
        """See `Reward`."""
        columns = ([each.prompt for each in answers], [each.response for each in answers])
        try:
            return [float(each) for each in self._function(*columns, [each.reference for each in answers])]
        # The function is the user's: it raises what it likes.
        except Exception as error:
            raise HeadraceError(
                f"The reward function {self._name} raised {type(error).__name__}: {str(error)[:200]}.",
                "Correct it, then run the same command again: it goes on from the last checkpoint.",
            ) from error


class HttpReward:
    """An endpoint that scores; its key is read from the environment and is in no log or error."""

    def __init__(self, options: RewardOptions, patience: Patience | None = None) -> None:
        assert options.url
        self._url, self._where, self._timeout = options.url, redact(options.url), options.timeout_seconds
        self._patience = patience or Patience(attempts=1000, seconds=options.patience_seconds, longest=10.0)
        key = os.environ.get(options.key_env, "").strip() if options.key_env else ""
        if options.key_env and not key:
            raise RecipeError(f"{options.key_env} is not set.", "Export it, or leave out key_env.")
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}

    def scores(self, answers: Sequence[Answer]) -> list[float]:
        """See `Reward`."""
        body = {
            "prompts": [each.prompt for each in answers],
            "responses": [each.response for each in answers],
            "references": [each.reference for each in answers],
        }
        started = time.monotonic()
        try:
            return self._patience.call(lambda: self._ask(body))
        except Infrastructure as failure:
            raise HeadraceError(
                f"The reward at {self._where} has not answered for {time.monotonic() - started:.0f} s ({failure}).",
                "Start it again, then run the same command: it goes on from the last checkpoint.",
            ) from None

    def _ask(self, body: dict[str, Any]) -> list[float]:
        import httpx

        try:
            response = httpx.post(self._url, json=body, headers=self._headers, timeout=self._timeout)
        except httpx.TransportError as error:
            raise Infrastructure(type(error).__name__) from None
        if response.status_code in _BUSY or response.status_code >= 500:
            raise Infrastructure(f"status {response.status_code}")
        if response.status_code != 200:
            raise HeadraceError(
                f"The reward at {self._where} refuses what it is asked (status {response.status_code}).",
                "Check its address, its key, and that it takes prompts, responses and references.",
            )
        try:
            return [float(each) for each in response.json()["scores"]]
        except (ValueError, TypeError, KeyError):
            raise HeadraceError(
                f"The reward at {self._where} gives no scores: {response.text[:100]!r}.",
                'It must answer {"scores": [a number for each response]}.',
            ) from None


def _odd(found: Sequence[float], wanted: int) -> str:
    if len(found) != wanted:
        return f"{len(found):,} scores for {wanted:,} responses"
    return f"the score {next(each for each in found if not math.isfinite(each))}"
