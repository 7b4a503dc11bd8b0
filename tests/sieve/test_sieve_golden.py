"""The golden tests of the specification that need no model: thresholds, bounds, balance, focal loss, cost."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.sieve import (
    Band,
    LoopOptions,
    balanced_accuracy,
    balanced_threshold,
    confusion,
    empirical_bernstein,
    focal_loss,
    make_rule,
    trm_threshold,
)
from engine.sieve.calibration import sigmoid
from engine.sieve.loop import nearest_minority
from engine.sieve.report import relative_cost
from engine.sieve.rules import window, worse_thresholds
from engine.sieve.threshold import cut_errors, halfway

LABELS = st.lists(st.booleans(), min_size=1, max_size=60)


def test_errors_of_every_cut_and_the_lowest_of_the_best():
    scores, labels = [0.1, 0.2, 0.3, 0.35, 0.4, 0.6, 0.7, 0.8], [0, 0, 1, 0, 1, 1, 1, 1]
    ordered, errors = cut_errors(scores, labels)
    assert errors.tolist() == [3, 2, 1, 2, 1, 2, 3, 4, 5]
    assert [halfway(ordered, cut) for cut in (0, 2, 4, 8)] == [-math.inf, 0.25, 0.375, math.inf]
    assert trm_threshold(scores, labels) == 0.25
    assert sum((score > 0.5) != bool(label) for score, label in zip(scores, labels, strict=True)) == 2


def test_first_of_tied_cuts():
    labels = [0, 0, 0, 1, 0, 1, 1, 0, 1, 1]
    _, errors = cut_errors(range(10), labels)
    assert errors.tolist() == [5, 4, 3, 2, 3, 2, 3, 4, 3, 4, 5]
    assert int(np.argmin(errors)) == 3


@pytest.mark.parametrize(("labels", "threshold"), [([0, 0, 0], math.inf), ([1, 1, 1], -math.inf), ([], math.inf)])
def test_one_class_or_none(labels, threshold):
    assert trm_threshold(np.arange(len(labels)), labels) == threshold


@given(LABELS, st.randoms(use_true_random=False))
def test_nothing_beats_the_trm_threshold(labels, random):
    scores = [random.choice([0.1, 0.2, 0.3, 0.5, 0.9]) for _ in labels]
    chosen = trm_threshold(scores, labels)

    def errors(threshold):
        return sum((score > threshold) != label for score, label in zip(scores, labels, strict=True))

    assert errors(chosen) == min(errors(each) for each in (-1, 0.15, 0.25, 0.4, 0.7, 1))
    lower = [each for each in (-1, 0.15, 0.25, 0.4, 0.7, 1) if errors(each) == errors(chosen) and each < chosen]
    assert not [each for each in lower if sum(each < score <= chosen for score in scores)]


@given(LABELS)
def test_monotone_rescaling_keeps_the_cut(labels):
    scores = np.random.default_rng(len(labels)).normal(size=len(labels))
    once, again = trm_threshold(scores, labels), trm_threshold(np.exp(3 * scores), labels)
    assert (scores > once).tolist() == (np.exp(3 * scores) > again).tolist()


def test_neighbouring_floats_are_parted():
    low = 0.1
    high = np.nextafter(low, 1)
    assert low <= trm_threshold([low, high], [0, 1]) < high


@given(st.lists(st.booleans(), min_size=2, max_size=200))
def test_a_quarter_of_each_class_beside_the_cut(labels):
    errors = cut_errors(np.arange(len(labels)), np.array(labels))[1]
    cut = int(np.argmin(errors))
    for k in range(1, min(cut, len(labels) - cut) + 1):
        share = np.mean(labels[cut - k : cut + k])
        assert min(share, 1 - share) >= 0.25
    share = nearest_minority(np.arange(len(labels), dtype=float), np.array(labels))
    assert share is None or share >= 0.25


@pytest.mark.parametrize(
    ("w", "accuracies", "first"),
    [
        ([1, 1, 1, 1, -1, 1, -1, -1], [-2, 0, 2, 4, 6, 4, 6, 4, 2], 4),
        ([1, 0, 0, -1, 0, 0], [0, 2, 2, 2, 0, 0, 0], 1),
    ],
)
def test_direct_accuracies(w, accuracies, first):
    """The published algorithm weighs a fail +1 and a pass -1 (an item without label 0); its accuracy at a cut is that
    of n items less twice the errors."""
    w = np.array(w)
    errors = cut_errors(np.arange(len(w)), w < 0, np.abs(w))[1]
    found = np.abs(w).sum() - 2 * errors
    assert found.tolist() == accuracies
    assert int(np.argmin(errors)) == first


def test_empirical_bernstein():
    assert empirical_bernstein(0.25, 100, 0.05, 1.0) == pytest.approx(0.2228, abs=5e-5)
    assert empirical_bernstein(0.25, 1000, 0.05, 1.0) == pytest.approx(0.0516, abs=5e-5)


def test_confusion_measures():
    predicted = [1] * 8 + [0] * 2 + [1] * 10 + [0] * 80
    actual = [1] * 10 + [0] * 90
    counts = confusion(predicted, actual)
    assert (counts.true_pass, counts.false_fail, counts.false_pass, counts.true_fail) == (8, 2, 10, 80)
    assert balanced_accuracy(predicted, actual) == pytest.approx(0.8444, abs=5e-5)
    assert counts.accuracy == pytest.approx(0.88)
    assert counts.f1 == pytest.approx(0.5714, abs=5e-5)


def test_balanced_accuracy_without_one_class():
    assert balanced_accuracy([1, 0], [1, 1]) == 0.5
    assert math.isnan(balanced_accuracy([], []))
    with pytest.raises(ValueError, match="shape"):
        balanced_accuracy([1], [1, 0])


@pytest.mark.parametrize(("p", "gamma", "loss"), [(0.9, 2.0, 0.000527), (0.1, 2.0, 0.932547), (0.9, 0.0, 0.05268)])
def test_focal_loss(p, gamma, loss):
    logit = torch.tensor([math.log(p / (1 - p))], dtype=torch.float64)
    found = focal_loss(logit, torch.ones(1, dtype=torch.float64), 0.5, gamma)
    assert float(found) == pytest.approx(loss, abs=5e-6)


@pytest.mark.parametrize(
    ("n", "q", "relative"), [(100_000, 6_000, 0.062), (1_000_000, 6_000, 0.008), (10_000_000, 60_000, 0.008)]
)
def test_cost_model(n, q, relative):
    assert relative_cost(n, q, 1 / 500) == pytest.approx(relative)


@given(LABELS)
def test_error_differences_are_means_between_thresholds(labels):
    scores = np.random.default_rng(0).uniform(size=len(labels))
    grid = np.linspace(0, 1, 9)
    y = np.where(labels, 1, -1)
    n = len(labels)
    errors = np.array([np.mean((scores > t) != np.array(labels)) for t in grid])
    for i, s in enumerate(grid):
        for j, t in enumerate(grid):
            if s < t:
                assert errors[j] - errors[i] == pytest.approx((y * ((scores > s) & (scores <= t))).sum() / n)


def test_a_threshold_that_is_worse_beyond_doubt_is_dropped():
    rng = np.random.default_rng(0)
    scores = rng.uniform(size=4000)
    labels = rng.uniform(size=4000) < scores
    worse = worse_thresholds(scores, labels, np.linspace(0, 1, 11), 0.05 / 121)
    assert worse[[0, 1, 9, 10]].all()
    assert not worse[[4, 5, 6]].any()


def test_the_band_only_narrows_and_keeps_the_trm_threshold():
    """The spec's simulation: 3 % pass, logits N(-1, 1) and N(-4, 1), TRM at 0.20."""
    for seed in range(3):
        rng = np.random.default_rng(seed)
        rule = make_rule(LoopOptions(rule="published", every=100), 0.5, np.empty(0))
        asked: list[bool] = []
        while len(asked) < 2000:
            passes = rng.uniform(size=500) < 0.03
            scores = sigmoid(np.where(passes, rng.normal(-1, 1, 500), rng.normal(-4, 1, 500)))
            low, high = rule.low, rule.high
            inside = np.flatnonzero(rule.wants(scores))[: 2000 - len(asked)]
            rule.learn(scores[inside], passes[inside])
            asked += passes[inside].tolist()
            assert low <= rule.low <= rule.high <= high
        assert rule.low <= 0.20 <= rule.high
        assert rule.high - rule.low < 0.35
        assert 0.35 <= np.mean(asked[-500:]) <= 0.65


