"""A reward model's opinion of answers: one number each, larger is better.

Any `...ForSequenceClassification` of one output, as `headrace reward-model` publishes it; prompt and answer are written
as in its training (`engine.finetune.formats.scored_ids`), padded on the right. Scores compare answers to one prompt;
their zero means nothing. Left out: training one (`engine.finetune`). Called by the stage that scores and by the judge
that is a reward model.

Shapes: B texts, T tokens of the longest.
"""

from collections.abc import Sequence
from typing import Any

from engine.finetune.formats import scored_ids
from engine.models import load_scorer, load_tokenizer

_AT_ONCE = 16


class RewardModel:
    """Scores with a model loaded in this process. Raises `SourceError` for a model that gives no single score."""

    def __init__(self, reference: str, *, window: int = 1024, device: str = "cpu") -> None:
        self._model: Any = load_scorer(reference).to(device)
        self._tokenizer = load_tokenizer(reference)
        positions = getattr(self._model.config.get_text_config(), "max_position_embeddings", None) or window
        self._window, self._device = min(window, positions), device
        pad = self._model.config.pad_token_id
        self._pad = pad if pad is not None else self._tokenizer.pad_token_id
        # Without one it could not tell where a text ends: each is then scored by itself.
        self._at_once = _AT_ONCE if self._pad is not None else 1

    def scores(self, prompts: Sequence[str], answers: Sequence[str]) -> list[float]:
        """A score for each answer to its prompt, in order; what is too long is cut at its end, as in training."""
        pairs = zip(prompts, answers, strict=True)
        ids = [scored_ids(self._tokenizer, *pair)[: self._window] or [self._pad or 0] for pair in pairs]
        found = [0.0] * len(ids)
        order = sorted(range(len(ids)), key=lambda at: len(ids[at]))
        for first in range(0, len(order), self._at_once):
            rows = order[first : first + self._at_once]
            for at, score in zip(rows, self._batch([ids[at] for at in rows]), strict=True):
                found[at] = score
        return found

    def _batch(self, ids: list[list[int]]) -> list[float]:
        import torch

        width = max(map(len, ids))
        pad = self._pad or 0
        ids_BT = torch.tensor([each + [pad] * (width - len(each)) for each in ids], device=self._device)
        mask_BT = torch.tensor([[1] * len(each) + [0] * (width - len(each)) for each in ids], device=self._device)
        with torch.inference_mode():
            scores_B = self._model(input_ids=ids_BT, attention_mask=mask_BT).logits[:, 0].float()
        return [float(each) for each in scores_B.cpu()]
