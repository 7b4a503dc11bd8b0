"""The jobs `sft` and `reward-model` end to end on a small model: what is published, resumed and refused."""

import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file

from engine.artifacts import read_model
from engine.config import write_yaml
from engine.errors import HeadraceError, Outdated, SourceError
from engine.finetune.checkpoints import Checkpoints
from engine.finetune.reward import read_calibration
from engine.models import load_causal_lm, load_scorer, load_tokenizer
from engine.observe import read_metrics, read_trajectory
from engine.storage import locate

ROOT = Path(__file__).parents[2]


def losses(home):
    """The training losses by step; where a resume repeated one, the later."""
    return {line["step"]: line["loss"] for line in read_metrics(locate(str(home))) if "loss" in line}


def state(home):
    return Checkpoints(locate(str(home))).latest()


def test_edits_are_learnt_and_published(cluster, workshop):
    keys = {"training": {"trajectory": True}, "tokens": {"bpe_dropout": 0.1}}
    keys["training"] |= {"steps": None, "epochs": 1.5}
    dry = workshop.run("sft", "edits", dry_run=True, **keys)
    assert "1 training workers" in dry.facts["training"]
    outcome = workshop.run("sft", "edits", **keys)
    home, model = outcome.output.parent, read_model(outcome.output, verify=True)
    found = [each.values["loss"] for each in state(home).measured]
    assert found[-1] < found[0] - 0.1
    assert model.manifest.metrics == {"held-out loss": min(found)}
    tokenizer = load_tokenizer(str(outcome.output))
    assert "<|diff|>" in tokenizer.get_vocab()
    assert load_causal_lm(str(outcome.output)).get_input_embeddings().num_embeddings == 49168
    page = (home / "report.html").read_text()
    for section in ("Loss", "Length of the examples", "What became of the rows", "Norm of the gradient"):
        assert section in page
    examples = [each["examples"] for each in read_trajectory(Path(str(home)))]
    assert len(examples) == state(home).steps
    seen = [each for step in examples for each in step]
    first = seen[: len(set(seen))]
    assert len(set(first)) == len(first), "each once before any comes again"
    again = workshop.run("sft", "edits", **keys)
    assert again.reused
    assert "published already" in workshop.run("sft", "edits", dry_run=True, **keys).facts["output"]
    with pytest.raises(Outdated, match="from another recipe"):
        workshop.run("sft", "edits", **{**keys, "seed": 7})


def test_a_worker_that_dies_costs_only_the_steps_since_the_checkpoint(cluster, workshop):
    keys = {
        "training": {"steps": 12, "checkpoint_every": 2, "measure_every": 6, "trajectory": True},
        "lora": {"rank": 2, "dropout": 0.1},
    }
    calm = workshop.here("sft", "programs", name="calm", **keys)
    home = workshop.path / "runs" / "sft" / "wild"
    killed: list[int] = []
    killer = threading.Thread(target=kill_a_worker, args=(cluster.pid, home, killed))
    killer.start()
    wild = workshop.run("sft", "programs", name="wild", **keys).output
    killer.join()
    assert losses(home) == pytest.approx(losses(calm), rel=1e-5)
    assert killed
    assert [each["examples"] for each in read_trajectory(home)] == [
        each["examples"] for each in read_trajectory(Path(str(calm)))
    ]
    assert not list(Path(str(wild)).glob("adapter*")), "the adapter is merged"
    load_causal_lm(str(wild))


def test_a_killed_driver_costs_only_the_steps_since_the_checkpoint(cluster, workshop):
    training = {"steps": 10, "checkpoint_every": 2, "measure_every": 5}
    calm = workshop.here("sft", "chat", name="calm", training=training) / "model"
    keys = {"training": training, "parallel": {"workers": 2, "zero": 3, "cpus": 0.25}}
    path = workshop.path / "wild.yaml"
    path.write_text(write_yaml(workshop.recipe("sft", "chat", name="wild", **keys).model_dump(mode="json")))
    home = workshop.path / "runs" / "sft" / "wild"
    command = [sys.executable, "-m", "jobs.sft", str(path), "--address", cluster.address]
    driver = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for_checkpoint(home)
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait(timeout=20)
    wild = workshop.run("sft", "chat", name="wild", **keys).output
    # Two workers with ZeRO 3 learn what one learns without.
    assert losses(home) == pytest.approx(losses(calm.parent), rel=2e-4)
    ours, theirs = (load_file(str(each / "model.safetensors")) for each in (wild, calm))
    assert ours.keys() == theirs.keys()
    assert all((ours[name] - theirs[name]).abs().max() < 1e-3 for name in ours)


