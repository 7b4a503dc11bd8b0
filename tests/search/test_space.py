"""Spaces: conditions, proposals that depend on nothing but what is known, moves; the history survives kills."""

import math

import pytest
from quick_job import QuickRecipe

from engine.config import build_recipe
from engine.errors import RecipeError
from tuning import TuneRecipe
from tuning.history import FILE, History
from tuning.space import Space

RANGES = {
    "optimiser.only_b": {"int": [1, 9], "when": {"optimiser.kind": "b"}},
    "optimiser.rate": {"log": [0.01, 1.0]},
    "optimiser.kind": {"choice": ["a", "b"]},
}


def made(**ranges):
    data = {"name": "a", "job": "sft", "recipe": "base.yaml", "space": ranges or RANGES, "trials": 40}
    return Space(build_recipe(TuneRecipe, data), QuickRecipe, {"name": "a"})


def loss(values):
    return abs(math.log(values["optimiser.rate"] / 0.3)) + (values["optimiser.kind"] == "a")


@pytest.fixture
def history(tmp_path):
    return History(tmp_path, minimise=True)


def test_a_condition_decides_what_is_drawn():
    space = made()
    drawn = [space.draw(0, number) for number in range(30)]
    assert {each["optimiser.kind"] for each in drawn} == {"a", "b"}
    for each in drawn:
        assert ("optimiser.only_b" in each) == (each["optimiser.kind"] == "b")
        assert 0.01 <= each["optimiser.rate"] <= 1
    assert drawn == [made().draw(0, number) for number in range(30)]
    assert space.recipe(drawn[0], name="b").optimiser.rate == drawn[0]["optimiser.rate"]


def test_a_condition_on_what_the_base_leaves_at_its_default():
    space = made(**{"optimiser.only_b": {"int": [1, 9], "when": {"optimiser.kind": "a"}}})
    assert "optimiser.only_b" in space.draw(0, 1)


def test_optuna_goes_to_where_it_is_better(history):
    space = made()
    for number in range(40):
        values = space.propose("optuna", 0, number, list(history.trials.values()), minimise=True)
        history.start(number, values)
        history.result(number, 1, loss(values), 0.0)
        history.end(number, "failed" if number % 10 == 5 else "stopped" if number % 4 == 3 else "finished")
    found = [loss(each.values) for each in history.trials.values()]
    assert sum(found[-10:]) < 0.6 * sum(found[:10])


def test_optuna_does_not_propose_anew_what_is_running(history):
    space = made(**{"optimiser.kind": {"choice": ["a", "b"]}})
    for number in range(3):
        history.start(number, {"optimiser.kind": "a"})
    again = [space.propose("optuna", 0, 9, list(history.trials.values()), minimise=True) for _ in range(2)]
    assert again[0] == again[1]


def test_moves_stay_in_the_space():
    space = made()
    values = {"optimiser.rate": 0.95, "optimiser.kind": "a"}
    for seed in range(40):
        moved = space.moved(values, f"{seed}", 0.25)
        assert 0.01 <= moved["optimiser.rate"] <= 1
        assert ("optimiser.only_b" in moved) == (moved["optimiser.kind"] == "b")
        space.recipe(moved)


def test_conditions_in_a_circle_are_refused():
    with pytest.raises(RecipeError, match="go round in a circle"):
        made(**{
            "optimiser.rate": {"log": [0.1, 1], "when": {"optimiser.kind": "a"}},
            "optimiser.kind": {"choice": ["a"], "when": {"optimiser.rate": 1}},
        })  # fmt: skip


def test_a_history_cut_anywhere_is_read_and_goes_on(tmp_path, history):
    history.start(1, {"x": 1})
    history.result(1, 5, math.nan, 0.1)
    history.result(1, 6, 0.5, 0.2)
    history.start(1, {"x": 2}, generation=1, donor="there", taken=2, step=6)
    history.end(1, "finished")
    whole = (tmp_path / FILE).read_bytes()
    for length in range(len(whole) + 1):
        (tmp_path / FILE).write_bytes(whole[:length])
        cut = History(tmp_path, minimise=True)
        assert (tmp_path / FILE).read_bytes() == whole[: whole[:length].rfind(b"\n") + 1]
        cut.start(2, {})
        assert 2 in History(tmp_path, minimise=True).trials
    trial = History(tmp_path, minimise=True)
    (tmp_path / FILE).write_bytes(whole)
    trial = History(tmp_path, minimise=True).trials[1]
    assert (trial.name, trial.values, trial.donor, trial.state) == ("001-g1", {"x": 2}, "there", "finished")
    assert trial.lineage[0]["results"][6] == 0.5
