"""Mixing logits: the formula, the vocabulary check, and that nothing added changes nothing."""

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from engine.errors import SourceError
from engine.models import LogitMix, Term


def test_it_is_the_formula():
    base, tuned, plain = (torch.randn(2, 7, dtype=torch.bfloat16) for _ in range(3))
    mixed = LogitMix([Term(0.5, 0, 1), Term(-2.0, 1)], 7)(base, [tuned, plain])
    assert torch.equal(mixed, base.float() + 0.5 * (tuned.float() - plain.float()) + -2.0 * plain.float())


def test_weight_zero_is_the_base_bit_for_bit():
    base = torch.tensor([[float("-inf"), -0.0, 1.5]], dtype=torch.bfloat16)
    other = torch.tensor([[float("nan"), 1.0, 1.0]])
    mixed = LogitMix([Term(0.0, 0)], 3)(base, [other])
    assert mixed.dtype == torch.bfloat16
    assert torch.equal(mixed.view(torch.int16), base.view(torch.int16))


def test_padded_rows_are_left_out_and_missing_ones_told():
    mix = LogitMix([Term(1.0, 0)], 5)
    assert mix(torch.zeros(1, 8), [torch.ones(1, 6)]).tolist() == [[1.0] * 5]
    with pytest.raises(ValueError, match="logits of 4 tokens, where the vocabulary has 5"):
        mix(torch.zeros(1, 8), [torch.ones(1, 4)])


def test_another_tokenizer_is_refused(tmp_path):
    words = {"base": ["a", "b", "c"], "tuned": ["a", "b", "c", "<|diff|>"], "other": ["a", "c", "b"]}
    for name, some in words.items():
        vocabulary = {word: at for at, word in enumerate(some)}
        backend = Tokenizer(models.WordLevel(vocabulary, unk_token="a"))
        PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="a").save_pretrained(tmp_path / name)
    LogitMix.checked([Term(1.0, 0)], [tmp_path / "base", tmp_path / "tuned"], 3)
    for wrong, size in (("other", 3), ("tuned", 4)):
        with pytest.raises(SourceError, match="different tokenizers"):
            LogitMix.checked([Term(1.0, 0)], [tmp_path / "base", tmp_path / wrong], size)
