"""Recipe sections of RLHF: `macro:`, `learning:`, `critic:`, `rollout:`, `guards:`.

Left out: what the keys do (the modules named in them). Light: it imports neither torch nor ray. Called by the recipe.
"""

from typing import Literal

from pydantic import Field, field_validator

from engine.config import Section, knob

_RULES = ("token", "random", "perplexity", "perplexity_step", "sentence", "syntax", "parse", "whole")


class MacroOptions(Section):
    """Macro actions: where they end and how they are credited (`engine.rlhf.segmenters`, `engine.rlhf.credit`)."""

    rule: str = "fixed:5"
    """token, fixed:N, random, perplexity, perplexity_step, sentence, syntax, parse or whole."""
    ratio: Literal["token", "joint"] = "token"
    """The policy's ratio: of each token, or of a macro's tokens together."""
    value_weighting: Literal["equal", "unit", "first_heavy", "last_heavy"] = "equal"
    """What the values of a macro's tokens count in its own."""
    reward_aggregation: Literal["sum", "mean"] = "sum"
    """What a macro earns of what its tokens earn."""
    value_loss: Literal["token", "macro"] = "token"
    """The critic's error: of each token's value, or of the macro's."""
    gamma: float = Field(1.0, gt=0, le=1)
    """Discount."""
    lam: float = Field(0.95, ge=0, le=1)
    """GAE's lambda, once per macro."""
    discount: Literal["macro", "smdp"] = "macro"
    """Discounted once per macro, or by its length."""
    strict_reference_compat: bool = False
    """Segment and aggregate as the reference implementation does, its quirks included (`engine.rlhf.reference`)."""

    @field_validator("rule")
    @classmethod
    def _known(cls, rule: str) -> str:
        kind, _, number = rule.partition(":")
        if rule not in _RULES and not (kind == "fixed" and number.isdigit() and int(number)):
            raise ValueError(f"is none of {', '.join(_RULES)}, fixed:N")
        return rule


class LearningOptions(Section):
    """What is learnt from a step's rollouts (`engine.rlhf.learner`)."""

    steps: int = Field(100, ge=1)
    """Rollouts and updates, one after the other."""
    epochs: int = Field(1, ge=1)
    """Times that a step's responses are learnt from."""
    minibatches: int = Field(1, ge=1)
    """Updates in each of them."""
    advantage: Literal["gae", "rloo", "grpo"] = "gae"
    """GAE with a critic, or what a response is better than others to the same prompt."""
    clip: float = Field(0.2, gt=0)
    """How far a ratio may move before it counts no more."""
    layers: int | None = Field(None, ge=1)
    """The last so many layers learn, the others are run once per step; unset: all of the model."""
    kl: float = Field(0.05, ge=0)
    """Coefficient of the log-ratio to the reference that every token pays."""
    kl_target: float | None = Field(None, gt=0)
    """Adapt the coefficient so that responses come to about so many nats (Ziegler et al., arXiv 1909.08593)."""
    kl_horizon: int = Field(10_000, ge=1)
    """Responses over which it adapts."""
    kl_loss: float = Field(0.0, ge=0)
    """Coefficient of an estimate of the KL in the loss."""
    reward_clip: float | None = Field(None, gt=0)
    """Scores are cut to +- this."""
    whiten_rewards: bool = False
    """Divide the tokens' rewards by their standard deviation over the step."""
    whiten_advantages: bool = False
    """Give the advantages of a step mean 0 and standard deviation 1."""
    missing_end: float | None = None
    """Score of a response that did not end by itself, whatever it says; unset: as it is scored."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Number format of weights and activations; bfloat16 on GPUs and float32 without them if not given."""
    measure_every: int = Field(10, ge=1)
    """Steps between two looks at the held-out prompts."""
    checkpoint_every: int = knob(10, ge=1)
    """Steps between two checkpoints."""
    restarts: int = knob(2, ge=0)
    """Times that it goes on from the last checkpoint after a worker has died."""


class CriticOptions(Section):
    """Who says what a state is worth."""

    kind: Literal["head", "model"] = "head"
    """A small network on the reference's last hidden states, which are there anyway; or a model of its own."""
    # Its weights decide, as those of the policy do.
    model: str | None = knob(None)
    """What it starts from. model: a reward model say, or the policy's own if not given; head: the critic of another
    run with the same policy, or nothing."""
    width: int = Field(128, ge=1)
    """head: its hidden layer."""
    learning_rate: float = Field(1e-3, gt=0)
    """Peak learning rate; the rest is as in `optimiser`."""
    clip: float | None = Field(0.2, gt=0)
    """How far a value may move from the old one before its error counts no more; null: any."""


class RolloutOptions(Section):
    """How responses are drawn (`engine.rlhf.engines`)."""

    prompts: int = Field(32, ge=1)
    """Prompts per step."""
    samples: int = Field(1, ge=1)
    """Responses to each."""
    max_tokens: int = Field(64, ge=1)
    """A response is cut off here."""
    temperature: float = Field(1.0, gt=0)
    """Divides logits; the learner's log-probabilities are of the same distribution."""
    engine: Literal["vllm", "transformers"] = knob("vllm")
    """vLLM in actors of its own, or the model's own forward."""
    engines: int = knob(1, ge=1)
    """Engines."""
    cpus: float | None = knob(None, gt=0)
    """Cores that each takes of what Ray gives out; half a one if not given, beside a GPU one."""
    gpus: float = knob(0, ge=0)
    """GPUs of each."""
    at_once: int = knob(64, ge=1)
    """Sequences that an engine works on at a time."""
    asynchronous: bool = False
    """Draw the next step's responses while this one is learnt from: from weights one update behind, corrected for."""
    importance_cap: float = Field(2.0, ge=1)
    """asynchronous: most that a token's ratio of new to old policy weighs."""
    transport: Literal["object_store", "nccl", "ipc"] = knob("object_store")
    """How weights get to engines in actors: Ray's object store; from GPU to GPU by vLLM's own transfer, over NCCL or,
    where learner and engine share a GPU, CUDA IPC."""
    sync: Literal["merged", "adapter"] = knob("merged")
    """With LoRA, what is sent: whole matrices with the adapter added, or the adapter alone, which the engine's process
    then adds to the model's own."""
    recorded: str | None = None
    """A run directory of this job whose responses and scores are learnt from again: nothing is drawn, and there is no
    engine."""
    stall_seconds: float = knob(600, gt=0)
    """Longest wait for an engine."""

    @property
    def with_actors(self) -> bool:
        """Whether engines have actors of their own."""
        return self.engine == "vllm" and not self.recorded

    @property
    def share(self) -> float:
        """Cores that an engine takes of what Ray gives out: beside learners it works while they wait."""
        return self.cpus or (1 if self.gpus else 0.5)


class GuardOptions(Section):
    """When to stop rather than learn something wrong."""

    mismatch: float | None = Field(None, gt=0)
    """Largest mean difference of log-probabilities between engine and learner on a step's responses, where both have
    the same weights; 0.05 in float32 and 0.1 in bfloat16 if not given."""
    probe: float | None = Field(None, gt=0)
    """Largest difference on a fixed text after each sync; 0.02 in float32 and 0.3 in bfloat16 if not given."""
    max_kl: float | None = Field(None, gt=0)
    """Stop when a step's responses are so many nats from the reference on average; that step is still learnt from."""
    min_entropy: float | None = Field(None, gt=0)
    """Stop when tokens have less entropy than so many nats on average."""
