"""A PPO step against TRL's PPOTrainer (1.12.0, the last with one): the laptop recipe, part by part, float32, 2 threads.

    laptop   ours as the recipe has it: LoRA on the last ten layers, a value head on the reference's states; Ray,
             DeepSpeed and vLLM in the loop
    all      ours with LoRA on all layers: the peer's parameters of the policy, its batches and optimiser steps
    trained  the peer's usual way: LoRA on all layers, a value model as large as the policy
    frozen   the peer with the last layer of its value model trained alone: about what `all` trains

The same model, prompts, lengths, reward model and number of optimiser steps (two epochs of two minibatches). The first
step of each is left out. Needs `headrace reward-model jobs/recipes/reward-model_laptop.yaml` to have run (or
BENCH_REWARD, a model), and TRL_HOME, where the peer was installed by
`pip install --no-deps --target TRL_HOME trl==1.12.0 datasets multiprocess dill`.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from engine.config import read_yaml, set_key, write_yaml
from engine.models import portable
from engine.observe import read_metrics
from engine.storage import locate

STEPS = 6
PARTS = ("step", "generate", "look", "score", "credit", "learn", "sync")
REWARD = os.environ.get("BENCH_REWARD", "runs/reward-model/laptop/model")


def main():
    """The four arms, one after the other."""
    home = os.environ.get("TRL_HOME")
    assert home, "set TRL_HOME to where TRL 1.12.0 was installed"
    with tempfile.TemporaryDirectory() as folder:
        runs = {
            "laptop": ours(Path(folder), "laptop", {}),
            "frozen": _peer(Path(folder), home, "frozen"),
            "all": ours(Path(folder), "all", {"learning.layers": None}),
            "trained": _peer(Path(folder), home, "trained"),
        }
    parts = {arm: medians(steps) for arm, steps in runs.items()}
    whole = {arm: each["step"] for arm, each in parts.items()}
    return {
        "runs": runs,
        "summary": {
            "median_seconds": parts,
            "laptop_to_trained": round(whole["trained"] / whole["laptop"], 2),
            "laptop_to_frozen": round(whole["frozen"] / whole["laptop"], 2),
            "all_to_frozen": round(whole["frozen"] / whole["all"], 2),
        },
    }


def _recipe(folder, name, changes):
    data = read_yaml("jobs/recipes/rlhf_laptop.yaml")
    changes = {
        "name": name, "runs": str(folder / "runs"), "rewards.0.model": portable(REWARD), "watched": [],
        "prompts.measured": 4, "learning.steps": STEPS, "learning.measure_every": 1000,
        "learning.checkpoint_every": 1000, "guards.max_kl": None, **changes,
    }  # fmt: skip
    for key, value in changes.items():
        set_key(data, key, value)
    path = folder / f"{name}.yaml"
    path.write_text(write_yaml(data))
    return path


def ours(folder, name, changes):
    """Steps of the laptop recipe with changes, timed by the job itself."""
    subprocess.run(
        [sys.executable, "-m", "jobs.rlhf", str(_recipe(folder, name, changes))], check=True, stdout=sys.stderr
    )
    lines = [line for line in read_metrics(locate(str(folder / "runs" / "rlhf" / name))) if "seconds/step" in line]
    return [{part: line.get(f"seconds/{part}", 0.0) for part in PARTS} for line in lines]


def _peer(folder, home, values):
    command = [sys.executable, "-m", "tests.benchmarks.ppo_arms", str(_recipe(folder, values, {})), str(STEPS), values]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([os.getcwd(), home]), "OMP_NUM_THREADS": "2"}
    said = subprocess.run(command, check=True, env=environment, capture_output=True, text=True).stdout
    (line,) = [line for line in said.splitlines() if line.startswith("FOUND ")]
    return json.loads(line.removeprefix("FOUND "))["steps"]


def medians(steps):
    """Seconds of a step and of its parts, the first step left out."""
    found = {name: round(statistics.median(each.get(name, 0.0) for each in steps[1:]), 2) for name in PARTS}
    return {name: value for name, value in found.items() if value}
