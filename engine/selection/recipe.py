"""The recipe of the job `select-tasks`: how a chosen subset will be trained, as for `sft`, and how it is chosen.

Left out: what fine-tuning has in common (`engine.finetune.recipe`). Called by `jobs`; light.
"""

from typing import Literal

from pydantic import Field, model_validator

from engine.config import Section
from engine.finetune.options import LoraOptions
from engine.finetune.recipe import SftRecipe


class EstimateOptions(Section):
    """How the loss of a subset is estimated (`engine.selection.estimator`)."""

    width: int = Field(200, ge=8)
    """Numbers that a gradient is projected to."""
    mode: Literal["offset", "repo"] = "offset"
    """offset: the regression counts what the model has learnt already; repo: as the released code of GradEx does,
    without that, and with steps of one length."""
    start: Literal["base", "meta"] = "base"
    """offset: where a step begins: at the model before any training, as the training of a subset does; or at the
    meta-initialisation, the paper's."""
    ridge: float | None = Field(None, gt=0)
    """Weight of the step's squared length; unset: the one by which it is as long as the meta-training's measurements
    say; repo: 10,000, the released code's."""
    scale: float = Field(0.4, gt=0)
    """repo: length of a step, as a share of that of the trained parameters."""

    @model_validator(mode="after")
    def _says_how_far(self) -> "EstimateOptions":
        if self.mode == "offset" and self.start == "meta" and self.ridge is None:
            raise ValueError("start: meta needs a ridge; try a tenth of the number of examples")
        return self


class MethodOptions(Section):
    """How tasks are chosen (`engine.selection.selectors`)."""

    method: Literal["forward", "ensemble", "all", "random", "gradient", "representation", "trained"] = "forward"
    """forward: greedily by estimates; ensemble: by mean estimates of random subsets; gradient, representation: the most
    like the target; trained: greedily by real trainings, of eight candidates at most."""
    most: int | None = Field(None, ge=1)
    """forward, trained: choose so many at the most."""
    size: int | None = Field(None, ge=1)
    """random, gradient, representation: choose so many; unset: as many as forward selection would."""
    subsets: int = Field(1000, ge=1)
    """ensemble: how many random subsets."""
    share: float = Field(0.5, gt=0, le=1)
    """ensemble: share of the tasks in each."""
    threshold: float | None = None
    """ensemble: keep tasks whose mean estimate is no higher; unset: the cut with the lowest estimate."""


class SelectRecipe(SftRecipe):
    """The keys of a `select-tasks` recipe; `output` is where the chosen tasks are published."""

    target: str
    """The task to be good at. Its rows are never learnt from: tasks are chosen by those that are not held out."""
    candidates: list[str] | None = Field(None)
    """The tasks to choose from; unset: all but the target."""
    lora: LoraOptions = LoraOptions()
    """The adapter, by whose gradients subsets are estimated."""
    estimate: EstimateOptions = Field(default_factory=EstimateOptions)
    """How the loss of a subset is estimated."""
    select: MethodOptions = Field(default_factory=MethodOptions)
    """How tasks are chosen."""

    @model_validator(mode="after")
    def _has_a_choice(self) -> "SelectRecipe":
        names = self.candidates
        if self.tasks is not None:
            raise ValueError("tasks is what this job finds; say target and candidates")
        if names is None:
            return self
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ValueError(f"candidates names {twice[0]!r} more than once")
        if self.target in names:
            raise ValueError(f"candidates names the target, {self.target!r}, which is never learnt from")
        if len(names) < 2:
            raise ValueError("candidates should name two tasks at least: there is nothing to choose")
        return self
