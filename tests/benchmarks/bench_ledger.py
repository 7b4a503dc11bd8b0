"""What a shard costs beside its work: 1,000 and 10,000 shards of twenty small rows each.

Reported per shard: wall and CPU milliseconds of the whole job (all processes, Ray's scheduling included) and of the
ledger's commit alone; the driver's peak memory; the time a rerun takes to find out that all is done.
"""

import shutil
import tempfile
import time
from pathlib import Path

from upath import UPath

from engine.artifacts import Part
from engine.cluster import session
from engine.config import build_recipe
from engine.corpus.ledger import Identity, Ledger, Record
from engine.runs import Invocation
from jobs import corpus
from tests.benchmarks.corpora import build
from tests.benchmarks.watch import Watch

SHARDS = (1000, 10_000)
ROWS, CHARS = 20, 200


def main():
    """Both sizes in one Ray, the smaller one first."""
    home = Path(tempfile.mkdtemp(prefix="hrbench-"))
    try:
        with session(None) as ray_session:
            assert ray_session
            runs = [_measure(home, shards) for shards in SHARDS]
        commit = _commit_cost(home)
    finally:
        shutil.rmtree(home)
    small, large = runs
    summary = {
        "shards": large["shards"],
        "wall_ms_per_shard": large["wall_ms_per_shard"],
        "cpu_ms_per_shard": large["cpu_ms_per_shard"],
        "commit_ms": commit["median_ms"],
        "driver_peak_mb": large["driver_peak_mb"],
        "driver_kb_per_shard": round(
            1000 * (large["driver_peak_mb"] - small["driver_peak_mb"]) / (large["shards"] - small["shards"]), 2
        ),
        "resume_seconds": large["resume_seconds"],
    }
    return {"runs": runs, "commit": commit, "summary": summary}


def _measure(home, shards):
    name = f"tiny-{shards}"
    source = build(home / name, shards * ROWS * CHARS // 1_000_000, files=20, doc_chars=CHARS, group_rows=ROWS)
    data = {
        "name": name,
        "runs": str(home / "runs"),
        "source": {"paths": [str(source)], "roots": [str(home)], "shard_mb": 0.001},
    }
    recipe = build_recipe(corpus.RECIPE, data)
    with Watch() as watch:
        outcome = corpus.run(recipe, Invocation("bench"))
    records = len(list((home / "runs" / "corpus" / name / "ledger" / "shards").glob("*.json")))
    # The published name away and the parts back in staging: what a rerun meets that was killed just before the end.
    shutil.move(outcome.output, f"{outcome.output}.partial")
    started = time.perf_counter()
    corpus.run(recipe, Invocation("bench"))
    return {
        "shards": records,
        "wall_ms_per_shard": round(1000 * watch.wall / records, 2),
        "cpu_ms_per_shard": round(1000 * watch.cpu_seconds / records, 2),
        "driver_peak_mb": round(watch.peaks["driver"] / 1e6, 1),
        "resume_seconds": round(time.perf_counter() - started, 2),
    }


def _commit_cost(home):
    """One process committing 2,000 records to a disk: fencing check, exclusive create, fsync."""
    ledger = Ledger(UPath(home / "ledger"))
    ledger.identify(Identity(job="bench", recipe_fingerprint="", inputs_fingerprint="", shards=2000), {}, {})
    times = []
    with ledger.claimed() as claimed:
        for shard in range(2000):
            part = Part(name="x", file="x", rows=1, bytes=1, sha256="0" * 64)
            record = Record(
                shard=shard, source="a", fingerprint="f", code_version="0", claim=claimed.claim,
                rows_in=1, rows_out=1, dropped={}, quarantined=0, bytes_in=1,
                bytes_out=1, seconds={"read": 0.1}, statistics={}, part=part,
            )  # fmt: skip
            started = time.perf_counter()
            claimed.commit(record)
            times.append(time.perf_counter() - started)
    times.sort()
    return {"median_ms": round(1000 * times[1000], 3), "p99_ms": round(1000 * times[1980], 3)}
