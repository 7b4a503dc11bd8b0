"""Train a reward model: one score per text, from preferences or from labels.

Reads `preferences` (prompt, chosen, rejected) or `labels` (text, label 0 or 1), and publishes an ordinary Hugging Face
classifier of one output, with its accuracy and calibration on held-out rows. Any causal language model or encoder will
do.

Left out: using it (`headrace evaluate`). Called by `jobs.cli`; the engine half is `engine.finetune`.
"""

from engine.finetune.recipe import RewardRecipe
from engine.runs import Invocation, Outcome

RECIPE = RewardRecipe


def run(recipe: RewardRecipe, call: Invocation) -> Outcome:
    """Tokenise, train, publish."""
    from engine.evaluation import given_away
    from engine.finetune import FineTuningJob, run_fine_tuning

    job = FineTuningJob(
        name="reward-model",
        given_away=given_away,
    )
    return run_fine_tuning(job, recipe, call)


if __name__ == "__main__":
    from jobs.cli import main

    main("reward-model")
