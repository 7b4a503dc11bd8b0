"""Write responses to prompts with a model, or with a base and a value network at a given beta.

Reads `prompts` (a column `prompt`) or `demonstrations` (`messages`) and publishes each row with the model's `response`,
how it ended, its tokens and its seed: in the form that `headrace sft` reads with format responses, or chat. A value
network is added as at the endpoint. Seeded per row: a run that was killed goes on to what it would have written.

Left out: measuring what is written (`headrace evaluate`), serving. Called by `jobs.cli`; the engine half is
`engine.value_network`.
"""

from dataclasses import replace

from engine.runs import Invocation, Outcome
from engine.value_network.generate_recipe import GenerateRecipe

RECIPE = GenerateRecipe


def run(recipe: GenerateRecipe, call: Invocation) -> Outcome:
    """Read prompts, write responses, publish."""
    from engine.artifacts import read_dataset
    from engine.corpus import Transform, run_transform
    from engine.value_network import narrate_responses, prepare_responses, response_facts, response_statistics

    prepared = prepare_responses(recipe)
    messages = recipe.rows == "demonstrations"
    transform = Transform(
        job="generate",
        reads=recipe.rows,
        writes="demonstrations" if messages else "responses",
        content="messages" if messages else "prompt",
        source=prepared.source,
        filters=recipe.filters,
        stages=prepared.stages(),
        statistics=response_statistics,
        narrate=narrate_responses,
        uses=prepared.uses,
        models=lambda: prepared.uses,
        limited_by_codec=False,
        hints={
            "generate": "a smaller sampling.max_tokens, a larger at_once, or actors on more cores or GPUs.",
            "start Ray": "give --address of a running Ray to skip it.",
        },
    )
    outcome = run_transform(transform, recipe, call)
    if call.dry_run:
        return replace(outcome, facts={**prepared.facts(), **outcome.facts})
    facts = {**outcome.facts, **response_facts(read_dataset(outcome.output))}
    return replace(outcome, facts=facts, next_command=f"open {outcome.report}" if outcome.report else "")


if __name__ == "__main__":
    from jobs.cli import main

    main("generate")
