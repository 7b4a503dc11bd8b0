"""What may die or fail around an RLHF training, with real vLLM and real processes: nothing is lost or learnt wrong.

Minutes: part of `make chaos`. CI has the short version: a fake engine that dies, hangs and lies (`test_rollouts`), a
driver killed (`test_rlhf_job`).
"""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
import ray

from engine.config import write_yaml
from engine.errors import DeadlineExceeded
from engine.models import load_causal_lm, load_tokenizer
from engine.observe import read_metrics
from engine.rlhf.engines import Drawing, TransformersRollout, make_engine
from engine.rlhf.fleet import ActorRollouts
from engine.rlhf.rollouts import EngineActor, Probe
from engine.storage import locate

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif("HEADRACE_CHAOS_KILLS" not in os.environ, reason="minutes; part of `make chaos`"),
]


@pytest.fixture(scope="module")
def model(make_llama):
    """A small Llama that vLLM takes."""
    return make_llama(hidden_size=64, intermediate_size=128, max_position_embeddings=1024)


@pytest.fixture
def recipe(tmp_path, model):
    """`recipe(name, **keys)` writes one and gives its path."""
    rows = [{"prompt": f"What is {at} and {at}?"} for at in range(60)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "liking.py").write_text(
        "def letters(prompts, responses, references):\n"
        "    return [each.count('e') / max(len(each), 1) for each in responses]\n"
    )

    def write(name, **keys):
        data = {
            "name": name, "runs": str(tmp_path / "runs"), "model": str(model),
            "prompts": {
                "source": {"paths": [str(tmp_path / "prompts.jsonl")], "roots": [str(tmp_path)]},
                "wording": "Q: {prompt} A:", "window": 32, "held_out": 0.1, "measured": 4,
            },
            "rewards": [{"kind": "function", "function": "liking:letters"}],
            "learning": {"steps": 20, "measure_every": 10, "checkpoint_every": 5, "epochs": 2, "minibatches": 2},
            "rollout": {"prompts": 6, "max_tokens": 12, "stall_seconds": 240},
            "optimiser": {"learning_rate": 1e-2, "schedule": "constant", "warm_up": 0.0},
            "parallel": {"tokens_per_device": 128, "cpus": 0.5},
            "threads": 1, "stall_seconds": 300,
        }  # fmt: skip
        for key, value in keys.items():
            data[key] = {**data[key], **value} if isinstance(data.get(key), dict) else value
        path = tmp_path / f"{name}.yaml"
        path.write_text(write_yaml(data))
        return path

    write.home = lambda name: tmp_path / "runs" / "rlhf" / name
    return write


@pytest.fixture
def engine(cluster, model):
    """Rollouts over one vLLM actor, and the weights of its model with what they make of the probe."""
    actor = ray.remote(num_cpus=0.1, max_restarts=-1, runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}})(EngineActor)
    handle = actor.remote(partial(make_engine, "vllm", str(model), at_once=64, longest=512))
    rollouts = ActorRollouts([handle], 240.0)
    ids = load_tokenizer(str(model))("The quick brown fox jumps over the dog.")["input_ids"]
    probe = Probe(ids, TransformersRollout(str(model), at_once=8, longest=512).logprobs(ids), 0.02)
    rollouts.sync(1, load_causal_lm(str(model)).state_dict(), probe)
    yield rollouts, handle
    ray.kill(handle)


PROMPTS, SEEDS = [[at + 5] * 4 for at in range(64)], list(range(64))


def test_an_engine_killed_while_it_draws(engine):
    rollouts, handle = engine
    drawing = Drawing(1.0, 400)
    wanted = rollouts.generate(PROMPTS, SEEDS, drawing)
    pid = ray.get(handle.version.remote())[1]
    threading.Timer(1.0, os.kill, (pid, signal.SIGKILL)).start()
    found = rollouts.generate(PROMPTS, SEEDS, drawing)
    version, after = ray.get(handle.version.remote())
    assert (version, after != pid) == (1, True), "another process, verified with the same weights"
    same = sum(ours.ids == theirs.ids for ours, theirs in zip(found, wanted, strict=True))
    assert same >= 60, "each prompt's seed is its own; rounding may tip a token"


def test_a_wedged_engine_is_named_and_the_next_attempt_works(engine):
    rollouts, handle = engine
    pid = ray.get(handle.version.remote())[1]
    rollouts._seconds = 8.0
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(DeadlineExceeded, match="Engine 0 has not answered 64 prompts for 8 s"):
            rollouts.generate(PROMPTS, SEEDS, Drawing(1.0, 8))
    finally:
        if psutil.pid_exists(pid):
            os.kill(pid, signal.SIGKILL)  # what is stopped does not hear Ray
    rollouts._seconds = 240.0
    assert len(rollouts.generate(PROMPTS, SEEDS, Drawing(1.0, 8))) == 64


