"""Searches over real jobs on a small model: a stopped trial ends all it has started, another's weights are taken."""

import json
import shutil
import time

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import torch
from safetensors.torch import load_file
from task_rows import ANSWERS, rows
from upath import UPath

from engine.config import build_recipe, load_recipe, read_yaml, write_yaml
from engine.observe import read_metrics
from engine.runs import Invocation
from jobs.registry import load_job
from tuning import TuneRecipe, run_search, schedulers, search, trial
from tuning.history import History

KEY = "optimiser.learning_rate"


@pytest.fixture
def bench(tmp_path, small):
    """`bench.run(job, base, **keys)` searches a base recipe on the small model."""

    def write(job, **keys):
        if job == "rlhf":
            path = tmp_path / "prompts.jsonl"
            path.write_text(
                "".join(json.dumps({"prompt": f"What is {at}?", "reference": str(at)}) + "\n" for at in range(40))
            )
            data = {
                "prompts": {
                    "source": {"paths": [str(path)], "roots": [str(tmp_path)]},
                    "window": 64, "held_out": 0.2, "measured": 2,
                },
                "rewards": [{"kind": "function", "function": "quick_job:liked"}],
                "learning": {"steps": 5000, "measure_every": 1, "checkpoint_every": 100},
                "rollout": {"prompts": 2, "max_tokens": 4, "engine": "transformers", "cpus": 0.5},
                "optimiser": {"learning_rate": 1e-3},
                "parallel": {"tokens_per_device": 128, "cpus": 0.5},
                "threads": 1,
            }  # fmt: skip
        else:
            path = tmp_path / "rows.parquet"
            pq.write_table(pa.Table.from_pylist(rows()), path)
            data = {
                "source": {"paths": [str(path)], "roots": [str(tmp_path)]},
                "format": "responses",
                "tokens": {"window": 64, "held_out": 0.2},
                "training": {"steps": 6, "examples": 4, "measure_every": 2},
                "optimiser": {"schedule": "constant"},
                "parallel": {"tokens_per_device": 256, "cpus": 0.5},
                "workers": 1,
            }
        data |= {"name": "base", "model": str(small)}
        for key, value in keys.items():
            data[key] = {**data[key], **value} if isinstance(data.get(key), dict) else value
        base = tmp_path / "base.yaml"
        base.write_text(write_yaml(data))
        return base

    class Bench:
        home = tmp_path / "runs" / "tune" / "a"
        base = staticmethod(write)

        def run(self, job, base=None, **keys):
            data = {
                "name": "a", "runs": str(tmp_path / "runs"), "job": job, "recipe": str(write(job, **(base or {}))),
                "space": {"optimiser.learning_rate": {"log": [1e-3, 1e-2]}}, "trials": 2,
            }  # fmt: skip
            recipe = build_recipe(TuneRecipe, {**data, **keys})
            return run_search(recipe, Invocation("headrace tune x"), load_job)

        def trials(self):
            return History(self.home, minimise=True).trials

    return Bench()


def of_a_trial():
    """Processes that a trial has started, and its own."""
    names = ("ray::ImplicitFunc", "tuning.driver", "TrainController", "RayTrainWorker", "EngineActor", "ScorerActor")
    found = {}
    for process in psutil.process_iter(["cmdline", "status", "create_time"]):
        line = " ".join(process.info["cmdline"] or [])
        for name in names:
            if name in line and process.info["status"] != psutil.STATUS_ZOMBIE:
                found[process.pid, process.info["create_time"]] = name
    return found


@pytest.mark.parametrize(("job", "least"), [("sft", 4), ("rlhf", 5)])
def test_stopping_a_trial_ends_its_workers_and_engines(cluster, bench, monkeypatch, job, least):
    from ray.tune.schedulers import FIFOScheduler

    others, seen = set(of_a_trial()), {}

    class AtOnce(FIFOScheduler):
        def on_trial_result(self, tune_controller, trial, result):
            seen.update({process: name for process, name in of_a_trial().items() if process not in others})
            seen["when"] = time.monotonic()
            return self.STOP

    monkeypatch.setattr(search, "make_scheduler", lambda *arguments, **keys: AtOnce())
    base = {"training": {"steps": 100_000, "measure_every": 1}} if job == "sft" else {}
    bench.run(job, base, trials=1)
    when = seen.pop("when")
    assert len(seen) >= least, seen
    expected = {"tuning.driver", "TrainController", "RayTrainWorker"} | ({"ScorerActor"} if job == "rlhf" else set())
    assert expected <= set(seen.values())
    while left := [name for process, name in of_a_trial().items() if process in seen]:
        assert time.monotonic() < when + 20, left
        time.sleep(0.2)
    while (free := ray.available_resources()["CPU"]) < 2:  # their placement groups are gone, too
        assert time.monotonic() < when + 20, free
        time.sleep(0.2)
    print("ended", round(time.monotonic() - when, 1), "s after the decision", sorted(seen.values()))
    assert [each.state for each in bench.trials().values()] == ["stopped"]


