"""Stream a corpus of any format into a published dataset.

Reads Parquet, JSONL and CSV (plain, gz, zst), text, HTML and source trees or WARC, from local paths or s3, gs, az and
hf URIs; drops rows by other columns, length, symbols, repetition, language and exact duplicates, each drop counted by
its reason; publishes `documents` (column text) or, with `source.format: python`, `instructions` (docstring as
instruction, function as program).

Left out: learned filters (`headrace sieve`). Called by `jobs.cli`; the engine half is `engine.corpus`.
"""

from dataclasses import replace
from typing import Literal

from engine.config import Field
from engine.corpus.config import FilterConfig
from engine.corpus.recipe import DataRecipe
from engine.runs import Invocation, Outcome


class CorpusRecipe(DataRecipe):
    """The keys of a corpus recipe."""

    rows: Literal["documents", "instructions"] = "documents"
    """Schema of the dataset; with `source.format: python` always instructions."""
    filters: FilterConfig = Field(default_factory=FilterConfig)
    """Which rows are dropped on the way."""


RECIPE = CorpusRecipe


def run(recipe: CorpusRecipe, call: Invocation) -> Outcome:
    """Read, filter and publish."""
    from engine.corpus import Transform, count_documents, run_transform

    rows = "instructions" if recipe.source.format == "python" else recipe.rows
    content = "program" if rows == "instructions" else "text"
    transform = Transform(
        job="corpus",
        reads=rows,
        writes=rows,
        content=content,
        filters=recipe.filters,
        statistics=count_documents(content),
        hints={
            "read": "compressed JSONL and HTML cost the most; Parquet reads fastest.",
            "duplicates": "exact duplicates read the corpus twice; leave them to a later job if it is clean.",
            "start Ray": "give --address of a running Ray to skip it.",
        },
    )
    outcome = run_transform(transform, recipe, call)
    if rows == "instructions":
        keys = f"name=corpus-{recipe.name} 'source.paths=[{outcome.output}]'"
        following = f"headrace lintseq jobs/recipes/lintseq_smoke.yaml {keys}"
        return replace(outcome, next_command=following)
    return outcome


if __name__ == "__main__":
    from jobs.cli import main

    main("corpus")
