"""Fine-tuning against TRL's SFTTrainer: SmolLM2-135M, all weights, float32, two threads, 8 examples a step.

Two kinds of data. `edits`: LintSeq's training texts of the standard library's functions, of at most 512 tokens; a
micro-batch of the peer is 4 of them, padded, ours holds as many tokens as 4 of the longest. `full`: every example has
512 tokens, all of them with loss, so neither packing nor the head on targets alone can gain anything. A bare torch loop
over our rows shows what DeepSpeed adds. Arms take turns, each in a process of its own; tokens are those of the texts,
padding left out. Needs TRL beside the environment: TRL_HOME is where it was installed by
`pip install --no-deps --target TRL_HOME trl datasets multiprocess`.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from engine.finetune.options import TokenOptions
from engine.finetune.tokenise import tokenizer_for
from engine.lintseq import sample_edit_sequence, training_example
from tests.benchmarks.programs import functions
from tests.benchmarks.sft_arms import MODEL, PER_STEP, WARM, WINDOW

STEPS, ROUNDS = 3, 2
ARMS = ("ours", "bare", "trl")


def main():
    """All arms on both kinds of data, in turns."""
    home = os.environ.get("TRL_HOME")
    assert home, "set TRL_HOME to where TRL was installed"
    with tempfile.TemporaryDirectory() as folder:
        kinds = {"edits": _edits(), "full": _full()}
        runs = []
        for kind, examples in kinds.items():
            path = Path(folder) / f"{kind}.json"
            path.write_text(json.dumps(examples))
            for number in range(ROUNDS):
                for arm in ARMS:
                    runs.append({"kind": kind, "round": number, "arm": arm, "steps": _arm(arm, path, home)})
    rate = {kind: {arm: _rate(runs, kind, arm, "seconds") for arm in ARMS} for kind in kinds}
    cpu = {kind: {arm: _rate(runs, kind, arm, "cpu") for arm in ARMS} for kind in kinds}
    lengths = {kind: [len(ids) for ids, _ in each] for kind, each in kinds.items()}
    rounded = {kind: {arm: round(each, 1) for arm, each in found.items()} for kind, found in rate.items()}
    return {
        "mean_tokens": {kind: float(np.mean(each)) for kind, each in lengths.items()},
        "trl": _version(home),
        "runs": runs,
        "summary": {
            **{f"{kind}_tokens_per_second": rounded[kind] for kind in kinds},
            **{f"{kind}_to_trl": round(rate[kind]["ours"] / rate[kind]["trl"], 3) for kind in kinds},
            **{f"{kind}_to_trl_cpu": round(cpu[kind]["ours"] / cpu[kind]["trl"], 3) for kind in kinds},
            **{f"{kind}_to_bare": round(rate[kind]["ours"] / rate[kind]["bare"], 3) for kind in kinds},
            "bare_parts": _parts(runs),
        },
    }


def _edits():
    tokenizer = tokenizer_for("pkg:smollm2-135m", "edits", TokenOptions())
    found = []
    for at, program in enumerate(functions(5, 40)):
        instruction = program.partition("\n")[0]
        edits = sample_edit_sequence(program, seed=at)
        example = training_example(tokenizer, instruction, edits, max_tokens=WINDOW)
        # The peer's model keeps its vocabulary: the token that begins an edit stands for any other here.
        ids = [min(each, 49151) for each in example.input_ids]
        if not example.truncated:
            found.append((ids, [(example.loss_from, len(ids))]))
        if len(found) == (WARM + STEPS) * PER_STEP:
            return found
    raise AssertionError("too few functions")


def _full():
    rng = np.random.default_rng(0)
    return [(rng.integers(0, 49151, WINDOW).tolist(), [(0, WINDOW)]) for _ in range((WARM + STEPS) * PER_STEP)]


def _arm(arm, path, home):
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "PYTHONPATH": os.pathsep.join([os.getcwd(), home])}
    command = [sys.executable, "-m", "tests.benchmarks.sft_arms", arm, str(path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("RESULT"))[7:])


def _rate(runs, kind, arm, what):
    """Tokens per second, the median of all steps."""
    steps = [step for run in runs if (run["kind"], run["arm"]) == (kind, arm) for step in run["steps"]]
    return statistics.median(step["tokens"] / step[what] for step in steps)


def _parts(runs):
    steps = [step for run in runs if run["arm"] == "bare" and run["kind"] == "full" for step in run["steps"]]
    return {name: round(statistics.median(step["parts"][name] for step in steps), 2) for name in steps[0]["parts"]}


def _version(home):
    (found,) = Path(home).glob("trl-*.dist-info")
    return found.name.split("-")[1].removesuffix(".dist")


if __name__ == "__main__":
    print(MODEL, json.dumps(main()["summary"], indent=1))
