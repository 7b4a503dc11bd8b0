"""Prompts to ask a small model, and recipes for them."""

import json
from functools import partial
from types import SimpleNamespace

import pytest

from engine.config import build_recipe
from engine.runs import Invocation
from jobs import rlhf


@pytest.fixture(scope="session")
def make_workshop(small):
    """A workshop in a directory: `make_workshop(path)`."""
    return partial(_workshop, small)


@pytest.fixture
def workshop(tmp_path, make_workshop):
    """Makes recipes and runs them: `workshop.run(**keys)`; a reward that likes the letter e."""
    return make_workshop(tmp_path)


def _workshop(small, tmp_path):
    path = tmp_path / "prompts.jsonl"
    rows = [{"prompt": f"What is {at} and {at}?", "reference": str(2 * at)} for at in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def recipe(**keys):
        data = {
            "name": "a",
            "runs": str(tmp_path / "runs"),
            "model": str(small),
            "prompts": {
                "source": {"paths": [str(path)], "roots": [str(tmp_path)]},
                "wording": "Q: {prompt} A:",
                "window": 32,
                "held_out": 0.2,
                "measured": 4,
            },
            "rewards": [{"kind": "function", "function": "likes:letters"}],
            "learning": {"steps": 4, "measure_every": 2, "checkpoint_every": 2, "epochs": 2, "minibatches": 2},
            "rollout": {"prompts": 6, "max_tokens": 8, "engine": "transformers"},
            "optimiser": {"learning_rate": 1e-2, "schedule": "constant", "warm_up": 0.0},
            "parallel": {"tokens_per_device": 128, "cpus": 0.5},
            "threads": 1,
            "stall_seconds": 240,
        }
        for key, value in keys.items():
            data[key] = {**data[key], **value} if isinstance(data.get(key), dict) else value
        return build_recipe(rlhf.RECIPE, data)

    def run(*, dry_run=False, fresh=False, **keys):
        return rlhf.run(recipe(**keys), Invocation("headrace rlhf", dry_run=dry_run, fresh=fresh))

    return SimpleNamespace(path=tmp_path, recipe=recipe, run=run, model=small, home=tmp_path / "runs" / "rlhf" / "a")
