"""Align a causal language model with rewards, by PPO with macro actions (MA-RLHF) or RLOO and GRPO beside them.

Reads `prompts`, draws responses with engines of their own, scores them, credits macro actions, learns under Ray Train
and DeepSpeed, gives the engines the new weights and sees that they compute with them; publishes policy and critic as
models.

Left out: reward models (`headrace reward-model`). Called by `jobs.cli`; the engine half is `engine.rlhf`.
"""

from engine.rlhf.recipe import RlhfRecipe
from engine.runs import Invocation, Outcome

RECIPE = RlhfRecipe


def run(recipe: RlhfRecipe, call: Invocation) -> Outcome:
    """Draw, score, learn, publish."""
    from engine.rlhf import run_rlhf

    return run_rlhf(recipe, call)


if __name__ == "__main__":
    from jobs.cli import main

    main("rlhf")
