"""Training and scoring in this process, for tests and benchmarks: the loop as it is, without Ray and its actors.

    InlineLearners    runs any trainer when it is asked, one thing after the other
    NumberTrainer     a fake student: its texts are numbers, its only feature

Left out: everything real about processes (`engine.sieve.actors`). Called by tests and benchmarks only.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from engine.sieve.options import StudentOptions
from engine.sieve.student import Card, Student
from engine.sieve.threshold import Floats
from engine.sieve.training import Fitted, Labelled, State, Trainer, make_card, train


class InlineLearners:
    """A trainer that also scores; what a training gives is kept until it is adopted, as with actors."""

    def __init__(self, trainer: Trainer, options: StudentOptions, criterion: str = "") -> None:
        self._trainer, self._options, self._criterion = trainer, options, criterion
        self._adopted: State = {}
        self.trained = 0

    def start(self, labelled: Labelled, stream: Sequence[str], seed: int) -> Any:
        """Train at once, then score with the student adopted before."""
        fitted = train(self._trainer, labelled, stream, self._options, seed)
        state = self._trainer.state()
        if self._adopted:
            self._trainer.restore(self._adopted)
        self.trained += 1
        return fitted, len(labelled.texts), state

    def adopt(self, training: Any) -> tuple[Fitted, Card]:
        """Score with what was trained."""
        fitted, labels, self._adopted = training
        self._trainer.restore(self._adopted)
        card = make_card(self._options, self._criterion, fitted, labels)
        return fitted, card

    def score(self, texts: Sequence[str]) -> Any:
        """The logits themselves."""
        return self._trainer.logits(texts)

    def logits(self, reference: Any) -> Floats:
        """What `score` gave."""
        return np.asarray(reference, float)


class NumberTrainer:
    """Logit = weight * number + bias, by class means: fails and passes are pulled apart, the middle is zero."""

    def __init__(self) -> None:
        self._weight, self._bias = 1.0, 0.0

    def fit(self, labelled: Labelled, seed: int) -> None:
        """See `Trainer`."""
        numbers = np.array([float(text) for text in labelled.texts])
        if labelled.labels.all() or not labelled.labels.any():
            return
        low, high = numbers[~labelled.labels].mean(), numbers[labelled.labels].mean()
        self._weight = 4.0 / (high - low) if high > low else 1.0
        self._bias = -self._weight * (low + high) / 2

    def logits(self, texts: Sequence[str]) -> Floats:
        """See `Trainer`."""
        return self._weight * np.array([float(text) for text in texts]) + self._bias

    def state(self) -> State:
        """See `Trainer`."""
        return {"numbers": np.array([self._weight, self._bias])}

    def restore(self, state: State) -> None:
        """See `Trainer`."""
        self._weight, self._bias = (float(each) for each in state["numbers"])

    def student(self, card: Card) -> Student:
        """There is none."""
        raise NotImplementedError("numbers have no encoder")
