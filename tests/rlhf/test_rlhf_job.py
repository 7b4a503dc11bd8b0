"""The job `rlhf` end to end on a small model: what is published, resumed, and refused."""

import difflib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file

from engine.artifacts import read_model
from engine.config import build_recipe, read_yaml, write_yaml
from engine.errors import HeadraceError, Outdated, SourceError
from engine.models import load_causal_lm, load_values
from engine.observe import read_metrics
from engine.rlhf.experience import read_step
from engine.rlhf.weights import load_value_head
from engine.storage import locate
from jobs import rlhf

ROOT = Path(__file__).parents[2]
HERE = str(Path(__file__).parent)


KEYS = {"learning": {"steps": 6, "checkpoint_every": 2}, "parallel": {"workers": 2, "zero": 2, "cpus": 0.25}}


@pytest.fixture(autouse=True, scope="module")
def rewards_are_found():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(HERE)
        patch.chdir(HERE)
        yield


@pytest.fixture(scope="module")
def calm(cluster, make_workshop, tmp_path_factory, rewards_are_found):
    """A run that nothing disturbed, of two workers: its outcome and where it is."""
    workshop = make_workshop(tmp_path_factory.mktemp("calm"))
    watched = [{"kind": "function", "name": "again", "function": "likes:letters"}]
    outcome = workshop.run(**KEYS, watched=watched)
    return SimpleNamespace(outcome=outcome, home=workshop.home, run=lambda **keys: workshop.run(**KEYS | keys))


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


def test_a_policy_is_learnt_and_published(calm):
    outcome, home = calm.outcome, locate(str(calm.home))
    model = read_model(outcome.output, verify=True)
    assert model.manifest.job == "rlhf"
    assert {"held-out reward/again", "held-out kl", "held-out distinct_2"} <= model.manifest.metrics.keys()
    load_causal_lm(str(outcome.output))
    critic = read_model(outcome.output.parent / "model-critic", verify=True)
    assert json.loads((Path(str(critic.path)) / "config.json").read_text())["model_type"] == "headrace-value-head"
    lines = {line["step"]: line for line in read_metrics(home) if "reward" in line}
    assert list(lines) == [1, 2, 3, 4, 5, 6]
    assert lines[1]["kl"] == pytest.approx(0, abs=1e-6), "the policy is the reference before it has learnt"
    assert all(line["mismatch"] < 1e-4 for line in lines.values()), "the engine has the learner's weights"
    assert lines[4]["kl"] != 0
    samples = [key[:3] for step in drawn(calm.home) for key in step]
    assert len(set(samples)) == len(samples) == 36
    page = (calm.home / "report.html").read_text()
    for section in ("Reward", "KL to the reference", "Length of the macros", "Before and after", "Where a step"):
        assert section in page, section
    assert len(read_step(home, 6, held_out=True).responses) == 4
    assert "4 prompts" in outcome.facts["held-out reward"]
    with pytest.raises(Outdated, match=r"another recipe \(changed: .*seed"):
        calm.run(seed=7)


def test_a_dry_run_says_what_there_is_to_do(cluster, workshop):
    facts = workshop.run(dry_run=True).facts
    assert "to learn from" in facts["prompts"]
    assert "policy about" in facts["memory of a learner"]
    assert not workshop.home.exists()


def test_what_was_drawn_is_learnt_from_again_without_an_engine(calm, workshop):
    rewards = [{"kind": "function", "function": "likes:broken"}]
    again = KEYS | {"name": "again", "rewards": rewards, "rollout": {"recorded": os.path.relpath(calm.home)}}
    outcome = workshop.run(**again)
    assert outcome.facts["against the recording"].startswith("losses of 6 steps differ by")
    assert losses(outcome.output.parent) == pytest.approx(losses(calm.home), abs=1e-5)
    with pytest.raises(HeadraceError, match="are to other prompts"):
        workshop.run(**again | {"name": "other", "prompts": {"held_out": 0.5}})


