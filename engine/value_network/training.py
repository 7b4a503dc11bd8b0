"""A value network as a task of the loop: what it adds to frozen bases is learnt from the tokens of demonstrations.

With several bases each step has one of them, in turn or in stages, by the step's number: so a resumed training goes on
with the right one. What is measured is the cross-entropy of the mix on held-out examples, with each base, beside that
of the base alone.

Left out: networks and loss (`engine.value_network.networks`, `engine.value_network.losses`). Called by the training
workers of `engine.finetune`.

Shapes: T tokens of a row, L positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from upath import UPath

from engine.finetune.attention import keeps_apart, use_packed_attention
from engine.finetune.batches import IGNORED, Row, learnt
from engine.finetune.learner import Learner
from engine.finetune.loop import LOSS, Portion
from engine.finetune.lora import merged, save_adapter, with_adapter
from engine.finetune.order import Indices
from engine.finetune.rows import Lazily, PackedExamples
from engine.finetune.store import TokenStore
from engine.finetune.work import Assignment
from engine.models import kept_layers, load_causal_lm, prune_layers, save_model
from engine.value_network.cache import remove_cache
from engine.value_network.card import Card, vocabulary_fingerprint
from engine.value_network.keeping import base_of, kept_bases
from engine.value_network.losses import Goal
from engine.value_network.networks import Base, FrozenBase, Probe, load_probe, use_value_head, value_loss
from engine.value_network.recipe import ValueRecipe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class ValueRow:
    """A row of examples, the number of the base it is learnt with, and what a position's penalty weighs."""

    row: Row
    base: int
    weight: float

    def to(self, device: Any) -> "ValueRow":
        """The same on a device."""
        return replace(self, row=self.row.to(device))


