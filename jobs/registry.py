"""The jobs there are, by name; a job's module is imported when it is asked for.

Called by `jobs.cli` and `jobs.pipeline`.
"""

from importlib import import_module
from typing import Any

JOBS = {
    "corpus": "Stream a corpus of any format into a published dataset.",
    "lintseq": "Refactor programs into sequences of error-free edits.",
    "pipeline": "Walk a list of jobs, each one's output handed to the next.",
}

PIPELINE_JOBS = tuple(name for name in JOBS if name != "pipeline")


def load_job(name: str) -> Any:
    """The module of a job: it has `RECIPE` (the recipe class) and `run(recipe, call) -> Outcome`."""
    return import_module(f"jobs.{name}")
