"""The job `rlhf` end to end on a small model: what is published, resumed, and refused."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from engine.artifacts import read_model
from engine.config import write_yaml
from engine.errors import HeadraceError, Outdated, SourceError
from engine.models import load_causal_lm
from engine.observe import read_metrics
from engine.rlhf.experience import read_held_out
from engine.storage import locate

ROOT = Path(__file__).parents[2]
HERE = str(Path(__file__).parent)


@pytest.fixture(autouse=True)
def rewards_are_found(monkeypatch):
    monkeypatch.syspath_prepend(HERE)
    monkeypatch.chdir(HERE)


def drawn(home):
    """Every sample of a run: its name and its text, step by step."""
    found = []
    for path in sorted((home / "rollouts").glob("step-*.parquet")):
        found.append(
            [(row["epoch"], row["prompt"], row["number"], row["text"]) for row in pq.read_table(path).to_pylist()]
        )
    return found


def losses(home):
    return {line["step"]: line["policy_loss"] for line in read_metrics(locate(str(home))) if "policy_loss" in line}


def test_a_policy_is_learnt_and_published(cluster, workshop):
    dry = workshop.run(dry_run=True)
    assert "to learn from" in dry.facts["prompts"]
    outcome = workshop.run(watched=[{"kind": "function", "name": "again", "function": "likes:letters"}])
    model = read_model(outcome.output, verify=True)
    assert model.manifest.job == "rlhf"
    assert {"held-out reward/again", "held-out kl", "held-out distinct_2"} <= model.manifest.metrics.keys()
    load_causal_lm(str(outcome.output))
    critic = read_model(outcome.output.parent / "model-critic", verify=True)
    assert json.loads((Path(str(critic.path)) / "config.json").read_text())["model_type"] == "headrace-value-head"
    lines = {line["step"]: line for line in read_metrics(locate(str(workshop.home))) if "reward" in line}
    assert list(lines) == [1, 2, 3, 4]
    assert lines[1]["kl"] == pytest.approx(0, abs=1e-6), "the policy is the reference before it has learnt"
    assert all(line["mismatch"] < 1e-4 for line in lines.values()), "the engine has the learner's weights"
    assert lines[4]["kl"] != 0
    samples = [key[:3] for step in drawn(workshop.home) for key in step]
    assert len(set(samples)) == len(samples) == 24
    page = (workshop.home / "report.html").read_text()
    for section in ("Reward", "KL to the reference", "Length of the macros", "Before and after", "Where a step"):
        assert section in page, section
    assert len(read_held_out(locate(str(workshop.home)), 4)) == 4
    with pytest.raises(Outdated, match="another recipe"):
        workshop.run(seed=7)


def test_without_a_critic(cluster, workshop):
    keys = {"learning": {"advantage": "rloo", "steps": 2}, "rollout": {"prompts": 3, "samples": 2}}
    outcome = workshop.run(**keys)
    assert not (Path(str(outcome.output)).parent / "model-critic").exists()
    assert all("value_loss" not in line for line in read_metrics(locate(str(workshop.home))))


def test_a_killed_driver_costs_only_the_steps_since_the_checkpoint(cluster, workshop):
    keys = {"learning": {"steps": 6, "checkpoint_every": 2}, "parallel": {"workers": 2, "zero": 2, "cpus": 0.25}}
    calm = workshop.run(name="calm", **keys).output.parent
    path = workshop.path / "wild.yaml"
    path.write_text(write_yaml(workshop.recipe(**keys).model_dump(mode="json")))
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{HERE}"}
    driver = subprocess.Popen(
        [sys.executable, "-m", "jobs.rlhf", str(path), "--address", cluster.address],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        end = time.monotonic() + 240
        while not list(workshop.home.glob("checkpoints/*/state.json")):
            assert time.monotonic() < end, "no checkpoint"
            assert driver.poll() is None, "it ended too early"
            time.sleep(0.1)
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait(timeout=20)
    workshop.run(**keys)
    assert drawn(workshop.home) == drawn(Path(str(calm))), "the same samples, each once"
    assert losses(workshop.home) == pytest.approx(losses(calm), rel=1e-3, abs=1e-4)


@pytest.mark.parametrize(
    ("keys", "error", "said"),
    [
        ({"rewards": [{"kind": "function", "function": "likes:broken"}]}, HeadraceError, "ValueError: no opinion"),
        ({"rewards": [{"kind": "function", "function": "likes:none"}]}, HeadraceError, "no reward function likes:none"),
        ({"prompts": {"window": 3}}, SourceError, "No prompt is left to learn from .40 longer than the window"),
        ({"learning": {"layers": 9}}, HeadraceError, "is 9, and the model has 3"),
        ({"parallel": {"cpus": 64}}, HeadraceError, "64 CPU"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_one_sentence(cluster, workshop, keys, error, said):
    with pytest.raises(error, match=said):
        workshop.run(**keys)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"macro": {"rule": "words"}}, "is none of token"),
        ({"rollout": {"max_tokens": 999}}, "more than parallel.tokens_per_device"),
        ({"learning": {"advantage": "rloo"}}, "set rollout.samples to 2"),
        ({"learning": {"minibatches": 99}}, "more than a step has responses"),
        ({"prompts": {"wording": "Q"}}, "needs {prompt}"),
        ({"rewards": []}, "rewards"),
    ],
)
def test_a_recipe_that_contradicts_itself_is_refused(workshop, keys, said):
    with pytest.raises(HeadraceError, match=said):
        workshop.recipe(**keys)
