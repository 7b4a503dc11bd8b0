"""Estimates of task subsets against real trainings: SmolLM2-135M with an adapter, 24 tasks, one target.

Forty subsets of 2 to 18 tasks are really trained on, ten of them again with another seed: what a retest gives is the
ceiling of any estimate. Against them stand the estimates of one `headrace select-tasks` (all of it counted), the mean
of the real results (a predictor that knows it), and the loss where every step begins (the control without gradients).
Then the chosen tasks, all, random ones and those most alike are trained on with five seeds each and compared on rows of
the target that no choice has seen; intervals (95 %) are over seeds and rows drawn anew.

The cost of a training is the CPU time of its process, that of `select-tasks` the whole machine's (its seconds times the
cores), so nothing else should run meanwhile.

What is done is not done again: name a directory in BENCH_HOME. About two hours on two cores.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from engine.selection import read_estimates
from engine.selection.panel import _solver
from engine.selection.selectors import random_subsets
from tests.benchmarks.selection_arms import RECIPE, TARGET, prepare

SUBSETS, RETESTED, SEEDS = 40, 10, (0, 1, 2, 3, 4)
SCORED = 1000
ROUNDS = 10_000


def main():
    """Estimate, train, compare."""
    kept = os.environ.get("BENCH_HOME")
    home = Path(kept or tempfile.mkdtemp(prefix="hrbench-"))
    try:
        prepare(home)
        estimating = _select(home)
        estimator = read_estimates(str(home / "runs" / "select-tasks" / "bench"))
        tasks = list(estimator.tasks)
        subsets = _subsets(tasks)
        arms = _arms(home, estimator)
        wanted = [[[], 0], *([each, 0] for each in subsets), *([each, 1] for each in subsets[:RETESTED])]
        wanted += [[some[seed], seed] for some in arms.values() for seed in SEEDS]
        trained = _trained(home, wanted)
    finally:
        if not kept:
            shutil.rmtree(home)
    truth = np.array([trained[_key(each, 0)]["others loss"] for each in subsets])
    started = time.process_time()
    estimator.of(random_subsets(len(tasks), SCORED, 0.5, 0))
    scoring = time.process_time() - started
    per_second, deviation = _solver(estimator, random_subsets(len(tasks), 200, 0.5, 0))
    estimates, errors = estimator.estimate(subsets)
    costs = [trained[_key(each, 0)]["cpu_seconds"] for each in subsets]
    accuracy = _accuracy(truth, estimates, trained, subsets)
    return {
        "setup": {**RECIPE, "tasks": tasks, "subsets": SUBSETS, "retested": RETESTED, "seeds": SEEDS, "target": TARGET},
        "runs": [
            {"tasks": each, "true": round(t, 4), "estimated": round(e, 4), "error": round(s, 4)}
            for each, t, e, s in zip(subsets, truth.tolist(), estimates.tolist(), errors.tolist(), strict=True)
        ],
        "compared": {name: [_public(trained[_key(some[seed], seed)]) for seed in SEEDS] for name, some in arms.items()},
        "summary": {
            **accuracy,
            "cpu_seconds": {
                "select_tasks": round(estimating, 1),
                "scoring_1000": round(scoring, 1),
                "one_training": round(float(np.mean(costs)), 1),
            },
            "times_cheaper": round(SCORED * float(np.mean(costs)) / (estimating + scoring), 1),
            "solves_per_second": round(per_second, 1),
            "deviation_nats": deviation,
            "comparison": _comparison(arms, trained),
        },
    }


def _select(home):
    """`headrace select-tasks`; its CPU-seconds at most, kept where they were measured once."""
    noted = home / "select.json"
    if not noted.exists():
        started = time.perf_counter()
        command = [sys.executable, "-m", "jobs.select_tasks", str(home / "recipe.yaml")]
        subprocess.run(command, check=True, stdout=sys.stderr)
        noted.write_text(json.dumps((time.perf_counter() - started) * os.cpu_count()))
    return json.loads(noted.read_text())


def _subsets(tasks):
    """Subsets of 2 to three quarters of the tasks, sizes drawn evenly."""
    rng = np.random.default_rng(7)
    found = []
    while len(found) < SUBSETS:
        size = int(rng.integers(2, len(tasks) * 3 // 4 + 1))
        some = sorted(tasks[at] for at in rng.choice(len(tasks), size, replace=False))
        if some not in found:
            found.append(some)
    return found


def _arms(home, estimator):
    """What is compared: for each way to choose, the tasks of each seed."""
    from upath import UPath

    from engine.artifacts import read_dataset
    from engine.selection.publication import chosen_names
    from engine.selection.selectors import at_random

    dataset = read_dataset(UPath(home / "runs" / "select-tasks" / "bench" / "chosen_tasks"))
    chosen, others = chosen_names(dataset), dataset.manifest.statistics["others"]
    same = {"chosen": chosen, "all": list(estimator.tasks)} | {
        name: others[name]["tasks"] for name in ("gradient", "representation", "ensemble") if name in others
    }
    drawn = [at_random(len(estimator.tasks), len(chosen), 100 + seed).chosen for seed in SEEDS]
    random = [[estimator.tasks[at] for at in each] for each in drawn]
    return {name: [tasks] * len(SEEDS) for name, tasks in same.items()} | {"random": random}


def _trained(home, wanted):
    wanted = [json.loads(each) for each in dict.fromkeys(json.dumps([sorted(some), seed]) for some, seed in wanted)]
    (home / "wanted.json").write_text(json.dumps(wanted))
    command = [sys.executable, "-m", "tests.benchmarks.selection_arms", str(home)]
    processes = [
        subprocess.Popen([*command, str(part), str(os.cpu_count())], stdout=sys.stderr)
        for part in range(os.cpu_count())
    ]
    codes = [each.wait() for each in processes]
    assert not any(codes), codes
    lines = [json.loads(line) for line in (home / "trained.jsonl").read_text().splitlines()]
    return {_key(line["tasks"], line["seed"]): line for line in lines}


def _key(tasks, seed):
    return (*sorted(tasks), seed)


def _accuracy(truth, estimates, trained, subsets):
    again = np.array([trained[_key(each, 1)]["others loss"] for each in subsets[:RETESTED]])
    base = trained[_key([], 0)]["others loss"]

    def error(predicted):
        return float(np.sqrt(np.square(predicted - truth).mean()))

    off, mean, still = error(estimates), error(truth.mean()), error(base)
    rank = float(spearmanr(estimates, truth).statistic)
    ceiling = float(spearmanr(truth[:RETESTED], again).statistic)
    sizes = [len(each) for each in subsets]
    return {
        "error": {"estimate": round(off, 4), "mean": round(mean, 4), "without_gradients": round(still, 4)},
        "share_of_error": {
            "mean": round(off / mean, 3),
            "without_gradients": round(off / still, 3),
        },
        "relative_error": round(float(np.abs(estimates / truth - 1).mean()), 4),
        "retest_noise": round(float(np.sqrt(np.square(truth[:RETESTED] - again).mean() / 2)), 4),
        "rank": {"estimate": round(rank, 3), "retest": round(ceiling, 3), "share": round(rank / ceiling, 3)},
        "rank_of_size": round(float(spearmanr(-np.array(sizes), truth).statistic), 3),
    }


def _comparison(arms, trained):
    """Mean losses on rows that no choice has seen, and differences to the chosen ones, with intervals."""
    rng = np.random.default_rng(0)
    values = {
        name: np.array([trained[_key(some[seed], seed)]["held_out losses"] for seed in SEEDS])
        for name, some in arms.items()
    }
    seeds, rows = values["chosen"].shape
    drawn = [(rng.integers(0, seeds, seeds), rng.integers(0, rows, rows)) for _ in range(ROUNDS // 10)]
    means = {name: [each[np.ix_(*pair)].mean() for pair in drawn] for name, each in values.items()}
    found = {}
    for name, each in values.items():
        off = np.subtract(means[name], means["chosen"])
        found[name] = {
            "tasks": len(arms[name][0]),
            "loss": round(float(each.mean()), 4),
            "less_chosen": round(float(each.mean() - values["chosen"].mean()), 4),
            "interval": [round(float(np.quantile(off, share)), 4) for share in (0.025, 0.975)],
        }
    return found


def _public(line):
    return {key: value for key, value in line.items() if not key.endswith("losses")}
