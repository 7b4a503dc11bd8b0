"""The active loop: ask, train, ask where it matters, until the budget is spent or nothing is gained any more.

    warm start --> train --> band --> ask --> train --> ...       (while training runs, the old student goes on asking)

What is asked depends on the corpus, the recipe and the answers alone: not on timing, nor on where a run was killed.
After each batch the labels are written down; a run that is started again trains once on those and goes on, and what
it asked since then it gets from the answers kept (`engine.sieve.budget`).

Left out: reading (`engine.sieve.snippets`), the rules (`engine.sieve.rules`), training (`engine.sieve.training`),
processes (`engine.sieve.actors`). Called by `engine.sieve.distillation`, and by benchmarks with their own students.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from engine.config import Section
from engine.errors import RecipeError
from engine.sieve.budget import BudgetLedger
from engine.sieve.calibration import sigmoid
from engine.sieve.options import LoopOptions
from engine.sieve.rules import QueryRule, make_rule
from engine.sieve.snippets import SnippetStream
from engine.sieve.student import Card
from engine.sieve.teacher import Snippet, Teacher
from engine.sieve.threshold import Floats, balanced_accuracy_interval, confusion, cut_errors
from engine.sieve.training import Fitted, Labelled

_BLOCK = 256
"""Snippets scored at a time."""
_BLOCKS_AHEAD = 2
"""Blocks being scored while the teacher answers."""
_SEEN_BEFORE_STARVED = 2000
"""Snippets a band must have been shown before it can be called starved."""


class Learning(Protocol):
    """Whoever trains and scores (`engine.sieve.actors.Learners`)."""

    def start(self, labelled: Labelled, stream: Sequence[str], seed: int) -> Any:
        """Begin to train."""

    def adopt(self, training: Any) -> tuple[Fitted, Card]:
        """Wait for a training, whose student scores from then on."""

    def score(self, texts: Sequence[str]) -> Any:
        """Begin to score."""

    def logits(self, reference: Any) -> Floats:
        """Wait for the logits, (n,)."""


class Round(Section):
    """One training and the batch of labels it was given; scores are the student's."""

    number: int
    labels: int
    passes: int
    questions: int
    """Snippets the teacher was wanted for so far, validation and those answered out of the cache included."""
    queries: int
    """Questions charged."""
    tokens: int
    low: float | None = None
    """The band at the end of the batch; None for the warm start."""
    high: float | None = None
    seen: int = 0
    """Snippets of the stream the batch looked at."""
    asked: int = 0
    batch_passes: int = 0
    nearest_minority: float | None = None
    """Smaller class's share among the labels nearest to the batch's TRM cut, as many on each side."""
    threshold: float = 0.0
    trm: float = 0.0
    rate: float = 0.0
    unseen_accuracy: float = 0.0
    changed: float = 1.0
    """Share of the stream's sample on which the decision is another than before."""
    validation: tuple[float, float, float] | None = None
    """Balanced accuracy on random teacher labels, and its 95 % interval."""


@dataclass
class LoopState:
    """All that a resumed loop needs: labels in the order they came, what was taken of the stream, the rounds."""

    asked: list[Snippet] = field(default_factory=list)
    labels: list[bool] = field(default_factory=list)
    validation: list[tuple[Snippet, bool]] = field(default_factory=list)
    warm: int = 0
    """How many of the labels are the warm start's."""
    questions: int = 0
    """Snippets the teacher was wanted for, those whose answers were kept from other runs included."""
    taken: int = 0
    rounds: list[Round] = field(default_factory=list)
    ended: str = ""
    """Why the loop ended; empty while it has not."""

    def labelled(self, count: int) -> Labelled:
        """The first so many labels, to train on."""
        rate = (sum(self.labels[: self.warm]) + 0.5) / (self.warm + 1)
        return Labelled([each.text for each in self.asked[:count]], np.array(self.labels[:count], bool), rate)


@dataclass
class _Batch:
    """What one batch has come to: the band at its end, what it saw and the scores of what it asked."""

    rule: QueryRule
    seen: int = 0
    scores: list[float] = field(default_factory=list)
    labels: list[bool] = field(default_factory=list)


