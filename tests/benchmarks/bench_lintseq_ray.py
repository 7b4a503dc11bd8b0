"""The LintSeq job on every core against the bare sampler in one process, both from Parquet to Parquet.

150,000 programs: functions and methods of the standard library of 5 to 60 lines, repeated with other seeds as often as
needed. The bare sampler reads a row group, samples and writes, one after the other; the job does the same through Ray
Data, with ledger and manifest. Ray is up and its actors have been built once before the clock starts. Cores share
caches and memory; what the machine can give at most is measured too: as many bare samplers as there are cores, side by
side, each with its share of the row groups.
"""

import json
import os
import shutil
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from upath import UPath

from engine.artifacts import read_dataset
from engine.cluster import session
from engine.config import build_recipe
from engine.corpus.sink import encode
from engine.lintseq import LintSeqActor
from engine.runs import Invocation
from jobs import lintseq
from tests.benchmarks.programs import functions
from tests.benchmarks.watch import Watch

PROGRAMS = 150_000
GROUP = 500
LINES = (5, 60)
RUNS = 3
CORES = len(os.sched_getaffinity(0))


def main():
    """Bare samplers, then the job."""
    home = Path(tempfile.mkdtemp(prefix="hrbench-"))
    try:
        source, small = home / "programs.parquet", home / "small.parquet"
        _build(source, PROGRAMS)
        _build(small, 2 * GROUP)
        with session(None) as ray_session:
            assert ray_session
            _job(home, "warm", small)
            runs = [_compare(home, f"run-{number}", source) for number in range(RUNS)]
    finally:
        shutil.rmtree(home)
    speedup = statistics.median(run["speedup"] for run in runs)
    middle = min(runs, key=lambda run: abs(run["speedup"] - speedup))
    constants = {
        "programs": PROGRAMS,
        "lines": LINES,
        "row_group": GROUP,
        "runs": RUNS,
        "shuffle_seed": 0,
        "recipe_seed": 0,
    }
    return {"constants": constants, "cores": CORES, "runs": runs, "summary": {"programs": PROGRAMS, **middle}}


def _build(path, count):
    found = functions(*LINES, methods=True)
    programs = [found[number % len(found)] for number in range(count)]
    table = pa.table({"instruction": [f"Write function {number}." for number in range(count)], "program": programs})
    pq.write_table(table, path, compression="zstd", row_group_size=GROUP)


def _compare(home, name, source):
    started = time.perf_counter(), time.process_time()
    bare = _bare(source, home / f"{name}.bare")
    bare_wall, bare_cpu = time.perf_counter() - started[0], time.process_time() - started[1]
    side_by_side = _side_by_side(source, home / f"{name}.together")
    with Watch() as watch:
        outcome = _job(home, name, source)
    phases = {share.name: round(share.seconds, 2) for share in outcome.shares}
    streaming = sum(phases.get(each, 0) for each in ("read", "filter", "lint", "write", "stream"))
    rows = read_dataset(UPath(outcome.output)).rows
    assert rows == bare == PROGRAMS
    return {
        "speedup": round(bare_wall / streaming, 3),
        "speedup_of_bare_samplers_side_by_side": round(bare_wall / side_by_side, 3),
        "bare_seconds": round(bare_wall, 2),
        "bare_cpu_seconds": round(bare_cpu, 2),
        "job_seconds": round(streaming, 2),
        "job_cpu_seconds": round(watch.cpu_seconds, 2),
        "job_cpu_seconds_by_kind": watch.cpu_by_kind,
        "actor_cpu_seconds": round(_actor_seconds(outcome.output), 2),
        "phases": phases,
        "peak_private_mb": {kind: round(peak / 1e6) for kind, peak in watch.peaks.items()},
    }


def _side_by_side(source, folder):
    """Wall seconds of one bare sampler per core, their start-up left aside."""
    with ProcessPoolExecutor(CORES, get_context("spawn")) as pool:
        list(pool.map(_settled, range(CORES)))
        started = time.perf_counter()
        folders = [folder.with_suffix(f".{core}") for core in range(CORES)]
        list(pool.map(_bare, [source] * CORES, folders, range(CORES), [CORES] * CORES))
        return time.perf_counter() - started


def _settled(core):
    """Nothing; a process that has done it has imported this module. The pause leaves a call for each of the others."""
    time.sleep(1)


def _bare(source, folder, first=0, step=1):
    folder.mkdir()
    actor = LintSeqActor()
    file = pq.ParquetFile(source)
    rows = 0
    for number in range(first, file.num_row_groups, step):
        table = file.read_row_group(number, use_threads=False)
        places = pa.array(range(number * GROUP, number * GROUP + len(table)))
        table = table.append_column("source_part", pa.repeat("a", len(table))).append_column("source_row", places)
        made = actor(table).drop_columns(["_drop", "_error"])
        (folder / f"{number}.parquet").write_bytes(encode(made))
        rows += len(made)
    return rows


def _job(home, name, source):
    data = {"name": name, "runs": str(home / "runs"), "source": {"paths": [str(source)], "roots": [str(home)]}}
    data["source"]["shard_mb"] = 1
    data["oracle_states"] = 0
    return lintseq.run(build_recipe(lintseq.RECIPE, data), Invocation("bench"))


def _actor_seconds(output):
    records = [json.loads(path.read_text()) for path in (output.parent / "ledger" / "shards").glob("*.json")]
    return sum(record["seconds"]["lint"] for record in records)
