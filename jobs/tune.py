"""Search the keys of a recipe for the values that give the best result, by trials of its job on Ray Tune.

Any key of a base recipe of `sft`, `reward-model`, `rlhf`, `value-network` or `sieve` can be searched, at random, by
Optuna, or over subsets of tasks by estimates; ASHA stops the worse trials early, population-based training lets them go
on from the better. Writes best_recipe.yaml, a leaderboard, curves and parallel coordinates.

Left out: what a trial does (its job). Called by `jobs.cli`; the search is `tuning`.
"""

from importlib import import_module
from typing import Any

from engine.runs import Invocation, Outcome
from jobs.registry import load_job

# Rooms that jobs, tuning and serve_apps are do not import one another; this is the one place where two of them meet.
RECIPE = import_module("tuning").TuneRecipe


def run(recipe: Any, call: Invocation) -> Outcome:
    """Propose, try, rank."""
    outcome: Outcome = import_module("tuning").run_search(recipe, call, load_job)
    return outcome


if __name__ == "__main__":
    from jobs.cli import main

    main("tune")
