"""The recipe of the job `value-network`.

Left out: what fine-tuning has in common (`engine.finetune.recipe`). Called by `jobs`; light.
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from engine.config import Section, knob
from engine.corpus.config import SourceConfig
from engine.finetune.recipe import FineTuningRecipe

_Reference = Annotated[str, Field(min_length=1)]


class BridgeTexts(Section):
    """The texts by which `headrace bridge` aligns two vocabularies."""

    source: SourceConfig
    """Where they are: the column `text`."""
    most: int = Field(10_000, ge=1)
    """How many are looked at."""


class PenaltyOptions(Section):
    """What keeps value logits small, so that they say what is new and not what this base says already."""

    weight: float = Field(1.0, ge=0)
    """Its weight beside the cross-entropy; 0: none."""
    norm: Literal["l1", "l2"] = "l1"
    """Mean magnitude over the vocabulary (the paper's), or the root of the mean square (ours)."""
    positions: Literal["response", "all"] = "response"
    """Where it is taken: where something is learnt, or everywhere, as the paper's code does."""


class CacheOptions(Section):
    """What the bases say of the tokens, computed once and kept on the disk for later epochs and measurements."""

    keep: Literal["none", "top_k", "full"] = "none"
    """Every logit, or the `k` greatest with the mass of the others spread evenly over them (residual only)."""
    k: int = Field(256, ge=1)
    """top_k: how many."""
    most_gb: float = knob(50.0, gt=0)
    """Most gigabytes that they may take."""


class ValueRecipe(FineTuningRecipe):
    """The keys of a `value-network` recipe; `model` is what the value network starts from."""

    format: Literal["chat", "responses", "programs", "text"]
    """As for `sft`; edits have a token that no base knows."""
    layers: int | None = Field(None, ge=2)
    """Start from so many of the layers of `model`, evenly spaced; unset: all of them."""
    # Like `model`: their weights decide, and are part of the fingerprint of the inputs.
    bases: Annotated[list[_Reference], Field(min_length=1, json_schema_extra={"knob": True})]
    """The frozen models that it learns to add to; their tokens must be those of `model`."""
    curriculum: Literal["alternate", "stages"] = "alternate"
    """Several bases: a step each in turn, or each for its share of the steps, in order."""
    connection: Literal["residual", "cascade", "cascade_plus", "linear_probe"] = "residual"
    """What the value network reads: tokens, what the base would write next, both, or the base's logits alone."""
    zero_start: bool = True
    """Start with value logits of zero, so that training starts at the base; false: as the paper, at twice its logits
    where both are one model."""
    probe_width: int = Field(256, ge=1)
    """linear_probe: its inner width."""
    penalty: PenaltyOptions = Field(default_factory=PenaltyOptions)
    """What large value logits cost."""
    base_dtype: Literal["float32", "bfloat16"] = knob("float32")
    """Number format of the bases."""
    cache: CacheOptions = Field(default_factory=CacheOptions)
    """Whether the bases are run once only."""

    @model_validator(mode="after")
    def _goes_together(self) -> "ValueRecipe":
        if self.connection in ("cascade", "cascade_plus") and self.parallel.zero == 3:
            raise ValueError(
                f"connection {self.connection} reads the whole embedding, which parallel.zero: 3 keeps in pieces; use 2"
            )
        if self.connection == "linear_probe" and self.lora:
            raise ValueError("a linear_probe has no layers that lora could stand beside")
        if self.connection == "linear_probe" and self.layers:
            raise ValueError("a linear_probe has no layers of model; leave layers out")
        if self.cache.keep == "top_k" and self.connection != "residual":
            raise ValueError(
                f"connection {self.connection} reads all of the base's logits, of which cache.keep: top_k leaves most"
                " out; use full"
            )
        return self