def wait_for_checkpoint(home, seconds=240):
    end = time.monotonic() + seconds
    while not list(home.glob("checkpoints/*/state.json")):
        assert time.monotonic() < end, "no checkpoint"
        time.sleep(0.1)


def kill_a_worker(ray, home, killed):
    """Kill a training worker of the Ray whose first process is `ray` once there is a checkpoint."""
    wait_for_checkpoint(home)
    for each in psutil.Process(ray).children(recursive=True):
        if "RayTrainWorker" in " ".join(each.cmdline()):
            each.kill()
            killed.append(each.pid)


@pytest.mark.parametrize("format", ["pairs", "labels"])
def test_a_reward_model_learns_which_is_better(workshop, format):
    home = workshop.here("reward-model", format, training={"steps": 12, "measure_every": 6})
    found = read_calibration(Path(str(home / "model")))
    assert found.accuracy > 0.9
    scorer = load_scorer(str(home / "model"))
    tokenizer = load_tokenizer(str(home / "model"))
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert scorer.config.pad_token_id == tokenizer.pad_token_id


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # DeepSpeed's ZeRO imports an old corner of it
@pytest.mark.parametrize("keys", [{"parallel": {"zero": 2}}, {"lora": {"rank": 2}}, {}])
def test_bfloat16_learns_too(workshop, keys):
    workshop.rows("programs")
    home = workshop.here("sft", "programs", **keys, training={"dtype": "bfloat16"})
    found = [each.values["loss"] for each in state(home).measured]
    assert found[-1] < found[0]
    assert load_causal_lm(str(home / "model")).config.architectures == ["LlamaForCausalLM"]


def test_what_cannot_work_is_refused_before_anything_starts(workshop, tmp_path):
    workshop.rows("programs")
    cases = {
        "has no column 'messages'": {"format": "chat"},
        "want|wants": {"parallel": {"tokens_per_device": 10**9}},
        "There is no model": {"model": str(tmp_path / "none")},
        "has no chat template|no column": {"format": "responses"},
        "written line by line": {"training": {"trajectory": True}, "runs": "s3://bucket/runs"},
    }
    for said, keys in cases.items():
        format = keys.pop("format", "programs")
        path = str(tmp_path / "programs.parquet")
        with pytest.raises(HeadraceError, match=said):
            workshop.run("sft", format, source={"paths": [path], "roots": [str(tmp_path)]}, dry_run=True, **keys)
    assert not (tmp_path / "runs").exists()


def test_nothing_left_to_learn_from_is_told_with_its_reasons(cluster, workshop):
    with pytest.raises(SourceError, match=r"Nothing is left to train on of 60 rows \(dropped: longer"):
        workshop.run("sft", "programs", tokens={"window": 16, "held_out": 0.0})


def test_what_is_wrong_is_one_sentence_the_checkpoint_stays_and_another_model_is_refused(cluster, workshop, tmp_path):
    keys = {
        "training": {"steps": 8, "checkpoint_every": 1, "measure_every": 2},
        "optimiser": {"learning_rate": 1e9, "clip": 0.0},
    }
    with pytest.raises(HeadraceError, match=r"([Ll]oss (of|after)|gradient of) step [0-9]+ is"):
        workshop.run("sft", "programs", **keys)
    assert state(workshop.path / "runs" / "sft" / "programs").steps > 0
    shutil.copytree(workshop.model, tmp_path / "other")
    (tmp_path / "other" / "chat_template.jinja").write_text("{{ messages }}")
    with pytest.raises(Outdated, match=r"the input changed \(model\)"):
        workshop.run("sft", "programs", model=str(tmp_path / "other"), **keys)
