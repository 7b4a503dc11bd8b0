"""Private sessions that leave nothing behind, addresses that fail in time, tokens, and the cluster files."""

import os
import re
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from engine.cluster import Session, find_token, is_loopback, probe, session, validate_cluster_yaml
from engine.cluster.access import ensure_token
from engine.cluster.private import sweep
from engine.cluster.reaper import writers
from engine.config import read_yaml
from engine.errors import ClusterError
from engine.resources import MIB, Capacity, Demand, Node, capacity, planned, preflight

ROOT = Path(__file__).resolve().parent.parent
CLUSTERS = ["cluster.yaml", "deploy/cluster_gcp.yaml", "deploy/cluster_azure.yaml"]
MANIFESTS = ["deploy/raycluster.yaml", "deploy/rayjob.yaml"]
SMALL = 100 * MIB


@pytest.fixture(autouse=True)
def no_cluster_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def private() -> Iterator[Session]:
    previous = signal.getsignal(signal.SIGTERM)
    with session(None, cpus=2, object_store=SMALL) as here:
        assert signal.getsignal(signal.SIGTERM) == previous
        yield here
    assert here.directory is not None
    assert not here.directory.parent.exists()
    assert not writers_besides_us(here.directory.parent)


def writers_besides_us(directory: Path) -> list[psutil.Process]:
    return [each for each in writers(str(directory)) if each.pid != os.getpid()]


def test_a_private_session_has_its_own_short_directory_and_what_was_asked_for(private: Session) -> None:
    import ray

    assert private.private
    assert private.directory is not None
    assert f"-{os.getpid()}-" in private.directory.parent.name
    assert stat.S_IMODE(private.directory.parent.stat().st_mode) == 0o700
    sockets = [path for path in private.directory.rglob("*") if path.is_socket() and "session_latest" not in path.parts]
    assert sockets
    assert max(len(str(path)) for path in sockets) < 103
    assert ray.cluster_resources()["CPU"] == 2
    assert ray.cluster_resources()["object_store_memory"] == SMALL


def test_a_private_session_wants_a_token(private: Session) -> None:
    from engine.cluster.access import asks_for_token

    assert asks_for_token(private.address)


def test_a_session_inside_a_session_is_the_same_and_leaves_it_running(private: Session) -> None:
    import ray

    with session(None) as inner:
        assert inner.address == private.address
        assert not inner.private
    assert ray.is_initialized()


def test_capacity_of_a_session_feeds_the_preflight_and_fractions_run(private: Session) -> None:
    import ray

    there = capacity(private)
    assert (there.now[0].cpus, there.growth) == (2, ())
    preflight([Demand("actors", 5, 0.4)], there)

    @ray.remote(num_cpus=0.4)
    class Actor:
        def alive(self) -> bool:
            return True

    actors = [Actor.remote() for _ in range(3)]
    assert ray.get([actor.alive.remote() for actor in actors], timeout=60) == [True] * 3


def test_the_sweep_spares_living_sessions(private: Session) -> None:
    assert private.directory is not None
    os.utime(private.directory.parent / "lock", (0, 0))
    sweep()
    assert (private.directory.parent / "lock").exists()


def test_the_sweep_clears_a_dead_one() -> None:
    base = Path(tempfile.mkdtemp(prefix="headrace-1-", dir="/tmp"))
    (base / "r").mkdir()
    (base / "r" / "log").write_text("")
    script = f"import time; f = open({str(base / 'r' / 'log')!r}, 'a'); print(flush=True); time.sleep(60)"
    survivor = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    with survivor, open(base / "r" / "log") as reader:
        assert survivor.stdout is not None
        survivor.stdout.readline()
        sweep()
        assert survivor.poll() is None, "what has no lock is none of ours"
        (base / "lock").write_text("")
        os.utime(base / "lock", (0, 0))
        sweep()
        assert survivor.wait(timeout=5) == -signal.SIGKILL
        assert reader.read() == "", "a process that only reads a log is left alone"
    assert not base.exists()


