"""The active loop over a stream of numbers: what is asked, what is never asked, when it ends, and how it resumes."""

from dataclasses import dataclass

import numpy as np
import pytest
from upath import UPath

from engine.errors import RecipeError
from engine.sieve import ActiveLoop, BudgetLedger, BudgetOptions, LoopOptions, LoopState, Snippet, SnippetStream
from engine.sieve import snippets as snippets_module
from engine.sieve.calibration import sigmoid
from engine.sieve.inline import InlineLearners, NumberTrainer
from engine.sieve.labels_teacher import LabelsTeacher
from engine.sieve.options import StudentOptions
from engine.sieve.teacher import Verdict

OPTIONS = {"validation": 0, "warm_start": 40, "batch": 40, "every": 10, "sample": 400, "buffer": 50, "patience": 0}


def numbers(count=6000, rate=0.05, seed=0):
    rng = np.random.default_rng(seed)
    for row in range(count):
        passes = bool(rng.uniform() < rate)
        yield Snippet(f"{rng.normal(2.0 if passes else -1.0):.12f}", "numbers", row, 0, passes)


class Watched(LabelsTeacher):
    """A labels teacher that remembers what it was asked."""

    def __init__(self):
        super().__init__(["numbers"])
        self.asked = []

    def judge(self, snippets):
        self.asked += snippets
        return super().judge(snippets)


def make(folder, *, queries=240, teacher=None, state=None, save=lambda state: None, seed=0, source=numbers, **options):
    student = StudentOptions(kind="frozen")
    learners = InlineLearners(NumberTrainer(), student)
    return ActiveLoop(
        SnippetStream(source(), buffer=50, seed=seed),
        teacher or Watched(),
        BudgetLedger(UPath(folder), UPath(folder) / "cache", BudgetOptions(queries=queries)),
        learners,
        LoopOptions(**{**OPTIONS, **options}),
        seed=seed,
        state=state,
        save=save,
    )


@pytest.mark.parametrize("rule", ["band", "published", "uncertainty", "random"])
def test_the_budget_is_spent_and_nothing_asked_twice(tmp_path, rule):
    loop = make(tmp_path, rule=rule)
    card, state = loop.run()
    rows = [snippet.row for snippet in loop.teacher.asked]
    assert len(rows) == len(set(rows)) == 240 == loop.ledger.queries == card.labels
    assert state.labels == [snippet.truth for snippet in state.asked]
    assert "budget" in state.ended


def test_the_band_finds_what_is_rare(tmp_path):
    rates = {}
    for rule in ("band", "random"):
        _, state = make(tmp_path / rule, rule=rule).run()
        rates[rule] = np.mean(state.labels[state.warm :])
    assert rates["random"] < 0.12
    assert rates["band"] > 2 * rates["random"]


def test_nothing_outside_the_band_is_asked_and_it_only_narrows(tmp_path, monkeypatch):
    asked, bounds = [], []
    real = ActiveLoop._ask_block

    def watch(self, batch, block, scores, count):
        before = (batch.rule.low, batch.rule.high)
        first = len(batch.scores)
        result = real(self, batch, block, scores, count)
        asked.extend((score, *before) for score in batch.scores[first:])
        bounds.append((id(batch), *before, batch.rule.low, batch.rule.high))
        return result

    monkeypatch.setattr(ActiveLoop, "_ask_block", watch)
    make(tmp_path, rule="published", batch=400, queries=1200, source=lambda: numbers(20_000)).run()
    assert asked
    assert all(low <= score <= high for score, low, high in asked)
    assert all(old_low <= low <= high <= old_high for _, old_low, old_high, low, high in bounds)
    assert any(low > 0 or high < 1 for *_, low, high in bounds)
    starts = {batch: (low, high) for batch, low, high, _, _ in reversed(bounds)}
    assert set(starts.values()) == {(0.0, 1.0)}, "a new student starts with the whole range"


def test_same_seed_same_questions(tmp_path):
    runs = [make(tmp_path / name, seed=seed) for name, seed in (("a", 1), ("b", 1), ("c", 2))]
    for loop in runs:
        loop.run()
    rows = [[snippet.row for snippet in loop.teacher.asked] for loop in runs]
    assert rows[0] == rows[1] != rows[2]


@pytest.mark.parametrize("stop", range(1, 7))
def test_resumed_after_any_round_it_asks_what_it_would_have_asked(tmp_path, stop):
    class Killed(Exception):
        pass

    saved = []

    def save(state):
        saved.append(LoopState(**{**vars(state), "asked": list(state.asked), "labels": list(state.labels),
                                  "rounds": list(state.rounds)}))  # fmt: skip
        if len(saved) == stop:
            raise Killed

    whole = make(tmp_path / "whole")
    _, wanted = whole.run()
    first = make(tmp_path / "killed", save=save)
    if stop <= len(wanted.rounds):
        with pytest.raises(Killed):
            first.run()
    else:
        first.run()
    second = make(tmp_path / "killed", state=saved[-1])
    _, state = second.run()
    assert [each.row for each in state.asked] == [each.row for each in wanted.asked]
    assert [each.threshold for each in state.rounds] == [each.threshold for each in wanted.rounds]
    both = [snippet.row for snippet in first.teacher.asked + second.teacher.asked]
    assert len(both) == len(set(both)), "a label was paid for twice"


