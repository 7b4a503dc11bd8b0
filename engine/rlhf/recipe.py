"""The recipe of `rlhf`.

Left out: what the sections do (`engine.rlhf.options` says it key by key). Called by `jobs.rlhf`; light.
"""

from pydantic import Field, model_validator

from engine.config import Recipe, Section, knob
from engine.corpus.config import SourceConfig
from engine.finetune.options import LoraOptions, OptimiserOptions, ParallelOptions
from engine.rlhf.options import CriticOptions, GuardOptions, LearningOptions, MacroOptions, RolloutOptions
from engine.rlhf.reward_options import RewardOptions


class PromptOptions(Section):
    """What is asked."""

    source: SourceConfig
    """`prompts`: rows with `prompt` and perhaps `reference`, which rewards may look at."""
    wording: str | None = None
    """What the model sees of a prompt, with {prompt}; special tokens in it are meant. Unset: the chat template."""
    window: int = Field(256, ge=1)
    """Most tokens of a prompt; a longer one is left out and counted."""
    limit: int | None = Field(None, ge=1)
    """So many prompts, drawn with the recipe's seed."""
    held_out: float = Field(0.1, ge=0, lt=1)
    """Share of the prompts that nothing is learnt from."""
    measured: int = Field(64, ge=1)
    """Most held-out prompts that are looked at."""
    measured_samples: int = Field(1, ge=1)
    """Responses to each of them."""


class RlhfRecipe(Recipe):
    """The keys of an `rlhf` recipe. `output` is where the policy is published; RUN/model if not given."""

    # Its weights decide, wherever they are: they are part of the fingerprint of the inputs.
    model: str = Field(json_schema_extra={"knob": True})
    """The policy to start from, and the reference: a directory, a hub name, or pkg:NAME."""
    prompts: PromptOptions
    """What is asked."""
    rewards: list[RewardOptions] = Field(min_length=1)
    """Who scores responses; their weighted sum is what is learnt from."""
    watched: list[RewardOptions] = []
    """Who else scores held-out responses: nothing is learnt from it."""
    macro: MacroOptions = Field(default_factory=MacroOptions)
    """Where a macro action ends, and what it earns."""
    learning: LearningOptions = Field(default_factory=LearningOptions)
    """What is learnt from a step's responses."""
    critic: CriticOptions = Field(default_factory=CriticOptions)
    """Who says what a state is worth."""
    rollout: RolloutOptions = Field(default_factory=RolloutOptions)
    """How responses are drawn."""
    guards: GuardOptions = Field(default_factory=GuardOptions)
    """When to stop."""
    optimiser: OptimiserOptions = Field(default_factory=lambda: OptimiserOptions(learning_rate=1e-5))
    """How the policy's weights are moved."""
    parallel: ParallelOptions = Field(default_factory=ParallelOptions)
    """Where learning runs."""
    lora: LoraOptions | None = None
    """Train an adapter instead of the weights."""
    output: str | None = None
    """Where the policy is published; RUN/model if not given."""
    threads: int | None = knob(None, ge=1)
    """Threads of a learner and of an engine, which take turns; all cores, divided by the learners, if not given."""
    stall_seconds: float = knob(2000, gt=0)
    """Time without any progress after which the job stops; longer than engines that start anew twice may take."""

    @model_validator(mode="after")
    def _fits(self) -> "RlhfRecipe":
        longest = self.prompts.window + self.rollout.max_tokens
        if longest > self.parallel.tokens_per_device:
            raise ValueError(
                f"prompts.window and rollout.max_tokens are {longest} together, more than parallel.tokens_per_device"
                f" ({self.parallel.tokens_per_device}); a response is never cut into micro-batches"
            )
        if self.learning.minibatches > self.rollout.prompts * self.rollout.samples:
            raise ValueError("learning.minibatches is more than a step has responses")
        if self.learning.advantage != "gae" and self.rollout.samples < 2:
            raise ValueError(
                f"learning.advantage {self.learning.advantage} compares responses; set rollout.samples to 2 or more"
            )
        if self.prompts.wording is not None and "{prompt}" not in self.prompts.wording:
            raise ValueError("prompts.wording needs {prompt}, the place of the prompt")
        if self.macro.strict_reference_compat and self.macro.ratio == "joint":
            raise ValueError("the reference implementation has no joint ratio; leave out macro.ratio")
        if self.macro.ratio == "joint" and self.rollout.asynchronous:
            raise ValueError("rollout.asynchronous corrects token by token; set macro.ratio: token")
        if self.rollout.engine == "transformers" and (self.rollout.engines > 1 or self.rollout.gpus):
            raise ValueError(
                "rollout.engine: transformers is one engine in the first learner; leave out engines and gpus"
            )
        if self.rollout.sync == "adapter" and not (self.lora and self.rollout.engine == "vllm"):
            raise ValueError("rollout.sync: adapter is for LoRA beside vLLM; leave it out")
        if self.rollout.transport != "object_store":
            if not self.rollout.gpus or not self.parallel.gpus:
                raise ValueError(
                    f"rollout.transport: {self.rollout.transport} goes from GPU to GPU; set rollout.gpus and"
                    " parallel.gpus, or leave it out"
                )
            if self.rollout.sync == "adapter":
                raise ValueError(f"rollout.transport: {self.rollout.transport} sends whole matrices; leave out sync")
        if self.lora and self.lora.dropout:
            raise ValueError(
                "lora.dropout makes the ratio of new to old policy a matter of chance; leave it out, the KL regularises"
            )
        names = [each.label for each in (*self.rewards, *self.watched)]
        if "reward" in names:
            raise ValueError("the sum of all is called reward; give that one another name")
        if len(set(names)) < len(names):
            raise ValueError("two of rewards and watched have the same name; give each a name of its own")
        return self

    @property
    def dtype(self) -> str:
        """Number format of weights and activations."""
        return self.learning.dtype or ("bfloat16" if self.parallel.gpus else "float32")

    @property
    def mismatch(self) -> float:
        """Largest mean difference between engine and learner on the first step's responses."""
        return self.guards.mismatch or (0.05 if self.dtype == "float32" else 0.1)

    @property
    def probe(self) -> float:
        """Largest difference on a fixed text after a sync."""
        return self.guards.probe or (0.02 if self.dtype == "float32" else 0.3)
