"""Estimates of task subsets against real trainings: SmolLM2-135M with an adapter, 24 tasks, one target.

Forty subsets of 2 to 18 tasks are really trained on, all for as many steps, so that no rank is one of length; ten of
them again with another seed: what a retest gives is the ceiling of any estimate. Against them stand the estimates of
one `headrace select-tasks` (all of it counted; its seed is none of theirs) and controls: the mean of the real results
and their regression on the number of tasks, each told all but the subset in question; the loss where every step begins
(no gradients); the loss that the meta-training had after as many steps (its length alone).
Then the chosen tasks, all, random ones and those most alike are trained on with five seeds each and compared on rows of
the target that no choice has seen. Intervals (95 %) are over subsets, or over seeds and rows, drawn anew.

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
    accuracy = _accuracy(estimator, truth, estimates, trained, subsets)
    unseen = np.array([trained[_key(each, 0)]["held_out loss"] for each in subsets])
    found = (each.round(4).tolist() for each in (truth, unseen, estimates, errors))
    return {
        "setup": {**RECIPE, "tasks": tasks, "subsets": SUBSETS, "retested": RETESTED, "seeds": SEEDS, "target": TARGET},
        "runs": [
            {"tasks": each, "true": t, "unseen": u, "estimated": e, "error": s}
            for each, t, u, e, s in zip(subsets, *found, strict=True)
        ],
        "compared": {name: [_public(trained[_key(some[seed], seed)]) for seed in SEEDS] for name, some in arms.items()},
        "summary": {
            **accuracy,
            "unseen_rows": {
                "rank": round(_rank(estimates, unseen), 3),
                "relative_error": round(float(np.abs(estimates / unseen - 1).mean()), 4),
                "share_of_error": round(_error(estimates, unseen) / _error(_but_one(unseen), unseen), 3),
            },
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
        shutil.rmtree(home / "runs", ignore_errors=True)  # a part of it would not be counted
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


def _accuracy(estimator, truth, estimates, trained, subsets):
    again = np.array([trained[_key(each, 1)]["others loss"] for each in subsets[:RETESTED]])
    sizes = np.array([len(each) for each in subsets])
    length_alone = estimator.estimate([list(estimator.tasks)])[0][0]  # as many steps, so the same for every subset
    controls = {
        "mean": _but_one(truth),
        "size": _but_one(truth, sizes),
        "without_gradients": np.full(SUBSETS, trained[_key([], 0)]["others loss"]),
        "length": np.full(SUBSETS, length_alone),
    }
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, SUBSETS, (ROUNDS, SUBSETS))

    def interval(measure):
        found = [measure(each) for each in drawn]
        return [round(float(np.nanquantile(found, share)), 3) for share in (0.025, 0.975)]

    def share(control):
        return {
            "share": round(_error(estimates, truth) / _error(control, truth), 3),
            "interval": interval(lambda at: _error(estimates[at], truth[at]) / _error(control[at], truth[at])),
        }

    rank, ceiling = _rank(estimates, truth), _rank(truth[:RETESTED], again)
    thirds = np.array_split(np.argsort(sizes, kind="stable"), 3)
    return {
        "error": {"estimate": round(_error(estimates, truth), 4)}
        | {name: round(_error(control, truth), 4) for name, control in controls.items()},
        "share_of_error": {name: share(control) for name, control in controls.items()},
        "relative_error": round(float(np.abs(estimates / truth - 1).mean()), 4),
        "retest": {
            "rank": round(ceiling, 3),
            "error": round(float(np.sqrt(np.square(truth[:RETESTED] - again).mean() / 2)), 4),
            "relative_difference": round(float(np.abs(again / truth[:RETESTED] - 1).mean()), 4),
        },
        "rank": {
            "estimate": round(rank, 3),
            "interval": interval(lambda at: _rank(estimates[at], truth[at])),
            "share_of_retest": round(rank / ceiling, 3),
            "of_retested_alone": round(_rank(estimates[:RETESTED], truth[:RETESTED]), 3),
            "size": round(_rank(-sizes, truth), 3),
        },
        "by_size": [
            {
                "tasks": [int(sizes[at].min()), int(sizes[at].max())],
                "rank": round(_rank(estimates[at], truth[at]), 3),
                "error": round(_error(estimates[at], truth[at]), 4),
                "mean": round(_error(_but_one(truth[at]), truth[at]), 4),
            }
            for at in thirds
        ],
    }


def _error(predicted, truth):
    return float(np.sqrt(np.square(predicted - truth).mean()))


def _rank(one, other):
    return float(spearmanr(one, other).statistic)


def _but_one(truth, given=None):
    """Each predicted from all the others: their mean, or their regression on what is given."""
    count = len(truth)
    if given is None:
        return (truth.sum() - truth) / (count - 1)
    fits = [np.polyfit(np.delete(given, at), np.delete(truth, at), 1) for at in range(count)]
    return np.array([np.polyval(fit, at) for fit, at in zip(fits, given, strict=True)])


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