def test_after_kill_9_of_the_driver_no_process_of_its_ray_survives(tmp_path: Path) -> None:
    script = """
import ray, subprocess, sys, time
from engine.cluster import session

class Actor:
    def spin(self):
        while True:
            pass
    def wait(self):
        time.sleep(600)

if __name__ == "__main__":
    with session("local", cpus=2, object_store=100 * 2**20) as here:
        actors = [ray.remote(num_cpus=0.4)(Actor).remote() for _ in range(2)]
        ray.get([actor.__ray_ready__.remote() for actor in actors])
        actors[0].spin.remote(), actors[1].wait.remote()
        print(here.directory, flush=True)
        time.sleep(600)
"""
    file = tmp_path / "driver.py"
    file.write_text(script)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, str(file)], stdout=subprocess.PIPE, text=True, env=environment) as driver:
        assert driver.stdout is not None
        directory = Path(driver.stdout.readline().strip()).parent
        family = psutil.Process(driver.pid).children(recursive=True)
        assert {"gcs_server", "raylet"} <= {each.name() for each in family}
        assert len(family) >= 9
        driver.kill()
    _, alive = psutil.wait_procs(family, timeout=15)
    assert not alive
    end = time.monotonic() + 5
    while directory.exists() and time.monotonic() < end:
        time.sleep(0.1)
    assert not directory.exists()


@pytest.mark.parametrize("address", ["192.0.2.1:6379", "127.0.0.1:1"])
def test_an_address_where_nothing_answers_fails_in_time(address: str) -> None:
    start = time.monotonic()
    with pytest.raises(ClusterError, match="No Ray answers"):
        probe(address, deadline=4)
    assert time.monotonic() - start < 6


def test_a_port_that_accepts_and_stays_silent_fails_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        start = time.monotonic()
        with pytest.raises(ClusterError, match=r"No Ray answers|no Ray cluster"):
            probe(f"127.0.0.1:{server.getsockname()[1]}", deadline=4)
        assert time.monotonic() - start < 6


def test_another_kind_of_server_is_no_ray() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        with pytest.raises(ClusterError):
            probe(f"127.0.0.1:{server.getsockname()[1]}", deadline=4)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("http://127.0.0.1:8265", "headrace submit"),
        ("ray://127.0.0.1:10001", "Ray Client"),
        ("nonsense", "no address"),
        ("127.0.0.1:99999", "no address"),
        ("127.0.0.1:port", "no address"),
    ],
)
def test_what_is_no_address_is_refused(address: str, said: str) -> None:
    from engine.cluster.connection import resolve

    with pytest.raises(ClusterError, match=said):
        resolve(address)


def test_an_object_store_larger_than_shared_memory_is_refused(private: Session) -> None:
    from engine.cluster.private import private_ray

    with pytest.raises(ClusterError, match="/dev/shm"), private_ray(1, 2**50, False):
        pass


@pytest.mark.parametrize(
    ("host", "ours"),
    [
        *((host, True) for host in ("127.0.0.1", "127.8.0.1", "LOCALHOST", "::1", "[::1]")),
        *((host, False) for host in ("10.0.0.1", "localhost.example.com", "0.0.0.0", "127.0.0.1.example.com")),
    ],
)
def test_only_loopback_is_loopback(host: str, ours: bool) -> None:
    assert is_loopback(host) is ours


def test_a_token_is_found_in_rays_order_and_never_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_token() is None
    made = ensure_token()
    path = tmp_path / ".ray" / "auth_token"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(made.value) == 64
    assert ensure_token() == made == find_token()
    other = tmp_path / "other"
    other.write_text("from-file\n")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(other))
    assert find_token() == (str(other), "from-file")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "from-variable")
    assert find_token() == ("RAY_AUTH_TOKEN", "from-variable")
    assert "from-variable" not in f"{find_token()!r} {find_token()}"


