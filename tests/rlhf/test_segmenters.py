"""Termination rules: exact partitions, the same in a batch as alone, and cuts where the text says."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import HeadraceError
from engine.rlhf import Macros, Responses, Segmenter, segment
from engine.rlhf.segmenters import NONE

RULES = ["token", "fixed:1", "fixed:5", "random", "perplexity", "perplexity_step", "sentence", "syntax", "whole"]
PROGRAM = '''@decorated(
    1)
def f(x, y=";"):
    """Two
    lines."""
    # a comment
    if x: return 1
    elif y:
        z = [1,
             2]; w = 3

    else:
        pass
'''


def tokens_of(text, rng):
    """A text in pieces, with their offsets."""
    cuts = sorted({0, *rng.integers(0, len(text) + 1, len(text) // 3).tolist(), len(text)})
    return np.array(list(itertools.pairwise(cuts)) or [(0, 0)], np.int64)


def batch_of(seed, rows=4):
    """Rows of unequal length with tool output inside, and what every rule needs."""
    rng = np.random.default_rng(seed)
    texts = ["".join(rng.choice(list("ab .!\n;:=()"), rng.integers(1, 60))) for _ in range(rows)]
    offsets = [tokens_of(text, rng) for text in texts]
    most = max(map(len, offsets)) + 2
    written = np.zeros((rows, most), bool)
    for row, each in enumerate(offsets):
        written[row, : len(each)] = rng.random(len(each)) < 0.8
    padded = [np.concatenate([each, np.full((most - len(each), 2), each[-1, 1])]) for each in offsets]
    return Responses(written, rng.integers(0, 99, rows), texts, padded, rng.normal(-2, 1, (rows, most)))


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_every_rule_is_a_partition_and_the_same_alone(rule, seed):
    batch = batch_of(seed)
    macro_BT = Segmenter(rule)(batch)
    assert ((macro_BT != NONE) == batch.written_BT).all()
    for row, written in enumerate(batch.written_BT):
        mine = macro_BT[row][written]
        assert (np.diff(mine) >= 0).all()
        assert (np.unique(mine) == np.arange(mine.max(initial=-1) + 1)).all(), "no empty macro"
        alone = segment(
            rule,
            range(written.sum()),
            text=batch.texts[row],
            text_offsets=batch.offsets[row][written],
            logprobs=batch.logprobs_BT[row][written],
            seed=int(batch.seeds_B[row]),
        )
        assert alone == np.bincount(mine).tolist()
        assert all(length >= 1 for length in alone)
        assert sum(alone) == written.sum()


def test_random_uses_each_length_three_times_and_depends_on_the_seed():
    lengths = segment("random", range(75), seed=3)
    assert sorted(lengths[:12]) == [2] * 3 + [3] * 3 + [5] * 3 + [10] * 3
    assert lengths[12:] == [15]
    assert lengths == segment("random", range(75), seed=3)
    assert len({tuple(segment("random", range(60), seed=seed)) for seed in range(20)}) > 15


def test_perplexity_falls_inside_a_macro():
    rng = np.random.default_rng(0)
    nll = rng.exponential(2, 300)
    at = 0
    for length in segment("perplexity", nll, logprobs=-nll):
        means = np.cumsum(nll[at : at + length]) / np.arange(1, length + 1)
        assert (np.diff(means) <= 1e-12).all()
        if at + length < len(nll):
            assert nll[at + length] > means[-1], "the next would have raised it"
        at += length


def pieces(text, rule, *tokens):
    """The macros' texts, for a text that these tokens make up."""
    assert "".join(tokens) == text
    ends = np.cumsum([len(token) for token in tokens])
    lengths = segment(rule, tokens, text=text, text_offsets=list(zip(ends - [len(t) for t in tokens], ends)))  # noqa: B905
    at, found = 0, []
    for length in lengths:
        found.append("".join(tokens[at : at + length]))
        at += length
    return found


def test_sentences():
    text = 'It is 3.5. Is it?! "Yes."\n\nGood'
    tokens = ["It", " is", " 3", ".", "5", ".", " Is", " it", "?!", ' "', "Yes", ".", '"', "\n\n", "Good"]
    assert pieces(text, "sentence", *tokens) == ["It is 3.5.", " Is it?!", ' "Yes."\n\n', "Good"]


def test_statements_of_a_program():
    assert pieces(PROGRAM, "syntax", *PROGRAM) == [
        "@decorated(\n    1)\n",
        'def f(x, y=";"):\n',
        '    """Two\n    lines."""\n    # a comment\n',
        "    if x:",
        " return 1\n",
        "    elif y:\n",
        "        z = [1,\n             2];",
        " w = 3\n\n",
        "    else:\n",
        "        pass\n",
    ]


def test_lines_of_what_is_no_program():
    text = "<|diff|>@@ -0,0 +1,2 @@\n+def f():\n\n+    return ("
    lines = ["<|diff|>@@ -0,0 +1,2 @@\n", "+def f():\n\n", "+    return ("]
    assert pieces(text, "syntax", *text) == lines


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("text", ["", "\r", "a\rb = 1\n", "'\\d'\n", "\0", "x = 'é'; y = 2\n", "if x:\n", "\x0c\nz=1"])
def test_odd_programs(text):
    offsets = [(at, at + 1) for at in range(len(text))]
    assert sum(segment("syntax", text, text=text, text_offsets=offsets)) == len(text)


def test_without_a_parser_phrases_are_five_tokens():
    text = "abcdefghijkl"
    assert segment("parse", text, text=text, text_offsets=[(at, at + 1) for at in range(12)]) == [5, 5, 2]


def test_no_tokens():
    for rule in RULES:
        assert segment(rule, [], text="", text_offsets=[], logprobs=[]) == []
    macros = Macros.of(Segmenter("token")(Responses(np.zeros((2, 3), bool), np.zeros(2, np.int64))))
    assert macros.sums(np.ones((2, 3))).shape == (2, 0)
    assert not macros.to_tokens(np.zeros((2, 0))).any()


@pytest.mark.parametrize(
    ("rule", "keys", "said"),
    [
        ("fixed:0", {}, "no termination rule 'fixed:0'"),
        ("words", {}, "There are: fixed:N, parse, perplexity"),
        ("perplexity", {}, "needs the tokens' log-probabilities"),
        ("sentence", {"text": "ab"}, "needs the text"),
        ("token", {"logprobs": [0.0]}, "logprobs has 1 entries for 2 tokens"),
    ],
)
def test_what_is_missing_is_named(rule, keys, said):
    with pytest.raises(HeadraceError, match=said):
        segment(rule, [1, 2], **keys)
