"""The README is true: its commands run, its Python runs, its numbers have results behind them."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from engine.config import build_recipe
from jobs import corpus, evaluate, generate, rlhf, select_tasks, serve, sft, sieve, tune, value_network

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def _blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


COMMANDS = [line for block in _blocks("bash") for line in block.splitlines() if line]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A directory like a checkout, where the README's relative paths mean what they say."""
    folder = tmp_path_factory.mktemp("readme")
    shutil.copytree(ROOT / "jobs", folder / "jobs", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


WALKED = ("select-tasks", "rlhf", "value-network", "evaluate")
"""Jobs whose smoke recipe `headrace pipeline` runs in earnest, and whose output no other command here reads: by
themselves they are only planned."""


@pytest.mark.timeout(1800)  # the pipeline walks the whole road, and other tests run beside it
@pytest.mark.parametrize("command", [each for each in COMMANDS if each.startswith("headrace")])
def test_commands_run(command, home, head):
    words = shlex.split(command.replace("http://127.0.0.1:8265", head.url))
    if words[1] in WALKED:
        assert f"jobs/recipes/{Path(words[2]).name}" in (ROOT / "jobs/recipes/pipeline_smoke.yaml").read_text()
        words.append("--dry-run")
    program = str(Path(sys.executable).with_name("headrace"))
    # RAY_ADDRESS stands for the private Ray each command would start; nothing else differs.
    environment = {
        **head.environment,
        "RAY_ADDRESS": head.address,
        "PATH": f"{Path(program).parent}:{os.environ['PATH']}",
    }
    if words[1] == "serve":
        return _serves([program, *words[1:]], home, environment)
    words[0] = program
    done = subprocess.run(words, cwd=home, env=environment, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stdout + done.stderr


def _serves(command, home, environment):
    """It answers, and ends when it is told to."""
    out = home / "served"
    with out.open("w") as file:
        running = subprocess.Popen(command, cwd=home, env=environment, stdout=file, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 240
    while not (told := re.search(r"(http://\S+)/v1 answers", out.read_text())):
        assert running.poll() is None, out.read_text()
        assert time.monotonic() < deadline, out.read_text()
        time.sleep(0.5)
    body = {"model": "smollm2", "prompt": "The capital of France is", "max_tokens": 1, "temperature": 0}
    assert httpx.post(f"{told[1]}/v1/completions", json=body, timeout=60).json()["choices"][0]["text"] == " Paris"
    running.send_signal(signal.SIGTERM)
    assert running.wait(90) == 0, out.read_text()


@pytest.mark.parametrize("command", [each for each in COMMANDS if not each.startswith("headrace")])
def test_other_commands_are_make_targets(command):
    program, target = command.split()
    assert program == "make"
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("code", _blocks("python"))
def test_python_runs(code):
    exec(compile(code, "README.md", "exec"), {})


@pytest.mark.parametrize("text", _blocks("yaml"))
def test_recipes_are_recipes(text):
    from ruamel.yaml import YAML

    data = YAML(typ="safe", pure=True).load(text)
    told = {
        "models": serve,
        "bases": value_network,
        "humaneval": evaluate,
        "criterion": sieve,
        "training": sft,
        "rewards": rlhf,
        "beta": generate,
        "target": select_tasks,
        "space": tune,
    }
    job = next((job for key, job in told.items() if key in data), corpus)
    build_recipe(job.RECIPE, data)


def test_every_file_it_names_is_there():
    for path in re.findall(r"`((?:jobs|deploy|tests|engine)/[\w./-]+)`", README):
        assert list(ROOT.glob(path)), path


def test_every_number_has_a_result_behind_it():
    for name in re.findall(r"`(bench_\w+)`", README):
        assert (ROOT / "tests" / "benchmarks" / "results" / f"{name}.json").exists()