def test_trials_share_tokens_and_the_best_recipe_runs(cluster, bench):
    outcome = bench.run("sft", trials=2)
    trials = bench.trials()
    assert [each.state for each in trials.values()] == ["finished"] * 2
    assert len(list((bench.home / "shared" / "tokenise").iterdir())) == 1
    assert not list(bench.home.glob("trials/sft/*/tokenise"))
    job = load_job("sft")
    best = load_recipe(job.RECIPE, outcome.output)
    assert best.name == "a-best"
    assert best.optimiser.learning_rate == min(trials.values(), key=lambda each: each.best).values[KEY]
    assert job.run(best, Invocation("headrace sft", dry_run=True)).facts["steps"]


def test_a_trial_of_a_population_goes_on_from_the_weights_it_took(cluster, bench, monkeypatch, tmp_path):
    """The taker's learning rate is next to nothing, so what it publishes is what it took."""
    kept = tmp_path / "kept"

    def take(snapshot, home):
        shutil.copytree(snapshot, kept / home.name)
        trial.take(snapshot, home)

    monkeypatch.setattr(schedulers, "take", take)
    scheduler = {"kind": "pbt", "interval": 50, "quantile": 0.5, "resample": 0.0}
    base = {"training": {"steps": 400, "measure_every": 10}}
    space = {KEY: {"choice": [1e-30, 1e-2, 1e-30]}}  # beside the donor's there is no other
    # The seed gives the first trial the middle one.
    bench.run("sft", base, space=space, scheduler=scheduler, seed=3)
    taker, donor = bench.trials()[2], bench.trials()[1]
    assert (taker.state, donor.state) == ("finished", "finished")
    assert taker.values[KEY] == 1e-30
    last = taker.lineage[-1]
    assert last["from"] == 1
    home = bench.home / "trials" / "sft" / taker.name
    assert read_metrics(UPath(home))[0]["step"] == last["step"] + 1
    given = load_file(next((kept / taker.name).glob(f"step-{last['step']:08d}/weights/*.safetensors")))
    published = load_file(home / "model" / "model.safetensors")
    for name, tensor in given.items():
        assert torch.equal(tensor, published[name]), name
    measured = [value for step, value in taker.results.items() if step > last["step"]]
    assert measured == pytest.approx([donor.results[last["step"]]] * len(measured), rel=1e-6)


def test_subsets_are_proposed_by_the_estimates_of_a_selection(cluster, bench, tmp_path, capsys):
    base = {"lora": {"rank": 2}, "training": {"steps": 12, "examples": 8}, "optimiser": {"learning_rate": 1e-2}}
    keys = read_yaml(bench.base("sft", **base)) | {"name": "s", "runs": str(tmp_path / "runs"), "target": "target"}
    selection = load_job("select-tasks")
    selection.run(build_recipe(selection.RECIPE, keys), Invocation("headrace select-tasks x"))
    outcome = bench.run(
        "sft",
        base | {"tasks": {"target": "target", "measured": "others"}},
        search="subsets",
        estimates=str(tmp_path / "runs" / "select-tasks" / "s"),
        space={},
        trials=2,
    )
    trials = list(bench.trials().values())
    assert {each.state for each in trials} == {"finished"}, [each.why for each in trials]
    tried = [frozenset(each.values["tasks.chosen"]) for each in trials]
    assert len(set(tried)) == 2
    assert all(each <= ANSWERS.keys() - {"target"} for each in tried)
    assert capsys.readouterr().err.count("recalibrated") >= 2
    best = load_recipe(load_job("sft").RECIPE, outcome.output)
    assert frozenset(best.tasks.chosen) in tried
    assert "Estimate against truth, trial by trial" in (bench.home / "report.html").read_text()
