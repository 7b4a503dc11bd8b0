"""The recipe of an evaluation, all but the teacher that may judge and its budget, which `jobs.evaluate` adds.

Left out: what the sections do (`engine.evaluation.options` says it key by key). Called by `jobs.evaluate`; light.
"""

from pydantic import Field, model_validator

from engine.corpus.recipe import StreamRecipe
from engine.evaluation.options import (
    EngineOptions,
    HeldoutOptions,
    HumanEvalOptions,
    JudgeOptions,
    PromptOptions,
    RewardOptions,
    RobustnessOptions,
    SamplingOptions,
)
from engine.evaluation.sandbox import SandboxOptions


class EvaluationRecipe(StreamRecipe):
    """The keys of an evaluation; a section that is not there is not measured."""

    # Its weights decide, wherever they are: they are part of the fingerprint of the inputs.
    model: str = Field(json_schema_extra={"knob": True})
    """The model: a directory, an artifact, a hub name or pkg:NAME."""
    humaneval: HumanEvalOptions | None = None
    """Functions to be written, run against their tests."""
    prompts: PromptOptions | None = None
    """Prompts to be answered, for `reward` and `judge`."""
    heldout: HeldoutOptions | None = None
    """Texts for perplexity."""
    robustness: RobustnessOptions | None = None
    """The same with disturbed wording."""
    reward: RewardOptions | None = None
    """Who scores the answers to prompts."""
    judge: JudgeOptions | None = None
    """Who compares answers with others."""
    sampling: SamplingOptions = Field(default_factory=SamplingOptions)
    """How answers are drawn."""
    engine: EngineOptions = Field(default_factory=EngineOptions)
    """What generates."""
    sandbox: SandboxOptions = Field(default_factory=SandboxOptions)
    """What the programs may use."""

    @model_validator(mode="after")
    def _asks_something(self) -> "EvaluationRecipe":
        if not (self.humaneval or self.prompts or self.heldout):
            raise ValueError("there is nothing to measure; give at least one of humaneval, prompts and heldout")
        if self.reward and not self.prompts:
            raise ValueError("reward scores answers to prompts; give the section prompts")
        if self.judge and not (self.humaneval or self.prompts):
            raise ValueError("judge compares answers; give the section prompts or humaneval")
        if self.judge and self.judge.by == "reward" and not self.reward:
            raise ValueError("judge.by=reward needs the section reward")
        drawn = [each.samples for each in (self.humaneval, self.prompts) if each]
        if self.sampling.temperature == 0 and max(drawn, default=1) > 1:
            raise ValueError("several samples at temperature 0 are all the same; set sampling.temperature, say 0.8")
        if self.robustness and drawn and self.robustness.samples > min(drawn):
            raise ValueError("robustness.samples is larger than the samples of what it is compared with")
        if self.robustness and not drawn and self.heldout and self.heldout.rows == "documents":
            raise ValueError("robustness disturbs questions, of which heldout.rows=documents has none")
        return self