def test_a_token_path_that_leads_nowhere_is_an_error_not_a_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "missing"))
    with pytest.raises(ClusterError, match="holds no token"):
        find_token()
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path))
    with pytest.raises(ClusterError, match="cannot be read"):
        find_token()


def pinned_ray() -> str:
    found = re.search(r'"ray\[[^]]*\]==([0-9.]+)"', (ROOT / "pyproject.toml").read_text())
    assert found is not None
    return found.group(1)


def images(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, each in value.items():
            if key in ("image", "worker_image", "head_image"):
                yield each
            else:
                yield from images(each)
    elif isinstance(value, list):
        for each in value:
            yield from images(each)


@pytest.mark.parametrize("name", CLUSTERS)
def test_cluster_files_are_valid_guarded_and_pinned(name: str) -> None:
    config = validate_cluster_yaml(ROOT / name)
    kinds = {key: kind for key, kind in config["available_node_types"].items() if key != config["head_node_type"]}
    assert set(kinds) == {"data", "gpu1", "gpu8"}
    assert all(kind["min_workers"] == 0 < kind["max_workers"] for kind in kinds.values())
    assert {kind["resources"].get("GPU", 0) for kind in kinds.values()} == {0, 1, 8}
    assert 0 < config["idle_timeout_minutes"] <= 30
    assert config["max_workers"] > 0
    start = " ".join(config["head_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in start
    assert "--autoscaling-config" in start
    assert "-e RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    assert all(each.startswith(f"rayproject/ray:{pinned_ray()}-py311-") for each in images(config))


def test_the_token_reaches_the_nodes_as_a_file_and_spot_is_the_rule_for_workers() -> None:
    config = read_yaml(ROOT / "cluster.yaml")
    assert config["file_mounts"]["/home/ray/.ray/auth_token"] == "~/.ray/auth_token"
    for key, kind in config["available_node_types"].items():
        assert ("InstanceMarketOptions" in kind["node_config"]) == (key != "head")


@pytest.mark.parametrize("name", [*CLUSTERS, *MANIFESTS])
def test_no_secret_stands_in_a_deployment_file(name: str) -> None:
    text = (ROOT / name).read_text()
    assert not re.search(r"AKIA[0-9A-Z]{16}|-----BEGIN|hf_[A-Za-z0-9]{20}|\b[0-9a-f]{40,}\b", text)
    assert not re.search(r"(?i)^\s*-?\s*\w*(password|secret_key|auth_token|api_key)\w*\s*[:=]\s*\S", text, re.MULTILINE)


@pytest.mark.parametrize("name", MANIFESTS)
def test_kuberay_manifests_are_guarded_pinned_and_understood_by_the_preflight(name: str) -> None:
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    manifest = read_yaml(ROOT / name)
    spec = manifest["spec"].get("rayClusterSpec", manifest["spec"])
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["rayVersion"] == pinned_ray()
    assert all(f"-ray{pinned_ray()}-" in each for each in images(spec))
    config = _derive_autoscaling_config_from_ray_cr(
        {"metadata": {"name": "headrace", "namespace": "default"}, "spec": spec}
    )
    there = planned([Node(0)], [], config)
    preflight([Demand("readers", 16 * 15)], there)
    if name.endswith("raycluster.yaml"):
        preflight([Demand("learners", 16, 1, 1)], Capacity(there.now, there.growth, there.limit))


def test_a_broken_cluster_file_is_named_with_its_key(tmp_path: Path) -> None:
    text = (ROOT / "cluster.yaml").read_text()
    broken = tmp_path / "broken.yaml"
    for wrong, said in (
        (text.replace("max_workers: 24", "max_workers: many"), "max_workers"),
        (text.replace("idle_timeout_minutes", "idle_minutes"), "idle_minutes"),
        (text.replace("type: aws", "type: nimbus"), "nimbus|provider"),
        ("provider: 3\n", "no cluster configuration"),
        ("{}\n", "no cluster configuration"),
    ):
        broken.write_text(wrong)
        with pytest.raises(ClusterError, match=said):
            validate_cluster_yaml(broken)
