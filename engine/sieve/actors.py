"""The actors of the active loop and their driver's side: one trainer, some scorers, and teachers that need a model.

    LearnerActor    holds an encoder; trains on labels, or scores snippets with what another has trained
    TeacherActor    holds a causal LM; answers questions

Each works with as many threads as Ray gave it cores (at least one): on a laptop all three share two cores, and threads
that wait for one another lose far more than they gain. One that runs alone takes them all. Every wait has a deadline.
Left out: what is trained and asked (`engine.sieve.loop`). Called by it.
"""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import ray
from upath import UPath

from engine.corpus import FeatureCache
from engine.errors import DeadlineExceeded, HeadraceError
from engine.models import fingerprint, resolve
from engine.sieve.options import StudentOptions, TeacherOptions
from engine.sieve.student import Card
from engine.sieve.teacher import PROMPT, Snippet, Teacher, Verdict, fill
from engine.sieve.threshold import Floats
from engine.sieve.training import Fitted, Labelled, State, make_card, make_trainer, train


def feature_cache(options: StudentOptions, folder: UPath) -> FeatureCache | None:
    """Where the features of a frozen encoder are kept; an encoder that is trained has none worth keeping."""
    if options.kind != "frozen":
        return None
    pooling = "tokens" if options.token_drop else options.pooling
    return FeatureCache(
        folder,
        encoder=fingerprint(resolve(options.model)),
        layer=-1,
        pooling=pooling,
        dtype="float16",
        max_tokens=options.max_tokens,
    )


class LearnerActor:
    """A trainer in a process of its own."""

    def __init__(self, options: StudentOptions, criterion: str, cache: UPath, alone: bool = False) -> None:
        _one_thread_per_core(len(os.sched_getaffinity(0)) if alone else options.cpus)
        self._options, self._criterion = options, criterion
        self._cache = feature_cache(options, cache)
        self._trainer = make_trainer(options, self._cache)
        self._spent = {"train seconds": 0.0, "score seconds": 0.0, "scored": 0.0}

    def train(self, labelled: Labelled, stream: list[str], seed: int) -> tuple[Fitted, Card, Any]:
        """Train; how scores are to be read, the student's card, and its weights in the object store."""
        with self._counted("train seconds"):
            if self._cache:
                self._cache.refresh()  # most of these snippets have met the scorers' encoder
            fitted = train(self._trainer, labelled, stream, self._options, seed)
            if self._cache:
                self._cache.flush()
        card = make_card(self._options, self._criterion, fitted, len(labelled.texts))
        return fitted, card, [ray.put(self._trainer.state())]

    def restore(self, state: "list[ray.ObjectRef[Any]]") -> None:
        """Score with these weights from now on."""
        self._trainer.restore(ray.get(state[0]))

    def logits(self, texts: list[str]) -> Floats:
        """Logits of snippets, (n,)."""
        with self._counted("score seconds"):
            found = self._trainer.logits(texts)
            if self._cache:
                self._cache.flush()
        self._spent["scored"] += len(texts)
        return found

    def spent(self) -> dict[str, float]:
        """CPU seconds of this process for training and scoring, and the snippets scored."""
        return self._spent

    @contextmanager
    def _counted(self, name: str) -> Iterator[None]:
        started = time.process_time()
        yield
        self._spent[name] += time.process_time() - started


class Learners:
    """The trainer and the scorers; closing ends their processes.

    Training runs beside scoring; `adopt` hands its result to the scorers.
    """

    def __init__(
        self, options: StudentOptions, criterion: str, cache: UPath, seconds: float, *, alone: bool = False
    ) -> None:
        # Never restarted: a new process would not hold what the old one was trained to. Rerunning resumes.
        actor = ray.remote(num_cpus=options.cpus, num_gpus=options.gpus)(LearnerActor)
        self._seconds = seconds
        self._trainer = actor.remote(options, criterion, cache, alone)
        # Alone, what trains also scores; otherwise scoring goes on beside training.
        self._scorers = (
            [self._trainer] if alone else [actor.remote(options, criterion, cache) for _ in range(options.scorers)]
        )
        self._next = 0

    def start(self, labelled: Labelled, stream: Sequence[str], seed: int) -> Any:
        """Begin to train; what `adopt` takes."""
        return self._trainer.train.remote(labelled, list(stream), seed)

    def adopt(self, training: Any) -> tuple[Fitted, Card]:
        """Wait for a training; scorers score with its result from the next call on."""
        fitted, card, self._state = get(training, self._seconds, "the student's training")
        get([each.restore.remote(self._state) for each in self._scorers], self._seconds, "the scorers")
        return fitted, card

    def state(self) -> State:
        """The weights adopted last."""
        state: State = get(self._state[0], self._seconds, "the student's weights")
        return state

    def score(self, texts: Sequence[str]) -> Any:
        """Begin to score snippets; a reference to their logits."""
        self._next = (self._next + 1) % len(self._scorers)
        return self._scorers[self._next].logits.remote(list(texts))

    def logits(self, reference: Any) -> Floats:
        """Wait for scores."""
        return np.asarray(get(reference, self._seconds, "a scorer"))

    def spent(self) -> dict[str, float]:
        """CPU seconds of all the processes together, and the snippets scored."""
        all_spent = get([each.spent.remote() for each in self._all()], self._seconds, "the scorers")
        return {name: sum(each[name] for each in all_spent) for name in all_spent[0]}

    def close(self) -> None:
        """End the processes."""
        for each in self._all():
            ray.kill(each)

    def _all(self) -> list[Any]:
        return [self._trainer, *(each for each in self._scorers if each is not self._trainer)]