def test_a_window_holds_its_share_around_the_centre():
    stream = np.random.default_rng(0).uniform(size=10_000)
    low, high = window(stream, 0.5, 0.1)
    assert (low, high) == (pytest.approx(0.45, abs=0.02), pytest.approx(0.55, abs=0.02))
    low, high = window(stream, 0.99, 0.1)
    assert (low, high) == (pytest.approx(0.9, abs=0.02), 1.0)
    assert window(stream, 0.5, 1.0) == (0.0, 1.0)
    assert window(np.empty(0), 0.5, 0.1) == (0.0, 1.0)


def test_the_balanced_threshold_is_the_best_of_all():
    rng = np.random.default_rng(0)
    labels = rng.uniform(size=300) < 0.1
    scores = rng.normal(size=300) + 2 * labels
    best = max(balanced_accuracy(scores > each, labels) for each in scores)
    assert balanced_accuracy(scores > balanced_threshold(scores, labels), labels) == pytest.approx(best)
    with pytest.raises(ValueError, match="passes and fails"):
        balanced_threshold(scores, np.zeros(300, bool))


def test_band_of_a_single_score():
    rule = Band(0.5, 0.5, grid=5, every=1, confidence=0.05)
    rule.learn(np.array([0.5, 0.5]), np.array([True, False]))
    assert (rule.low, rule.high) == (0.5, 0.5)
