"""Searches over a job that takes no time: who is tried, stopped, kept, and what is left behind."""

import csv
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from quick_job import QuickRecipe
from upath import UPath

from engine.config import load_recipe, write_yaml
from engine.errors import HeadraceError, Outdated, RecipeError, ResourceError
from engine.finetune.checkpoints import State
from engine.observe import read_metrics


def test_a_search_writes_what_it_found_and_is_not_repeated(cluster, lab):
    outcome = lab.run(trials=3)
    trials = lab.history()
    assert [each.state for each in trials.values()] == ["finished"] * 3
    assert len({each.values["optimiser.rate"] for each in trials.values()}) == 3
    best = min(trials.values(), key=lambda each: each.best)
    assert load_recipe(QuickRecipe, outcome.output).optimiser.rate == best.values["optimiser.rate"]
    rows = list(csv.DictReader((lab.home / "leaderboard.csv").read_text().splitlines()))
    assert [row["rank"] for row in rows] == ["1", "2", "3"]
    assert rows[0]["trial"] == best.name
    page = (lab.home / "report.html").read_text()
    assert "Leaderboard" in page
    assert "Values and what they gave" in page
    again = lab.run(trials=3)
    assert again.reused
    assert set(lab.starts().values()) == {1}
    more = lab.run(trials=4)
    assert not more.reused
    assert list(lab.starts().values()) == [1] * 4
    with pytest.raises(Outdated, match=r"scheduler\.reduction"):
        lab.run(scheduler={"reduction": 4.0})


def test_asha_stops_the_worse(cluster, lab):
    scheduler = {"kind": "asha", "grace": 2, "reduction": 2}
    lab.run(trials=5, concurrent=2, scheduler=scheduler, set={"training.pause": 0.05, "training.steps": 30})
    trials = lab.history().values()
    states = [each.state for each in trials]
    assert states.count("stopped") >= 1
    finished = [each for each in trials if each.state == "finished"]
    stopped = [each for each in trials if each.state == "stopped"]
    assert min(each.best for each in finished) < min(each.best for each in stopped)
    assert all(max(each.results) < 30 for each in stopped)


def test_a_trial_that_fails_is_told_and_the_others_go_on(cluster, lab, capsys):
    keys = {"space": {"optimiser.rate": {"choice": [0.1, 0.9]}, "optimiser.kind": {"choice": ["a", "bug"]}}}
    outcome = lab.run(trials=4, set={"training.crash": 0.5, "training.steps": 3}, **keys)
    trials = lab.history().values()
    failed = [each for each in trials if each.state == "failed"]
    assert {each.state for each in trials} == {"finished", "failed"}
    assert {each.values["optimiser.rate"] for each in failed} == {0.9}
    assert "failed" in outcome.facts["trials"]
    assert "Trial" in capsys.readouterr().err
    lab.run(trials=4, set={"training.crash": 0.5, "training.steps": 3}, **keys)
    assert set(lab.starts().values()) == {1}


def test_all_trials_failing_is_one_sentence(cluster, lab):
    with pytest.raises(HeadraceError, match="All 2 trials failed; the first because: A rate of"):
        lab.run(trials=2, set={"training.crash": 0.0})


def test_what_cannot_work_is_refused_before_anything_starts(lab):
    with pytest.raises(RecipeError, match=r"unknown key 'optimiser.rat'.*'optimiser.rate'"):
        lab.run(space={"optimiser.rat": {"log": [0.1, 1]}})
    with pytest.raises(RecipeError, match="unknown key 'trainin'"):
        lab.run(set={"trainin.steps": 3})
    with pytest.raises(RecipeError, match="should be a number"):
        lab.run(space={"optimiser.rate": {"choice": [0.1, "much"]}})
    with pytest.raises(RecipeError, match="nobody would be stopped"):
        lab.run(scheduler={"kind": "asha", "grace": 9})
    with pytest.raises(RecipeError, match="pbt is not for sieve"):
        lab.recipe(job="sieve", scheduler={"kind": "pbt"})
    with pytest.raises(RecipeError, match="which it never is; nearest is 'a'"):
        lab.run(space={
            "optimiser.kind": {"choice": ["a"]},
            "optimiser.rate": {"log": [0.1, 1], "when": {"optimiser.kind": "b"}},
        })  # fmt: skip
    with pytest.raises(RecipeError, match="needs one of log"):
        lab.recipe(space={"optimiser.rate": {}})
    assert not lab.home.exists()


