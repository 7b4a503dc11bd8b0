"""Distillation: from a corpus, a criterion and a teacher to a published student, resumed wherever it was stopped.

    RUN/loop/RULE.json     labels and rounds of the loop (and of each control)
    RUN/loop/learned.json  what the report tells of it
    RUN/student            the student, published

Left out: the loop itself (`engine.sieve.loop`) and the filter (`engine.sieve.filter`). Called by `jobs.sieve`, through
`engine.corpus.run_transform`.
"""

import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from pydantic import TypeAdapter
from upath import UPath

from engine.artifacts import is_model, publish_model
from engine.config import Section
from engine.corpus.stream import IO_CPUS
from engine.corpus.transform import Workshop
from engine.errors import ArtifactError, SchemaError
from engine.observe import MetricsWriter, Progress, get_logger
from engine.resources import Demand
from engine.sieve.actors import Learners, RemoteTeacher
from engine.sieve.budget import BudgetLedger
from engine.sieve.calibration import sigmoid
from engine.sieve.endpoint import EndpointTeacher
from engine.sieve.labels_teacher import LabelsTeacher
from engine.sieve.loop import ActiveLoop, LoopState, Round
from engine.sieve.options import StudentOptions
from engine.sieve.recipe import SieveRecipe
from engine.sieve.snippets import SnippetStream, Truth, read_snippets
from engine.sieve.student import Card
from engine.sieve.teacher import Snippet, Teacher
from engine.sieve.training import State, make_trainer
from engine.storage import is_local, make_directory, replace

_log = get_logger("sieve")
_STATE = TypeAdapter(LoopState)


class Opinion(Section):
    """A validation snippet: what the teacher, the student and the truth say of it."""

    text: str
    source: str
    teacher: bool
    score: float
    truth: bool | None


class Effort(Section):
    """What a loop has cost in seconds, over all its processes and however often it was resumed."""

    training: float = 0.0
    """CPU seconds of the student's processes, for training and for scoring the stream."""
    teaching: float = 0.0
    """Of the answers that were not in the cache: CPU seconds of a local teacher, wall seconds of an endpoint."""
    answered: int = 0
    """Those answers."""

    def plus(self, other: "Effort") -> "Effort":
        """Both together."""
        return Effort(
            training=self.training + other.training,
            teaching=self.teaching + other.teaching,
            answered=self.answered + other.answered,
        )

    def less(self, other: "Effort") -> "Effort":
        """What has been added since."""
        return Effort(
            training=self.training - other.training,
            teaching=self.teaching - other.teaching,
            answered=self.answered - other.answered,
        )


class Learned(Section):
    """What the report tells of a distillation."""

    rounds: dict[str, list[Round]]
    """By query rule, the loop's own first."""
    ended: dict[str, str]
    card: Card
    sample: list[float]
    """The student's scores of a random sample of the stream."""
    snippets_per_text: float
    opinions: list[Opinion]
    other: list[float] | None = None
    """Scores of the validation snippets by the other kind of student, and its threshold last."""
    self_agreement: float | None
    """Share of verdicts that were the same when asked for again."""
    rechecked: int
    """Snippets on which it had said something both times."""
    questions: int
    """Snippets the loop wanted the teacher for, those answered out of the cache included."""
    queries: int
    """Questions that were charged."""
    tokens: int
    money: float
    discards: dict[str, int]
    effort: Effort
    controls: dict[str, tuple[int, float]]
    """By control: the questions it was charged, and the money."""


def demands(recipe: SieveRecipe) -> list[Demand]:
    """What has to be schedulable for the loop to run."""
    student, teacher = recipe.student, recipe.teacher
    found = [
        Demand("readers", 1, cpus=IO_CPUS),
        Demand("trainer and scorers", 1 + student.scorers, cpus=student.cpus, gpus=student.gpus),
    ]
    if student.workers > 1:
        found.append(Demand("training workers", student.workers, cpus=student.cpus, gpus=student.gpus))
    if teacher.kind in ("vllm", "scorer"):
        found.append(Demand("teachers", teacher.actors, cpus=teacher.cpus, gpus=teacher.gpus, key="teacher.actors"))
    return found


def distil(recipe: SieveRecipe, shop: Workshop) -> None:
    """Run the loop and publish the student, unless it is there already. Raises `HeadraceError`s."""
    if _published(shop.home / "student"):
        return
    if recipe.truth and recipe.truth.column not in (*shop.plan.schema.names, "source_part"):
        raise SchemaError(
            f"The input has no column {recipe.truth.column!r}.", f"Its columns: {', '.join(shop.plan.schema.names)}."
        )
    with shop.watch.phase("learn"), ExitStack() as stack:
        _Distillation(recipe, shop, stack).run()


def _published(student: UPath) -> bool:
    try:
        return is_model(student)
    except ArtifactError:  # an upload that was cut off: publishing takes it over
        return False


