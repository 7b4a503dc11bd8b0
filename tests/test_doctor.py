"""Every check is made, none raises, and what is wrong is said with its remedy."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from engine import doctor
from engine.doctor import Check, examine
from engine.resources import GIB

NOWHERE = "127.0.0.1:1"


@pytest.fixture(autouse=True)
def no_cluster_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)


def look(runs: Path | str) -> dict[str, Check]:
    return {check.name: check for check in examine(NOWHERE, str(runs))}


def test_a_private_ray_is_really_started(tmp_path: Path) -> None:
    checks = {check.name: check for check in examine(None, str(tmp_path / "runs"))}
    names = {"python", "ray", "pyarrow", "torch", "vllm", "deepspeed", "transformers", "torchvision", "CPUs", "memory"}
    assert names | {"/dev/shm", "temporary disk", "GPUs", "runs directory", "token", "Ray", "authentication"} <= set(
        checks
    )
    assert checks["Ray"].ok, checks["Ray"]
    assert checks["authentication"].ok, checks["authentication"]
    assert checks["runs directory"].ok, checks["runs directory"]
    assert not (tmp_path / "runs").exists(), "looking leaves nothing behind"
    assert all(check.remedy for check in checks.values() if check.ok is False)


def test_a_ray_that_cannot_be_reached_is_a_finding(tmp_path: Path) -> None:
    checks = look(tmp_path)
    assert checks["Ray"].ok is False
    assert NOWHERE in checks["Ray"].detail
    assert "ray start" in checks["Ray"].remedy
    assert "authentication" not in checks


@pytest.mark.parametrize("place", ["file/below", "http://example.com/runs"])
def test_a_runs_directory_that_cannot_be_written_is_a_finding(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    check = look(place if ":" in place else tmp_path / place)["runs directory"]
    assert check.ok is False
    assert check.remedy


def test_a_full_disk_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10 * GIB, 9 * GIB, GIB))
    checks = look(tmp_path)
    assert [checks[name].ok for name in ("temporary disk", "runs directory")] == [False, False]


def test_versions_that_do_not_fit_are_findings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"torch": "2.13.0+cpu", "torchvision": "0.28.0", "ray": "2.59.0"}

    def version(package: str) -> str:
        if package in versions:
            return versions[package]
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(importlib.metadata, "requires", lambda package: ["ray[data]==2.60.0", "pyarrow>=26,<27"])
    checks = look(tmp_path)
    assert checks["ray"] == Check("ray", False, "2.59.0; 2.60.0 is wanted", "make quickstart installs it.")
    assert checks["pyarrow"].ok is False
    assert checks["torchvision"].ok is False
    assert "uninstall torchvision" in checks["torchvision"].remedy
    assert checks["vllm"].ok is None, "training and serving are not for everybody"
    versions["torchvision"] = "0.28.0+cpu"
    assert look(tmp_path)["torchvision"].ok is None


@pytest.mark.parametrize(("value", "ok"), [("1", None), ("1000", False), ("many", False)])
def test_a_thread_count_for_every_worker_is_pointed_out(
    value: str, ok: bool | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    check = look(tmp_path)["CPUs"]
    assert check.ok is ok
    assert "Unset" in check.remedy


def test_tokens_are_judged_but_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token = tmp_path / "token"
    token.write_text("a-secret-token")
    token.chmod(0o644)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    assert look(tmp_path)["token"].remedy == f"chmod 600 {token}"
    token.chmod(0o600)
    checks = look(tmp_path)
    assert checks["token"].ok
    assert "a-secret-token" not in str(checks)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert look(tmp_path)["token"].ok is False
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    token.unlink()
    assert look(tmp_path)["token"].ok is False


def test_a_check_that_breaks_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> int:
        raise OSError("no such device")

    monkeypatch.setattr(doctor, "usable_cpus", broken)
    assert look(tmp_path)["processor"] == Check("processor", False, "OSError: no such device", "Report this.")


def test_importing_the_doctor_and_the_preflight_is_light() -> None:
    script = "import engine.doctor, engine.resources, engine.submission, jobs.submit, sys\n"
    script += "print([name for name in ('ray', 'torch', 'vllm', 'requests', 'aiohttp') if name in sys.modules])"
    root = Path(__file__).resolve().parent.parent
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == "[]"
