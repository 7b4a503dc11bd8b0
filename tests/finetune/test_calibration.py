"""Accuracy and calibration against plain sums, and what a perfect and a boastful scorer come to."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.finetune.calibration import calibration


def sigmoid(logits):
    return 1 / (1 + np.exp(-logits))


@given(st.lists(st.tuples(st.floats(-6, 6), st.booleans()), min_size=2, max_size=60))
def test_it_is_what_plain_sums_give(rows):
    logits, labels = np.array([row[0] for row in rows]), np.array([float(row[1]) for row in rows])
    found = calibration(logits, labels)
    chance = sigmoid(logits)
    assert found.loss == pytest.approx(-np.mean(np.log(np.where(labels > 0, chance, 1 - chance))))
    assert found.brier == pytest.approx(np.mean((chance - labels) ** 2))
    assert found.accuracy == pytest.approx(np.mean([0.5 if z == 0 else (z > 0) == y for z, y in zip(logits, labels)]))  # noqa: B905
    assert sum(bin.examples for bin in found.bins) == len(rows)
    assert 0 <= found.error <= 1
    assert found.majority == max(labels.mean(), 1 - labels.mean())


def test_a_scorer_whose_chances_hold_has_no_error_and_one_that_boasts_has():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 1.5, 40_000)
    labels = (rng.random(40_000) < sigmoid(logits)).astype(float)
    assert calibration(logits, labels).error < 0.01
    boast = calibration(4 * logits, labels)
    assert boast.error > 0.1
    assert boast.accuracy == calibration(logits, labels).accuracy


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=40))
def test_pairs_are_seen_from_both_sides(margins):
    found = calibration(np.array(margins), np.ones(len(margins)), mirrored=True)
    turned = calibration(-np.array(margins), np.zeros(len(margins)), mirrored=True)
    assert found.loss == pytest.approx(turned.loss)
    assert found.brier == pytest.approx(turned.brier)
    assert (found.majority, found.examples) == (0.5, len(margins))
    assert sum(bin.examples for bin in found.bins) == 2 * len(margins)
