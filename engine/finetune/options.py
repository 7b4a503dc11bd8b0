"""Recipe sections of every training job: `tokens:`, `training:`, `optimiser:`, `parallel:` and `lora:`.

Left out: what the keys do (the modules named in them). Light: it imports neither torch nor ray. Called by the recipe
classes of the jobs that train.
"""

from typing import Literal

from pydantic import Field, model_validator

from engine.config import Section, knob

Format = Literal["chat", "responses", "edits", "programs", "text", "pairs", "labels"]


class TokenOptions(Section):
    """How rows become tokens (`engine.finetune.tokenise`)."""

    window: int = Field(1024, ge=16)
    """Most tokens of an example."""
    long: Literal["drop", "truncate"] = "drop"
    """What becomes of a longer one: it is dropped and counted, or keeps its first tokens."""
    held_out: float = Field(0.05, ge=0, lt=1)
    """Share of the prompts (with all that belongs to them) kept out of training, to be measured on."""
    bpe_dropout: float = Field(0.0, ge=0, lt=1)
    """Chance of each merge of the tokenizer to be left out, drawn anew for each epoch."""
    chat_template: str | None = knob(None)
    """A Jinja file to take instead of the tokenizer's own template."""
    humaneval: Literal["refuse", "drop"] = "refuse"
    """What becomes of a row that holds a problem of HumanEval: the job stops, or the row is dropped and counted."""


class TrainingOptions(Section):
    """How long is trained, on how much at a time, and what is looked at meanwhile (`engine.finetune.loop`)."""

    epochs: float = Field(1.0, gt=0)
    """Passes over the examples."""
    steps: int | None = Field(None, ge=1)
    """Optimiser steps, instead of epochs."""
    examples: int = Field(32, ge=1)
    """Examples (or pairs) per optimiser step, on all workers together."""
    measure_every: int = Field(50, ge=1)
    """Steps between two measurements on what is held out."""
    measured: int = Field(512, ge=1)
    """Most rows measured on, chosen at random from those held out."""
    patience: int = Field(0, ge=0)
    """Stop after so many measurements without a new best; 0: never. The best is published in any case."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of weights and activations; with bfloat16 the optimiser keeps float32 weights beside them."""
    shuffle: bool = True
    """Take the examples in an order drawn from the seed, a new one each epoch; or as they come."""
    checkpoint_every: int | None = knob(None, ge=1)
    """Steps between two checkpoints; unset: as often as is measured."""
    restarts: int = knob(2, ge=0)
    """Times that training goes on from the last checkpoint after a worker has died."""
    trajectory: bool = knob(False)
    """Write which examples each step took to RUN/trajectory.jsonl."""


class OptimiserOptions(Section):
    """AdamW with warm-up and decay (`engine.finetune.learner`)."""

    learning_rate: float = Field(2e-4, gt=0)
    """Peak learning rate."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How it falls to `final` after the warm-up."""
    warm_up: float = Field(0.05, ge=0, le=1)
    """Share of the steps over which it rises."""
    final: float = Field(0.1, ge=0, le=1)
    """Share of the peak at the last step."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay of the averages of gradients and of their squares."""
    weight_decay: float = Field(0.0, ge=0)
    """Of matrices; vectors (norms, biases) have none."""
    clip: float = Field(1.0, ge=0)
    """Largest norm of a step's gradient; 0: any."""


class ParallelOptions(Section):
    """Where the training runs; none of it changes what is learnt beyond rounding."""

    workers: int = knob(1, ge=1)
    """Training workers."""
    fewest: int | None = knob(None, ge=1)
    """Go on with so few where machines are lost, until there are more again; unset: wait for all of them."""
    zero: Literal[0, 1, 2, 3] = knob(0)
    """DeepSpeed ZeRO: shared among workers are optimiser state (1), gradients (2) and parameters (3)."""
    offload: Literal["none", "optimiser", "all"] = knob("none")
    """Keep optimiser state, or with ZeRO 3 parameters too, in main memory beside a GPU."""
    tokens_per_device: int = knob(2048, ge=16)
    """Tokens of a micro-batch; how many of them a step takes follows from it."""
    recompute: bool = knob(False)
    """Compute activations anew on the way back instead of keeping them: less memory, a third more work."""
    cpus: float = knob(1, gt=0)
    """Logical cores of each worker."""
    gpus: float = knob(0, ge=0)
    """GPUs of each worker."""

    @model_validator(mode="after")
    def _meaningful(self) -> "ParallelOptions":
        if self.offload != "none" and not self.zero:
            raise ValueError("offload needs parallel.zero of 1, 2 or 3")
        if self.offload == "all" and self.zero != 3:
            raise ValueError("offload: all needs parallel.zero: 3")
        if self.least > self.workers:
            raise ValueError(f"fewest cannot be more than parallel.workers ({self.workers})")
        return self

    @property
    def least(self) -> int:
        """Workers that training does not go on without."""
        return self.fewest or self.workers


class TaskOptions(Section):
    """Which tasks (the column `task`) are learnt from, and which one is measured on (`engine.finetune.store`)."""

    chosen: str | list[str] | None = None
    """Names of tasks, or a `chosen_tasks` artifact, as `headrace select-tasks` publishes it; unset: all but the target.
    """
    target: str | None = None
    """Measure on this task alone, and never learn from it; unset: on what is held out of the chosen ones."""
    measured: Literal["held_out", "others"] = "held_out"
    """Which rows of the target: those of held-out prompts, or the others (by which tasks are chosen)."""


class LoraOptions(Section):
    """Train small matrices beside the model's own (LoRA, arXiv 2106.09685, through PEFT); merged when published."""

    rank: int = Field(16, ge=1)
    """Their inner width."""
    alpha: int = Field(32, ge=1)
    """Their weight, divided by the rank."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of their input left out in training."""
    targets: list[str] | Literal["all-linear"] = "all-linear"
    """Names of the modules they stand beside; all-linear: every linear layer but the head."""
    layers: int | None = Field(None, ge=1)
    """Only in so many of the last layers, which is quicker: no gradient goes further down; unset: in all."""
