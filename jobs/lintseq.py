"""Refactor programs into sequences of error-free edits (LintSeq, arXiv 2410.02749).

Reads `instructions` (instruction, program) and publishes `edit_sequences`: for each program and path the insertions
that build it up, every state on the way free of errors that the linter sees. Seeded per row and path: any number of
workers gives the same output.

Left out: training on them (`headrace sft`). Called by `jobs.cli`; the engine half is `engine.lintseq`.
"""

from dataclasses import replace
from functools import partial
from typing import Any

from engine.config import Field, knob
from engine.corpus.recipe import DataRecipe
from engine.lintseq.options import LintSeqOptions
from engine.runs import Invocation, Outcome


class LintSeqRecipe(DataRecipe):
    """The keys of a LintSeq recipe."""

    lintseq: LintSeqOptions = Field(default_factory=LintSeqOptions)
    """How programs are taken apart."""
    oracle_states: int = knob(100, ge=0)
    """Intermediate states shown to the oracle (pylint) for the report; 0 leaves it out."""


RECIPE = LintSeqRecipe


def run(recipe: LintSeqRecipe, call: Invocation) -> Outcome:
    """Read programs, sample edit sequences, publish."""
    from engine.corpus import Stage, Transform, run_transform
    from engine.lintseq import LintSeqActor, counting_tokenizer, linter_for, narrate, statistics

    linter_for(recipe.lintseq)  # a grammar or a tokenizer that is not there is told here, before Ray starts
    arguments: dict[str, Any] = {"seed": recipe.seed, "options": recipe.lintseq}
    if recipe.lintseq.tokenizer:
        arguments["tokenizer"] = counting_tokenizer(recipe.lintseq.tokenizer)

    def stages(cores: int) -> list[Stage]:
        return [Stage("lint", LintSeqActor, arguments, actors=cores)]

    transform = Transform(
        job="lintseq",
        reads="instructions",
        writes="edit_sequences",
        content="program",
        stages=stages,
        statistics=partial(statistics, tokens=bool(recipe.lintseq.tokenizer)),
        narrate=partial(narrate, options=recipe.lintseq, oracle_states=recipe.oracle_states),
        hints={
            "lint": "add cores with workers=..., or choose lintseq.linter=fast.",
            "start Ray": "give --address of a running Ray to skip it.",
        },
    )
    outcome = run_transform(transform, recipe, call)
    return replace(outcome, next_command=f"open {outcome.report}") if outcome.report else outcome


if __name__ == "__main__":
    from jobs.cli import main

    main("lintseq")
