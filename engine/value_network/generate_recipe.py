"""The recipe of the job `generate`.

Left out: what the sampling keys that evaluation has too do (`engine.evaluation.options`). Called by `jobs`; light.
"""

from typing import Literal

from pydantic import Field, model_validator

from engine.config import knob
from engine.corpus.config import FilterConfig
from engine.corpus.recipe import DataRecipe
from engine.evaluation.options import SamplingOptions
from engine.value_network.card import MOST_BETA


class DrawingOptions(SamplingOptions):
    """How responses are drawn; each has a seed of its own, made of the recipe's and of where its prompt stands."""

    stop: list[str] = Field(default_factory=list)
    """Texts before which a response ends."""


class GenerateRecipe(DataRecipe):
    """The keys of a `generate` recipe. A shard is about 0.05 MB of prompts where `source.shard_mb` does not say."""

    # Weights decide, wherever they are: they are part of the fingerprint of the inputs.
    model: str = Field(min_length=1, json_schema_extra={"knob": True})
    """The model, or the base of the value network: a directory, a hub name or pkg:NAME."""
    value: str | None = Field(None, min_length=1, json_schema_extra={"knob": True})
    """A value network whose logits are added to those of the model: what `headrace value-network` published."""
    bridge: str | None = Field(None, min_length=1, json_schema_extra={"knob": True})
    """For a value network of another tokenizer: what `headrace bridge` wrote for the two. Runs in transformers."""
    beta: float = Field(1.0, ge=0, le=MOST_BETA, allow_inf_nan=False)
    """How much of the value network's logits is added; 0 is the model alone."""
    rows: Literal["prompts", "demonstrations"] = "prompts"
    """What the source holds: `prompt`, or `messages`, an answer at the end of which is left out."""
    filters: FilterConfig = Field(default_factory=FilterConfig)
    """Which rows are dropped before anything is asked; for messages `where` alone makes sense."""
    chat: bool = True
    """Ask through the chat template; otherwise the model continues the bare prompt."""
    samples: int = Field(1, ge=1)
    """Responses to each prompt."""
    sampling: DrawingOptions = Field(default_factory=DrawingOptions)
    """How they are drawn."""
    engine: Literal["auto", "vllm", "transformers"] = "auto"
    """What generates: auto takes vLLM, and transformers for a cascade or a bridge, which nothing else can run."""
    longest: int = Field(4096, ge=2)
    """Most tokens of a prompt and its response together; the model's own window if that is smaller."""
    at_once: int = knob(32, ge=1)
    """Sequences that an actor works on at a time."""
    actors: int = knob(1, ge=1)
    """Actors that each hold the models."""
    cpus: float | None = knob(None, gt=0)
    """Logical cores of each, and as many threads; all there are divided by the actors if not given, beside a GPU 1."""
    gpus: float = knob(0, ge=0, le=1)
    """GPUs of each."""

    @model_validator(mode="after")
    def _goes_together(self) -> "GenerateRecipe":
        if self.bridge and self.value is None:
            raise ValueError("a bridge leads from a value network to the model; give value, which one")
        if self.bridge and self.engine == "vllm":
            raise ValueError("a bridge runs in transformers only; set engine: transformers, or leave it out")
        if self.beta != 1 and self.value is None:
            raise ValueError("beta says how much of a value network is added; give value, which one")
        if self.sampling.temperature == 0 and self.samples > 1:
            raise ValueError("several samples at temperature 0 are all the same; set sampling.temperature, say 0.8")
        if self.rows == "demonstrations" and self.filters != FilterConfig(where=self.filters.where):
            raise ValueError("of the filters only where can look at rows of messages")
        if self.sampling.max_tokens >= self.longest:
            raise ValueError(
                f"sampling.max_tokens {self.sampling.max_tokens} leaves no room for a prompt in longest, {self.longest}"
            )
        if "" in self.sampling.stop:
            raise ValueError("an empty text in sampling.stop ends every response before it begins")
        return self
