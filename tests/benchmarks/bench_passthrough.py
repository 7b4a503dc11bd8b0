"""A corpus job that changes nothing, against the codec ceiling measured in the same run.

Read, identity, write, hash, ledger over more than 1 GB of Parquet; the ceiling is one core that reads and writes the
same bytes with pyarrow. Reported: the job's rate per core as a share of the ceiling, in wall time while the stream
runs, and in CPU time of every process (driver and Ray included), which a busy machine does not distort. Ray is up
before the clock starts.
"""

import json
import os
import shutil
import statistics
import tempfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from engine.artifacts import read_dataset
from engine.cluster import session
from engine.config import build_recipe
from engine.corpus import SourceConfig, codec_ceiling, make_plan
from engine.runs import Invocation
from jobs import corpus
from tests.benchmarks.corpora import build
from tests.benchmarks.watch import Watch

MEGABYTES = 4000
RUNS = 3
CORES = len(os.sched_getaffinity(0))


def main():
    """Three runs; each with its ceiling."""
    home = Path(tempfile.mkdtemp(prefix="hrbench-"))
    try:
        source = build(home / "corpus", MEGABYTES, files=20)
        on_disk = sum(path.stat().st_size for path in source.glob("*.parquet"))
        with session(None) as ray_session:
            assert ray_session
            warm = read_dataset(_job(home, "warm", source / "file-00000.parquet").output)
            runs = [_measure(home, f"run-{number}", source, warm) for number in range(RUNS)]
    finally:
        shutil.rmtree(home)
    middle = sorted(runs, key=lambda run: run["share_of_ceiling_wall"])[len(runs) // 2]
    keys = ("share_of_ceiling_wall", "share_of_ceiling_cpu", "ceiling_mb_per_core", "ceiling_mb_per_core_all_busy")
    summary = {key: middle[key] for key in keys}
    return {"corpus_bytes_on_disk": on_disk, "corpus_mb_text": MEGABYTES, "runs": runs, "summary": summary}


def _job(home, name, paths):
    data = {"name": name, "runs": str(home / "runs"), "source": {"paths": [str(paths)], "roots": [str(home)]}}
    recipe = build_recipe(corpus.RECIPE, data)
    return corpus.run(recipe, Invocation("bench"))


def _measure(home, name, source, warm):
    before = _ceilings(warm, source)
    with Watch() as watch:
        outcome = _job(home, name, source)
    streaming = sum(share.seconds for share in outcome.shares if share.name in ("read", "filter", "write", "stream"))
    dataset = read_dataset(outcome.output)
    ceilings = before + _ceilings(dataset, source)
    ceiling = statistics.median(ceilings)
    with ProcessPoolExecutor(CORES, get_context("spawn")) as pool:
        together = [each for some in pool.map(_ceilings, [dataset] * CORES, [source] * CORES) for each in some]
    megabytes = _arrow_bytes(outcome.output) / 1e6
    shutil.rmtree(outcome.output)
    return {
        "mb": round(megabytes),
        "stream_seconds": round(streaming, 2),
        "cpu_seconds_all_processes": round(watch.cpu_seconds, 2),
        "cpu_seconds_by_kind": watch.cpu_by_kind,
        "cpu_seconds_in_stages": round(_stage_seconds(outcome.output).total(), 2),
        "ceiling_mb_per_core": round(ceiling, 1),
        "ceilings": [round(each, 1) for each in ceilings],
        "ceiling_mb_per_core_all_busy": round(statistics.median(together), 1),
        "share_of_ceiling_wall": round(megabytes / streaming / CORES / ceiling, 3),
        "share_of_ceiling_cpu": round(megabytes / watch.cpu_seconds / ceiling, 3),
        "peak_private_mb": {kind: round(peak / 1e6) for kind, peak in watch.peaks.items()},
    }


def _ceilings(dataset, source):
    """Three readings of the ceiling on the job's input, each on other files."""
    config = SourceConfig(paths=[str(source)], roots=[str(source)])
    slices = [each for shard in make_plan(config, ("text",)).shards for each in shard.slices]
    return [codec_ceiling(dataset, slices[start::3]).both for start in range(3)]


def _records(output):
    return [json.loads(path.read_text()) for path in (output.parent / "ledger" / "shards").glob("*.json")]


def _arrow_bytes(output):
    return sum(record["bytes_in"] for record in _records(output))


def _stage_seconds(output):
    total = Counter()
    for record in _records(output):
        total.update(record["seconds"])
    return total