class ActiveLoop:
    """Runs the loop over a stream; `save` is called after each round with the state, `kept_back` questions of the
    budget are left for others."""

    def __init__(
        self,
        stream: SnippetStream,
        teacher: Teacher,
        ledger: BudgetLedger,
        learning: Learning,
        options: LoopOptions,
        *,
        seed: int,
        kept_back: int = 0,
        state: LoopState | None = None,
        save: Callable[[LoopState], None] = lambda state: None,
        progress: Callable[[int], None] = lambda answers: None,
    ) -> None:
        self.stream, self.teacher, self.ledger, self.learning = stream, teacher, ledger, learning
        self.options, self.seed = options, seed
        self.kept_back, self.limit = kept_back, ledger.options.queries - kept_back
        self.state = state or LoopState()
        self._save, self._progress = save, progress
        self._sample = [each.text for each in stream.peek(options.sample)]
        self._asked = {(each.part, each.row, each.piece) for each in self.state.asked}
        self._decisions: Any = None
        self._sample_logits: Floats = np.empty(0)
        if self.state.taken:
            stream.take(self.state.taken)

    def run(self) -> tuple[Card, LoopState]:
        """Run to the end; the last student's card. Raises `RecipeError` where the teacher's labels teach nothing."""
        state, options = self.state, self.options
        if state.rounds:
            fitted, card = self._adopt(self._train(state.rounds[-1].labels))
            self._look(card)
        else:
            self._warm_start()
            fitted, card = self._adopt(self._train(len(state.labels)))
            self._note(fitted, card, None)
        ahead = int(options.ahead * options.batch)
        while not state.ended:
            batch = _Batch(self._rule(fitted))
            self._collect(batch, options.batch - ahead)
            training = self._train(len(state.labels))
            if not state.ended:
                # Asked with the old student while the new one is trained; the training after it has these labels too.
                self._collect(batch, ahead)
            fitted, card = self._adopt(training)
            self._note(fitted, card, batch)
        if card.labels < len(state.labels):
            fitted, card = self._adopt(self._train(len(state.labels)))
            self._note(fitted, card, None)
        return card, state

    def _warm_start(self) -> None:
        """Random snippets, until both classes have come up or the budget says enough."""
        options, state = self.options, self.state
        held_out = self.stream.take(options.validation)
        for first in range(0, len(held_out), options.every):
            state.validation += self._ask(held_out[first : first + options.every])
            self._progress(len(state.validation))
        while not state.ended and (len(state.labels) < options.warm_start or len(set(state.labels)) < 2):
            chosen = self.stream.take(max(options.warm_start - len(state.labels), options.every))
            if not chosen:
                state.ended = "the stream has ended"
            self._keep(self._ask(chosen))
        state.warm = len(state.labels)
        state.taken = self.stream.taken
        if len(set(state.labels)) < 2:
            state.ended = state.ended or "no more labels"
            said = (
                "let everything pass"
                if any(state.labels)
                else "let nothing pass"
                if state.labels
                else "decided nothing"
            )
            raise RecipeError(
                f"The teacher {said} of {len(state.labels):,} random snippets, so there is nothing to learn"
                f" ({state.ended}).",
                "Look at criterion and teacher, or raise budget.queries and loop.warm_start for a rarer class.",
            )

    def _train(self, count: int) -> Any:
        """Begin to train on the first so many labels."""
        return self.learning.start(self.state.labelled(count), self._sample, self.seed)

    def _adopt(self, training: Any) -> tuple[Fitted, Card]:
        fitted, card = self.learning.adopt(training)
        self._sample_logits = self.learning.logits(self.learning.score(self._sample))
        return fitted, card

    def _rule(self, fitted: Fitted) -> QueryRule:
        scores = sigmoid(self._sample_logits)
        trm = float(sigmoid(np.array([fitted.calibration.least_error]))[0])
        return make_rule(self.options, trm, scores)

    def _collect(self, batch: _Batch, count: int) -> None:
        """Ask about the next `count` snippets in the band, in stream order; ends early when the loop ends."""
        blocks: deque[tuple[list[Snippet], Any]] = deque()
        got = 0
        while got < count and not self.state.ended:
            while len(blocks) < _BLOCKS_AHEAD:
                block = self.stream.take(_BLOCK)
                if not block:
                    break
                blocks.append((block, self.learning.score([each.text for each in block])))
            if not blocks:
                self.state.ended = "the stream has ended"
                break
            block, reference = blocks.popleft()
            used, labelled = self._ask_block(batch, block, sigmoid(self.learning.logits(reference)), count - got)
            got += labelled
            if used < len(block):
                self._give_back([block[used:], *(each for each, _ in blocks)])
                blocks.clear()
        self._give_back([each for each, _ in blocks])
        self.state.taken = self.stream.taken

    def _give_back(self, blocks: Sequence[list[Snippet]]) -> None:
        for block in reversed(blocks):
            self.stream.put_back(block)

    def _ask_block(self, batch: _Batch, block: list[Snippet], scores: Floats, count: int) -> tuple[int, int]:
        """Ask about what the rule wants of a block, a few at a time; how many were looked at, and labels gained."""
        used = labelled = 0
        while used < len(block) and labelled < count and not self.state.ended:
            inside = np.flatnonzero(batch.rule.wants(scores[used:]))[: min(self.options.every, count - labelled)]
            until = used + int(inside[-1]) + 1 if len(inside) else len(block)
            chosen = [used + int(at) for at in inside]
            batch.seen += until - used
            used = until
            answers = self._ask([block[at] for at in chosen])
            self._keep(answers)
            score_of = {id(block[at]): float(scores[at]) for at in chosen}
            answered = np.array([score_of[id(snippet)] for snippet, _ in answers])
            labels = np.array([label for _, label in answers], bool)
            batch.rule.learn(answered, labels)
            batch.scores += answered.tolist()
            batch.labels += labels.tolist()
            labelled += len(answers)
            if batch.seen > _SEEN_BEFORE_STARVED and len(batch.labels) < self.options.starved * batch.seen:
                self.state.ended = f"the band accepts less than {self.options.starved:.1%} of the stream"
        return used, labelled

    def _ask(self, snippets: Sequence[Snippet]) -> list[tuple[Snippet, bool]]:
        """The snippets the teacher decided on, with its labels; notes when the budget is spent."""
        # Second tries of unclear answers are charged too, and must not eat what is kept back.
        limit = self.limit - max(self.state.questions, self.ledger.queries if self.kept_back else 0)
        if len(snippets) > limit:
            # Kept answers cost nothing, but a run that has some must not become another than one that has none.
            self.state.ended = f"the budget is spent (all {self.limit:,} questions are asked)"
            snippets = snippets[: max(limit, 0)]
        if not snippets:
            return []
        self.state.questions += len(snippets)
        verdicts = self.ledger.ask(self.teacher, snippets)
        if any(verdict is None for verdict in verdicts):
            self.state.ended = f"the budget is spent ({self.ledger.exhausted_by})"
        return [
            (snippet, verdict.passed)
            for snippet, verdict in zip(snippets, verdicts, strict=True)
            if verdict is not None and verdict.passed is not None
        ]

    def _keep(self, answers: Sequence[tuple[Snippet, bool]]) -> None:
        for snippet, label in answers:
            place = (snippet.part, snippet.row, snippet.piece)
            assert place not in self._asked, f"{place} was asked about twice"
            self._asked.add(place)
            self.state.asked.append(snippet)
            self.state.labels.append(label)
        self._progress(len(self.state.validation) + len(self.state.labels))

    def _look(self, card: Card) -> float:
        """Decide on the sample of the stream; the share of it on which the decision has changed."""
        before, self._decisions = self._decisions, sigmoid(self._sample_logits) > card.threshold
        return 1.0 if before is None else float((self._decisions != before).mean())

    def _note(self, fitted: Fitted, card: Card, batch: _Batch | None) -> None:
        """Write down the round and see whether it was the last."""
        state, options = self.state, self.options
        note = Round(
            number=len(state.rounds),
            labels=card.labels,
            passes=sum(state.labels[: card.labels]),
            questions=state.questions,
            queries=self.ledger.queries,
            tokens=self.ledger.tokens,
            threshold=card.threshold,
            trm=float(sigmoid(np.array([fitted.calibration.least_error]))[0]),
            rate=card.rate,
            unseen_accuracy=fitted.unseen_accuracy,
            changed=self._look(card),
            validation=self._validate(card),
        )
        state.rounds.append(_with_batch(note, batch) if batch else note)
        last = [each.changed for each in state.rounds[-options.patience :]] if options.patience else []
        if last and len(last) == options.patience and max(last) < options.settled and not state.ended:
            state.ended = f"the decisions have settled: {len(last)} trainings changed less than {options.settled:.1%}"
        self._save(state)

    def _validate(self, card: Card) -> tuple[float, float, float] | None:
        if not self.state.validation:
            return None
        texts = [snippet.text for snippet, _ in self.state.validation]
        actual = np.array([label for _, label in self.state.validation], bool)
        counts = confusion(sigmoid(self.learning.logits(self.learning.score(texts))) > card.threshold, actual)
        return (counts.balanced_accuracy, *balanced_accuracy_interval(counts))


def _with_batch(note: Round, batch: _Batch) -> Round:
    """A round's note with what its batch has come to."""
    return note.model_copy(
        update={
            "low": batch.rule.low,
            "high": batch.rule.high,
            "seen": batch.seen,
            "asked": len(batch.labels),
            "batch_passes": sum(batch.labels),
            "nearest_minority": nearest_minority(np.array(batch.scores), np.array(batch.labels, bool)),
        }
    )


def nearest_minority(scores: Floats, labels: Any) -> float | None:
    """The smaller class's share among the labels nearest to the TRM cut, as many on each side as both sides have.

    The spec's balance property: never below a quarter, however rare passing is. None where one side is empty.
    """
    if not len(scores):
        return None
    order = np.argsort(scores, kind="stable")
    cut = int(np.argmin(cut_errors(scores, labels)[1]))
    k = min(cut, len(scores) - cut)
    if not k:
        return None
    share = float(labels[order][cut - k : cut + k].mean())
    return min(share, 1 - share)