def test_kept_answers_do_not_lengthen_a_run(tmp_path):
    class Shared(Watched):
        shared = True

    first = make(tmp_path, rule="random", teacher=Shared())
    first.run()
    second = make(tmp_path, rule="random", teacher=Shared())
    second.ledger = BudgetLedger(UPath(tmp_path / "other"), UPath(tmp_path / "cache"), BudgetOptions(queries=240))
    _, state = second.run()
    assert len(state.labels) == 240
    assert not second.teacher.asked
    assert second.ledger.queries == 0


def test_labels_asked_ahead_are_in_the_next_training(tmp_path):
    with_ahead = make(tmp_path / "a", ahead=0.5)
    _, state = with_ahead.run()
    assert [each.labels for each in state.rounds] == [40, 60, 100, 140, 180, 220, 240]


def test_it_ends_when_decisions_have_settled(tmp_path):
    _, state = make(tmp_path, patience=2, settled=0.5).run()
    assert "settled" in state.ended
    assert [each.labels for each in state.rounds] == [40, 70, 110, 120], "what was asked ahead is trained on at last"


def test_it_ends_when_the_band_is_starved(tmp_path):
    _, state = make(tmp_path, starved=0.5, share=0.02).run()
    assert "accepts less than" in state.ended


def test_it_ends_with_the_stream(tmp_path):
    _, state = make(tmp_path, source=lambda: numbers(300), rule="random", queries=1000).run()
    assert state.ended == "the stream has ended"
    assert len(state.labels) == 300


@pytest.mark.parametrize(
    ("verdict", "said"), [(True, "let everything pass"), (False, "let nothing pass"), (None, "decided nothing")]
)
def test_a_teacher_that_always_says_the_same(tmp_path, verdict, said):
    class Same(Watched):
        def judge(self, snippets):
            yield from (
                (at, Verdict(verdict, "" if verdict is not None else "nonsense")) for at in range(len(snippets))
            )

    with pytest.raises(RecipeError, match=said):
        make(tmp_path, teacher=Same(), queries=100).run()


def test_budget_zero(tmp_path):
    with pytest.raises(RecipeError, match="budget"):
        make(tmp_path, queries=0).run()


def test_validation_snippets_are_never_trained_on(tmp_path):
    loop = make(tmp_path, validation=30)
    _, state = loop.run()
    held = {snippet.row for snippet, _ in state.validation}
    assert len(held) == 30
    assert not held & {snippet.row for snippet in state.asked}
    value, low, high = state.rounds[-1].validation
    assert 0 <= low <= value <= high <= 1


def test_the_stream_is_a_sample_whatever_its_order():
    ordered = (Snippet(str(row), "a", row) for row in range(5000))
    stream = SnippetStream(ordered, buffer=5000, seed=0)
    first = [each.row for each in stream.take(500)]
    assert 2200 < np.mean(first) < 2800
    stream.put_back([Snippet("x"), Snippet("y")])
    assert [each.text for each in stream.peek(2)] == ["x", "y"] == [each.text for each in stream.take(2)]
    assert len(stream.take(10_000)) == 4500
    assert stream.taken == 5000


def test_shards_are_read_in_groups(monkeypatch):
    @dataclass
    class Sized:
        size: int

    monkeypatch.setattr(snippets_module, "_GROUP_BYTES", 10)
    groups = list(snippets_module._groups([Sized(4), Sized(4), Sized(4), Sized(30), Sized(1)]))
    assert [[each.size for each in group] for group in groups] == [[4, 4, 4], [30], [1]]


def test_calibration_finds_the_cuts():
    from engine.sieve import calibrate

    rng = np.random.default_rng(0)
    passes = rng.uniform(size=20_000) < 0.05
    logits = np.where(passes, rng.normal(1, 1, 20_000), rng.normal(-2, 1, 20_000))
    # By Bayes the chance to pass at z is sigmoid(3 z + 1.5 + logit(0.05)).
    few = rng.permutation(20_000)[:3000]
    found = calibrate(logits[few], passes[few], logits)
    assert found.rate == pytest.approx(0.05, abs=0.01)
    assert found.least_error == pytest.approx((2.944 - 1.5) / 3, abs=0.12)
    assert found.balanced == pytest.approx(-0.5, abs=0.15)
    assert found.chance(np.array([found.least_error]))[0] == pytest.approx(0.5)


@pytest.mark.parametrize("label", [True, False])
def test_calibration_of_one_class_stays_finite(label):
    from engine.sieve import calibrate

    found = calibrate(np.linspace(-1, 1, 10), np.full(10, label), np.linspace(-1, 1, 50))
    assert np.isfinite([found.slope, found.offset, found.balanced, found.least_error]).all()
    assert (sigmoid(np.array([found.offset]))[0] > 0.5) == label
