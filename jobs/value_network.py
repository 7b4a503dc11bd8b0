"""Train a value network: a small model whose logits, added to those of a frozen one, do what fine-tuning it would.

Reads what `headrace sft` reads, and one or several frozen bases. Publishes the value network as a model directory with
a card that says how it is connected; it is then put beside any base of the same vocabulary.

Left out: using it (`engine.value_network.generation`). Called by `jobs.cli`; the engine half is
`engine.value_network` on the training parts of `engine.finetune`.
"""

from engine.runs import Invocation, Outcome
from engine.value_network.recipe import ValueRecipe

RECIPE = ValueRecipe


def run(recipe: ValueRecipe, call: Invocation) -> Outcome:
    """Tokenise, train, publish."""
    from engine.evaluation import given_away
    from engine.finetune import FineTuningJob, run_fine_tuning
    from engine.models import portable
    from engine.value_network import cache_facts, check_same_vocabulary, value_config, value_task

    recipe = recipe.model_copy(update={"bases": [portable(each) for each in recipe.bases]})
    check_same_vocabulary(recipe.model, recipe.bases)
    job = FineTuningJob(
        name="value-network",
        given_away=given_away,
        make_task=value_task,
        others=lambda recipe: {f"base {at}": each for at, each in enumerate(recipe.bases, 1)},
        shape=value_config,
        told=cache_facts,
    )
    return run_fine_tuning(job, recipe, call)


if __name__ == "__main__":
    from jobs.cli import main

    main("value-network")
