"""What tests share: one Ray head for all of them, with a token, started and ended by its own process ids."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from engine.cluster import session
from engine.cluster.reaper import clear

# Tests run in two processes, each with Ray's workers: threads that spin while they wait would take the others' cores.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# Ray refuses objects on a disk that is 95 % full, which of a large disk leaves more free than all tests together need.
FULL = {"RAY_local_fs_capacity_threshold": "0.99"}
os.environ.update(FULL)

TOKEN = "0123456789abcdef" * 4
AUTOSCALING = """
cluster_name: test
max_workers: 3
provider: {type: fake_multinode, head_node_id: "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"}
head_node_type: head
available_node_types:
  head: {resources: {CPU: 2}, node_config: {}, min_workers: 0, max_workers: 0}
  data: {resources: {CPU: 4}, node_config: {}, min_workers: 0, max_workers: 8}
auth: {}
docker: {}
idle_timeout_minutes: 1
upscaling_speed: 1
setup_commands: []
initialization_commands: []
head_setup_commands: []
worker_setup_commands: []
head_start_ray_commands: []
worker_start_ray_commands: []
file_mounts: {}
cluster_synced_files: []
file_mounts_sync_continuously: false
rsync_exclude: []
rsync_filter: []
"""


@dataclass
class Head:
    """A running head: `ip:port`, URL of its Jobs API, file of its token, process that started it."""

    address: str
    url: str
    token: Path
    pid: int

    @property
    def environment(self) -> dict[str, str]:
        """The environment of a process that may use it."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        return {**kept, **FULL, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.token)}


LONGEST = ("test_readme.py", "test_chaos.py", "test_fine_tuning.py", "test_sieve_job.py", "test_evaluate_job.py",
           "test_sieve_chaos.py", "test_rlhf_job.py", "test_openai_app.py", "test_bad_input.py")  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest, so that two processes come to an end together."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


@pytest.fixture(scope="session")
def make_llama(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`make_llama(**sizes)`: a directory with a Llama of a few thousand parameters beside its embedding, and SmolLM2's
    tokenizer."""

    def made(**sizes: float) -> Path:
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        from engine.models import load_tokenizer, save_model

        folder, tokenizer = tmp_path_factory.mktemp("llama"), load_tokenizer("pkg:smollm2-135m")
        special = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
        small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
        torch.manual_seed(0)
        config = LlamaConfig(
            **{"vocab_size": len(tokenizer), "max_position_embeddings": 512, **small, **sizes},
            tie_word_embeddings=True,
            **special,
        )
        save_model(LlamaForCausalLM(config), tokenizer, folder)
        return folder

    return made


@pytest.fixture(scope="session")
def small(make_llama: Callable[..., Path]) -> Path:
    """The smallest of them."""
    return make_llama()


@pytest.fixture
def closed_port() -> int:
    """A port nobody listens on."""
    return free_port()


@pytest.fixture(scope="session")
def head() -> Iterator[Head]:
    folder = Path(tempfile.mkdtemp(prefix="hrtest-", dir="/tmp"))
    token, scaling = folder / "token", folder / "scaling.yaml"
    token.write_text(TOKEN)
    scaling.write_text(AUTOSCALING)
    port, dashboard, agent, client = (free_port() for _ in range(4))
    ray = Path(sys.executable).with_name("ray")
    command = f"{ray} start --head --block --node-ip-address=127.0.0.1 --port={port} --num-cpus=2 --num-gpus=0"
    command += f" --dashboard-host=127.0.0.1 --dashboard-port={dashboard} --dashboard-agent-listen-port={agent}"
    command += f" --ray-client-server-port={client} --temp-dir={folder / 'r'} --object-store-memory=300000000"
    command += f" --autoscaling-config={scaling} --disable-usage-stats"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    environment |= FULL | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_FAKE_CLUSTER": "1"}
    # Where Ray's workers find the job that tests of searches try.
    found = os.environ.get("PYTHONPATH"), str(Path(__file__).parent / "search")
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, found))
    environment["PATH"] = f"{ray.parent}{os.pathsep}{environment['PATH']}"
    with open(folder / "out", "w") as out:
        process = subprocess.Popen(
            command.split(), env=environment, stdout=out, stderr=out, start_new_session=True, cwd=folder
        )
    try:
        end = time.monotonic() + 60
        # The node joins a little after its ports open; a driver before that would find a cluster without nodes.
        while not listens(dashboard) or "Ray runtime started" not in (folder / "out").read_text():
            assert process.poll() is None, (folder / "out").read_text()
            assert time.monotonic() < end, (folder / "out").read_text()
            time.sleep(0.2)
        yield Head(f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}", token, process.pid)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=20)
        clear(str(folder), spare=os.getpid())


@pytest.fixture(scope="module")
def cluster(head: Head) -> Iterator[Head]:
    """The shared head, with this process connected to it for the length of a module."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN"):
            patch.delenv(name, raising=False)
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN_PATH", str(head.token))
        with session(head.address):
            yield head
