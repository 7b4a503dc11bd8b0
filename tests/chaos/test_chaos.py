"""Kill drivers and workers at random moments; what is published must be what an undisturbed run publishes.

HEADRACE_CHAOS_KILLS sets the number of kills (2 in CI; `make chaos` does 20), HEADRACE_CHAOS_SEED repeats a run.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_student import publish_tiny
from upath import UPath

from engine.artifacts import read_dataset
from engine.config import write_yaml

KILLS = int(os.environ.get("HEADRACE_CHAOS_KILLS", "2"))
SEED = int(os.environ.get("HEADRACE_CHAOS_SEED", time.time_ns() % 10**6))
ROOT = Path(__file__).parents[2]
RUN_DEADLINE = 300


@pytest.mark.timeout(KILLS * 60 + 600)
def test_every_row_once_whatever_dies(head, tmp_path):
    print(f"chaos with seed {SEED}, {KILLS} kills")
    rng = random.Random(SEED)
    publish_tiny(UPath(tmp_path / "student"))
    calm = _pipeline(tmp_path, "calm")
    started = time.monotonic()
    assert _run(calm, head).wait(RUN_DEADLINE) == 0
    usual = time.monotonic() - started

    wild = _pipeline(tmp_path, "wild")
    killed = {"driver": 0, "worker": 0}
    rounds = 0
    while sum(killed.values()) < KILLS:
        rounds += 1
        assert rounds < 4 * KILLS, "the run keeps ending before anything can be killed"
        driver = _run(wild, head)
        while driver.poll() is None and sum(killed.values()) < KILLS:
            # A random moment of what a run takes; sooner than that if the run ends first.
            try:
                driver.wait(rng.uniform(0.2, usual / 2))
            except subprocess.TimeoutExpired:
                victim = rng.choice(["driver", "worker"])
                killed[victim] += _kill(driver if victim == "driver" else None, head, rng)
        # A killed worker is nothing a job may fail of; a killed driver is the only reason not to end well.
        assert driver.wait(RUN_DEADLINE) in (0, -signal.SIGKILL)
        if driver.returncode == 0:
            # Done before the last kill: keep the result for comparison and go on with a new run of the same.
            _compare(tmp_path, "calm", "wild")
            (tmp_path / "wild").rename(tmp_path / f"wild-{rounds}")
    assert _run(wild, head).wait(RUN_DEADLINE) == 0
    print(f"killed {killed} in {rounds} rounds")
    _compare(tmp_path, "calm", "wild")
    _check_complete(tmp_path / "wild")


def _pipeline(folder, name):
    """A pipeline over part of the standard library, in shards small enough to be caught at every stage."""
    source = {"paths": ["stdlib:"], "format": "python", "include": ["[a-h]*.py"], "min_lines": 5, "max_lines": 40}
    texts = folder / "texts.jsonl"
    if not texts.exists():
        words = ["goal", "match", "bank", "tax"]
        lines = [json.dumps({"text": " ".join(random.Random(at).choices(words, k=12))}) for at in range(3000)]
        texts.write_text("\n".join(lines))
    news = {"paths": [str(texts)], "roots": [str(folder)], "shard_mb": 0.01}
    student = str(folder / "student")
    recipes = {
        "sieve-apply": {"name": "x", "source": news, "student": student, "filter": {"cpus": 0.5}},
        "corpus": {"name": "x", "source": {**source, "shard_mb": 0.1}, "filters": {"exact_duplicates": True}},
        "lintseq": {"name": "x", "source": {"paths": ["x"], "shard_mb": 0.02}},
    }
    for job, recipe in recipes.items():
        (folder / f"{job}.yaml").write_text(write_yaml(recipe))
    stages = [
        {"job": "sieve-apply", "recipe": str(folder / "sieve-apply.yaml")},
        {"job": "corpus", "recipe": str(folder / "corpus.yaml")},
        {"job": "lintseq", "recipe": str(folder / "lintseq.yaml"), "inputs": {"source.paths": "corpus"}},
    ]
    path = folder / f"{name}.yaml"
    path.write_text(write_yaml({"name": "chaos", "runs": str(folder / name), "stages": stages}))
    return path


def _run(pipeline, head):
    return subprocess.Popen(
        [sys.executable, "-m", "jobs.pipeline", str(pipeline), "--address", head.address],
        cwd=ROOT,
        env=head.environment,
    )


def _kill(driver, head, rng):
    """Kill the driver, or one worker of the head at random; returns how many processes died."""
    if driver is not None:
        driver.send_signal(signal.SIGKILL)
        driver.wait(10)
        return 1
    workers = [each for each in psutil.Process(head.pid).children(recursive=True) if _is_worker(each)]
    if not workers:
        return 0
    rng.choice(workers).send_signal(signal.SIGKILL)
    return 1


def _is_worker(process):
    """Whether a process runs tasks or actors; the node's own agents bear such names too, and it dies with them."""
    try:
        name = (process.cmdline() or [""])[0]
    except psutil.Error:
        return False
    return name.startswith("ray::") and "Agent" not in name


def _compare(folder, one, other):
    """Same parts with the same bytes, so the same rows in the same order."""
    for job in ("sieve-apply", "corpus", "lintseq"):
        datasets = [read_dataset(UPath(folder / name / job / "chaos" / "dataset")) for name in (one, other)]
        first, second = ([(part.name, part.rows, part.sha256) for part in each.parts] for each in datasets)
        assert first == second
        assert _rows(datasets[0]).equals(_rows(datasets[1]))


def _check_complete(folder):
    """Every input row is in the output once: nothing lost, nothing twice, also by the files themselves."""
    corpus = read_dataset(UPath(folder / "corpus" / "chaos" / "dataset"))
    counts = corpus.manifest.counts
    fates = counts["quarantined"] + sum(count for name, count in counts.items() if name.startswith("dropped: "))
    assert counts["read"] == corpus.rows + fates
    filtered = read_dataset(UPath(folder / "sieve-apply" / "chaos" / "dataset"))
    assert 0 < filtered.rows == 3000 - filtered.manifest.counts["dropped: sieve"]
    refined = read_dataset(UPath(folder / "lintseq" / "chaos" / "dataset"))
    programs, sequences = _rows(corpus), _rows(refined)
    wanted = {(part.name, row) for part in corpus.parts for row in range(part.rows)}
    found = list(zip(sequences["source_part"].to_pylist(), sequences["source_row"].to_pylist(), strict=True))
    assert len(found) == len(set(found)) == len(wanted) == len(programs)
    assert set(found) == wanted
    assert {each.name for each in refined.path.glob("*.parquet")} == {part.file for part in refined.parts}


def _rows(dataset):
    return pa.concat_tables(pq.read_table(dataset.path / part.file) for part in dataset.parts)
