"""A tiny corpus and a tiny student for the tests that run whole SIEVE jobs."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tiny_student import BAD, GOOD, save_bert
from upath import UPath

from engine.config import build_recipe
from engine.runs import Invocation
from jobs import sieve

CALL = Invocation("headrace sieve recipe.yaml")


@dataclass
class Workbench:
    folder: Path
    model: str

    def recipe(self, name, **changes):
        recipe = {
            "name": name,
            "runs": str(self.folder / "runs"),
            "source": {"paths": [str(self.folder / "corpus.jsonl")], "roots": [str(self.folder)], "shard_mb": 0.012},
            "criterion": "It is about sport.",
            "teacher": {"kind": "labels"},
            "truth": {"column": "topic", "passes": ["sp*"]},
            "budget": {"queries": 90},
            "student": {"kind": "frozen", "model": self.model, "max_tokens": 16, "cpus": 0.2},
            "loop": {"validation": 20, "warm_start": 20, "batch": 20, "every": 5, "sample": 100, "patience": 0},
            "filter": {"cpus": 0.3},
            "stall_seconds": 120,
        }
        return {**recipe, **changes}

    def run(self, name, **changes):
        return sieve.run(build_recipe(sieve.RECIPE, self.recipe(name, **changes)), CALL)

    def home(self, name):
        return UPath(self.folder / "runs" / "sieve" / name)


def make_workbench(folder: Path) -> Workbench:
    """Twelve hundred short texts, a fifth of them about sport, and a random encoder."""
    rng = np.random.default_rng(0)
    with open(folder / "corpus.jsonl", "w") as file:
        for number in range(1200):
            good = rng.uniform() < 0.2
            # "good" is the word by which the scripted endpoint decides.
            words = [*rng.choice(GOOD if good else BAD, 3), "of the", "good" if good else "bad", *rng.choice(BAD, 1)]
            file.write(
                json.dumps({"text": " ".join(words) + f" {number}", "topic": "sport" if good else "money"}) + "\n"
            )
    return Workbench(folder, save_bert(folder / "bert"))