def test_a_search_larger_than_the_cluster_is_refused(cluster, lab):
    with pytest.raises(ResourceError, match="wants 64 CPUs"):
        lab.run(set={"cpus": 64})
    with pytest.raises(ResourceError, match="Set concurrent to at most"):
        lab.run(set={"cpus": 1.9}, concurrent=12, trials=12)


def test_a_trial_may_have_all_cpus_there_are(cluster, lab):
    lab.run(trials=1, set={"cpus": 2})
    assert [each.state for each in lab.history().values()] == ["finished"]


def test_a_dry_run_tells_the_space_and_what_fits(lab):
    facts = lab.run(dry_run=True, set={"cpus": 0.6}).facts
    assert facts["space: optimiser.rate"] == "uniform: 0.0 to 1.0"
    assert facts["trials"].endswith("at once, 9 steps each")
    assert "optimiser.rate" in facts["trial 1"]
    assert not (lab.home / "trials.jsonl").exists()
    within = lab.run(dry_run=True, recipe={"name": "base", "cpus": 0.2}).facts
    assert within["job"] == "sft, the recipe of sft within this one"
    assert "0.2 CPU" in within["demand of a trial"]


def test_a_population_takes_weights_of_the_better(cluster, lab):
    scheduler = {"kind": "pbt", "interval": 4, "quantile": 0.5, "resample": 0.0}
    space = {"optimiser.rate": {"uniform": [0.0, 1.0]}}
    lab.run(space=space, trials=2, scheduler=scheduler, set={"training.steps": 40, "training.pause": 0.1}, seed=1)
    trials = lab.history()
    assert {each.state for each in trials.values()} == {"finished"}
    taken = [each for each in trials.values() if each.lineage]
    assert taken
    for trial in taken:
        last, donor = trial.lineage[-1], UPath(trial.donor)
        state = State.model_validate_json((donor / f"step-{last['step']:08d}" / "state.json").read_bytes())
        lines = read_metrics(UPath(lab.home) / "trials" / "sft" / trial.name)
        assert lines[0]["step"] == last["step"] + 1
        expected = state.extra["weights"] + trial.values["optimiser.rate"]
        assert lines[0]["weights"] == pytest.approx(expected)
        assert lines[-1]["step"] == 40
    page = (lab.home / "report.html").read_text()
    assert "Who took from whom" in page


SEARCH = """
import sys
import quick_job
from engine.config import load_recipe
from engine.runs import Invocation
from tuning import TuneRecipe, run_search
run_search(load_recipe(TuneRecipe, sys.argv[1]), Invocation("headrace tune x", address=sys.argv[2]), quick_job.load)
"""


def test_a_killed_search_goes_on_and_repeats_no_finished_trial(head, lab):
    keys = {"training.steps": 8, "training.pause": 0.2}
    recipe = lab.recipe(trials=4, concurrent=1, set=keys, scheduler={"kind": "asha", "grace": 7, "reduction": 2})
    path = lab.path / "tune.yaml"
    path.write_text(write_yaml(recipe.model_dump(mode="json", exclude_defaults=True)))
    here = str(Path(__file__).parent)
    environment = head.environment | {"PYTHONPATH": os.pathsep.join([here, str(Path(here).parents[1])])}
    command = [sys.executable, "-c", SEARCH, str(path), head.address]
    first = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 120
    while not any(len(each.results) > 1 for number, each in lab.history().items() if number == 2):
        assert first.poll() is None
        assert time.monotonic() < end
        time.sleep(0.05)
    first.kill()
    first.wait()
    before = lab.history()
    assert before[1].ended
    assert not before[2].ended
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=240)
    after = lab.history()
    assert {each.state for each in after.values()} <= {"finished", "stopped"}
    assert len(after) == 4
    assert after[1].results == before[1].results
    assert lab.starts() == {"001": 1, "002": 2, "003": 1, "004": 1}
    assert after[2].values == before[2].values
    # It went on from its checkpoint: no step was measured twice.
    steps = [line["step"] for line in read_metrics(UPath(lab.home) / "trials" / "sft" / "002")]
    assert steps == sorted(set(steps))
