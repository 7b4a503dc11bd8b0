"""Does a small model learn more from edits? SmolLM2 on edit sequences, plain programs and random edits, three seeds.

Short documented functions of the standard library, instruction = docstring and signature, one edit sequence each:

    programs   the whole program               edits     LintSeq's edit sequence
    longer     the same, more steps, until     random    RandSeq's: random lines in random chunks, no linter
               it has seen as many tokens as edits

programs, edits and random see the same programs in equal optimiser steps; longer and edits equal tokens. Every arm has
the same hyper-parameters. Each model then writes HumanEval's first functions in the format it learnt; differences are
taken problem by problem, with bootstrap intervals over seeds and problems together. Losses on held-out functions are
each in its own format: they tell arms of one format apart, not formats.

All of it runs through the command line, so a killed run goes on where it stopped: name a directory in BENCH_HOME. Two
hours on two cores.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from upath import UPath

from engine.artifacts import read_dataset
from engine.evaluation.measures import grouped, per_problem, tests_passed
from engine.evaluation.results import read_samples

MODEL = "pkg:smollm2-135m"
SEEDS = (0, 1, 2)
MODULES = (
    "ast bisect calendar codecs colorsys copy datetime difflib dis fnmatch fractions functools genericpath glob heapq"
    " imghdr inspect ipaddress keyword linecache locale mimetypes ntpath numbers operator opcode pathlib pickletools"
    " platform posixpath pprint pydoc quopri random reprlib shlex shutil smtplib sndhdr socket statistics string"
    " symtable sysconfig tarfile textwrap timeit token tokenize traceback types typing uuid warnings weakref zipfile"
)
LINES = 12
EXAMPLES = 8
PROBLEMS = 80
SAMPLES = 2
TOKENS = {"program": 160, "edits": 320}
ARMS = {"programs": "program", "longer": "program", "edits": "edits", "random": "edits"}
"""Arm -> how it writes."""
MEASURES = {
    "tests passed": tests_passed,
    "passed": lambda row: float(row["passed"]),
    "parses": lambda row: float(row["parses"]),
}
ROUNDS = 10_000


def main():
    """Make the data, train and ask every arm, once a seed."""
    kept = os.environ.get("BENCH_HOME")
    home = Path(kept or tempfile.mkdtemp(prefix="hrbench-"))
    try:
        data = _data(home)
        runs = [run for seed in SEEDS for run in _seed(home, data, seed)]
    finally:
        if not kept:
            shutil.rmtree(home)
    return {"runs": [_public(run) for run in runs], "summary": _summary(runs)}


def _data(home):
    """Instructions, and the edit sequences of both kinds, as datasets."""
    include = json.dumps([f"{name}.py" for name in MODULES.split()])
    _headrace(
        home, "corpus", {"name": "functions", "source": {"paths": ["stdlib:"], "format": "python"}},
        f"source.include={include}", f"source.max_lines={LINES}", "source.min_lines=3", "filters.exact_duplicates=true",
    )  # fmt: skip
    rows = []
    functions = home / "corpus" / "functions" / "dataset"
    for part in read_dataset(UPath(functions)).parts:
        for row in pq.read_table(functions / part.file).to_pylist():
            signature = row["program"].partition("\n")[0]
            if signature.startswith("def ") and signature.endswith(":") and "(self" not in signature:
                rows.append({"instruction": f"{row['instruction']}\n\n{signature}", "program": row["program"]})
    told = home / "functions.jsonl"
    if not told.exists():
        told.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"source": {"paths": [str(told)], "format": "jsonl", "roots": [str(home)]}}
    for name, algorithm in (("edits", "lintseq"), ("random", "randseq")):
        _headrace(home, "lintseq", {"name": name, **source}, f"lintseq.algorithm={algorithm}", "oracle_states=0")
    made = {name: [str(home / "lintseq" / name / "dataset")] for name in ("edits", "random")}
    edits = {name: {"source": {"paths": paths, "roots": [str(home)]}} for name, paths in made.items()}
    return {"programs": source, "longer": source, **edits}


def _seed(home, data, seed):
    """Every arm with one seed, and before the first seed the model as it is."""
    runs = [] if seed else [{"arm": f"untrained {style}", **_ask(home, MODEL, style, 0)} for style in TOKENS]
    trained = {arm: _train(home, data, arm, seed) for arm in ARMS if arm != "longer"}
    steps = round(trained["programs"]["steps"] * trained["edits"]["tokens"] / trained["programs"]["tokens"])
    trained["longer"] = _train(home, data, "longer", seed, f"training.steps={steps}")
    for arm, style in ARMS.items():
        model = home / "sft" / f"{arm}-{seed}" / "model"
        runs.append({"arm": arm, "seed": seed, **trained[arm], **_ask(home, model, style, seed)})
    return runs


def _train(home, data, arm, seed, *overrides):
    """Fine-tune; steps, tokens seen and held-out loss."""
    recipe = {
        "name": f"{arm}-{seed}",
        "model": MODEL,
        "format": "programs" if ARMS[arm] == "program" else "edits",
        **data[arm],
        "tokens": {"window": 640, "held_out": 0.1},
        "training": {"epochs": 1, "examples": EXAMPLES, "measure_every": 10_000},
        "optimiser": {"learning_rate": 2e-4, "weight_decay": 0.01},
        "parallel": {"tokens_per_device": 2048, "cpus": 2},
    }
    _headrace(home, "sft", recipe, f"seed={seed}", *overrides)
    lines = (home / "sft" / f"{arm}-{seed}" / "metrics.jsonl").read_text().splitlines()
    last = [row for row in map(json.loads, lines) if "tokens" in row][-1]  # it counts from the beginning
    losses = [row["held_out/loss"] for row in map(json.loads, lines) if "held_out/loss" in row]
    return {"steps": last["step"], "tokens": last["tokens"], "held_out_loss": losses[-1]}


def _ask(home, model, style, seed):
    """HumanEval in one style: the rows of the samples."""
    name = f"{Path(str(model)).parent.name if Path(str(model)).exists() else 'untrained-' + style}"
    recipe = {
        "name": name,
        "model": str(model),
        "humaneval": {"styles": [style], "problems": PROBLEMS, "samples": SAMPLES},
        "sampling": {"temperature": 0.8, "top_p": 0.95, "max_tokens": TOKENS[style]},
        "engine": {"shard": 80, "window": 1024},
    }
    _headrace(home, "evaluate", recipe, f"seed={seed}")
    return {"samples": read_samples(read_dataset(UPath(home / "evaluate" / name / "dataset")))}


def _headrace(home, job, recipe, *overrides):
    """Run a job; one that is done already says so."""
    path = home / f"{job}-{recipe['name']}.yaml"
    path.write_text(json.dumps({"runs": str(home), **recipe}))
    command = [sys.executable, "-m", f"jobs.{job}", str(path), *overrides]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr[-2000:]}")


def _public(run):
    """A run as the result shows it: measures instead of samples."""
    samples = run.pop("samples")
    run["values"] = {name: per_problem(samples, value) for name, value in MEASURES.items()}
    run["values"]["distinct"] = {
        name: len({row["same_as"] for row in rows}) / len(rows) for name, rows in grouped(samples).items()
    }
    return {
        **{name: value for name, value in run.items() if name != "values"},
        **{name: round(statistics.mean(values.values()), 4) for name, values in run["values"].items()},
        "cut off": round(statistics.mean(not row["finished"] for row in samples), 4),
    }


def _summary(runs):
    """Means over seeds, and the differences that were asked for with their intervals."""
    by_arm = grouped(runs, "arm")
    measures = list(runs[0]["values"])
    means = {
        arm: {name: _interval([each["values"][name] for each in of_arm]) for name in measures}
        | {
            name: round(statistics.mean(each[name] for each in of_arm), 4)
            for name in ("held_out_loss", "tokens", "steps")
            if name in of_arm[0]
        }
        for arm, of_arm in by_arm.items()
    }
    differences = {
        f"{one} - {other}": {
            name: _interval(
                [
                    {key: a["values"][name][key] - b["values"][name][key] for key in a["values"][name]}
                    for a, b in zip(by_arm[one], by_arm[other], strict=True)
                ]
            )
            for name in measures
        }
        for one, other in (("edits", "programs"), ("edits", "longer"), ("edits", "random"))
    }
    return {"means": means, "differences": differences}


def _interval(by_seed):
    """Mean, and its 95 % interval: seeds and problems drawn anew, each with replacement."""
    values = np.array([[each[key] for key in sorted(each)] for each in by_seed])
    draw = np.random.default_rng(0)
    seeds, problems = values.shape
    means = [
        values[draw.integers(seeds, size=seeds)][:, draw.integers(problems, size=problems)].mean()
        for _ in range(ROUNDS)
    ]
    return [round(float(each), 4) for each in (values.mean(), *np.quantile(means, (0.025, 0.975)))]
