"""The house's rules that a machine can check: import directions, light imports, recipes that load, file sizes."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from engine.config import load_recipe
from jobs.registry import JOBS, load_job

ROOT = Path(__file__).parent.parent
LEVELS = [
    {"errors"},
    {"config", "storage", "retries"},
    {"artifacts", "observe", "resources"},
    {"runs", "cluster", "submission", "doctor"},
    {"corpus", "models"},
    {"lintseq"},
    {"finetune"},
    {"evaluation"},
    {"sieve", "rlhf", "value_network", "selection"},
]
RANK = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
SAME_LEVEL = {("resources", "cluster"), ("cluster", "resources"), ("storage", "config"), ("submission", "cluster"),
              ("doctor", "cluster"), ("runs", "cluster"), ("artifacts", "observe")}  # fmt: skip


SHORT = {"value": "value-network", "select_tasks": "select-tasks"}
"""What a job's recipes are called where that is not its name."""


def _imports(path):
    """Module names a file imports, its function bodies included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", sorted((ROOT / "engine").rglob("*.py")), ids=lambda path: path.stem)
def test_doors_open_one_way(path):
    room = path.relative_to(ROOT / "engine").parts[0].removesuffix(".py")
    for name in _imports(path):
        top = name.split(".")[0]
        assert top not in ("jobs", "serve_apps", "tuning"), f"{path} reaches up to {name}"
        if top != "engine" or room == "__init__":
            continue
        target = [*name.split("."), ""][1]
        if target in RANK and target != room:
            allowed = RANK[target] < RANK[room] or (room, target) in SAME_LEVEL
            assert allowed, f"engine/{room} imports engine/{target}"


def test_every_engine_room_has_its_place():
    rooms = {path.stem for path in (ROOT / "engine").iterdir() if not path.name.startswith("_")}
    assert rooms <= RANK.keys()


@pytest.mark.parametrize("top", ["jobs", "serve_apps", "tuning"])
def test_the_outer_rooms_do_not_import_each_other(top):
    others = {"jobs", "serve_apps", "tuning"} - {top}
    for path in (ROOT / top).rglob("*.py"):
        assert not {name.split(".")[0] for name in _imports(path)} & others, path


@pytest.mark.parametrize(
    "module",
    [
        "engine.config",
        "engine.corpus",
        "engine.lintseq",
        "engine.models",
        "engine.observe",
        "engine.sieve",
        "jobs.cli",
        "jobs.corpus",
        "jobs.generate",
        "jobs.lintseq",
        "jobs.models",
        "jobs.sieve",
        "jobs.sieve_apply",
    ],
)
def test_light_imports(module):
    heavy = {"torch", "ray", "vllm", "transformers", "pyarrow", "matplotlib", "pylint", "pandas"}
    code = f"import sys, {module}; print(' '.join(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not heavy & set(loaded)


@pytest.mark.parametrize("path", sorted((ROOT / "jobs" / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_load_and_stay_short(path):
    stem = path.stem.rpartition("_")[0]
    load_recipe(load_job(SHORT.get(stem, stem)).RECIPE, path)
    lines = [line for line in path.read_text().splitlines() if line.strip() and not line.lstrip().startswith("#")]
    assert len(lines) <= 40


def test_every_job_ships_three_recipes():
    names = {path.stem for path in (ROOT / "jobs" / "recipes").glob("*.yaml")}
    stems = {job: short for short, job in SHORT.items()}
    assert {f"{stems.get(job, job)}_{size}" for job in JOBS for size in ("smoke", "laptop", "gpu")} <= names


def test_files_stay_small():
    sizes = {path: len(path.read_text().splitlines()) for path in ROOT.glob("engine/**/*.py")}
    assert not {path for path, size in sizes.items() if size > 400}
    jobs = {path: len(path.read_text().splitlines()) for path in ROOT.glob("jobs/*.py")}
    assert not {path for path, size in jobs.items() if size > 150}
