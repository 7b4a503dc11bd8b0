"""A student: an encoder and a sigmoid head that say of a snippet how likely its teacher lets it pass.

On disk it is an ordinary Hugging Face directory of the encoder with two files beside it: `head.safetensors` (one weight
per feature and a bias) and `student.json` (how texts are cut, pooled and judged). What is saved scores the same
wherever it is loaded.

Left out: how it is trained (`engine.sieve.training`). Called by the active loop's scorers, the filter and the endpoint.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pydantic

from engine.config import Section
from engine.errors import ArtifactError
from engine.sieve.calibration import sigmoid
from engine.sieve.cutting import pieces
from engine.sieve.encoder import Encoder
from engine.sieve.threshold import Bools, Floats

HEAD, CARD = "head.safetensors", "student.json"


class Card(Section):
    """What a student's weights do not say."""

    kind: Literal["encoder", "frozen"]
    criterion: str
    base: str
    """Reference of the encoder it began as."""
    base_fingerprint: str
    max_tokens: int
    long: Literal["split", "truncate"]
    join: Literal["mean", "max"]
    pooling: Literal["mean", "first"]
    slope: float
    offset: float
    rate: float
    """Share of the stream that passes, as estimated."""
    threshold: float
    """A score above it passes."""
    labels: int
    """Labels it was trained on."""


class Head:
    """Logit of a feature vector: `weight` of shape (W,) and `bias`."""

    def __init__(self, weight: Floats, bias: float) -> None:
        self.weight, self.bias = np.asarray(weight, np.float32), float(bias)

    def logits(self, features: Sequence[Floats] | Floats) -> Floats:
        """One logit per vector: (n, W) -> (n,)."""
        if not len(features):
            return np.empty(0)
        return (np.asarray(features, np.float32) @ self.weight + self.bias).astype(float)


class Student:
    """An encoder with its head and card."""

    def __init__(self, encoder: Encoder, head: Head, card: Card) -> None:
        self.encoder, self.head, self.card = encoder, head, card

    @classmethod
    def load(cls, folder: Path, dtype: str = "float32") -> "Student":
        """Read a saved student. Raises `ArtifactError` for a directory that is none, or is damaged."""
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            card = Card.model_validate_json((folder / CARD).read_bytes())
            head = load_file(folder / HEAD)
            weight, bias = head["weight"], float(head["bias"][0])
        except FileNotFoundError:
            raise ArtifactError(
                f"{folder} is no student: it lacks {CARD} or {HEAD}.",
                "Give what `headrace sieve` published: RUN/student.",
            ) from None
        except (pydantic.ValidationError, SafetensorError, KeyError, OSError) as error:
            why = str(error).strip().partition("\n")[0][:200]
            raise ArtifactError(f"The student {folder} is damaged: {why}.", "Publish it again.") from None
        encoder = Encoder(str(folder), max_tokens=card.max_tokens, pooling=card.pooling, dtype=dtype)
        if encoder.width != len(weight):
            raise ArtifactError(
                f"The head of {folder} reads {len(weight)} features, its encoder gives {encoder.width}.",
                "Publish it again.",
            )
        return cls(encoder, Head(weight, bias), card)

    def save(self, folder: Path) -> None:
        """Write encoder, tokenizer, head and card into a directory."""
        from safetensors.numpy import save_file

        folder.mkdir(parents=True, exist_ok=True)
        self.encoder.save(folder)
        save_file({"weight": self.head.weight, "bias": np.array([self.head.bias], np.float32)}, folder / HEAD)
        (folder / CARD).write_text(json.dumps(self.card.model_dump(), indent=1))

    def logits(self, texts: Sequence[str], batch_tokens: int = 4096) -> Floats:
        """Logits of snippets, (n,); what is longer than a snippet is read up to its end."""
        return self.head.logits(self.encoder.features(texts, batch_tokens))

    def scores(self, texts: Sequence[str], batch_tokens: int = 4096) -> Floats:
        """Scores of whole texts in [0, 1], (n,): each is cut into snippets, whose scores are joined."""
        cut = pieces(self.encoder.tokenizer.backend_tokenizer, texts, self.encoder.max_tokens, self.card.long)
        scores = sigmoid(self.logits([piece for each in cut for piece in each], batch_tokens))
        ends = np.cumsum([len(each) for each in cut])
        join = np.max if self.card.join == "max" else np.mean
        return np.array([join(part) for part in np.split(scores, ends[:-1])]) if len(texts) else np.empty(0)

    def passes(self, scores: Floats) -> Bools:
        """Which scores pass."""
        return scores > self.card.threshold