def test_ten_steps_a_kill_and_ten_more_are_twenty(cluster, recipe, tmp_path):
    with _started(recipe("calm"), cluster, tmp_path) as calm:
        assert calm.wait(400) == 0
    with _started(recipe("wild"), cluster, tmp_path) as driver:
        _until(lambda: len(_losses(recipe.home("wild"))) >= 10, driver)
        driver.send_signal(signal.SIGKILL)
        driver.wait(30)
    with _started(recipe("wild"), cluster, tmp_path) as driver:
        assert driver.wait(400) == 0
    names = [name for step in range(20) for name, _ in _drawn(recipe.home("wild"), step)]
    assert len(set(names)) == len(names) == 120, "every sample once"
    for step in range(20):
        assert _drawn(recipe.home("wild"), step) == _drawn(recipe.home("calm"), step)
    assert _losses(recipe.home("wild")) == pytest.approx(_losses(recipe.home("calm")), rel=1e-2, abs=1e-3)


def test_a_learner_killed_in_a_step(cluster, recipe, tmp_path):
    keys = {"rollout": {"engine": "transformers"}}
    with _started(recipe("calm", **keys), cluster, tmp_path) as calm:
        assert calm.wait(300) == 0
    with _started(recipe("wild", **keys), cluster, tmp_path) as driver:
        _until(lambda: len(_losses(recipe.home("wild"))) >= 7, driver)
        (worker,) = [each for each in psutil.process_iter(["cmdline"]) if _is_learner(each)]
        worker.kill()
        assert driver.wait(300) == 0, "the driver lives on"
    assert _losses(recipe.home("wild")) == pytest.approx(_losses(recipe.home("calm")), rel=1e-3, abs=1e-4)


def test_a_reward_that_is_down_for_half_a_minute(cluster, recipe, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    reward = {"kind": "http", "url": f"http://127.0.0.1:{port}/score"}
    path = recipe("a", rewards=[reward], learning={"steps": 3}, rollout={"engine": "transformers"})
    with _started(path, cluster, tmp_path) as driver:
        _until((recipe.home("a") / "checkpoints").parent.exists, driver)
        _until(lambda: (recipe.home("a") / "metrics.jsonl").exists(), driver)
        time.sleep(30)
        assert driver.poll() is None, "it waits"
        with _scoring(port):
            assert driver.wait(200) == 0
    assert len(_losses(recipe.home("a"))) == 3


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_disk_that_is_full_at_a_checkpoint(cluster, recipe, tmp_path):
    path = recipe("a", learning={"steps": 6, "checkpoint_every": 3}, rollout={"engine": "transformers"})
    (tmp_path / "runs").mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", tmp_path / "runs"]).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        with _started(path, cluster, tmp_path, stderr=subprocess.PIPE) as driver:
            said = driver.communicate(timeout=300)[1].decode()
        assert driver.returncode == 2, said
        assert "No space left" in said or "disk is full" in said
        subprocess.run(["mount", "-o", "remount,size=600m", tmp_path / "runs"], check=True)
        with _started(path, cluster, tmp_path) as driver:
            assert driver.wait(300) == 0
        assert len(_losses(recipe.home("a"))) == 6
    finally:
        subprocess.run(["umount", "-l", tmp_path / "runs"], check=True)


@contextmanager
def _started(path, cluster, folder, stderr=None):
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{folder}"}
    command = [sys.executable, "-m", "jobs.rlhf", path, "--address", cluster.address]
    driver = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=stderr, cwd=folder)
    try:
        yield driver
    finally:
        driver.kill()
        driver.wait(30)


@contextmanager
def _scoring(port):
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            body = json.dumps({"scores": [float(len(each)) for each in asked["responses"]]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


def _until(done, driver, seconds=300):
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "it did not come"
        assert driver.poll() is None, "it ended before"
        time.sleep(0.05)


def _is_learner(process):
    return "RayTrainWorker" in " ".join(process.info["cmdline"] or [])


def _losses(home):
    if not (home / "metrics.jsonl").exists():
        return {}
    return {line["step"]: line["policy_loss"] for line in read_metrics(locate(str(home))) if "policy_loss" in line}


def _drawn(home, step):
    rows = pq.read_table(home / "rollouts" / f"step-{step:08d}.parquet").to_pylist()
    return [((row["epoch"], row["prompt"], row["number"]), row["text"]) for row in rows]
