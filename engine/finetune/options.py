"""Recipe sections of every training job: `optimiser:` and `parallel:`.

Left out: what the keys do (`engine.finetune.learner`). Light: it imports neither torch nor ray. Called by the recipe
classes of the jobs that train.
"""

from typing import Literal

from pydantic import Field

from engine.config import Section, knob


class OptimiserOptions(Section):
    """AdamW with warm-up and decay."""

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
    zero: Literal[0, 1, 2, 3] = knob(0)
    """DeepSpeed ZeRO: shared among workers are optimiser state (1), gradients (2) and parameters (3)."""
    offload: Literal["none", "optimiser", "all"] = knob("none")
    """Keep optimiser state, or with ZeRO 3 parameters too, in main memory beside a GPU."""
    tokens_per_device: int = knob(2048, ge=16)
    """Tokens of a micro-batch; how many of them a step takes follows from it."""
    cpus: float = knob(1, gt=0)
    """Logical cores of each worker."""
    gpus: float = knob(0, ge=0)
    """GPUs of each worker."""
