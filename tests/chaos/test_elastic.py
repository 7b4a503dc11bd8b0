"""A machine that is lost: its training goes on with the workers that are left, as if they had always been alone."""

import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ray.cluster_utils import Cluster

ROOT = Path(__file__).parents[2]
STEPS = 40


@pytest.mark.timeout(900)
@pytest.mark.skipif("HEADRACE_CHAOS_KILLS" not in os.environ, reason="minutes; part of `make chaos`")
def test_a_lost_machine_costs_only_the_steps_since_the_checkpoint(tmp_path, make_llama, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    model = make_llama(hidden_size=32, intermediate_size=64, num_hidden_layers=2)
    rows = [{"prompt": f"Count to {at}.", "response": " ".join(map(str, range(at % 30)))} for at in range(1, 200)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    recipe = {
        "runs": str(tmp_path / "runs"),
        "model": str(model),
        "source": {"paths": [str(tmp_path / "rows.parquet")], "roots": [str(tmp_path)]},
        "format": "responses",
        "tokens": {"window": 128, "held_out": 0.1},
        "training": {"steps": STEPS, "examples": 16, "measure_every": 20, "checkpoint_every": 4},
        "optimiser": {"learning_rate": 1e-2},
        "parallel": {"workers": 2, "fewest": 1, "zero": 2, "tokens_per_device": 512, "cpus": 1},
        "workers": 1,
    }
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 200_000_000})
    try:
        lost = cluster.add_node(num_cpus=1, object_store_memory=200_000_000)
        with _started(tmp_path, recipe, "calm", cluster.address) as undisturbed:
            assert undisturbed.wait(300) == 0
        with _started(tmp_path, recipe, "wild", cluster.address) as driver:
            home = tmp_path / "runs" / "sft" / "wild"
            end = time.monotonic() + 240
            while not list(home.glob("checkpoints/*/state.json")):
                assert time.monotonic() < end, "no checkpoint"
                assert driver.poll() is None, "it ended before a machine could be lost"
                time.sleep(0.05)
            assert list(home.glob("checkpoints/*/worker-*-of-00002*")), "two began"
            cluster.remove_node(lost, allow_graceful=False)
            assert driver.wait(300) == 0
    finally:
        cluster.shutdown()
    found = {name: _losses(tmp_path / "runs" / "sft" / name) for name in ("calm", "wild")}
    assert len(found["wild"]) == STEPS
    assert found["wild"] == pytest.approx(found["calm"], rel=1e-3)


@contextmanager
def _started(folder, recipe, name, address):
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps({"name": name, **recipe}))
    command = [sys.executable, "-m", "jobs.sft", str(path), "--address", address]
    with open(folder / f"{name}.out", "w") as out:
        process = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=out)
        try:
            yield process
        finally:
            process.kill()
            process.wait(timeout=20)


def _losses(home):
    lines = map(json.loads, (home / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["loss"] for line in lines if "loss" in line}
