"""A reward model on human-labelled tweets: accuracy on held-out tweets, three seeds, against a frozen encoder.

The job `reward-model` with the laptop recipe (packaged tweets that annotators agreed on, MiniLM, all of it trained),
its seed changed each time, and with it what is held out. The control is logistic regression on the frozen encoder's
mean vectors of the same tweets, fitted by L-BFGS on what the job trained on, and the commoner label.
"""

import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from upath import UPath

from engine.artifacts import read_dataset
from engine.cluster import session
from engine.config import load_recipe
from engine.finetune.reward import read_calibration
from engine.models import load_tokenizer
from engine.runs import Invocation
from engine.sieve.encoder import Encoder
from jobs import reward_model

SEEDS = (0, 1, 2)


def main():
    """The job and its control, once a seed."""
    home = Path(tempfile.mkdtemp(prefix="hrbench-"))
    try:
        with session(None) as ray_session:
            assert ray_session
            runs = [_run(home, seed) for seed in SEEDS]
    finally:
        shutil.rmtree(home)
    summary = {
        name: [round(run[name], 4) for run in runs] for name in ("accuracy", "control", "majority", "calibration_error")
    }
    return {
        "runs": runs,
        "summary": {**summary, "mean_accuracy": round(statistics.mean(summary["accuracy"]), 4)},
    }


def _run(home, seed):
    overrides = [f"runs={home}", f"name=seed-{seed}", f"seed={seed}", "training.measured=100000"]
    recipe = load_recipe(reward_model.RECIPE, "jobs/recipes/reward-model_laptop.yaml", overrides)
    started = time.time()
    outcome = reward_model.run(recipe, Invocation("bench"))
    seconds = time.time() - started
    found = read_calibration(Path(str(outcome.output)))
    return {
        "seed": seed,
        "seconds": seconds,
        "held_out": found.examples,
        "accuracy": found.accuracy,
        "balanced_accuracy": found.balanced_accuracy,
        "majority": found.majority,
        "calibration_error": found.error,
        "control": _control(home / "reward-model" / f"seed-{seed}" / "tokenise" / f"seed-{seed}" / "dataset"),
    }


def _control(place):
    """Accuracy of a linear head on frozen features, trained and tested on the same rows as the job."""
    dataset, tokenizer = read_dataset(UPath(place)), load_tokenizer("pkg:minilm")
    rows = [row for part in dataset.parts for row in pq.read_table(place / part.file).to_pylist()]
    texts = [tokenizer.decode(row["ids"], skip_special_tokens=True) for row in rows]
    features = np.stack(Encoder("pkg:minilm", max_tokens=96).features(texts))
    labels, held = np.array([row["label"] for row in rows]), np.array([row["held_out"] for row in rows])
    x, y = torch.tensor(features), torch.tensor(labels)
    head = torch.nn.Linear(x.shape[1], 1)
    optimiser = torch.optim.LBFGS(head.parameters(), max_iter=200)

    def closure():
        optimiser.zero_grad()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(head(x[~held])[:, 0], y[~held])
        loss = loss + 1e-4 * head.weight.square().sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    with torch.no_grad():
        return float(((head(x[held])[:, 0] > 0) == (y[held] > 0.5)).float().mean())