def test_drawing_beside_learning_and_without_a_critic(cluster, workshop):
    learning = {"advantage": "rloo", "steps": 4, "checkpoint_every": 1}
    outcome = workshop.run(learning=learning, rollout={"prompts": 3, "samples": 2, "asynchronous": True})
    versions = [read_step(locate(str(workshop.home)), step).version for step in range(4)]
    assert versions == [0, 0, 1, 2], "one update behind"
    lines = [line for line in read_metrics(locate(str(workshop.home))) if "importance_weight" in line]
    assert lines[0]["importance_weight"] == pytest.approx(1, abs=1e-3)
    assert all(0.5 < line["importance_weight"] < 2 for line in lines)
    assert lines[2]["mismatch"] > lines[0]["mismatch"], "the engine's weights are older than the learner's"
    assert not (Path(str(outcome.output)).parent / "model-critic").exists()
    assert all("value_loss" not in line for line in lines)


def test_a_killed_driver_costs_only_the_steps_since_the_checkpoint(cluster, calm, workshop):
    path = workshop.path / "wild.yaml"
    path.write_text(write_yaml(workshop.recipe(**KEYS).model_dump(mode="json")))
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
    workshop.run(**KEYS)
    assert drawn(workshop.home) == drawn(calm.home), "the same samples, each once"
    assert losses(workshop.home) == pytest.approx(losses(calm.home), rel=1e-3, abs=1e-4)


def test_a_cluster_is_a_few_lines_away_from_a_laptop():
    names = ("laptop", "gpu")
    lines = [
        [line for line in (ROOT / f"jobs/recipes/rlhf_{name}.yaml").read_text().splitlines() if line[0] != "#"]
        for name in names
    ]
    changed = [line for line in difflib.ndiff(*lines) if line.startswith("+ ")]
    assert len(changed) <= 6
    laptop, gpu = (build_recipe(rlhf.RECIPE, read_yaml(ROOT / f"jobs/recipes/rlhf_{name}.yaml")) for name in names)
    assert (laptop.dtype, gpu.dtype) == ("float32", "bfloat16")
    assert (laptop.probe, gpu.probe) == (0.02, 0.3)
    assert gpu.watched[0].model == gpu.rewards[0].model


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


def test_engine_and_learner_that_disagree_stay_refused(cluster, workshop):
    for _ in range(2):
        with pytest.raises(HeadraceError, match="Engine and learner disagree about the same tokens of step 1:"):
            workshop.run(guards={"mismatch": 1e-12})


def test_all_that_shapes_rewards_at_once_and_a_stop(cluster, workshop):
    learning = {
        "advantage": "grpo", "reward_clip": 0.4, "whiten_rewards": True, "whiten_advantages": True, "kl_target": 1e-6,
        "kl_horizon": 10, "kl_loss": 0.1, "steps": 9,
    }  # fmt: skip
    outcome = workshop.run(
        learning=learning, rollout={"samples": 3}, macro={"rule": "sentence"}, guards={"max_kl": 1e-4}
    )
    lines = [line for line in read_metrics(locate(str(workshop.home))) if "kl_coefficient" in line]
    assert 1 < len(lines) < 9
    assert "nats from the reference" in outcome.facts["steps"]
    assert lines[-1]["kl"] > 1e-4
    assert lines[0]["kl_coefficient"] != lines[-1]["kl_coefficient"]


def test_a_critic_of_its_own_and_the_references_quirks(cluster, workshop):
    outcome = workshop.run(
        critic={"kind": "model"}, macro={"rule": "random", "strict_reference_compat": True}, learning={"steps": 2}
    )
    critic = load_values(str(outcome.output.parent / "model-critic"))
    assert critic.config.num_labels == 1
    lines = [line for line in read_metrics(locate(str(workshop.home))) if "value_loss" in line]
    assert all(line["value_gradient_norm"] > 0 for line in lines)


def test_a_critics_head_starts_where_another_ended(calm):
    folder = Path(str(calm.outcome.output.parent / "model-critic"))
    head = load_value_head(folder, 16)
    assert head.outer.weight.abs().sum() > 0, "a new one says the same of every state"
    kept = load_file(folder / "model.safetensors")
    assert all(each.equal(kept[name]) for name, each in head.state_dict().items())
    for other, width in ((folder, 17), (folder.parent / "model", 16)):
        with pytest.raises(SourceError, match="holds no head of a critic"):
            load_value_head(other, width)
