"""Fine-tune a causal language model on demonstrations, edit sequences, programs or plain text.

Reads `demonstrations` (messages), `responses` (prompt, response), `edit_sequences`, `instructions` or `documents`,
tokenises them exactly once, trains under Ray Train and DeepSpeed, and publishes the weights with the lowest held-out
loss as an ordinary Hugging Face directory. Refuses rows that hold a problem of HumanEval.

Left out: reward models (`headrace reward-model`) and evaluation (`headrace evaluate`). Called by `jobs.cli`; the engine
half is `engine.finetune`.
"""

from engine.finetune.recipe import SftRecipe
from engine.runs import Invocation, Outcome

RECIPE = SftRecipe


def run(recipe: SftRecipe, call: Invocation) -> Outcome:
    """Tokenise, train, publish."""
    from engine.evaluation import given_away
    from engine.finetune import FineTuningJob, run_fine_tuning

    job = FineTuningJob(
        name="sft",
        given_away=given_away,
        next_command=lambda model: (
            f"headrace evaluate jobs/recipes/evaluate_smoke.yaml name=sft-{recipe.name} model={model}"
        ),
    )
    return run_fine_tuning(job, recipe, call)


if __name__ == "__main__":
    from jobs.cli import main

    main("sft")
