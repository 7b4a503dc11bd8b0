"""The recipes of the jobs that fine-tune: `sft` and `reward-model`.

Left out: what the sections do (`engine.finetune.options` says it key by key). Called by `jobs`; light.
"""

from typing import Literal

from pydantic import Field, model_validator

from engine.config import knob
from engine.corpus.config import FilterConfig
from engine.corpus.recipe import DataRecipe
from engine.finetune.options import (
    Format,
    LoraOptions,
    OptimiserOptions,
    ParallelOptions,
    TaskOptions,
    TokenOptions,
    TrainingOptions,
)


class FineTuningRecipe(DataRecipe):
    """What both jobs share. `output` is where the model is published; RUN/model if not given."""

    # Its weights decide, wherever they are: they are part of the fingerprint of the inputs.
    model: str = Field(json_schema_extra={"knob": True})
    """The model to start from: a directory, a hub name, or pkg:NAME."""
    format: Format
    """What a row is."""
    filters: FilterConfig = Field(default_factory=FilterConfig)
    """Which rows are dropped before they are looked at; for rows of text `where` alone makes sense."""
    tokens: TokenOptions = Field(default_factory=TokenOptions)
    """How rows become tokens."""
    training: TrainingOptions = Field(default_factory=TrainingOptions)
    """How long is trained."""
    optimiser: OptimiserOptions = Field(default_factory=OptimiserOptions)
    """How weights are moved."""
    parallel: ParallelOptions = Field(default_factory=ParallelOptions)
    """Where it runs."""
    lora: LoraOptions | None = None
    """Train an adapter instead of the whole model."""
    shared: str | None = knob(None)
    """Directory in which runs keep what they have in common, named by what it depends on and made once: datasets
    of tokens, logits of a value network's bases; in RUN if not given."""
    tasks: TaskOptions | None = None
    """Learn from some tasks only, where rows have a column `task`."""

    @model_validator(mode="after")
    def _fits(self) -> "FineTuningRecipe":
        if self.tokens.window > self.parallel.tokens_per_device:
            raise ValueError(
                f"tokens.window ({self.tokens.window}) is more than parallel.tokens_per_device"
                f" ({self.parallel.tokens_per_device}); an example is never cut into micro-batches"
            )
        if self.tokens.bpe_dropout and self.format not in ("chat", "responses", "edits", "programs"):
            raise ValueError(f"tokens.bpe_dropout is not for format {self.format}")
        if self.tokens.bpe_dropout and self.training.steps:
            raise ValueError(
                "tokens.bpe_dropout goes by training.epochs, not by training.steps: each has its own spelling"
            )
        if self.tasks and self.tokens.bpe_dropout:
            raise ValueError("tokens.bpe_dropout is not for a recipe with tasks")
        if self.training.patience and not self.tokens.held_out:
            raise ValueError("training.patience needs tokens.held_out, a share of the prompts to be measured on")
        return self


class SftRecipe(FineTuningRecipe):
    """The keys of an `sft` recipe."""

    format: Literal["chat", "responses", "edits", "programs", "text"]
    """chat: demonstrations (messages); responses: prompt and response; edits: LintSeq's edit sequences; programs:
    instruction and program; text: documents, cut into windows."""


class RewardRecipe(FineTuningRecipe):
    """The keys of a `reward-model` recipe."""

    format: Literal["pairs", "labels"]
    """pairs: preferences (prompt, chosen, rejected); labels: text and label."""

    @model_validator(mode="after")
    def _holds_a_pair(self) -> "RewardRecipe":
        if self.format == "pairs" and 2 * self.tokens.window > self.parallel.tokens_per_device:
            raise ValueError(
                f"parallel.tokens_per_device ({self.parallel.tokens_per_device}) must hold a pair, twice tokens.window"
                f" ({self.tokens.window})"
            )
        return self

    classes: dict[str, Literal[0, 1]] = {"0": 0, "1": 1}
    """labels: what a label stands for, 1 for what shall score high; rows with any other are dropped and counted."""