class ValueTraining:
    """Trains a value network on the examples of a store, in `total` steps."""

    def __init__(
        self, assignment: Assignment, store: TokenStore, tokenizer: "PreTrainedTokenizerBase", total: int, device: Any
    ) -> None:
        recipe: ValueRecipe = assignment.recipe
        self.examples = len(store.train)
        self._examples, self._tokenizer = PackedExamples(store, recipe.parallel.tokens_per_device), tokenizer
        self._assignment, self._recipe, self._store = assignment, recipe, store
        self._total, self._device = total, device
        self._vocabulary = 0
        self._bases: Sequence[Base] = ()
        self._alone: list[float] = []

    def portion(self, step: int, indices: Indices, epochs: Indices, rank: int, workers: int) -> Portion:
        """See `Task`."""
        self._prepare(rank, workers)
        base = int(base_of(self._recipe, np.array([step]), self._total)[0])
        return self._with(self._examples.drawn(indices, epochs, rank, workers), base, self._recipe.penalty.weight)

    def row_loss(self, model: Any, row: ValueRow) -> torch.Tensor:
        """See `Task`."""
        base, targets_T = self._bases[row.base], row.row.targets_1T[0]
        if self._recipe.penalty.positions == "all" and row.weight:
            at_L, targets_L = torch.arange(len(targets_T), device=targets_T.device), targets_T
        else:
            at_L, targets_L = learnt(row.row)
        logits = base.logits(row.row, at_L)
        weight = row.weight if bool((targets_T != IGNORED).any()) else 0.0
        goal = Goal(logits, targets_L, weight, self._recipe.penalty.norm)
        loss: torch.Tensor = value_loss(model, self._recipe.connection, row.row, at_L, goal, base)
        return loss

    def measure(self, learner: Learner) -> dict[str, float]:
        """See `Task`: nats per token with loss, of the mix with each base; `loss` is their mean."""
        rank = torch.distributed.get_rank()
        self._prepare(rank, learner.workers)
        portion = self._examples.held_out(rank, learner.workers)
        if portion is None:
            return {}
        mixed, alone = [], not self._alone
        for at in range(len(self._bases)):
            rows = self._with(portion, at, 0.0).rows
            mixed.append(learner.mean_loss(rows, portion.weight, self.row_loss))
            if alone:
                self._alone.append(learner.mean_loss(rows, portion.weight, self._base_loss))
        found = {LOSS: sum(mixed) / len(mixed), "loss of base alone": sum(self._alone) / len(self._alone)}
        if len(mixed) > 1:
            for at, (ours, theirs) in enumerate(zip(mixed, self._alone, strict=True), 1):
                found |= {f"loss with base {at}": ours, f"loss of base {at} alone": theirs}
        return found

    def load(self, weights: Path | None) -> Any:
        """See `Task`; the bases are loaded with it, unless their logits are kept."""
        recipe = self._recipe
        lora = recipe.lora
        model: Any
        if recipe.connection == "linear_probe":
            model = load_probe(weights) if weights else self._probe()
            self._vocabulary = model.vocabulary
        else:
            fresh = weights is None or lora is not None
            source = recipe.model if fresh else str(weights)
            model = load_causal_lm(source, recipe.training.dtype)
            if fresh and recipe.layers:
                prune_layers(model, recipe.layers)
            use_value_head(model, zero=fresh and recipe.zero_start)
            self._vocabulary = model.get_output_embeddings().weight.shape[0]
            if lora:
                # A head that starts at zero is new, and no matrix beside it could stand for it.
                model = with_adapter(model, lora, head=["lm_head"] if recipe.zero_start else [], saved=weights)
            use_packed_attention(model)
            if recipe.parallel.recompute:
                model.gradient_checkpointing_enable({"use_reentrant": False})
                model.enable_input_require_grads()
        if not self._bases and recipe.cache.keep == "none":
            self._bases = [FrozenBase(each, recipe.base_dtype, self._vocabulary, self._device) for each in recipe.bases]
        self._examples.apart = all(keeps_apart(each.lm) for each in self._bases if isinstance(each, FrozenBase))
        if recipe.connection != "linear_probe":
            self._examples.apart &= keeps_apart(model)
        return model

    def save(self, model: Any, weights: dict[str, Any], folder: Path) -> None:
        """See `Task`."""
        if isinstance(model, Probe):
            model.save(folder, weights)
            self._tokenizer.save_pretrained(folder)
        elif self._recipe.lora:
            save_adapter(model, weights, folder)
        else:
            save_model(model, self._tokenizer, folder, weights)

    def export(self, weights: Path, folder: Path) -> None:
        """Write saved weights as a directory of their own, an adapter merged, with a card that says how it is used."""
        model = self.load(weights)
        if isinstance(model, Probe):
            model.save(folder)
            self._tokenizer.save_pretrained(folder)
        else:
            save_model(merged(model) if self._recipe.lora else model, self._tokenizer, folder)
        Card(connection=self._recipe.connection, vocabulary=vocabulary_fingerprint(self._tokenizer)).write(folder)
        remove_cache(self._recipe, UPath(self._assignment.home))  # nobody reads it any more

    def _prepare(self, rank: int, workers: int) -> None:
        """See to it that there are bases, or what is kept of them. A collective."""
        if not self._bases:
            given = (self._assignment, self._store, self._total, self._vocabulary, self._device)
            self._bases = kept_bases(*given, rank, workers)

    def _probe(self) -> Probe:
        vocabulary = load_causal_lm(self._recipe.model, "float32").get_output_embeddings().weight.shape[0]
        probe = Probe(vocabulary, self._recipe.probe_width)
        if self._recipe.zero_start:
            torch.nn.init.zeros_(probe.down.weight)
        return probe.to(getattr(torch, self._recipe.training.dtype))

    def _base_loss(self, model: Any, row: ValueRow) -> torch.Tensor:
        """The base's own loss, the value network left out."""
        at_L, targets_L = learnt(row.row)
        logits_LV = self._bases[row.base].logits(row.row, at_L)(slice(None)).float()
        return torch.nn.functional.cross_entropy(logits_LV, targets_L, reduction="sum", ignore_index=IGNORED)

    def _with(self, portion: Portion, base: int, weight: float) -> Portion:
        if self._recipe.penalty.positions == "all":
            # The step's sum of losses is divided by its tokens with loss; the penalty is a mean over all of them.
            weight *= portion.weight / portion.tokens
        return replace(portion, rows=Lazily(portion.rows, lambda row: ValueRow(row, base, weight)))


def value_config(recipe: Any, config: Any) -> Any:
    """The configuration of what is trained, given that of what it starts from. Raises `RecipeError` for a wrong number
    of layers."""
    text = config.get_text_config(decoder=True)
    if recipe.layers:
        kept = kept_layers(text.num_hidden_layers, recipe.layers)
        text.num_hidden_layers = len(kept)
        if getattr(text, "layer_types", None):
            text.layer_types = [text.layer_types[at] for at in kept]
    if recipe.zero_start:
        config.tie_word_embeddings = False
    return config


def value_task(
    assignment: Assignment, store: TokenStore, tokenizer: "PreTrainedTokenizerBase", total: int
) -> ValueTraining:
    """The task of a recipe, inside a worker."""
    gpus = assignment.recipe.parallel.gpus
    device = torch.device("cuda", torch.cuda.current_device()) if gpus else torch.device("cpu")
    return ValueTraining(assignment, store, tokenizer, total, device)
