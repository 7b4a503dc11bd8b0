"""Subsets of tasks: the recalibration against what it should find, and a search that finds what estimates get wrong."""

import numpy as np
import pytest
from upath import UPath

from engine.errors import ArtifactError, RecipeError
from engine.selection import Estimator
from engine.selection.estimator import Budget
from tuning.history import History
from tuning.recalibration import recalibrate
from tuning.subsets import CHOSEN, SubsetProposer, errors, truths

NAMES = ("a", "b", "c", "d", "e", "f")


def estimator(seed=0):
    rng = np.random.default_rng(seed)
    pulls = np.array([1.0, 0.6, 0.2, -0.2, -0.6, -1.0])
    gradients = np.concatenate([rng.normal(size=(10, 4)) + [pull, 0, 0, 0] for pull in pulls])
    return Estimator(
        tasks=NAMES, margins=np.zeros(60), gradients=gradients, task_numbers=np.repeat(np.arange(6), 10),
        target_margins=np.zeros(20), target_gradients=rng.normal(size=(20, 4)) * 0.2 + [1.0, 0, 0, 0],
        budget=Budget(None, 1.0, 8), ridge=10.0,
    )  # fmt: skip


@pytest.fixture
def proposer(lab):
    """`proposer(**keys)` on estimates of six tasks, of which `a` helps most and `f` harms."""

    def made(**keys):
        from quick_job import QuickRecipe

        from tuning.space import Space

        folder = UPath(lab.path) / "selection"
        folder.mkdir(exist_ok=True)
        estimator().save(folder)
        recipe = lab.recipe(**{"search": "subsets", "estimates": str(folder), "space": {}, **keys})
        return SubsetProposer(recipe, Space(recipe, QuickRecipe, {"name": "a", "tasks": {"target": "t"}}))

    return made


def test_without_trials_a_prediction_is_the_estimate():
    nothing = np.zeros((0, 3))
    fitted = recalibrate(np.zeros(0), nothing, np.zeros(0), spread=0.2, centre=1.0)
    mean, deviation = fitted.predict(np.array([0.7, 1.4]), np.eye(3)[:2])
    assert mean == pytest.approx([0.7, 1.4])
    assert (deviation > 0.1).all()


def test_a_shift_and_a_task_that_estimates_get_wrong_are_learnt():
    rng = np.random.default_rng(0)
    members = (rng.random((60, 6)) < 0.5).astype(float)
    estimates = 2.0 + rng.normal(size=60) * 0.2
    size = np.sqrt(np.maximum(members.sum(1), 1))
    truth = estimates + 0.5 - 0.4 * members[:, 2] / size + rng.normal(size=60) * 0.01
    fitted = recalibrate(estimates[:40], members[:40], truth[:40], spread=0.2, centre=2.0)
    mean, deviation = fitted.predict(estimates[40:], members[40:])
    assert np.abs(mean - truth[40:]).mean() < 0.03
    assert np.abs(estimates[40:] - truth[40:]).mean() > 0.3
    assert (np.abs(mean - truth[40:]) < 4 * deviation).all()


def test_a_search_finds_what_the_estimates_get_wrong(proposer, tmp_path):
    propose = proposer(seed=3)
    history = History(tmp_path, minimise=True)

    def truth(subset):
        """The estimate, but d helps and a harms."""
        estimate = float(propose._estimates([tuple(sorted(subset))])[0])
        return estimate + 0.1 + (0.3 * ("a" in subset) - 0.3 * ("d" in subset)) / len(subset) ** 0.5

    for number in range(1, 21):
        values, told = propose(number, list(history.trials.values()))
        history.start(number, values, told=told)
        history.result(number, 1, truth(values[CHOSEN]), 0.0)
        history.end(number, "finished")
        assert "measured" in propose.said(history.trials[number], history.trials.values())
    tried = [tuple(each.values[CHOSEN]) for each in history.trials.values()]
    assert len(set(tried)) == 20
    everything = [tuple(n for at, n in enumerate(NAMES) if bits >> at & 1) for bits in range(1, 64)]
    ranks = sorted(truth(each) for each in everything)
    assert history.ranked()[0].best <= ranks[2]
    late = {number: each for number, each in history.trials.items() if number > 10}
    off, mended = errors(late.values())
    assert mended < 0.5 * off


def test_a_stopped_trial_counts_by_what_the_others_gained(tmp_path):
    history = History(tmp_path, minimise=True)
    for number, results, state in ((1, [2.0, 1.0], "finished"), (2, [3.0, 2.4], "finished"), (3, [4.0], "stopped")):
        history.start(number, {CHOSEN: ["a"]})
        for step, value in enumerate(results, 1):
            history.result(number, step, value, 0.0)
        history.end(number, state)
    assert [(each.number, round(value, 6), whole) for each, value, whole in truths(history.trials.values())] == [
        (1, 1.0, True), (2, 2.4, True), (3, 3.2, False),
    ]  # fmt: skip


def test_what_cannot_be_searched_is_refused(lab, proposer):
    with pytest.raises(ArtifactError, match="holds no estimates"):
        proposer(estimates=str(lab.path))
    with pytest.raises(RecipeError, match="more is better"):
        proposer(metric="held_out/accuracy", mode="max")
    with pytest.raises(RecipeError, match="go together"):
        lab.recipe(search="subsets")
    with pytest.raises(RecipeError, match="6 tasks, which have 63 subsets"):
        proposer(trials=64)


def test_every_subset_is_tried_once_before_none_is_left(proposer, tmp_path):
    propose = proposer(trials=63, pool=2)
    history = History(tmp_path, minimise=True)
    for number in range(1, 64):
        values, told = propose(number, list(history.trials.values()))
        history.start(number, values, told=told)
    assert len({tuple(each.values[CHOSEN]) for each in history.trials.values()}) == 63
