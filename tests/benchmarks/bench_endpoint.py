"""The endpoint under load: what its gateway costs beside the bare vLLM server's, and two minutes of twice the capacity.

SmolLM2-135M in float32, one thread, 16 answers at a time, 48 tokens each, streamed. Gateway: CPU-seconds of every
process but vLLM's engine and its workers, for 1,000 streamed tokens, for `headrace serve` and for `vllm serve` with the
same settings, by the same client, `vllm bench serve` unmodified. Overload: requests arrive at twice the rate that 24
callers who wait for their answers could get served, whatever the endpoint says.
"""

import asyncio
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import psutil
from ruamel.yaml import YAML

from engine.models import resolve, vllm_keys

MODEL, AT_ONCE, QUEUED, TOKENS, LONGEST = "pkg:smollm2-135m", 16, 16, 48, 512
REQUESTS = 96
MINUTES, PEAK_SECONDS, CALLERS = 2.0, 45.0, 24
# vLLM's own command asks for the version of a package `vllm`, which on CPUs has another name.
VLLM = [
    sys.executable,
    "-c",
    """
import importlib.metadata as metadata

found = metadata.version

def version(name):
    try:
        return found(name)
    except metadata.PackageNotFoundError:
        return "0+cpu"

metadata.version = version
from vllm.entrypoints.cli.main import main

main()
""",
]
PROMPT = "Write a few words about the water that drives a mill."


def main():
    """Gateway, then overload."""
    with tempfile.TemporaryDirectory() as folder:
        gateway = {}
        with _bare(Path(folder)) as bare:
            gateway["vllm"] = _gateway(bare, folder)
        with _ours(Path(folder)) as ours:
            gateway["headrace"] = _gateway(ours, folder)
            peak = asyncio.run(_closed(ours.url))
            load = asyncio.run(_open(ours, 2 * peak["requests_per_second"]))
    cost = {name: each["gateway_cpu_seconds"] / each["tokens"] * 1000 for name, each in gateway.items()}
    return {
        "gateway": gateway,
        "peak": peak,
        "overload": load,
        "summary": {
            "gateway_cpu_seconds_per_1000_tokens": {name: round(each, 3) for name, each in cost.items()},
            "gateway_to_vllm": round(cost["headrace"] / cost["vllm"], 2),
            "engine_cpu_seconds_per_1000_tokens": {
                name: round(each["engine_cpu_seconds"] / each["tokens"] * 1000, 2) for name, each in gateway.items()
            },
            "output_tokens_per_second": {name: round(each["tokens_per_second"], 1) for name, each in gateway.items()},
            "peak_tokens_per_second": round(peak["tokens_per_second"], 1),
            "overload_tokens_per_second": round(load["tokens_per_second"], 1),
            "goodput_of_peak": round(load["tokens_per_second"] / peak["tokens_per_second"], 3),
            **{name: load[name] for name in ("accepted", "completed", "refused", "other", "refusal_p99_seconds")},
            "memory_growth_mb": load["memory_growth_mb"],
            "requests_left_at_the_engine": load["left"],
        },
    }


class _Server:
    """A server process and its family."""

    def __init__(self, command, port, log):
        self.url = f"http://127.0.0.1:{port}"
        self._log = open(log, "w")  # noqa: SIM115
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        self.process = subprocess.Popen(command, stdout=self._log, stderr=subprocess.STDOUT, env=environment)

    def __enter__(self):
        deadline = time.monotonic() + 300
        while True:
            try:
                if httpx.get(f"{self.url}/v1/models", timeout=2).status_code == 200:
                    break
            except httpx.HTTPError:
                pass
            assert self.process.poll() is None, Path(self._log.name).read_text()
            assert time.monotonic() < deadline, Path(self._log.name).read_text()
            time.sleep(0.5)
        asyncio.run(_closed(self.url, seconds=5))  # once to warm up
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(120)

    def family(self):
        """Its processes, by whether they are vLLM's engine."""
        top = psutil.Process(self.process.pid)
        found = {"gateway": [], "engine": []}
        for each in [top, *top.children(recursive=True)]:
            name = " ".join(each.cmdline())
            found["engine" if "VLLM::EngineCore" in name or "VLLM::Worker" in name else "gateway"].append(each)
        return found

    def cpu(self):
        """CPU-seconds so far of both kinds."""
        return {kind: sum(sum(each.cpu_times()[:2]) for each in some) for kind, some in self.family().items()}

    def memory(self):
        """Bytes that its processes have to themselves, by number and name."""
        each_one = [each for some in self.family().values() for each in some]
        return {(each.pid, _named(each)): each.memory_full_info().uss for each in each_one}


def _named(process):
    words = process.cmdline()
    return words[0] if words[0].startswith(("ray::", "VLLM::")) else Path(words[0]).name


def _free_port():
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def _ours(folder):
    port = _free_port()
    model = {"name": "smollm2", "base": MODEL, "longest": LONGEST, "at_once": AT_ONCE, "max_queued": QUEUED}
    YAML().dump({"name": "bench", "port": port, "models": [model]}, folder / "serve.yaml")
    return _Server([sys.executable, "-m", "jobs.serve", str(folder / "serve.yaml")], port, folder / "ours.log")


