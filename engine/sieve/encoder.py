"""The encoder under a student: texts cut to its length, batched by length, and pooled into one vector each.

Shapes: B snippets of a batch, T tokens, W width of the encoder. Left out: heads and training (`engine.sieve.student`,
`engine.sieve.training`). Called by them, inside Ray actors mostly.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.errors import SourceError
from engine.models import load_encoder, load_tokenizer, save_model
from engine.sieve.threshold import Floats

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Batch:
    """Token ids of similar length, padded to the longest: (B, T) both, and which texts they are, (B,)."""

    ids_BT: "torch.Tensor"
    mask_BT: "torch.Tensor"
    texts: list[int]


class Encoder:
    """A pre-trained encoder with its tokenizer. Raises `SourceError` for a model that is none."""

    def __init__(self, model: str, *, max_tokens: int, pooling: str = "mean", dtype: str = "float32") -> None:
        import torch

        self.tokenizer = load_tokenizer(model)
        self.module: Any = load_encoder(model, dtype)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.module.to(self.device)
        self.pooling = pooling
        if self.tokenizer.pad_token_id is None:
            raise SourceError(f"The tokenizer of {model} has no padding token.", "Give an encoder such as pkg:minilm.")
        config = self.module.config
        longest = min(self.tokenizer.model_max_length, getattr(config, "max_position_embeddings", None) or max_tokens)
        if max_tokens > longest:
            raise SourceError(
                f"{model} reads at most {longest:,} tokens, not {max_tokens:,}.",
                f"Set student.max_tokens to {longest}.",
            )
        self.max_tokens = max_tokens
        rows = self.module.get_input_embeddings().num_embeddings
        if len(self.tokenizer) > rows:
            raise SourceError(
                f"The tokenizer of {model} knows {len(self.tokenizer):,} tokens, its encoder {rows:,}.",
                "Give a directory whose tokenizer belongs to its weights.",
            )
        self.width = int(config.hidden_size)

    def save(self, folder: Path) -> None:
        """Write encoder and tokenizer as a Hugging Face directory."""
        save_model(self.module, self.tokenizer, folder)

    def batches(self, texts: Sequence[str], batch_tokens: int) -> Iterator[Batch]:
        """All texts in batches of neighbouring lengths, longest first, padding included at most `batch_tokens` tokens
        (but one text at least)."""
        import torch

        if not texts:
            return
        ids = self.tokenizer(list(texts), truncation=True, max_length=self.max_tokens, verbose=False)["input_ids"]
        order = sorted(range(len(ids)), key=lambda at: -len(ids[at]))
        first = 0
        while first < len(order):
            longest = max(len(ids[order[first]]), 1)
            chosen = order[first : first + max(batch_tokens // longest, 1)]
            first += len(chosen)
            padded = np.full((len(chosen), longest), self.tokenizer.pad_token_id, np.int64)
            mask = np.zeros((len(chosen), longest), np.int64)
            for row, at in enumerate(chosen):
                padded[row, : len(ids[at])] = ids[at]
                mask[row, : len(ids[at])] = 1
            yield Batch(torch.from_numpy(padded), torch.from_numpy(mask), chosen)

    def hidden(self, batch: Batch) -> "torch.Tensor":
        """The last layer, (B, T, W)."""
        output = self.module(input_ids=batch.ids_BT.to(self.device), attention_mask=batch.mask_BT.to(self.device))
        states: torch.Tensor = output.last_hidden_state
        return states

    def pooled(self, batch: Batch) -> "torch.Tensor":
        """One vector per text, (B, W), in float32: the mean over its tokens, or its first token."""
        hidden_BTW = self.hidden(batch).float()
        if self.pooling == "first":
            return hidden_BTW[:, 0]
        mask_BT1 = batch.mask_BT.to(self.device).unsqueeze(-1)
        return (hidden_BTW * mask_BT1).sum(1) / mask_BT1.sum(1).clamp(min=1)

    def features(self, texts: Sequence[str], batch_tokens: int = 4096, *, every_token: bool = False) -> list[Floats]:
        """One vector (W,) per text, or with `every_token` one (tokens, W), without gradients."""
        import torch

        found: list[Floats] = [np.empty(0)] * len(texts)
        self.module.eval()
        with torch.inference_mode():
            for batch in self.batches(texts, batch_tokens):
                if every_token:
                    states = self.hidden(batch).float().cpu().numpy()
                    lengths = batch.mask_BT.sum(1).tolist()
                    for at, state, length in zip(batch.texts, states, lengths, strict=True):
                        found[at] = state[:length]
                else:
                    for at, vector in zip(batch.texts, self.pooled(batch).cpu().numpy(), strict=True):
                        found[at] = vector
        return found