class _Distillation:
    """One distillation: its actors, the teacher and where things are kept."""

    def __init__(self, recipe: SieveRecipe, shop: Workshop, stack: ExitStack) -> None:
        self.recipe, self.shop, self.stack = recipe, shop, stack
        self.cache = UPath(recipe.cache) if recipe.cache else UPath(recipe.runs) / "cache"
        self.folder = shop.home / "loop"
        make_directory(self.folder)
        self.learners = self._learners(recipe.student)
        with closing(self._stream()) as stream:
            self.sample = stream.peek(recipe.loop.sample)
        self.teacher = _Timed(self._teacher())

    def run(self) -> None:
        recipe = self.recipe
        rule = recipe.loop.rule
        ledger = self._ledger(rule)
        card, own = self._loop(rule, ledger)
        agreement, rechecked = self._recheck(ledger, own)
        learned = Learned(
            rounds={rule: own.rounds},
            ended={rule: own.ended},
            card=card,
            sample=self._scores(self.learners, self.sample),
            # Every text has one first snippet, so their share in a random sample tells how many a text has.
            snippets_per_text=len(self.sample) / max(1, sum(each.piece == 0 for each in self.sample)),
            opinions=self._opinions(own),
            self_agreement=agreement,
            rechecked=rechecked,
            questions=own.questions + rechecked,
            queries=ledger.queries,
            tokens=ledger.tokens,
            money=ledger.money,
            discards=ledger.discards,
            effort=self._effort_before(rule),
            controls={},
        )
        weights = self.learners.state()
        # After the loop's own, so that the answers they share are on its account.
        for control in dict.fromkeys(each for each in recipe.controls if each != rule):
            ledger = self._ledger(control)
            _, state = self._loop(control, ledger)
            learned.rounds[control], learned.ended[control] = state.rounds, state.ended
            learned.controls[control] = (ledger.queries, ledger.money)
        self.stack.close()  # teacher and students have done their part, and the other student may have the cores
        learned = learned.model_copy(update={"other": self._other(own)})
        replace(self.folder / "learned.json", learned.model_dump_json(indent=1).encode())
        self._publish(card, own, weights)

    def _loop(self, rule: str, ledger: BudgetLedger) -> tuple[Card, LoopState]:
        recipe, path = self.recipe, self.folder / f"{rule}.json"
        before, since = self._effort_before(rule), self._effort()
        state = _STATE.validate_json(path.read_bytes()) if path.exists() else LoopState()
        done = len(state.validation) + len(state.labels)
        with (
            closing(self._stream()) as stream,
            MetricsWriter(self.folder / rule) as metrics,
            Progress(f"label ({rule})", recipe.budget.queries, "labels", done=done) as bar,
        ):

            def save(state: LoopState) -> None:
                replace(path, _STATE.dump_json(state))
                spent = before.plus(self._effort().less(since))
                replace(self.folder / f"{rule}.effort.json", spent.model_dump_json().encode())
                if state.rounds:
                    metrics.log(len(state.rounds), **_numbers(state.rounds[-1]))

            loop = ActiveLoop(
                stream,
                self.teacher,
                ledger,
                self.learners,
                recipe.loop.model_copy(update={"rule": rule}),
                seed=recipe.seed,
                kept_back=recipe.teacher.recheck,
                state=state,
                save=save,
                progress=_advancing(bar, done),
            )
            card, state = loop.run()
            _log.info("loop ended", rule=rule, labels=len(state.labels), because=state.ended)
            return card, state

    def _effort(self) -> Effort:
        """What this process has spent so far."""
        spent = self.learners.spent()
        training = spent["train seconds"] + spent["score seconds"]
        return Effort(training=training, teaching=self.teacher.seconds, answered=self.teacher.asked)

    def _effort_before(self, rule: str) -> Effort:
        """What a loop had spent when it last saved its state."""
        path = self.folder / f"{rule}.effort.json"
        return Effort.model_validate_json(path.read_bytes()) if path.exists() else Effort()

    def _publish(self, card: Card, state: LoopState, weights: State) -> None:
        recipe = self.recipe
        trainer = make_trainer(recipe.student)
        trainer.restore(weights)
        home = self.shop.home
        local = Path(str(home / "student.partial")) if is_local(home) else Path(mkdtemp(prefix="student-"))
        shutil.rmtree(local, ignore_errors=True)  # what a kill left
        try:
            trainer.student(card).save(local)
            last = state.rounds[-1]
            publish_model(
                local,
                home / "student",
                job="sieve",
                recipe=recipe.model_dump(mode="json"),
                recipe_fingerprint=recipe.fingerprint(),
                inputs_fingerprint=self.shop.plan.fingerprint(),
                seed=recipe.seed,
                parents=self.shop.plan.parents,
                models={"base": card.base_fingerprint, "teacher": self.teacher.fingerprint},
                counts={"labels": card.labels, "queries": last.queries, "tokens": last.tokens},
                metrics={"balanced accuracy on random labels": last.validation[0]} if last.validation else {},
            )
        finally:
            shutil.rmtree(local, ignore_errors=True)

    def _opinions(self, state: LoopState) -> list[Opinion]:
        """The validation snippets with everybody's opinion."""
        snippets = [snippet for snippet, _ in state.validation]
        scores = self._scores(self.learners, snippets)
        return [
            Opinion(
                text=snippet.text,
                source=f"{snippet.part} [{snippet.row}]",
                teacher=label,
                score=score,
                truth=snippet.truth,
            )
            for (snippet, label), score in zip(state.validation, scores, strict=True)
        ]

    def _recheck(self, ledger: BudgetLedger, state: LoopState) -> tuple[float | None, int]:
        """The share of validation snippets on which the teacher agrees with itself, and of how many."""
        again = [snippet for snippet, _ in state.validation[: self.recipe.teacher.recheck]]
        return ledger.self_agreement(self.teacher, again) if again else (None, 0)

    def _other(self, state: LoopState) -> list[float] | None:
        """The validation snippets' scores by a student of the other kind, trained on the same labels."""
        if not self.recipe.compare or not state.validation:
            return None
        kind = "frozen" if self.recipe.student.kind == "encoder" else "encoder"
        options = self.recipe.student.model_copy(update={"kind": kind, "noise": 0.0, "token_drop": 0.0})
        learners = self._learners(options, alone=True)
        sample = [each.text for each in self.sample]
        labelled = state.labelled(len(state.labels))
        _, card = learners.adopt(learners.start(labelled, sample, self.recipe.seed))
        return [*self._scores(learners, [snippet for snippet, _ in state.validation]), card.threshold]

    def _scores(self, learners: Learners, snippets: Sequence[Snippet]) -> list[float]:
        found: list[float] = sigmoid(learners.logits(learners.score([each.text for each in snippets]))).tolist()
        return found

    def _learners(self, options: StudentOptions, *, alone: bool = False) -> Learners:
        folder, seconds = self.cache / "features", self.recipe.stall_seconds
        learners = Learners(options, self.recipe.criterion, folder, seconds, alone=alone)
        self.stack.callback(learners.close)
        return learners

    def _ledger(self, rule: str) -> BudgetLedger:
        home = self.shop.home if rule == self.recipe.loop.rule else self.folder / rule
        return BudgetLedger(home, self.cache / "answers", self.recipe.budget)

    def _stream(self) -> SnippetStream:
        recipe, shop = self.recipe, self.shop
        truth = Truth(recipe.truth) if recipe.truth else None
        snippets = read_snippets(
            shop.plan, shop.read, recipe.student, truth=truth, seed=recipe.seed, stall_seconds=recipe.stall_seconds,
            cores=recipe.workers,
        )  # fmt: skip
        return SnippetStream(snippets, buffer=recipe.loop.buffer, seed=recipe.seed)

    def _teacher(self) -> Teacher:
        recipe = self.recipe
        if recipe.teacher.kind == "labels":
            assert recipe.truth is not None, "checked by the recipe"
            return LabelsTeacher([recipe.truth.column, *recipe.truth.passes])
        if recipe.teacher.kind == "endpoint":
            return self.stack.enter_context(EndpointTeacher(recipe.teacher, recipe.criterion))
        # The end of the sample: its beginning becomes validation and warm start.
        held_out = [each.text for each in self.sample[::-1][: recipe.teacher.calibration]]
        teacher = RemoteTeacher(recipe.teacher, recipe.criterion, held_out, recipe.stall_seconds)
        self.stack.callback(teacher.close)
        return teacher


