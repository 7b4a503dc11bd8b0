"""Reward models as a task of the loop: one number per text, learnt from pairs or from labels.

    pairs     pairwise logistic loss, -log sigmoid(score(chosen) - score(rejected)) (Bradley-Terry; arXiv 2203.02155)
    labels    logistic loss of one score

The model is an ordinary `...ForSequenceClassification` of one output: of a causal LM it scores the last token that is
no padding, of an encoder whatever its own head reads. Texts of a micro-batch are padded on the right.

Left out: how rows became tokens (`engine.finetune.tokenise`). Called by `engine.finetune.job`.

Shapes: B texts of a micro-batch (of pairs, the chosen before the rejected), T tokens of the longest, N held out.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.finetune.calibration import Calibration, calibration
from engine.finetune.learner import Learner
from engine.finetune.loop import LOSS, Portion
from engine.finetune.lora import merged, save_adapter, with_adapter
from engine.finetune.options import LoraOptions
from engine.finetune.order import Indices
from engine.finetune.packing import share
from engine.finetune.sft import grow
from engine.finetune.store import Ints, TokenStore
from engine.models import load_scorer, load_tokenizer, save_model

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

CALIBRATION = "calibration.json"


@dataclass(frozen=True)
class Texts:
    """A micro-batch: ids and mask, (B, T), and labels, (B,), nan for pairs."""

    ids_BT: "torch.Tensor"
    mask_BT: "torch.Tensor"
    labels_B: "torch.Tensor"

    def to(self, device: Any) -> "Texts":
        """The same on a device."""
        return Texts(self.ids_BT.to(device), self.mask_BT.to(device), self.labels_B.to(device))


class RewardTraining:
    """Trains a scorer on the rows of a store, two examples each where it holds pairs."""

    def __init__(
        self,
        store: TokenStore,
        model: str,
        tokenizer: "PreTrainedTokenizerBase",
        capacity: int,
        *,
        pairs: bool,
        dtype: str = "float32",
        lora: LoraOptions | None = None,
        recompute: bool = False,
    ) -> None:
        self.examples = len(store.train)
        self._store, self._model, self._tokenizer, self._capacity = store, model, tokenizer, capacity
        self._pairs, self._dtype, self._lora, self._recompute = pairs, dtype, lora, recompute
        self._padding = pad_with_another_than_eos(tokenizer)
        self._calibration: Calibration | None = None

    def portion(self, step: int, indices: Indices, epochs: Indices, rank: int, workers: int) -> Portion:
        """See `Task`."""
        rows_NC = self._store.train[indices]
        batches = share(self._batches(rows_NC), workers)[rank]
        tokens = sum(self._store.length(int(number)) for number in rows_NC.reshape(-1))
        return Portion([self._texts(rows_NC[batch]) for batch in batches], len(rows_NC), tokens)

    def row_loss(self, model: Any, row: Texts) -> "torch.Tensor":
        """See `Task`."""
        import torch

        scores_B = scored(model, row)
        if not self._pairs:
            losses = torch.nn.functional.binary_cross_entropy_with_logits(
                scores_B, row.labels_B.nan_to_num(), reduction="none"
            )
            return (losses * ~row.labels_B.isnan()).sum()
        chosen, rejected = scores_B.chunk(2)
        # A row without pairs is padding alone: both halves are the same text, and nothing is learnt from it.
        real = row.labels_B.chunk(2)[0].isnan()
        return (-torch.nn.functional.logsigmoid(chosen - rejected) * real).sum()

    def measure(self, learner: Learner) -> dict[str, float]:
        """See `Task`: loss, accuracy and calibration on held-out pairs or labels."""
        import torch

        rows_NC = self._store.held_out
        if not len(rows_NC):
            return {}
        mine = share(self._batches(rows_NC), learner.workers)[torch.distributed.get_rank()]
        texts = [self._texts(rows_NC[batch]) for batch in mine]
        found_N = learner.gathered(texts, mine, len(rows_NC), self._margins)
        labels_N = np.ones(len(rows_NC)) if self._pairs else np.asarray(self._store.labels[rows_NC[:, 0]], np.float64)
        self._calibration = calibration(found_N, labels_N, mirrored=self._pairs)
        return {LOSS: self._calibration.loss, **self._calibration.measures()}

    def load(self, weights: Path | None) -> Any:
        """See `Task`."""
        model = self._loaded(weights)
        if self._recompute:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            model.enable_input_require_grads()
        return model

    def _loaded(self, weights: Path | None) -> Any:
        if weights and not self._lora:
            return load_scorer(str(weights), self._dtype)
        model = load_scorer(self._model, self._dtype, new_head=True)
        grow(model, self._tokenizer, load_tokenizer(self._model))
        model.config.pad_token_id = self._padding
        if self._lora:
            head = [name for name, _ in model.named_children() if name != model.base_model_prefix]
            model = with_adapter(model, self._lora, new_tokens=[], head=head, saved=weights)
        return model

    def save(self, model: Any, weights: dict[str, Any], folder: Path) -> None:
        """See `Task`; with what was measured last."""
        if self._lora:
            save_adapter(model, weights, folder)
        else:
            save_model(model, self._tokenizer, folder, weights)
        if self._calibration:
            (folder / CALIBRATION).write_text(self._calibration.model_dump_json(indent=1))

    def export(self, weights: Path, folder: Path) -> None:
        """See `Task`: an ordinary Hugging Face directory, an adapter merged, with its calibration."""
        model = self.load(weights)
        save_model(merged(model) if self._lora else model, self._tokenizer, folder)
        if (weights / CALIBRATION).exists():
            (folder / CALIBRATION).write_text((weights / CALIBRATION).read_text())

    def _margins(self, model: Any, row: Texts) -> "torch.Tensor":
        scores_B = scored(model, row)
        if not self._pairs:
            return scores_B
        chosen, rejected = scores_B.chunk(2)
        return chosen - rejected

    def _batches(self, rows_NC: Ints) -> list[list[int]]:
        """Rows of similar length together, padding included at most `capacity` tokens (but one row at least)."""
        longest = [max(self._store.length(int(number)) for number in row) for row in rows_NC]
        order = sorted(range(len(rows_NC)), key=lambda at: (-longest[at], at))
        batches: list[list[int]] = []
        first = 0
        while first < len(order):
            count = max(self._capacity // (max(longest[order[first]], 1) * rows_NC.shape[1]), 1)
            batches.append(order[first : first + count])
            first += count
        return batches

    def _texts(self, rows_NC: Ints) -> Texts:
        """A padded micro-batch; without rows, one (or two equal) of padding, from which nothing is learnt."""
        import torch

        numbers = [int(each) for each in rows_NC.T.reshape(-1)] if len(rows_NC) else []
        examples = [self._store[number].ids for number in numbers] or [[self._padding]] * (1 + self._pairs)
        longest = max(len(ids) for ids in examples)
        ids = np.full((len(examples), longest), self._padding, np.int64)
        mask = np.zeros((len(examples), longest), np.int64)
        for at, each in enumerate(examples):
            ids[at, : len(each)] = each
            mask[at, : max(len(each), 1)] = 1
        if numbers:
            labels = self._store.labels[numbers].astype(np.float32)
        else:
            labels = np.full(len(examples), 0.0 if self._pairs else np.nan, np.float32)
        return Texts(torch.from_numpy(ids), torch.from_numpy(mask), torch.from_numpy(labels))


def scored(model: Any, texts: Texts) -> "torch.Tensor":
    """Scores, (B,), in float32."""
    scores_B: torch.Tensor = model(input_ids=texts.ids_BT, attention_mask=texts.mask_BT).logits[:, 0].float()
    return scores_B


def pad_with_another_than_eos(tokenizer: "PreTrainedTokenizerBase") -> int:
    """Give a tokenizer a padding token that ends no text, for models that look for the last token that is no padding;
    its id."""
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        spare = [
            token for token in tokenizer.all_special_tokens if token not in (tokenizer.eos_token, tokenizer.bos_token)
        ]
        tokenizer.add_special_tokens({"pad_token": spare[0] if spare else "<|pad|>"})
    return int(tokenizer.pad_token_id)


def read_calibration(folder: Path) -> Calibration:
    """What was measured of a published reward model on what was held out."""
    return Calibration.model_validate(json.loads((folder / CALIBRATION).read_text()))
