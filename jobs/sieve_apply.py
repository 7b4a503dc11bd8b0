"""Filter a corpus with a student that `headrace sieve` has published.

Publishes `documents` with a column `sieve_score`; asks no teacher. Left out: making the student (`headrace sieve`).
Called by `jobs.cli`; the engine half is `engine.sieve`.
"""

from engine.config import Field
from engine.corpus.recipe import DataRecipe
from engine.runs import Invocation, Outcome
from engine.sieve.options import FilterOptions


class SieveApplyRecipe(DataRecipe):
    """The keys of a recipe that applies a student."""

    student: str
    """The directory of a published student: RUN/student of a SIEVE job."""
    filter: FilterOptions = Field(default_factory=FilterOptions)
    """What becomes of the corpus."""


RECIPE = SieveApplyRecipe


def run(recipe: SieveApplyRecipe, call: Invocation) -> Outcome:
    """Score, filter, publish."""
    from engine.artifacts import read_model
    from engine.corpus import Transform, run_transform
    from engine.sieve import describe_scores, filter_stages, statistics
    from engine.storage import locate

    model = read_model(locate(recipe.student))
    uses = {"student": model.fingerprint}
    transform = Transform(
        job="sieve-apply",
        reads="documents",
        writes="documents",
        content="text",
        stages=filter_stages(model.path, recipe.filter),
        statistics=statistics,
        narrate=describe_scores,
        uses=uses,
        models=lambda: uses,
        hints={
            "score": "add cores with workers=..., or distil a smaller student.",
            "start Ray": "give --address of a running Ray to skip it.",
        },
    )
    return run_transform(transform, recipe, call)


if __name__ == "__main__":
    from jobs.cli import main

    main("sieve-apply")
