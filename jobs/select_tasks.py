"""Choose the tasks to train on by estimates of what each subset would give, without training on any of them.

Reads what `headrace sft` reads, with a column `task`. Trains on all candidates once, takes the gradient of each example
there, and estimates the loss on the target of any subset by a small regression. Publishes the chosen tasks, which
`headrace sft` takes as `tasks: {chosen: ...}`.

Left out: training on what was chosen (`headrace sft`), and real trials of subsets (`headrace tune`). Called by
`jobs.cli`; the engine half is `engine.selection`.
"""

from engine.runs import Invocation, Outcome
from engine.selection.recipe import SelectRecipe

RECIPE = SelectRecipe


def run(recipe: SelectRecipe, call: Invocation) -> Outcome:
    """Train on all, estimate, choose, publish."""
    from engine.evaluation import given_away
    from engine.selection import run_selection

    return run_selection(recipe, call, given_away)


if __name__ == "__main__":
    from jobs.cli import main

    main("select-tasks")
