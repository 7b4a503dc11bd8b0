"""Bridges between vocabularies: the specification's numbers, real tokenizers, and pairs that do not belong together."""

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from engine.errors import SourceError
from engine.models import load_tokenizer
from engine.value_network.bridge import Bridge, load_bridge, make_bridge, spellings, weighed

TEXTS = ["The old man saw a cat in the garden.", "A cat saw the old man; naïve cats see it.\n\tSo."]


@pytest.fixture(scope="module")
def ours():
    return load_tokenizer("pkg:smollm2-135m")


@pytest.fixture(scope="module")
def pieces():
    """A vocabulary of pieces that mark spaces, with bytes to fall back on."""
    words = ["▁the", "▁old", "▁man", "▁cat", "▁gar", "den", "s", ".", "▁", "T", "h", "e", "▁saw", "▁in", "▁a"]
    vocabulary = [("<unk>", 0.0), ("</s>", 0.0), ("<0x0A>", -9.0)] + [
        (word, -1.0 - at) for at, word in enumerate(words)
    ]
    backend = Tokenizer(models.Unigram(vocabulary, unk_id=0))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")


def test_golden_9_from_counts_to_a_map():
    found = weighed({(0, 0): 5, (1, 0): 1, (2, 1): 3}, (3, 2))
    assert found == {0: (0, 1.0), 1: (0, pytest.approx(0.2)), 2: (1, 1.0)}
    bridge = Bridge(np.array([0, 0, 1]), np.array([1, 0.2, 1], np.float32), 0, "b", "v")
    torch.testing.assert_close(bridge(torch.tensor([1.0, 2.0])), torch.tensor([1.0, 0.2, 2.0]))


def test_a_vocabulary_is_itself(ours):
    bridge = make_bridge(ours, ours, TEXTS, (49152, 49152))
    spelt = spellings(ours)
    twice = len(spelt) - len(set(spelt.values()))
    assert bridge.exact == len(ours)
    assert (bridge.index[: len(ours)] == np.arange(len(ours))).sum() == len(ours) - twice
    logits = torch.randn(2, 49152)
    if not twice:
        assert bridge(logits)[:, : len(ours)].equal(logits[:, : len(ours)])


def test_tokens_that_no_logit_stands_for_are_left_out(ours):
    bridge = make_bridge(ours, ours, TEXTS, (300, 200))
    assert len(bridge.index) == 300
    assert bridge.index.max() < 200


def test_bytes_and_pieces_spell_alike(ours, pieces):
    assert spellings(ours)[ours("the cat")["input_ids"][1]] == b" cat"
    assert spellings(pieces)[pieces.get_vocab()["▁cat"]] == b" cat"
    assert spellings(pieces)[pieces.get_vocab()["<0x0A>"]] == b"\n"
    bridge = make_bridge(ours, pieces, TEXTS, (49152, 20))
    vocabulary = pieces.get_vocab()
    assert bridge.index[ours(" cat")["input_ids"][0]] == vocabulary["▁cat"]
    assert bridge.index[ours("\n")["input_ids"][0]] == vocabulary["<0x0A>"]
    assert bridge.index[ours.eos_token_id] == vocabulary["</s>"]
    (garden,) = ours(" garden")["input_ids"]
    assert bridge.index[garden] == vocabulary["▁gar"], "where it begins the other has a piece of it"
    assert 0 < bridge.weight[garden] <= 1
    assert bridge.weight.max() == 1
    assert "left to the base" in str(bridge)


def test_a_bridge_is_kept_and_belongs_to_its_pair(ours, pieces, tmp_path):
    made = make_bridge(ours, pieces, TEXTS, (49152, 20))
    made.save(tmp_path)
    found = load_bridge(tmp_path)
    assert str(found) == str(made)
    assert (found.index == made.index).all()
    assert (found.weight == made.weight).all()
    found.check(made.base, made.value)
    with pytest.raises(SourceError, match="other tokenizers"):
        found.check(made.value, made.base)
    with pytest.raises(SourceError, match="no bridge"):
        load_bridge(tmp_path / "none")
