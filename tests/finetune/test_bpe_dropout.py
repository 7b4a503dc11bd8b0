"""BPE-dropout on a real tokenizer: nothing dropped is the tokenizer, whatever is dropped reads back, seeds decide."""

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from engine.errors import SourceError
from engine.finetune import BpeDropout
from engine.models import load_tokenizer

TEXTS = [
    "",
    " ",
    "def area(w, h):\n    return w * h\n",
    "Ünïcode — 漢字 and 🙂 emoji",
    "<|im_start|>user\nHello<|im_end|>\n",
    "tabs\t\tand   spaces 1234567890",
]


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("pkg:smollm2-135m")


@pytest.fixture(scope="module")
def dropout(tokenizer):
    return BpeDropout(tokenizer.backend_tokenizer)


@pytest.mark.parametrize("text", TEXTS)
def test_at_rate_zero_it_is_the_tokenizer(tokenizer, dropout, text):
    assert dropout.encode(text, 0.0, seed=0, row=0, epoch=0) == tokenizer(text, add_special_tokens=False)["input_ids"]


@settings(max_examples=60, deadline=None)
@given(text=st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cn", "Co", "Cs"]), max_size=60))
def test_any_text_at_rate_zero(tokenizer, dropout, text):
    assert dropout.encode(text, 0.0, seed=0, row=0, epoch=0) == tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("text", TEXTS)
def test_at_every_rate_it_reads_back(tokenizer, dropout, text, rate):
    ids = dropout.encode(text, rate, seed=3, row=5, epoch=1)
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text
    assert len(ids) >= len(dropout.encode(text, 0.0, seed=3, row=5, epoch=1))


def test_a_special_token_may_be_spelt(tokenizer, dropout):
    text = "code with <|im_end|> in it"
    spelt = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert dropout.encode(text, 0.0, seed=0, row=0, epoch=0, special=False) == spelt
    assert tokenizer.decode(dropout.encode(text, 0.5, seed=0, row=0, epoch=0, special=False)) == text


def test_seed_row_and_epoch_decide(dropout):
    text = TEXTS[2] * 20
    one = dropout.encode(text, 0.1, seed=1, row=2, epoch=3)
    assert dropout.encode(text, 0.1, seed=1, row=2, epoch=3) == one
    for other in (
        {"seed": 2, "row": 2, "epoch": 3},
        {"seed": 1, "row": 3, "epoch": 3},
        {"seed": 1, "row": 2, "epoch": 4},
    ):
        assert dropout.encode(text, 0.1, **other) != one


def test_another_process_gives_the_same(dropout):
    program = (
        "from engine.finetune import BpeDropout; from engine.models import load_tokenizer;"
        "print(BpeDropout(load_tokenizer('pkg:smollm2-135m').backend_tokenizer)"
        f".encode({TEXTS[2]!r}, 0.3, seed=1, row=2, epoch=3))"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert said.strip() == str(dropout.encode(TEXTS[2], 0.3, seed=1, row=2, epoch=3))


def test_almost_everything_dropped_is_characters(tokenizer, dropout):
    ids = dropout.encode("return", 1 - 1e-12, seed=0, row=0, epoch=0)
    assert [tokenizer.decode([each]) for each in ids] == list("return")


def test_the_share_of_merges_left_out_is_the_rate():
    """A word of two characters has one merge, tried once."""
    backend = Tokenizer(models.BPE(vocab={"a": 0, "b": 1, "ab": 2}, merges=[("a", "b")]))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    dropout = BpeDropout(backend)
    split = sum(len(dropout.encode("ab", 0.3, seed=0, row=row, epoch=0)) == 2 for row in range(4000))
    assert abs(split / 4000 - 0.3) < 0.025


@pytest.mark.parametrize("model", [models.WordLevel({"a": 0}, "a"), models.WordPiece({"a": 0}, unk_token="a")])
def test_what_is_no_bpe_is_refused(model):
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(SourceError, match="needs a BPE tokenizer"):
        BpeDropout(backend)


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_a_rate_that_is_none(dropout, rate):
    with pytest.raises(ValueError, match=r"not in \[0, 1\)"):
        dropout.encode("a", rate, seed=0, row=0, epoch=0)
