"""Walk a list of jobs, each one's published output handed to those after it.

A stage whose output is there and still matches its recipe and inputs is skipped; one whose inputs have changed is set
aside and made anew; one that was killed resumes. So the same command goes on from wherever the last one stopped.

Left out: what the stages do. Called by `jobs.cli`, and by `make quickstart` with its smoke recipe.
"""

from collections import Counter
from dataclasses import replace
from typing import Any

from pydantic import Field, field_validator

from engine.config import Recipe, Section, build_recipe, read_yaml, set_key
from engine.errors import Outdated, RecipeError
from engine.observe import Stopwatch
from engine.runs import Invocation, Outcome, Run
from jobs.registry import PIPELINE_JOBS, load_job


class PipelineStage(Section):
    """One job of the road."""

    job: str
    """Which job."""
    recipe: str
    """Its recipe file."""
    name: str = Field("", pattern=r"^[A-Za-z0-9._-]*$")
    """What later stages call it, and the end of its run's name; the job's name if not given."""
    inputs: dict[str, str] = {}
    """Recipe key -> the earlier stage whose output it takes, for example {source.paths: corpus}."""
    set: dict[str, Any] = {}
    """Recipe keys (dotted) to change."""

    @field_validator("job")
    @classmethod
    def _known(cls, job: str) -> str:
        if job not in PIPELINE_JOBS:
            raise ValueError(f"should be one of {', '.join(PIPELINE_JOBS)}")
        return job

    @property
    def label(self) -> str:
        """What later stages call it."""
        return self.name or self.job


class PipelineRecipe(Recipe):
    """The keys of a pipeline recipe."""

    stages: list[PipelineStage] = Field(min_length=1)
    """The jobs, first to last; each has job, recipe, and optionally name, inputs, set."""

    @field_validator("stages")
    @classmethod
    def _told_apart(cls, stages: list[PipelineStage]) -> list[PipelineStage]:
        for label, count in Counter(stage.label for stage in stages).items():
            if count > 1:
                raise ValueError(f"{count} stages are called {label!r}; give each a name of its own")
        return stages


RECIPE = PipelineRecipe


def run(recipe: PipelineRecipe, call: Invocation) -> Outcome:
    """Run the stages in order; returns the last one's outcome with the shares of the whole walk."""
    watch = Stopwatch()
    outputs: dict[str, str] = {}
    facts: dict[str, str] = {}
    # A mistake in the last stage is told before the first one works for hours.
    for stage in recipe.stages:
        _recipe_of(stage, recipe, outputs)
    for stage in recipe.stages:
        prepared = _recipe_of(stage, recipe, outputs)
        if call.dry_run and any(source not in outputs for source in stage.inputs.values()):
            facts[stage.label] = "runs once the stages before it have published"
            continue
        with watch.phase(stage.label):
            outcome = _run_stage(stage, prepared, call)
        if outcome.published or outcome.reused:
            outputs[stage.label] = str(outcome.output)
        state = "kept" if outcome.reused else "published" if outcome.published else "would publish"
        rows = f" {outcome.facts['rows']} rows at" if "rows" in outcome.facts else ""
        why = f" (made anew: {outcome.facts['made anew']})" if "made anew" in outcome.facts else ""
        facts[stage.label] = f"{state}{rows} {outcome.output}{why}"
    if call.dry_run:
        return Outcome("pipeline", Run("pipeline", recipe).path, facts, published=False)
    return replace(outcome, job="pipeline", facts=facts, shares=watch.shares())


def _run_stage(stage: PipelineStage, recipe: Recipe, call: Invocation) -> Outcome:
    job = load_job(stage.job)
    try:
        outcome: Outcome = job.run(recipe, call)
    except Outdated as refusal:
        outcome = job.run(recipe, replace(call, fresh=True))
        return replace(outcome, facts={**outcome.facts, "made anew": refusal.problem})
    return outcome


def _recipe_of(stage: PipelineStage, recipe: PipelineRecipe, outputs: dict[str, str]) -> Recipe:
    """The stage's recipe, named after the pipeline, with its inputs and changed keys filled in."""
    data = read_yaml(stage.recipe)
    name = f"{recipe.name}-{stage.name}" if stage.name else recipe.name
    changes: dict[str, Any] = {"name": name, "runs": recipe.runs, "seed": recipe.seed, **stage.set}
    labels = [each.label for each in recipe.stages[: recipe.stages.index(stage)]]
    for key, source in stage.inputs.items():
        if source not in labels:
            raise RecipeError(
                f"Stage {stage.label} takes its {key} from {source!r}, which is no stage before it.",
                f"Name one of: {', '.join(labels) or 'none'}.",
            )
        output = outputs.get(source, f"<output of {source}>")
        changes[key] = [output] if key.endswith("paths") else output
        if key == "source.paths":
            changes["source.roots"] = [output]
    for key, value in changes.items():
        set_key(data, key, value)
    return build_recipe(load_job(stage.job).RECIPE, data, where=stage.recipe)


if __name__ == "__main__":
    from jobs.cli import main

    main("pipeline")
