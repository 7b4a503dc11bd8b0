"""Macro actions against token PPO where credit is hard: 60 tokens, one score at the end, a small model from scratch.

The task and the trial are `tests.benchmarks.macro_arm`. Every rule gets the same tuning: three learning rates (policy
and critic alike) on a seed that is used for nothing else, the best by the mean reward over the steps. Then five fresh
seeds each. `steps_to` is the first step at which the mean reward of five steps reaches half of what can be had (5 of
10); a trial that never does counts as all its steps. Intervals are 95 %, over seeds (bootstrap; ratios to `token` seed
by seed). `BENCH_RULES` (comma-separated) and `BENCH_STEPS` change what is compared.
"""

import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

RULES = os.environ.get("BENCH_RULES", "token,fixed:5,random,whole").split(",")
STEPS = int(os.environ.get("BENCH_STEPS", "80"))
RATES, TUNING, SEEDS, WANTED = (1e-3, 3e-3, 1e-2), 1000, (0, 1, 2, 3, 4), 5.0


def main():
    """Tuning, then the seeds; two trials at a time, a thread each."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        asked = [(rule, rate, TUNING) for rule in RULES for rate in RATES]
        tuning = list(pool.map(lambda each: _trial(Path(folder), *each), asked))
        best = {rule: _best([each for each in tuning if each["rule"] == rule]) for rule in RULES}
        asked = [(rule, best[rule], seed) for seed in SEEDS for rule in RULES]
        runs = list(pool.map(lambda each: _trial(Path(folder), *each), asked))
    found = {rule: [each for each in runs if each["rule"] == rule] for rule in RULES}
    steps = {rule: np.array([_steps_to(each) for each in some]) for rule, some in found.items()}
    seconds = {rule: np.array([_seconds_to(each) for each in some]) for rule, some in found.items()}
    last = {rule: np.array([np.mean(each["reward"][-5:]) for each in some]) for rule, some in found.items()}
    return {
        "tuning": tuning,
        "runs": runs,
        "summary": {
            "rates": best,
            "steps_to": {rule: _interval(each) for rule, each in steps.items()},
            "seconds_to": {rule: _interval(each) for rule, each in seconds.items()},
            "last_reward": {rule: _interval(each) for rule, each in last.items()},
            "token_steps_over": {rule: _ratio(steps["token"], each) for rule, each in steps.items() if rule != "token"},
            "token_seconds_over": {
                rule: _ratio(seconds["token"], each) for rule, each in seconds.items() if rule != "token"
            },
        },
    }


def _best(trials):
    return max(trials, key=lambda each: np.mean(each["reward"]))["rate"]


def _trial(folder, rule, rate, seed):
    home = folder / f"{rule}-{rate}-{seed}".replace(":", "")
    command = [sys.executable, "-m", "tests.benchmarks.macro_arm", home, rule, rate, seed, STEPS]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    said = subprocess.run([str(each) for each in command], check=True, env=environment, capture_output=True, text=True)
    (line,) = [line for line in said.stdout.splitlines() if line.startswith("FOUND ")]
    return json.loads(line.removeprefix("FOUND "))


def _steps_to(run):
    means = np.convolve(run["reward"], np.ones(5) / 5, "valid")
    there = np.flatnonzero(means >= WANTED)
    return int(there[0]) + 5 if len(there) else STEPS


def _seconds_to(run):
    return sum(run["step_seconds"][: _steps_to(run)])


def _interval(values):
    low, high = _bootstrap(lambda at: values[at].mean(), len(values))
    return [round(float(each), 2) for each in (values.mean(), low, high)]


def _ratio(token, other):
    low, high = _bootstrap(lambda at: token[at].sum() / other[at].sum(), len(token))
    return [round(float(each), 2) for each in (token.sum() / other.sum(), low, high)]


def _bootstrap(statistic, count):
    rng = np.random.default_rng(0)
    drawn = [statistic(rng.integers(0, count, count)) for _ in range(10_000)]
    return np.percentile(drawn, [2.5, 97.5])
