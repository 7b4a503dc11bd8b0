"""The recipe of a SIEVE job.

Left out: what the sections do (`engine.sieve.options` says it key by key). Called by `jobs.sieve`; light.
"""

from typing import Literal

from pydantic import Field, model_validator

from engine.config import knob
from engine.corpus.config import FilterConfig
from engine.corpus.recipe import DataRecipe
from engine.sieve.options import (
    BudgetOptions,
    FilterOptions,
    LoopOptions,
    StudentOptions,
    TeacherOptions,
    TruthOptions,
)


class SieveRecipe(DataRecipe):
    """The keys of a SIEVE recipe."""

    filters: FilterConfig = Field(default_factory=FilterConfig)
    """Which texts are dropped before anybody looks at them; exact duplicates are worth dropping."""
    criterion: str = Field(min_length=1)
    """What a text has to be, in plain language."""
    teacher: TeacherOptions
    """Who labels."""
    budget: BudgetOptions = Field(default_factory=BudgetOptions)
    """What it may cost."""
    student: StudentOptions = Field(default_factory=StudentOptions)
    """Who learns."""
    loop: LoopOptions = Field(default_factory=LoopOptions)
    """How questions are chosen."""
    filter: FilterOptions = Field(default_factory=FilterOptions)
    """What becomes of the corpus."""
    truth: TruthOptions | None = None
    """A column that says what is so, for experiments."""
    controls: list[Literal["published", "uncertainty", "random"]] = Field(default_factory=list)
    """Other query rules to run beside the loop's, each with a budget of the same size, for the report's curves."""
    compare: bool = False
    """Train the other kind of student on the same labels too, for the report."""
    cache: str | None = knob(None)
    """Where answers and features are kept for all runs; RUNS/cache if not given."""

    @model_validator(mode="after")
    def _answers_somewhere(self) -> "SieveRecipe":
        if self.teacher.kind == "labels" and self.truth is None:
            raise ValueError("a labels teacher needs the section truth (column, passes)")
        first = self.loop.warm_start + self.loop.validation + self.teacher.recheck
        if self.budget.queries < first:
            raise ValueError(
                f"budget.queries ({self.budget.queries}) is less than loop.warm_start + loop.validation"
                f" + teacher.recheck ({first})"
            )
        return self
