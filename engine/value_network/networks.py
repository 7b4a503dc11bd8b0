"""Base and value network beside each other: what the value network reads, and what it adds to the base's logits.

    residual        the tokens                                          the two can run in parallel; transfers best
    cascade         what the base would write next, softmax(z_base) @ E
    cascade_plus    that, and the tokens
    linear_probe    the base's logits alone, through a gated MLP        (its inner width is ours: the paper's is V)

A value network is a whole causal LM with a head of its own, or the MLP (arXiv 2410.21027 and its released code). The
base is frozen and not part of the training: no optimiser knows it, and no checkpoint holds it.

Left out: the loss (`engine.value_network.losses`), serving. Called by the training and by the reference.

Shapes: T tokens of a row, L of them predicting what is to be learnt, V vocabulary, W width.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch.utils.checkpoint import checkpoint

from engine.errors import SourceError
from engine.finetune.attention import LENGTHS, is_packed, use_packed_attention
from engine.finetune.batches import Row
from engine.finetune.head import plain_head
from engine.models import load_causal_lm, resolve
from engine.value_network.losses import CHUNK, BaseLogits, Goal, ValueHead, dense_loss
from engine.value_network.mixing import soft_embedding

Connection = Literal["residual", "cascade", "cascade_plus", "linear_probe"]
PROBE = "headrace_value_probe"
"""`model_type` in the configuration of a linear probe."""
_WEIGHTS = "model.safetensors"


class Base(Protocol):
    """What a value network learns to add to."""

    def logits(self, row: Row, at_L: torch.Tensor) -> BaseLogits:
        """Logits at some positions of a row."""


class FrozenBase:
    """A causal LM that is only read; `vocabulary` columns of its logits are wanted, padded or cut."""

    def __init__(self, reference: str, dtype: str, vocabulary: int, device: Any = "cpu") -> None:
        self.lm: Any = use_packed_attention(load_causal_lm(reference, dtype)).requires_grad_(False).to(device)
        self._head, self._vocabulary = plain_head(self.lm), vocabulary

    def logits(self, row: Row, at_L: torch.Tensor) -> BaseLogits:
        """Its logits at some positions of a row; the head is applied as they are asked for."""
        apart = {LENGTHS: row.lengths} if is_packed(self.lm) else {}
        given: dict[str, Any] = {"input_ids": row.ids_1T, "position_ids": row.positions_1T, "use_cache": False}
        with torch.no_grad():
            if self._head is None:
                logits_LV = self.lm(**given, logits_to_keep=at_L, **apart).logits[0]
                return lambda at: fit(logits_LV[at], self._vocabulary)
            hidden_LW = self.lm.base_model(**given, **apart).last_hidden_state[0, at_L]
        head = self._head

        def found(at: slice) -> torch.Tensor:
            with torch.no_grad():
                return fit(head(hidden_LW[at]), self._vocabulary)

        return found


class Probe(torch.nn.Module):
    """A gated MLP from logits to logits: `down(silu(gate(z)) * up(z))`."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.vocabulary, self.width = vocabulary, width
        self.gate = torch.nn.Linear(vocabulary, width, bias=False)
        self.up = torch.nn.Linear(vocabulary, width, bias=False)
        self.down = torch.nn.Linear(width, vocabulary, bias=False)

    def forward(self, base_LV: torch.Tensor) -> torch.Tensor:
        """Logits of a base, which may pad its vocabulary otherwise, (..., any number), to (..., V)."""
        base_LV = fit(base_LV.to(self.up.weight.dtype), self.vocabulary)
        base_LV = base_LV.masked_fill(base_LV == float("-inf"), 0.0)  # columns that it does not have say nothing
        added: torch.Tensor = self.down(torch.nn.functional.silu(self.gate(base_LV)) * self.up(base_LV))
        return added

    def save(self, folder: Path, weights: Mapping[str, torch.Tensor] | None = None) -> None:
        """Write it as a directory that `load_probe` reads."""
        from safetensors.torch import save_file

        kept = {name: each.detach().cpu().contiguous() for name, each in (weights or self.state_dict()).items()}
        save_file(kept, folder / _WEIGHTS, metadata={"format": "pt"})
        about = {"model_type": PROBE, "architectures": ["Probe"], "vocab_size": self.vocabulary, "width": self.width}
        (folder / "config.json").write_text(json.dumps(about, indent=1))


