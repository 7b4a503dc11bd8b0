"""Searches over a job that takes no time, and over real ones."""

from types import SimpleNamespace

import pytest
import quick_job

from engine.config import build_recipe, write_yaml
from engine.runs import Invocation
from tuning import TuneRecipe, run_search
from tuning.history import History


@pytest.fixture
def lab(tmp_path):
    """`lab.run(**keys)` searches the rate of the quick job; `lab.history()` and `lab.starts()` tell what was tried."""

    def recipe(**keys):
        base = tmp_path / "base.yaml"
        if not base.exists():
            base.write_text(write_yaml({"name": "base"}))
        data = {
            "name": "a",
            "runs": str(tmp_path / "runs"),
            "job": "sft",
            "recipe": str(base),
            "space": {"optimiser.rate": {"uniform": [0.0, 1.0]}},
            "trials": 4,
        }
        return build_recipe(TuneRecipe, {**data, **keys})

    def run(*, load=quick_job.load, fresh=False, dry_run=False, **keys):
        return run_search(recipe(**keys), Invocation("headrace tune x", fresh=fresh, dry_run=dry_run), load)

    home = tmp_path / "runs" / "tune" / "a"

    def history(minimise=True):
        return History(home, minimise=minimise).trials

    def starts():
        found = sorted(home.glob("trials/sft/*/starts"))
        return {path.parent.name: len(path.read_text().splitlines()) for path in found}

    return SimpleNamespace(path=tmp_path, home=home, recipe=recipe, run=run, history=history, starts=starts)