class _Timed:
    """A teacher whose answers are counted and timed: in CPU seconds where it works here, by the clock elsewhere."""

    def __init__(self, teacher: Teacher) -> None:
        self._teacher = teacher
        self._waited, self.asked = 0.0, 0

    @property
    def seconds(self) -> float:
        """Seconds that the answers have taken."""
        return self._teacher.seconds if isinstance(self._teacher, RemoteTeacher) else self._waited

    def __getattr__(self, name: str) -> Any:
        return getattr(self._teacher, name)

    def judge(self, snippets: Sequence[Snippet]) -> Any:
        """See `Teacher`."""
        started = time.perf_counter()
        yield from self._teacher.judge(snippets)
        self._waited += time.perf_counter() - started
        self.asked += len(snippets)


def _numbers(last: Round) -> dict[str, float]:
    found = {name: value for name, value in last.model_dump().items() if isinstance(value, int | float)}
    if last.seen:
        found["accepted"] = last.asked / last.seen
    if last.validation:
        names = ("validation_balanced_accuracy", "validation_low", "validation_high")
        found |= dict(zip(names, last.validation, strict=True))
    return found


def _advancing(bar: Progress, done: int) -> Callable[[int], None]:
    """Moves a bar to a number of labels."""
    shown = done

    def to(labels: int) -> None:
        nonlocal shown
        bar.advance(labels - shown)
        shown = labels

    return to