def load_probe(folder: Path) -> Probe:
    """A linear probe that was saved. Raises `SourceError` for a directory that holds none."""
    from safetensors.torch import load_file

    about = json.loads((folder / "config.json").read_text())
    if about.get("model_type") != PROBE:
        raise SourceError(f"{folder} holds no linear probe.", "Give the value network of that connection.")
    probe = Probe(about["vocab_size"], about["width"])
    probe.load_state_dict(load_file(folder / _WEIGHTS))
    return probe.eval()


def use_value_head(model: Any, *, zero: bool = False) -> Any:
    """Let a causal LM give the loss of its mix with a base, where its head allows it; the model.

    `zero`: its head becomes one of its own that starts at zero, so that the mix starts as the base.
    """
    head = plain_head(model)
    if zero:
        if head is None:
            raise SourceError(
                f"The head of {type(model).__name__} scales its logits: it cannot start at zero.",
                "Set zero_start: false.",
            )
        model.config.tie_word_embeddings = False
        head.weight = torch.nn.Parameter(torch.zeros_like(head.weight))
    if head is not None:
        head.__class__ = ValueHead
    return model


def value_loss(model: Any, connection: Connection, row: Row, at_L: torch.Tensor, goal: Goal, base: Base) -> Any:
    """The summed loss of a row, a scalar; `model` is the value network or what DeepSpeed has made of it, called
    through its own forward."""
    inner = getattr(model, "module", model)
    if connection == "linear_probe":
        parts = [
            checkpoint(_probed, model, goal, slice(start, start + CHUNK), use_reentrant=False)
            for start in range(0, len(at_L), CHUNK)
        ]
        return torch.stack(parts).sum()
    apart = {LENGTHS: row.lengths} if is_packed(model) else {}
    given: dict[str, Any] = {"position_ids": row.positions_1T, "use_cache": False, "logits_to_keep": at_L, **apart}
    given |= read_by(connection, inner, row, base)
    head = inner.get_output_embeddings()
    if not isinstance(head, ValueHead):
        return dense_loss(model(**given).logits[0], goal)
    with head.learning(goal):
        return model(**given).logits


def read_by(connection: Connection, model: Any, row: Row, base: Base) -> dict[str, torch.Tensor]:
    """What the value network's first layer reads of a row: ids, or embeddings made from the base's logits."""
    if connection == "residual":
        return {"input_ids": row.ids_1T}
    embedding = model.get_input_embeddings()
    everywhere_T = torch.arange(row.ids_1T.shape[1], device=row.ids_1T.device)
    logits = base.logits(row, everywhere_T)
    soft_TW = torch.cat(
        [
            checkpoint(_softly, logits, slice(start, start + CHUNK), embedding.weight, use_reentrant=False)
            for start in range(0, len(everywhere_T), CHUNK)
        ]
    ) * getattr(embedding, "embed_scale", 1.0)  # a factor that some models have between table and first layer
    return {"inputs_embeds": soft_TW[None] + embedding(row.ids_1T) if connection == "cascade_plus" else soft_TW[None]}


def _probed(model: Any, goal: Goal, at: slice) -> torch.Tensor:
    shifted = Goal(lambda within: goal.base(at)[within], goal.targets_L[at], goal.weight, goal.norm)
    return dense_loss(model(goal.base(at)), shifted)


def _softly(logits: BaseLogits, at: slice, embedding_VW: torch.Tensor) -> torch.Tensor:
    return soft_embedding(logits(at), embedding_VW)


def logit_columns(reference: str) -> int:
    """How many logits a causal LM gives, by its configuration."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(resolve(reference), trust_remote_code=False, local_files_only=True)
    count: int = config.get_text_config(decoder=True).vocab_size
    return count


def fit(logits: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """Logits of so many tokens: padding of a vocabulary is cut, and where it is missing it is never written."""
    have = logits.shape[-1]
    if have >= vocabulary:
        return logits[..., :vocabulary]
    return torch.nn.functional.pad(logits, (0, vocabulary - have), value=float("-inf"))
