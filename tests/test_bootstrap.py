"""The set-up: what it refuses, what it pins, and that the torchvision trap stays closed."""

import importlib.util
import subprocess
import sys
import sysconfig
import tomllib
from collections import namedtuple
from importlib.metadata import distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent


@pytest.fixture
def bootstrap(monkeypatch, tmp_path):
    spec = importlib.util.spec_from_file_location("bootstrap", ROOT / "deploy" / "bootstrap.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "VENV", str(tmp_path / ".venv"))
    monkeypatch.setattr(module, "PYTHON", str(tmp_path / ".venv" / "bin" / "python"))
    monkeypatch.setattr(module, "run", lambda command, remedy: pytest.fail(f"ran {command}"))
    return module


def test_another_python_gets_a_sentence(bootstrap, monkeypatch):
    version = namedtuple("version", "major minor micro")
    monkeypatch.setattr(bootstrap.sys, "version_info", version(3, 9, 1))
    with pytest.raises(SystemExit, match=r"needs Python 3\.11, but this is Python 3\.9\. .*PYTHON="):
        bootstrap.main("cpu")


def test_a_small_disk_gets_a_sentence(bootstrap, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(bootstrap.shutil, "disk_usage", lambda path: usage(10**12, 0, 10**9))
    with pytest.raises(SystemExit, match=r"needs 8 GB of free disk.*has 1\.0 GB"):
        bootstrap.main("cpu")


def test_a_second_call_does_nothing(bootstrap, tmp_path):
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / f"headrace-cpu-{bootstrap.fingerprint()}.stamp").touch()
    bootstrap.main("cpu")


def test_everything_the_project_names_is_pinned():
    pins = {}
    for line in (ROOT / "deploy" / "constraints.txt").read_text().splitlines():
        requirement = Requirement(line)
        pins[_plain(requirement.name)] = next(iter(requirement.specifier)).version
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    named = [project["dependencies"], *(extras[name] for name in ("cpu", "dev", "bench", "languages"))]
    for line in (line for each in named for line in each if not line.startswith(project["name"])):
        requirement = Requirement(line)
        assert requirement.specifier.contains(pins[_plain(requirement.name)], prereleases=True), line


def test_what_is_installed_is_what_is_pinned():
    lines = (ROOT / "deploy" / "constraints.txt").read_text() + (ROOT / "deploy" / "samples.txt").read_text()
    pinned = {_plain(line.partition("==")[0]) for line in lines.splitlines() if not line.startswith("#")}
    installed = {_plain(each.metadata["Name"]) for each in _distributions()}
    optional = {
        _plain(line.partition("==")[0]) for line in (ROOT / "deploy" / "verifiers.txt").read_text().splitlines()
    }
    assert installed - pinned - optional <= {"headrace", "pip"}
    assert pinned <= installed


def test_transformers_and_vllm_import_together():
    installed = {_plain(each.metadata["Name"]) for each in _distributions()}
    assert not {"torchvision", "torchaudio", "torchcodec"} & installed
    code = "import transformers, vllm; from transformers import AutoModelForCausalLM, AutoModel; from vllm import LLM"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]


def _distributions():
    """What is installed in this environment; Ray adds places of its own to the search path."""
    return distributions(path=[sysconfig.get_paths()["purelib"]])


def _plain(name):
    return name.strip().lower().replace("_", "-").replace(".", "-")
