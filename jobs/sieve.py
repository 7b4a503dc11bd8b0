"""Filter a corpus by a plain-language criterion (SIEVE, arXiv 2410.02755).

A costly teacher labels a few snippets chosen by active learning, a light student learns from them, and the student
filters the whole corpus. Publishes the student (RUN/student) and `documents` with a column `sieve_score`.

Left out: filtering with a student that is there already (`headrace sieve-apply`) and serving one (`headrace serve`).
Called by `jobs.cli`; the engine half is `engine.sieve`.
"""

from dataclasses import replace
from functools import partial

from engine.runs import Invocation, Outcome, Run
from engine.sieve.recipe import SieveRecipe

RECIPE = SieveRecipe


def run(recipe: SieveRecipe, call: Invocation) -> Outcome:
    """Distil, filter, publish."""
    from engine.artifacts import read_model
    from engine.corpus import Transform, run_transform
    from engine.models import resolve
    from engine.sieve import check_key, demands, distil, filter_stages, narrate, statistics

    check_key(recipe.teacher)
    if not call.dry_run:  # what is no model is told here, before Ray starts
        resolve(recipe.student.model)
        if recipe.teacher.kind in ("vllm", "scorer"):
            resolve(recipe.teacher.model)
    student = Run("sieve", recipe).path / "student"
    transform = Transform(
        job="sieve",
        reads="documents",
        writes="documents",
        content="text",
        stages=filter_stages(student, recipe.filter),
        filters=recipe.filters,
        statistics=statistics,
        narrate=partial(narrate, recipe=recipe, student=student),
        first=partial(distil, recipe),
        first_demands=demands(recipe),
        models=lambda: {"student": read_model(student).fingerprint},
        hints={
            "learn": "a smaller budget, a lighter teacher, or student.kind=frozen.",
            "score": "add cores with workers=..., or a smaller student.",
            "start Ray": "give --address of a running Ray to skip it.",
        },
    )
    outcome = run_transform(transform, recipe, call)
    following = f"headrace sieve-apply RECIPE.yaml student={student}"
    return replace(outcome, next_command=following) if outcome.published else outcome


if __name__ == "__main__":
    from jobs.cli import main

    main("sieve")
