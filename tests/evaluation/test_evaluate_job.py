"""The job `evaluate` end to end on tiny models: every measure, exactly once, and one sentence for what cannot be."""

import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scripted_endpoint import PROMPT, Endpoint
from upath import UPath

from engine.artifacts import read_dataset
from engine.config import build_recipe, write_yaml
from engine.corpus import SourceConfig, transform
from engine.errors import ArtifactError, HeadraceError, Outdated, RecipeError, SchemaError, SourceError
from engine.evaluation import read_results
from engine.evaluation.drawing import draw
from engine.runs import Invocation
from jobs import evaluate

CALL = Invocation("headrace evaluate r.yaml")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def bench(tmp_path_factory, tiny_lm, tiny_bare_lm, tiny_reward):
    folder = tmp_path_factory.mktemp("evaluate")
    prompts = [{"prompt": f"Say {word} to me. Then be quiet.", "reference": f"{word}!"} for word in "abcdef"]
    prompts += [{"prompt": "", "reference": None}, {"prompt": "word " * 500, "reference": None}]
    talks = [
        {"messages": [{"role": "user", "content": f"What is {n}?"}, {"role": "assistant", "content": f"It is {n}."}]}
        for n in range(4)
    ]
    path = {"edits": ["@@ -0,0 +1 @@\n+print(1)"], "seed": 0, "path": 0}
    edits = [{"instruction": "Say one.", "program": "print(1)", **path}]
    for name, rows in (("prompts", prompts), ("talks", talks), ("edits", edits)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    plain = {
        "model": tiny_lm, "runs": str(folder / "runs"), "workers": 1, "sampling": {"max_tokens": 12},
        "engine": {"kind": "transformers", "shard": 8, "at_once": 8, "cpus": 0.5, "window": 1400},
    }  # fmt: skip

    def source(name):
        return {"paths": [str(folder / f"{name}.jsonl")], "roots": [str(folder)]}

    everything = {
        "humaneval": {"styles": ["plain", "edits", "chat"], "problems": 2},
        "prompts": {"source": source("prompts")},
        "heldout": {"source": source("talks"), "rows": "demonstrations"},
        "robustness": {"kinds": ["characters", "order"], "rate": 0.3},
        "reward": {"model": tiny_reward},
        "judge": {"against": "reference", "by": "reward"},
    }

    def recipe(name, **keys):
        return build_recipe(evaluate.RECIPE, {"name": name, **plain, **keys})

    def run(name, call=CALL, **keys):
        return evaluate.run(recipe(name, **keys), call)

    def home(name):
        return UPath(folder) / "runs" / "evaluate" / name

    def rows(name):
        dataset = read_dataset(home(name) / "dataset")
        return pa.concat_tables(pq.read_table(str(dataset.path / part.file)) for part in dataset.parts).to_pylist()

    return SimpleNamespace(
        recipe=recipe, run=run, home=home, rows=rows, everything=everything, source=source, folder=folder,
        bare=tiny_bare_lm, lm=tiny_lm,
    )  # fmt: skip


@pytest.fixture(scope="module")
def calm(cluster, bench):
    return bench.run("calm", **bench.everything)


def test_every_answer_is_there_once_with_its_measures(bench, calm):
    rows = bench.rows("calm")
    assert len({row["id"] for row in rows}) == len(rows)
    by_task = {task: [row for row in rows if row["task"] == task] for task in ("humaneval", "prompts", "heldout")}
    assert {task: len(each) for task, each in by_task.items()} == {"humaneval": 18, "prompts": 18, "heldout": 12}
    for row in by_task["humaneval"]:
        assert row["program"] is not None
        assert row["tests"] >= row["tests_passed"]
        assert bool(row["why"]) is not row["passed"]
        assert 0 < row["tokens"] <= 12
    assert all(isinstance(row["reward"], float) and row["nats"] is None for row in by_task["prompts"])
    assert all(row["nats"] > 0 and row["nats_tokens"] > 0 and row["text"] is None for row in by_task["heldout"])
    clean = [row for row in by_task["heldout"] if row["variant"] == "clean"]
    assert {row["bytes"] for row in clean} == {len("It is 0.")}
    assert {row["nats_tokens"] for row in clean} == {len("It is 0.") + 1}, "the end of the turn counts"


def test_the_numbers_are_in_metrics_manifest_and_report(bench, calm):
    results = read_results(bench.home("calm"))
    assert set(results.humaneval) == {"plain", "edits", "chat"}
    assert results.humaneval["plain"]["pass@1"].over == 2
    assert sum(results.reasons["plain"].values()) == 2
    assert results.prompts["reward"].over == 6
    assert results.perplexity["bits per byte"].value > 0
    compared = {(each.task, each.kind, each.measure) for each in results.robustness}
    assert ("humaneval", "characters", "pass@1") in compared
    assert ("prompts", "order", "reward") in compared
    assert ("heldout", "characters", "nats per token") in compared
    judge = results.judge
    assert judge.wins + judge.losses + judge.ties == judge.pairs == 12
    assert judge.flipped == judge.no_verdict == 0, "a reward model does not mind the order"
    manifest = read_dataset(bench.home("calm") / "dataset").manifest
    assert manifest.schema_name == "samples"
    assert set(manifest.models) == {"model", "reward"}
    assert manifest.statistics["rows"] == {"humaneval": 18, "prompts": 18, "heldout": 12}
    assert len(manifest.parents) == 1, "the questions"
    page = (bench.home("calm") / "report.html").read_text()
    for section in (
        "HumanEval",
        "Robustness",
        "Held-out texts",
        "Answers, the best",
        "Compared with reference",
        "Best (plain)",
    ):
        assert section in page
    assert "plain: pass@1" in calm.facts
    questions = json.loads((UPath(manifest.parents[0].uri) / "manifest.json").read_text())
    assert questions["counts"] == {"left out: no prompt": 1, "left out: no room in the window": 3}


def test_a_second_call_changes_nothing(bench, calm):
    again = bench.run("calm", **bench.everything)
    assert again.reused
    assert again.facts["plain: pass@1"] == calm.facts["plain: pass@1"]
    with pytest.raises(Outdated, match="another recipe"):
        bench.run("calm", **{**bench.everything, "seed": 1})


@pytest.mark.parametrize("moment", ["stream", "after"])
def test_what_is_stopped_goes_on_and_ends_the_same(bench, calm, monkeypatch, moment):
    class Stop(BaseException):
        pass

    def stop(*arguments, **keys):
        raise Stop

    name = f"stopped-{moment}"
    with monkeypatch.context() as patch:
        if moment == "stream":
            patch.setattr(transform.MetricsWriter, "log", stop)
        else:
            patch.setattr("engine.evaluation.results.results_of", stop)
        with pytest.raises(Stop):
            bench.run(name, **bench.everything)
    assert not (bench.home(name) / "metrics.json").exists()
    done = bench.run(name, **bench.everything)
    if moment == "after":
        assert done.reused
    mine, theirs = ({row["id"]: row for row in bench.rows(each)} for each in (name, "calm"))
    assert mine.keys() == theirs.keys()
    assert all(mine[key]["text"] == theirs[key]["text"] for key in mine)
    assert (bench.home(name) / "metrics.json").read_text() == (bench.home("calm") / "metrics.json").read_text()


def test_shards_and_samples_do_not_change_what_is_drawn(cluster, bench):
    sampling = {"temperature": 1.0, "max_tokens": 8}
    engine = {"kind": "transformers", "cpus": 0.5, "window": 1400}
    for name, samples, shard in (("one", 1, 3), ("three", 3, 64)):
        prompts = {"source": bench.source("prompts"), "limit": 5, "samples": samples}
        bench.run(name, prompts=prompts, sampling=sampling, engine={**engine, "shard": shard})
    one, three = ({row["id"]: row["text"] for row in bench.rows(name)} for name in ("one", "three"))
    assert one.items() <= three.items()
    assert len(set(three.values())) > len(one)


def test_two_evaluations_are_compared(bench, calm):
    against = str(bench.home("calm") / "dataset")
    keys = {**bench.everything, "judge": {"against": against, "by": "reward", "margin": 0.0}}
    bench.run("again", **keys)
    judge = read_results(bench.home("again")).judge
    assert (judge.ties, judge.wins, judge.losses, judge.unmatched) == (judge.pairs, 0, 0, 0)
    assert judge.rate.value == 0.5
    with pytest.raises(ArtifactError, match="None of the answers has a counterpart"):
        bench.run("apart", prompts={"source": bench.source("talks"), "rows": "demonstrations"}, judge=keys["judge"],
                  reward=keys["reward"])  # fmt: skip


def test_a_teacher_judges_within_its_budget_and_is_never_asked_twice(cluster, bench):
    endpoint = Endpoint()
    try:
        teacher = {"kind": "endpoint", "url": endpoint.url, "prompt": PROMPT, "at_once": 4}
        keys = {"prompts": {"source": bench.source("prompts")}, "judge": {"against": "reference"}, "teacher": teacher}
        bench.run("judged", **keys, budget={"queries": 12})
        judge = read_results(bench.home("judged")).judge
        assert (judge.pairs, judge.flipped, judge.no_verdict) == (6, 6, 0), "it says FAIL whatever comes first"
        assert sum(endpoint.counts.values()) == 12
        assert all("Answer A:" in text and "Answer B:" in text for text in endpoint.counts)
        bench.run("judged-again", **keys, budget={"queries": 5})
        assert read_results(bench.home("judged-again")).judge == judge, "the answers are kept for all runs"
        assert sum(endpoint.counts.values()) == 12
        short = {**keys, "teacher": {**teacher, "prompt": f"Once more. {PROMPT}"}}
        bench.run("judged-short", **short, budget={"queries": 4})
        assert read_results(bench.home("judged-short")).judge.no_verdict > 0, "the budget was spent"
    finally:
        endpoint.close()


def test_rows_are_drawn_from_everywhere_and_the_same_each_time(bench):
    folder = bench.folder / "many"
    folder.mkdir()
    for name in "abcde":
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": f"{name}{n}"}) + "\n" for n in range(20)))
    source = SourceConfig(paths=[str(folder)], roots=[str(folder)], shard_mb=0.00035)
    drawn = draw(source, "documents", 10, 7)
    assert drawn == draw(source, "documents", 10, 7) != draw(source, "documents", 10, 8)
    assert sorted(row["text"][0] for row in drawn.rows) == sorted("abcde" * 2)
    assert len({row["key"] for row in draw(source, "documents", 500, 7).rows}) == 100


def test_a_dry_run_tells_the_budget_and_does_nothing(bench):
    outcome = bench.run("dry", Invocation("x", dry_run=True), **bench.everything)
    assert outcome.facts["humaneval"] == "18 answers to 2 problems, of them disturbed: 6 characters, 6 order"
    assert outcome.facts["tokens written"] == "at most 432 (12 an answer)"
    assert {"time to write", "memory per actor", "demand", "shards", "left out"} <= outcome.facts.keys()
    assert not bench.home("dry").exists()


@pytest.mark.parametrize(
    ("keys", "error", "says"),
    [
        ({}, RecipeError, "there is nothing to measure"),
        ({"humaneval": {"k": [2]}}, RecipeError, "needs numbers from 1 to humaneval.samples"),
        ({"humaneval": {"samples": 2}}, RecipeError, "several samples at temperature 0 are all the same"),
        ({"humaneval": {"only": ["HumanEval/164"]}}, RecipeError, "HumanEval has no problem 'HumanEval/164'"),
        ({"humaneval": {}, "reward": {"model": "x"}}, RecipeError, "give the section prompts"),
        ({"humaneval": {}, "judge": {"against": "reference"}}, RecipeError, "needs the section teacher"),
        ({"humaneval": {}, "judge": {"against": "/none", "by": "reward"}}, RecipeError, "needs the section reward"),
        ({"humaneval": {}, "model": "/none"}, SourceError, "There is no model at /none"),
        ({"humaneval": {}, "engine": {"kind": "transformers", "window": 100}}, RecipeError, "in a window of 100"),
        ({"humaneval": {}, "robustness": {"samples": 2}}, RecipeError, "robustness.samples is larger"),
        ({"humaneval": {"styles": ["chat"]}, "model": "BARE"}, SourceError, "has no chat template"),
        ({"heldout": {"source": "talks"}}, SchemaError, "has no column 'text'"),
        ({"heldout": {"source": "edits", "rows": "edit_sequences"}}, RecipeError, "never learnt to read edits"),
        ({"prompts": {"source": "prompts"}, "reward": {"model": "LM"}}, SourceError, "gives a text no single score"),
        ({"prompts": {"source": "prompts"}, "judge": {"against": "/none", "by": "reward"}, "reward": {"model": "R"}},
         ArtifactError, "holds no manifest"),
    ],
)  # fmt: skip
def test_what_cannot_be_evaluated_is_one_sentence(cluster, bench, tiny_reward, keys, error, says):
    keys = json.loads(json.dumps(keys).replace("BARE", bench.bare).replace('"LM"', f'"{bench.lm}"'))
    keys = json.loads(json.dumps(keys).replace('"R"', f'"{tiny_reward}"'))
    for section in ("prompts", "heldout"):
        if section in keys:
            keys[section]["source"] = bench.source(keys[section]["source"])
    with pytest.raises(error, match=says) as told:
        bench.run("wrong", **keys)
    assert isinstance(told.value, HeadraceError)


def test_a_killed_evaluation_goes_on_and_asks_nothing_twice(cluster, bench):
    keys = {"humaneval": {"problems": 6}, "engine": {"kind": "transformers", "shard": 1, "cpus": 0.5, "window": 1400}}
    bench.run("undisturbed", **keys)
    path = bench.folder / "wild.yaml"
    path.write_text(write_yaml(bench.recipe("wild", **keys).model_dump(mode="json", exclude_none=True)))
    command = [sys.executable, "-m", "jobs.evaluate", str(path), "--address", cluster.address]
    driver = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    records = Path(str(bench.home("wild") / "ledger" / "shards"))
    try:
        end = time.monotonic() + 200
        while not list(records.glob("*.json")):
            assert time.monotonic() < end, "nothing was committed"
            assert driver.poll() is None, "it ended by itself"
            time.sleep(0.02)
    finally:
        driver.kill()
        driver.wait(timeout=20)
    before = {each.name: each.read_bytes() for each in records.glob("*.json")}
    assert not (bench.home("wild") / "dataset" / "manifest.json").exists()
    bench.run("wild", **keys)
    assert {name: (records / name).read_bytes() for name in before} == before
    assert [row["text"] for row in bench.rows("wild")] == [row["text"] for row in bench.rows("undisturbed")]


def test_less_isolation_than_asked_for_is_refused(bench, monkeypatch):
    monkeypatch.setattr("engine.evaluation.sandbox.strongest", lambda: "rlimits")
    with pytest.raises(HeadraceError, match="this machine gives rlimits"):
        bench.run("open", humaneval={"problems": 1})
