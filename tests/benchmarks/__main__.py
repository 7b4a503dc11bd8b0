"""`python -m tests.benchmarks [NAME ...]`: run the benchmarks and write tests/benchmarks/results/NAME.json.

Each benchmark is a module here with `main() -> dict` (its raw runs and a `summary` of ratios); it runs in a process of
its own. The result also names the command, the machine and the versions, so a figure can be made again.
"""

import importlib
import json
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import packages_distributions, version
from pathlib import Path

import psutil

HERE = Path(__file__).parent
NAMES = [path.stem for path in sorted(HERE.glob("bench_*.py"))]
PACKAGES = ("ray", "torch", "transformers", "vllm", "deepspeed", "pyarrow", "numpy", "pylint")


def main(names):
    """Run each named benchmark in a fresh process, one after the other."""
    for name in names or NAMES:
        subprocess.run([sys.executable, "-m", "tests.benchmarks", "--here", name], check=True)


def run_here(name):
    """Run one benchmark in this process and write its result."""
    started = time.time()
    result = importlib.import_module(f"tests.benchmarks.{name}").main()
    body = {
        "benchmark": name,
        "command": f"python -m tests.benchmarks {name}",
        "date": time.strftime("%Y-%m-%d"),
        "seconds": round(time.time() - started, 1),
        "machine": {
            "cpu": _cpu(),
            "cores": os.cpu_count(),
            "memory_gib": round(psutil.virtual_memory().total / 2**30),
            "system": f"{platform.system()} {platform.machine()}",
        },
        "versions": {"python": platform.python_version(), **{each: _version(each) for each in PACKAGES}},
        **result,
    }
    target = HERE / "results" / f"{name}.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(body, indent=1) + "\n")
    print(f"{name}: " + json.dumps(body["summary"]))


def _version(package):
    """The version of what is imported by this name; vLLM's CPU build is another package."""
    return version(packages_distributions()[package][0])


def _cpu():
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--here"]:
        run_here(sys.argv[2])
    else:
        main(sys.argv[1:])
