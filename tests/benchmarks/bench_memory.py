"""Peak memory of every process when the corpus grows ten times: it has to stay where it is.

The same job (read, prefilter, write, ledger) with the same shard size over 400 MB and over 4 GB of text, each in a
fresh process with a Ray of its own. Reported: peak private memory of each kind of process, and the ratio.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.benchmarks.corpora import build
from tests.benchmarks.watch import Watch

SIZES = {"small": 400, "large": 4000}
JOB = """
import sys
from engine.config import build_recipe
from engine.runs import Invocation
from jobs import corpus
home, name = sys.argv[1:]
data = {"name": name, "runs": home + "/runs", "source": {"paths": [home + "/" + name], "roots": [home], "shard_mb": 16},
        "filters": {"min_chars": 100, "max_symbol_ratio": 0.5}}
corpus.run(build_recipe(corpus.RECIPE, data), Invocation("bench"))
"""


def main():
    """Both sizes, one after the other."""
    home = Path(tempfile.mkdtemp(prefix="hrbench-"))
    peaks = {}
    try:
        for name, megabytes in SIZES.items():
            build(home / name, megabytes, files=max(4, megabytes // 100))
            job = subprocess.Popen([sys.executable, "-c", JOB, str(home), name])
            with Watch(job.pid) as watch:
                job.wait()
            assert job.returncode == 0
            peaks[name] = {kind: round(peak / 1e6, 1) for kind, peak in sorted(watch.peaks.items())}
            shutil.rmtree(home / name)
            shutil.rmtree(home / "runs")
    finally:
        shutil.rmtree(home)
    ratios = {kind: round(peaks["large"][kind] / peak, 3) for kind, peak in peaks["small"].items()}
    return {"mb_of_text": SIZES, "runs": peaks, "summary": {"large_over_small": ratios, "peak_mb": peaks["large"]}}


if __name__ == "__main__":
    print(json.dumps(main(), indent=1))