def _bare(folder):
    port, keys = _free_port(), vllm_keys(resolve(MODEL), at_once=AT_ONCE, longest=LONGEST)
    flags = []
    for name, value in keys.items():
        flag = name.replace("_", "-")
        if name == "model" or (value is False and name == "trust_remote_code"):
            continue
        flags += (
            [f"--{'no-' if value is False else ''}{flag}"] if isinstance(value, bool) else [f"--{flag}", str(value)]
        )
    command = [*VLLM, "serve", keys["model"], "--served-model-name", "smollm2"]
    return _Server([*command, *flags, "--host", "127.0.0.1", "--port", str(port)], port, folder / "bare.log")


def _gateway(server, folder):
    """The public client against a server, and what the server's processes spent on it."""
    before, started = server.cpu(), time.perf_counter()
    out = Path(folder) / "bench.json"
    command = [*VLLM, "bench", "serve", "--backend", "openai-chat"]
    command += ["--base-url", server.url, "--endpoint", "/v1/chat/completions", "--model", "smollm2"]
    command += ["--tokenizer", str(resolve(MODEL)), "--dataset-name", "random", "--random-input-len", "32"]
    command += ["--random-output-len", str(TOKENS), "--ignore-eos", "--num-prompts", str(REQUESTS), "--seed", "0"]
    command += ["--max-concurrency", str(AT_ONCE), "--save-result", "--result-filename", out.name]
    subprocess.run([*command, "--result-dir", str(folder)], check=True, stdout=subprocess.DEVNULL)
    after, seconds = server.cpu(), time.perf_counter() - started
    found = YAML(typ="safe").load(out.read_text())
    assert found["completed"] == REQUESTS, found
    kept = ("mean_ttft_ms", "p99_ttft_ms", "mean_tpot_ms", "mean_itl_ms", "duration")
    return {
        "tokens": found["total_output_tokens"],
        "tokens_per_second": found["output_throughput"],
        "gateway_cpu_seconds": after["gateway"] - before["gateway"],
        "engine_cpu_seconds": after["engine"] - before["engine"],
        "seconds": seconds,
        **{name: found[name] for name in kept},
    }


async def _stream(client, url, found):
    """One streamed answer: its status, seconds until that was known, tokens, and whether it came to its end."""
    body = {"model": "smollm2", "prompt": PROMPT, "max_tokens": TOKENS, "ignore_eos": True, "stream": True}
    began, tokens, ended, status, answered = time.perf_counter(), 0, False, None, None
    try:
        async with client.stream("POST", f"{url}/v1/completions", json=body) as answer:
            status, answered = answer.status_code, time.perf_counter() - began
            async for line in answer.aiter_lines():
                tokens += line.startswith('data: {"id"')
                ended |= line == "data: [DONE]"
    except httpx.HTTPError as error:
        status = type(error).__name__
    found.append({"status": status, "answered": answered, "tokens": tokens, "ended": ended, "at": time.perf_counter()})


async def _closed(url, seconds=PEAK_SECONDS):
    """What callers who wait for their answers get: tokens and requests per second."""
    found = []
    async with httpx.AsyncClient(timeout=120, limits=httpx.Limits(max_connections=None)) as client:
        started = time.perf_counter()

        async def caller():
            while time.perf_counter() - started < seconds:
                await _stream(client, url, found)

        await asyncio.gather(*(caller() for _ in range(CALLERS)))
        elapsed = max(each["at"] for each in found) - started
    done = [each for each in found if each["ended"]]
    return {
        "tokens_per_second": sum(each["tokens"] for each in done) / elapsed,
        "requests_per_second": len(done) / elapsed,
        "requests": len(done),
    }


async def _open(server, rate):
    """Arrivals at a rate, at random, for two minutes."""
    found, tasks, before, rng = [], [], server.memory(), random.Random(0)
    async with httpx.AsyncClient(timeout=300, limits=httpx.Limits(max_connections=None)) as client:
        started = time.perf_counter()
        while time.perf_counter() - started < MINUTES * 60:
            tasks.append(asyncio.create_task(_stream(client, server.url, found)))
            await asyncio.sleep(rng.expovariate(rate))
        await asyncio.gather(*tasks)
        ended = max(each["at"] for each in found if each["ended"])
        await asyncio.sleep(15)
        metrics = (await client.get(f"{server.url}/metrics")).text
    after = server.memory()
    accepted = [each for each in found if each["status"] == 200]
    refused = sorted(each["answered"] for each in found if each["status"] == 429)
    grown = {each: after[each] - before[each] for each in after if each in before}
    most = sorted(grown.items(), key=lambda each: -each[1])[:6]
    running = [line for line in metrics.splitlines() if line.startswith("ray_headrace_running_requests{")]
    return {
        "rate": rate,
        "asked": len(found),
        "accepted": len(accepted),
        "completed": sum(each["ended"] and each["tokens"] >= TOKENS for each in accepted),
        "refused": len(refused),
        "other": sorted({str(each["status"]) for each in found} - {"200", "429"}),
        "refusal_median_seconds": round(statistics.median(refused), 3),
        "refusal_p99_seconds": round(refused[int(0.99 * (len(refused) - 1))], 3),
        "tokens_per_second": sum(each["tokens"] for each in accepted) / (ended - started),
        "memory_growth_mb": round(sum(grown.values()) / 1e6, 1),
        "memory_growth_mb_of": {name: round(each / 1e6, 1) for (_, name), each in most},
        "left": sum(float(line.rpartition(" ")[2]) for line in running),
    }
