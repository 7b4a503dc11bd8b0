"""Value networks against full fine-tuning and emulated fine-tuning: SmolLM2-135M and the words for tweets, three seeds.

    tuned         all of SmolLM2, trained          value         a value network trained beside SmolLM2
    emulated      SmolLM2 + (small one tuned       transferred   a value network trained beside the small one, put
                  - small one), three forwards                   beside SmolLM2, which it has never seen

The small one is SmolLM2 with ten of its layers, healed; value networks start from it. Every arm sees the same tweets in
the same number of steps, and is trained in that way of TRIED whose seed 0 came to the fewest nats per token on
validation tweets. Intervals (95 %), and shares of the gain of `tuned` over the base, come from seeds and held-out
tweets drawn anew, the same for all arms. `value_arms` has the data and the arms.

A run that is done is not made again: name a directory in BENCH_HOME. Beside these runs that of the laptop recipe:
`headrace value-network jobs/recipes/value_laptop.yaml`. 50 minutes on two cores.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from tests.benchmarks.value_arms import EXAMPLES, HEALING, LAYERS, PENALTY, STEPS, TEST, VALIDATION, WORDS

SEEDS = (0, 1, 2)
TRIED = {
    "tuned": {"tuned": (5e-5, 1e-4, 2e-4)},
    "value": {"value": (5e-4, 1e-3, 2e-3), "free_value": (5e-4, 1e-3), "warm_value": (2e-4, 5e-4)},
    "transferred": {"transferred": (5e-4, 1e-3, 2e-3), "free_transferred": (5e-4, 1e-3), "warm_transferred": (5e-4,)},
    "emulated": {"emulated": (1e-4, 2e-4, 5e-4)},
}
"""Arm -> how it is trained (`free`: no penalty; `warm`: the small model's own head) -> learning rates."""
MEASURES = ("nats", "accuracy", "word_nats")
ROUNDS = 10_000


def main():
    """Prepare, try the learning rates, run what is left."""
    kept = os.environ.get("BENCH_HOME")
    home = Path(kept or tempfile.mkdtemp(prefix="hrbench-"))
    home.mkdir(parents=True, exist_ok=True)
    try:
        prepared = _run(home, "prepare")
        tried = {arm: [_run(home, way, rate) for way in ways for rate in ways[way]] for arm, ways in TRIED.items()}
        best = {arm: min(runs, key=lambda each: _validated(each)["nats"]) for arm, runs in tried.items()}
        runs = {arm: [_run(home, found["arm"], found["rate"], seed) for seed in SEEDS] for arm, found in best.items()}
        laptop = _laptop(home)
    finally:
        if not kept:
            shutil.rmtree(home)
    setup = {
        "words": WORDS,
        "labels": prepared["measures"]["base"]["labels"],
        "layers": LAYERS,
        "healing": HEALING,
        "steps": STEPS,
        "examples": EXAMPLES,
        "validation": VALIDATION,
        "test": TEST,
        "penalty": PENALTY,
    }
    shown = [prepared, *(run for arm in runs.values() for run in arm), laptop]
    return {
        "setup": setup,
        "tried": [
            {"arm": each["arm"], "rate": each["rate"], **_validated(each)} for arm in tried for each in tried[arm]
        ],
        "runs": [_public(each) for each in shown],
        "summary": _summary(setup, prepared, runs, laptop),
    }


def _run(home, arm, rate=0.0, seed=0):
    path = home / f"{arm}-{rate:g}-{seed}.json"
    if not path.exists():
        command = [sys.executable, "-m", "tests.benchmarks.value_arms", str(home), arm, str(rate), str(seed)]
        # Threads that wait asleep: with other work on the machine they are many times as fast.
        environment = {**os.environ, "OMP_WAIT_POLICY": "passive"}
        subprocess.run(command, check=True, stdout=sys.stderr, env=environment)
    return json.loads(path.read_text())


def _laptop(home):
    """The job with the laptop recipe, and how often its word is right."""
    command = [sys.executable, "-m", "jobs.value_network", "jobs/recipes/value_laptop.yaml", f"runs={home / 'runs'}"]
    subprocess.run(command, check=True, stdout=sys.stderr)
    return _run(home, "laptop")


def _validated(run):
    return next(iter(run["measures"].values()))["validation"]


def _public(run):
    """A run with means in place of every tweet."""
    means = {
        name: {each: round(float(np.mean(found["test"][each])), 4) for each in MEASURES}
        for name, found in run["measures"].items()
    }
    return {**{name: each for name, each in run.items() if name != "measures"}, "test": means}


def _summary(setup, prepared, runs, laptop):
    draws = _draws()
    arms = {name: _values([prepared] * len(SEEDS), name) for name in ("base", "small base")}
    arms |= {arm: _values(each) for arm, each in runs.items()}
    arms["small tuned"] = _values(runs["emulated"], "small tuned")
    arms["beside the small base"] = _values(runs["transferred"], "beside the small base")
    return {
        "commonest_word": round(max(setup["labels"]) / sum(setup["labels"]), 4),
        "trained": {arm: [each[0]["arm"], each[0]["rate"]] for arm, each in runs.items()},
        "means": {arm: _each(lambda name, values=values: _means(values[name], draws)) for arm, values in arms.items()},
        "share_of_gain": {arm: _each(lambda name, arm=arm: _share(arms, arm, name, draws)) for arm in list(TRIED)[1:]},
        "differences": {
            f"{one} - {other}": _each(lambda name, pair=(one, other): _difference(arms, *pair, name, draws))
            for one, other in (("value", "emulated"), ("transferred", "emulated"), ("transferred", "value"))
        },
        "laptop": {"minutes_of_training": round(laptop["training_seconds"] / 60, 1), **_public(laptop)["test"]},
    }


def _values(runs, mix=None):
    """Seeds by tweets of each measure; of what an arm comes to if no other mix is named."""
    found = [each["measures"][mix or each["arm"]]["test"] for each in runs]
    return {name: np.array([each[name] for each in found]) for name in MEASURES}


def _draws():
    """Indices of seeds and tweets: as they are, then drawn with replacement; every arm has the same."""
    draw = np.random.default_rng(0)
    seeds = np.vstack([np.arange(len(SEEDS)), draw.integers(len(SEEDS), size=(ROUNDS, len(SEEDS)))])
    tweets = np.vstack([np.arange(TEST), draw.integers(TEST, size=(ROUNDS, TEST))])
    return seeds[:, :, None], tweets[:, None, :]


def _means(values, draws):
    return values[draws].mean((1, 2))


def _difference(arms, one, other, name, draws):
    return _means(arms[one][name] - arms[other][name], draws)


def _share(arms, arm, name, draws):
    """An arm's gain over the base, over that of full fine-tuning."""
    return _difference(arms, arm, "base", name, draws) / _difference(arms, "tuned", "base", name, draws)


def _each(drawn):
    """Of each measure what is found, and its interval."""
    found = {name: drawn(name) for name in MEASURES}
    return {
        name: [round(float(each), 4) for each in (numbers[0], *np.quantile(numbers[1:], (0.025, 0.975)))]
        for name, numbers in found.items()
    }
