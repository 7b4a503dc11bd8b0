"""How right a scorer is on held-out examples, and whether its probabilities mean what they say.

A score's sigmoid is the chance of a positive label, a margin's that the chosen answer is the better one. Probabilities
are binned in tenths; the expected calibration error is the mean gap between a bin's mean probability and its share of
positives, weighted by its examples (arXiv 1706.04599). Pairs are looked at from both sides, since which of the two is
named first means nothing.

Left out: scoring. Called by `engine.finetune.reward` and its report.

Shapes: N examples, K bins.
"""

import numpy as np
import numpy.typing as npt

from engine.config import Section

_BINS = 10


class Bin(Section):
    """Examples whose probabilities fall in one tenth."""

    examples: int
    probability: float
    """Their mean probability."""
    positives: float
    """Their share of positive labels."""


class Calibration(Section):
    """What was measured of a scorer."""

    examples: int
    loss: float
    """Mean logistic loss, in nats."""
    accuracy: float
    """Share on the right side; a tie is half right."""
    balanced_accuracy: float
    """Mean over both labels; of pairs the accuracy."""
    majority: float
    """Accuracy of whoever always says the commoner label; of pairs 0.5."""
    brier: float
    error: float
    """Expected calibration error."""
    bins: tuple[Bin, ...]

    def measures(self) -> dict[str, float]:
        """The numbers worth a curve."""
        return {
            "accuracy": self.accuracy,
            "balanced accuracy": self.balanced_accuracy,
            "brier": self.brier,
            "calibration error": self.error,
        }


def calibration(
    logits_N: npt.NDArray[np.float64], labels_N: npt.NDArray[np.float64], *, mirrored: bool = False
) -> Calibration:
    """Measures of logits against labels (0 or 1); `mirrored` adds each example from the other side."""
    loss = float(np.logaddexp(0, np.where(labels_N > 0.5, -logits_N, logits_N)).mean())
    right = np.where(logits_N == 0, 0.5, (logits_N > 0) == (labels_N > 0.5))
    accuracy = float(right.mean())
    each = [right[labels_N > 0.5], right[labels_N <= 0.5]]
    balanced = float(np.mean([part.mean() for part in each if len(part)]))
    positive = float(labels_N.mean())
    if mirrored:
        logits_N, labels_N = np.concatenate([logits_N, -logits_N]), np.concatenate([labels_N, 1 - labels_N])
        positive = 0.5
    probabilities_N = 0.5 * (1 + np.tanh(0.5 * logits_N))
    of_N = np.minimum((probabilities_N * _BINS).astype(int), _BINS - 1)
    bins = tuple(
        Bin(examples=int(here.sum()), probability=probabilities_N[here].mean(), positives=labels_N[here].mean())
        for here in (of_N == bin for bin in range(_BINS))
        if here.any()
    )
    return Calibration(
        examples=len(right),
        loss=loss,
        accuracy=accuracy,
        balanced_accuracy=balanced,
        majority=max(positive, 1 - positive),
        brier=float(((probabilities_N - labels_N) ** 2).mean()),
        error=sum(bin.examples * abs(bin.probability - bin.positives) for bin in bins) / len(labels_N),
        bins=bins,
    )
