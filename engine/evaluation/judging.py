"""Win rates: answers of two models to the same prompts, compared by a judge that is asked in both orders.

    Judge    a text judge (anyone who says PASS or FAIL of a text) | a reward model | a rule, for tests

Judges favour a place: each pair is asked about twice, once with either answer first. The same answer both times wins;
anything else that has two verdicts is a tie; a pair without two verdicts is counted and left out. The win rate is
(wins + ties / 2) over the pairs that are left, with a bootstrap interval over prompts.

Left out: who the judge is (`jobs.evaluate` makes one) and what its answers cost. Called by `engine.evaluation.results`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from engine.config import Section
from engine.evaluation.measures import Measured, mean
from engine.evaluation.questions import CLEAN, seed_of
from engine.evaluation.reward import RewardModel
from engine.observe import Progress

Verdict = Literal["first", "second", "tie"] | None
"""Which of two answers is better; None where the judge has not said."""
Outcome = Literal["win", "loss", "tie", "no verdict"]
_PORTION = 16
_EXAMPLES = 3


@dataclass(frozen=True, slots=True)
class Pair:
    """A prompt and two answers to it, ours and the other one."""

    prompt: str
    ours: str
    theirs: str


class Judge(Protocol):
    """Compares answers."""

    def compare(self, asked: Sequence[tuple[str, str, str]]) -> Sequence[Verdict]:
        """A verdict for each (prompt, first answer, second answer), in order."""


class WinRate(Section):
    """What a judge made of two models' answers."""

    against: str
    pairs: int
    wins: int
    losses: int
    ties: int
    flipped: int
    """Ties in which the verdict followed the order."""
    no_verdict: int
    unmatched: int
    """Answers that the other side has no answer for, or whose prompt is another there."""
    rate: Measured | None
    examples: dict[str, list[list[str]]] = {}
    """Outcome -> some pairs: prompt, ours, theirs."""


class TextJudge:
    """Anyone who says of a text whether it passes: the text holds a prompt and two answers, and passes if A is better.

    `passes` takes texts and returns for each True, False, or None where there is no verdict.
    """

    def __init__(self, passes: Callable[[Sequence[str]], Sequence[bool | None]]) -> None:
        self._passes = passes

    def compare(self, asked: Sequence[tuple[str, str, str]]) -> list[Verdict]:
        """See `Judge`."""
        said = self._passes([layout(*each) for each in asked])
        words: dict[bool | None, Verdict] = {True: "first", False: "second", None: None}
        return [words[each] for each in said]


class RewardJudge:
    """A reward model as judge: the higher score wins, a difference of no more than `margin` is a tie."""

    def __init__(self, model: RewardModel, margin: float = 0.0) -> None:
        self._model, self._margin = model, margin

    def compare(self, asked: Sequence[tuple[str, str, str]]) -> list[Verdict]:
        """See `Judge`."""
        prompts = [prompt for prompt, _, _ in asked]
        first = self._model.scores(prompts, [each for _, each, _ in asked])
        second = self._model.scores(prompts, [each for _, _, each in asked])
        return [_higher(one, two, self._margin) for one, two in zip(first, second, strict=True)]


class RuleJudge:
    """A judge made of a plain function from an answer to a number, the larger the better: for tests and for checks."""

    def __init__(self, rule: Callable[[str], float]) -> None:
        self._rule = rule

    def compare(self, asked: Sequence[tuple[str, str, str]]) -> list[Verdict]:
        """See `Judge`."""
        return [_higher(self._rule(first), self._rule(second), 0.0) for _, first, second in asked]


def layout(prompt: str, first: str, second: str) -> str:
    """The text in which a text judge sees a pair."""
    return f"Prompt:\n{prompt}\n\nAnswer A:\n{first}\n\nAnswer B:\n{second}"


def pairs_of(
    ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]] | None, limit: int
) -> tuple[list[Pair], int]:
    """Clean answers beside those of the same name elsewhere, at most `limit`, and how many had no counterpart.

    Without `theirs` they stand beside the reference of their own row. Which ones are taken depends on their names
    alone, as if drawn, so it is the same ones for every model.
    """
    others = {row["id"]: row for row in theirs or ()}
    found: list[Pair] = []
    unmatched = 0
    for row in sorted(ours, key=lambda row: seed_of("pair", row["id"])):
        if row["text"] is None or row["variant"] != CLEAN:
            continue
        other = others.get(row["id"], {})
        theirs_text = row["reference"] if theirs is None else other.get("text")
        if theirs_text is None or (theirs is not None and other.get("prompt") != row["prompt"]):
            unmatched += 1
        elif len(found) < limit:
            found.append(Pair(row["prompt"], row["text"], theirs_text))
    return found, unmatched


def outcome(forward: Verdict, backward: Verdict) -> Outcome:
    """What a pair's two verdicts come to; the second was asked with the other answer first."""
    if forward is None or backward is None:
        return "no verdict"
    if (forward, backward) == ("first", "second"):
        return "win"
    return "loss" if (forward, backward) == ("second", "first") else "tie"


def win_rate(pairs: Sequence[Pair], judge: Judge, *, against: str, unmatched: int = 0) -> WinRate:
    """Ask the judge about every pair in both orders. Raises what the judge raises."""
    verdicts: list[tuple[Verdict, Verdict]] = []
    with Progress("judge", len(pairs), "pairs") as progress:
        for start in range(0, len(pairs), _PORTION):
            portion = pairs[start : start + _PORTION]
            orders = [(each.prompt, each.ours, each.theirs) for each in portion]
            orders += [(each.prompt, each.theirs, each.ours) for each in portion]
            said = judge.compare(orders)
            verdicts += zip(said[: len(portion)], said[len(portion) :], strict=True)
            progress.advance(len(portion))
    outcomes = [outcome(*each) for each in verdicts]
    by_prompt: dict[str, list[float]] = {}
    for pair, each in zip(pairs, outcomes, strict=True):
        if each != "no verdict":
            by_prompt.setdefault(pair.prompt, []).append({"win": 1.0, "loss": 0.0, "tie": 0.5}[each])
    examples: dict[str, list[list[str]]] = {}
    for pair, each in zip(pairs, outcomes, strict=True):
        if len(examples.setdefault(each, [])) < _EXAMPLES:
            examples[each].append([pair.prompt, pair.ours, pair.theirs])
    return WinRate(
        against=against,
        pairs=len(pairs),
        wins=outcomes.count("win"),
        losses=outcomes.count("loss"),
        ties=outcomes.count("tie"),
        flipped=sum(forward == backward != "tie" and forward is not None for forward, backward in verdicts),
        no_verdict=outcomes.count("no verdict"),
        unmatched=unmatched,
        rate=mean([float(np.mean(each)) for each in by_prompt.values()]),
        examples=examples,
    )


def _higher(first: float, second: float, margin: float) -> Verdict:
    if abs(first - second) <= margin:
        return "tie"
    return "first" if first > second else "second"
