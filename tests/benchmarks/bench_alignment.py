"""What the laptop recipe of `rlhf` comes to, three seeds: held-out prompts before and after, paired.

Each seed draws its own prompts, holds out its own and learns from its own responses. BENCH_HOME keeps the runs (what is
there is not trained again). Needs `headrace reward-model jobs/recipes/reward-model_laptop.yaml` to have run (or
BENCH_REWARD, a model).
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from engine.finetune.checkpoints import Checkpoints
from engine.models import portable
from engine.rlhf.gains import gains
from engine.storage import locate

SEEDS = (0, 1, 2)
REWARD = os.environ.get("BENCH_REWARD", "runs/reward-model/laptop/model")


def main():
    """Train, then compare."""
    with tempfile.TemporaryDirectory() as folder:
        runs = {seed: _run(Path(os.environ.get("BENCH_HOME", folder)), seed) for seed in SEEDS}
    scores = ("positive", "vader")
    return {
        "runs": runs,
        "summary": {
            **{name: [_said(each["gains"][name]) for each in runs.values()] for name in scores},
            "kl": [round(each["after"]["kl"], 2) for each in runs.values()],
            "distinct_2": [[round(each[at]["distinct_2"], 3) for at in ("before", "after")] for each in runs.values()],
            "minutes_of_training": [round(each["seconds"] / 60, 1) for each in runs.values()],
        },
    }


def _run(home, seed):
    keys = [f"runs={home / 'runs'}", f"name=seed{seed}", f"seed={seed}"]
    keys += [f"{key}.0.model={portable(REWARD)}" for key in ("rewards", "watched")]
    command = [sys.executable, "-m", "jobs.rlhf", "jobs/recipes/rlhf_laptop.yaml", *keys]
    subprocess.run(command, check=True, stdout=sys.stderr)
    place = locate(str(home / "runs" / "rlhf" / f"seed{seed}"))
    state = Checkpoints(place).latest()
    return {
        "seconds": state.seconds,
        "steps": state.steps,
        "ended": state.ended,
        "before": state.measured[0].values,
        "after": state.measured[-1].values,
        "gains": {each.name: vars(each) for each in gains(place, state.steps)},
    }


def _said(gain):
    found = {name: round(gain[name], 3) for name in ("before", "after", "low", "high")}
    return {**found, "p": float(f"{gain['p']:.1g}"), "prompts": gain["prompts"]}
