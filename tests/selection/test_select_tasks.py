"""The job on a small model: what it publishes, what it goes on from, what it refuses, and what `sft` makes of it."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from task_rows import ANSWERS, rows

from engine.artifacts import read_dataset, read_model
from engine.config import load_recipe, write_yaml
from engine.errors import ArtifactError, HeadraceError, Outdated, RecipeError, SourceError
from engine.finetune import SftRecipe
from engine.finetune.checkpoints import Checkpoints
from engine.finetune.store import TokenStore
from engine.selection import read_estimates
from engine.storage import locate

ROOT = Path(__file__).parents[2]


def table(path):
    return pq.read_table(next(path.glob("*.parquet"))).to_pylist()


def test_the_whole_road_to_a_model(cluster, bench):
    outcome = bench.run()
    home = bench.runs / "select-tasks" / "t"
    assert str(outcome.output) == str(home / "chosen_tasks")
    chosen = table(home / "chosen_tasks")
    assert {row["task"] for row in chosen} == set(ANSWERS) - {"target"}
    names = [row["task"] for row in chosen if row["chosen"]]
    assert names
    assert all(row["examples"] <= 20 and row["effect_error"] >= 0 for row in chosen)
    assert "Sanity: how far the first order goes" in (home / "report.html").read_text()
    assert not (bench.runs / "meta-training" / "t" / "model").exists()  # its adapter is all that is needed

    estimator = read_estimates(outcome.output)
    assert read_estimates(home).tasks == estimator.tasks
    loss, error = estimator.estimate([[], names, list(estimator.tasks)])
    state = Checkpoints(locate(str(bench.runs / "meta-training" / "t"))).latest()
    best = next(each.values["margin_loss"] for each in state.measured if each.step == state.best)
    assert loss[2] == pytest.approx(best, rel=0.02)  # the estimate for all tasks meets what was measured
    assert loss[0] == pytest.approx(state.measured[0].values["margin_loss"], rel=1e-3)  # and that for none the start
    assert (error > 0).all()

    # The same command does nothing; another method on the same training computes nothing but the choice.
    assert bench.run().reused
    parts = sorted((bench.runs / "meta-training" / "t" / "gradients").rglob("*.parquet"))
    with pytest.raises(Outdated, match=r"select\.method"):
        bench.run(select={"method": "ensemble", "subsets": 50})
    steps = (bench.runs / "meta-training" / "t" / "metrics.jsonl").read_bytes()
    again = bench.run(select={"method": "ensemble", "subsets": 50}, fresh=True)
    assert not again.reused
    assert (bench.runs / "meta-training" / "t" / "metrics.jsonl").read_bytes() == steps
    assert sorted((bench.runs / "meta-training" / "t" / "gradients").rglob("*.parquet")) == parts

    # What was chosen is what sft learns from; the target is measured on and never learnt from.
    written = load_recipe(SftRecipe, home / "sft.yaml")
    assert written.tasks.chosen == str(outcome.output)
    assert written.training == bench.recipe("sft").training
    model = bench.run("sft", tasks={"chosen": str(outcome.output)}, training={"trajectory": True})
    manifest = read_model(model.output).manifest
    assert manifest.recipe["tasks"]["target"] == "target"
    assert any(parent.uri == str(outcome.output) for parent in manifest.parents)
    store = TokenStore.of(read_dataset(locate(str(bench.runs / "sft" / "t" / "tokenise" / "t" / "dataset"))))
    trained = [store.task_names[task] for task in np.unique(store.tasks[of_run(bench, store, manifest)])]
    assert set(trained) == set(manifest.recipe["tasks"]["chosen"])


def of_run(bench, store, manifest):
    """Numbers of the examples that the run of sft took."""
    options = manifest.recipe["tasks"]
    some = store.of_tasks(options["chosen"], options["target"])
    lines = (bench.runs / "sft" / "t" / "trajectory.jsonl").read_text().splitlines()
    taken = [example for line in lines for example in json.loads(line)["examples"]]
    return some.train[np.array(taken), 0]


def test_other_estimates_from_the_same_training(cluster, bench):
    for keys in ({"mode": "repo"}, {"start": "meta", "ridge": 10.0}, {"ridge": 3.0}):
        outcome = bench.run(estimate=keys, select={"method": "gradient", "size": 2}, fresh=True)
        assert outcome.facts["chosen"].startswith("2 of 4")
    assert len(list((bench.runs / "meta-training").iterdir())) == 1


def test_truly_trained_selection_is_resumed(cluster, bench):
    # A training takes every CPU there is: what describes examples must not hold any meanwhile.
    parallel = {"tokens_per_device": 512, "cpus": 1.5}
    keys = {"select": {"method": "trained", "most": 1}, "candidates": ["sums", "silence"], "parallel": parallel}
    keys["estimate"] = {"ridge": 3.0}
    outcome = bench.run(**keys)
    notes = sorted((bench.runs / "select-tasks" / "t" / "trials").iterdir())
    tried = [json.loads(each.read_text()) for each in notes]
    assert sorted(len(each["tasks"]) for each in tried) == [1, 1]
    best = min(tried, key=lambda each: each["loss"])
    assert outcome.facts["chosen"].endswith(best["tasks"][0])


def test_a_killed_selection_goes_on_where_it_was(cluster, bench):
    """Killed while it computes gradients: what was learnt and computed is kept, and the choice is the same."""
    bench.write(rows(count=300))
    calm = bench.run(name="calm")
    path = bench.path.with_name("wild.yaml")
    path.write_text(write_yaml(bench.recipe(name="wild").model_dump(mode="json")))
    command = [sys.executable, "-m", "jobs.select_tasks", str(path), "--address", cluster.address]
    driver = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    training = bench.runs / "meta-training" / "wild"
    try:
        end = time.monotonic() + 240
        while not list(training.glob("gradients/**/*.parquet")):
            assert time.monotonic() < end, "no gradient"
            assert driver.poll() is None, "it ended too early"
            time.sleep(0.02)
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait(timeout=20)
    assert not (bench.runs / "select-tasks" / "wild" / "chosen_tasks").exists()
    steps = (training / "metrics.jsonl").read_bytes()
    before = {part: part.stat().st_mtime_ns for part in training.glob("gradients/**/*.parquet")}
    wild = bench.run(name="wild")
    assert (training / "metrics.jsonl").read_bytes() == steps
    assert {part: part.stat().st_mtime_ns for part in before} == before
    ours, theirs = (table(Path(str(each.output))) for each in (wild, calm))
    assert [(each["task"], each["chosen"]) for each in ours] == [(each["task"], each["chosen"]) for each in theirs]
    assert [each["effect"] for each in ours] == pytest.approx([each["effect"] for each in theirs], rel=1e-2, abs=1e-4)


def test_dry_run(cluster, bench):
    facts = bench.run(dry_run=True).facts
    assert "never learnt from" in facts["target"]
    assert not (bench.runs / "select-tasks").exists()


def test_what_cannot_be_chosen_from(cluster, bench):
    with pytest.raises(SourceError, match=r"no row of the task 'sum' to learn from.*Tasks with rows are: letters"):
        bench.run(candidates=["sums", "sum"])
    bench.write(rows(["sums", "target"]))
    with pytest.raises(SourceError, match="sums is the only task beside the target"):
        bench.run(name="one")
    bench.write(rows(["sums", "silence"]))
    with pytest.raises(SourceError, match="no row of the target 'target'"):
        bench.run(name="none")
    bench.write([{"prompt": f"Say {n}.", "response": str(n)} for n in range(40)])
    with pytest.raises(SourceError, match="column `task`"):
        bench.run(name="column")


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"candidates": ["sums", "sums"]}, "'sums' more than once"),
        ({"candidates": ["sums", "target"]}, "names the target, 'target'"),
        ({"candidates": ["sums"]}, "two tasks at least"),
        ({"tasks": {"chosen": ["sums"]}}, "say target and candidates"),
        ({"estimate": {"start": "meta"}}, "needs a ridge"),
        ({"estimate": {"widht": 3}}, "nearest known key is 'estimate.width'"),
    ],
)
def test_recipes_that_make_no_sense(bench, keys, said):
    with pytest.raises(RecipeError, match=re.escape(said)):
        bench.recipe(**keys)


def test_tasks_of_sft_that_make_no_sense(bench, tmp_path):
    for tasks, said in [
        ({"chosen": []}, "names no task"),
        ({"chosen": ["sums", "sums"]}, "more than once"),
        ({"chosen": ["target"], "target": "target"}, "learnt from and measured on"),
    ]:
        with pytest.raises(RecipeError, match=said):
            bench.run("sft", tasks=tasks)
    with pytest.raises(ArtifactError):
        bench.run("sft", tasks={"chosen": str(tmp_path / "nowhere")})


def test_numbers_that_are_none_are_told(cluster, bench):
    with pytest.raises(HeadraceError, match=r"no number|is nan|is inf"):
        bench.run(optimiser={"learning_rate": 1e30, "clip": 0.0})


def test_estimates_that_are_not_there(tmp_path):
    with pytest.raises(ArtifactError, match="finished select-tasks job"):
        read_estimates(str(tmp_path))
    (tmp_path / "estimates.npz").write_bytes(b"nothing")
    with pytest.raises(ArtifactError, match="damaged"):
        read_estimates(str(tmp_path))
