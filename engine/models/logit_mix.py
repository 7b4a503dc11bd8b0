"""`LogitMix`: the logits of a base model with differences of others added, `base + sum_i w_i (a_i - b_i)`.

One term with a value network for `a` and nothing for `b` is inverse value learning at serving time; a tuned and an
untuned small model are proxy tuning (arXiv 2401.08565). All models have to mean the same by an id: that is checked
token by token, not by the size of the vocabulary. Left out: running the models. Called by `engine.value_network`.

Shapes: B rows, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import SourceError
from engine.models.loading import load_tokenizer

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Term:
    """`weight * (add - subtract)`: indices into the models' logits; `subtract` None is nothing."""

    weight: float
    add: int
    subtract: int | None = None


class LogitMix:
    """Mixes logits of models that share a vocabulary; `vocabulary` is its number of tokens."""

    def __init__(self, terms: Sequence[Term], vocabulary: int) -> None:
        self.terms, self.vocabulary = tuple(terms), vocabulary

    @classmethod
    def checked(cls, terms: Sequence[Term], folders: Sequence[Path], vocabulary: int) -> "LogitMix":
        """A mix of the models in these directories, the base first. Raises `SourceError` where an id below `vocabulary`
        means another token in one of them, in whichever files that stands."""
        first, *others = [
            {token: at for token, at in load_tokenizer(str(folder)).get_vocab().items() if at < vocabulary}
            for folder in folders
        ]
        for folder, other in zip(folders[1:], others, strict=True):
            if other != first:
                raise SourceError(
                    f"{folder} and {folders[0]} have different tokenizers: the same id is another token there.",
                    "Mix models of one family, or map one vocabulary onto the other first.",
                )
        return cls(terms, vocabulary)

    def __call__(self, base_BV: "torch.Tensor", others: Sequence["torch.Tensor"]) -> "torch.Tensor":
        """Mixed logits, (B, V), in float32 unless nothing is added: then they are the base's own, bit for bit.

        Rows that a model pads its vocabulary with are left out. Raises `ValueError` for logits of fewer tokens.
        """
        for logits in (base_BV, *others):
            if logits.shape[-1] < self.vocabulary:
                raise ValueError(f"logits of {logits.shape[-1]} tokens, where the vocabulary has {self.vocabulary}")
        base_BV = base_BV[..., : self.vocabulary]
        terms = [term for term in self.terms if term.weight]
        if not terms:
            return base_BV
        mixed_BV = base_BV.float()
        for term in terms:
            difference_BV = others[term.add][..., : self.vocabulary].float()
            if term.subtract is not None:
                difference_BV = difference_BV - others[term.subtract][..., : self.vocabulary].float()
            mixed_BV = mixed_BV + term.weight * difference_BV
        return mixed_BV