class TeacherActor:
    """A teacher that holds a model, in a process of its own."""

    def __init__(self, options: TeacherOptions, criterion: str, calibration: list[str]) -> None:
        _one_thread_per_core(options.cpus)
        if options.kind == "vllm":
            from engine.sieve.writer import WriterTeacher

            self._teacher: Teacher = WriterTeacher(options, criterion)
        else:
            from engine.sieve.scorer import ScorerTeacher

            scorer = ScorerTeacher(options, criterion)
            scorer.calibrate(calibration)
            self._teacher = scorer

    def fingerprint(self) -> str:
        """The teacher's own."""
        return self._teacher.fingerprint

    def judge(self, snippets: list[Snippet]) -> tuple[list[tuple[int, Verdict]], float]:
        """All verdicts at once, and the CPU seconds of this process that they took."""
        started = time.process_time()
        verdicts = list(self._teacher.judge(snippets))
        return verdicts, time.process_time() - started


class RemoteTeacher:
    """A `Teacher` whose work is done by actors."""

    shared = True

    def __init__(self, options: TeacherOptions, criterion: str, calibration: Sequence[str], seconds: float) -> None:
        actor = ray.remote(num_cpus=options.cpus, num_gpus=options.gpus, max_restarts=2, max_task_retries=2)(
            TeacherActor
        )
        self._actors = [actor.remote(options, criterion, list(calibration)) for _ in range(options.actors)]
        self._seconds = seconds
        self._portion = options.at_once
        self._longest = options.max_tokens if options.kind == "vllm" else 0
        self._prompt, self._criterion = options.prompt or PROMPT, criterion
        self._more = sum(len(word.encode()) for word in (*options.passes, *options.fails)) + _TEMPLATE
        self.seconds = 0.0
        """CPU seconds its processes have worked on answers."""
        self.at_once = options.at_once * options.actors
        self.fingerprint = str(get(self._actors[0].fingerprint.remote(), seconds, "the teacher's model"))

    def most_tokens(self, snippet: Snippet) -> tuple[int, int]:
        """A token is at least a byte, so bytes bound the tokens without a call."""
        return len(fill(self._prompt, self._criterion, snippet.text).encode()) + self._more, self._longest

    def judge(self, snippets: Sequence[Snippet]) -> Iterator[tuple[int, Verdict]]:
        """See `Teacher`; portions go to the actors in turn."""
        portions = range(0, len(snippets), self._portion)
        waiting = {
            self._actors[turn % len(self._actors)].judge.remote(list(snippets[first : first + self._portion])): first
            for turn, first in enumerate(portions)
        }
        while waiting:
            ready, _ = ray.wait(list(waiting), timeout=self._seconds)
            if not ready:
                raise DeadlineExceeded(f"The teacher has not answered for {self._seconds:g} s.", _SLOW)
            first = waiting.pop(ready[0])
            verdicts, seconds = get(ready[0], self._seconds, "the teacher")
            self.seconds += seconds
            for at, verdict in verdicts:
                yield first + at, verdict

    def close(self) -> None:
        """End the processes."""
        for each in self._actors:
            ray.kill(each)


def get(reference: Any, seconds: float, who: str) -> Any:
    """What an actor returns. Raises the `HeadraceError` it raised, or `DeadlineExceeded` naming who was waited for."""
    from engine.corpus.stream import user_error

    try:
        return ray.get(reference, timeout=seconds)
    except ray.exceptions.GetTimeoutError:
        raise DeadlineExceeded(f"Nothing came from {who} for {seconds:g} s.", _SLOW) from None
    except ray.exceptions.RayError as error:
        ours = user_error(error)
        if ours is not None:
            raise ours from None
        if isinstance(error, ray.exceptions.RayActorError | ray.exceptions.ObjectLostError):
            raise HeadraceError(
                f"The process of {who} died ({str(error).strip().partition(chr(10))[0][:150]}).",
                "It may have run out of memory: lower batch or max_tokens, or use a smaller model. Rerunning resumes.",
            ) from error
        raise


_TEMPLATE = 1000
"""More tokens than a chat template puts around a question."""
_SLOW = "Raise stall_seconds if one step may take that long; rerunning resumes."


def _one_thread_per_core(cpus: float) -> None:
    import torch

    torch.set_num_threads(max(1, int(cpus)))
