"""Macros of real responses: rules that read the text, with a tokenizer whose tokens begin with their spaces."""

from types import SimpleNamespace

import numpy as np
import pytest

from engine.config import build_recipe
from engine.models import load_tokenizer
from engine.rlhf import segment, text_rules
from engine.rlhf.assessment import Assessor
from engine.rlhf.experience import Experience, Response, text_offsets
from engine.rlhf.learner import Looked
from jobs import rlhf

PROGRAM = "def f(x):\n    y = x + 1; z = y\n    return z\n"


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("pkg:smollm2-135m")


def _pieces(tokenizer, rule, text, **more):
    ids = tokenizer(text)["input_ids"]
    said, offsets = text_offsets(tokenizer, ids, len(ids))
    assert said == text
    lengths = segment(rule, ids, text=text, text_offsets=offsets.tolist(), **more)
    ends = np.cumsum(lengths)
    return [tokenizer.decode(ids[end - length : end]) for length, end in zip(lengths, ends, strict=True)]


def test_a_statement_in_the_middle_of_a_line_begins_with_its_space(tokenizer):
    found = _pieces(tokenizer, "syntax", "x = 1; y = 2\nz = 3\n")
    assert found[0].rstrip() == "x = 1;"
    assert found[1].strip() == "y = 2"


def _assessed(tokenizer, rule, text, reference=None):
    recipe = build_recipe(
        rlhf.RECIPE,
        {
            "name": "a",
            "model": "pkg:smollm2-135m",
            "prompts": {"source": {"paths": ["x.jsonl"]}},
            "rewards": [{"kind": "function", "function": "likes:letters"}],
            "macro": {"rule": rule},
        },
    )
    ids = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    response = Response(0, 0, 0, ids, [-1.0] * len(ids), True, text)
    reference = np.full((1, len(ids)), -1.0) if reference is None else reference(len(ids))
    looked = Looked(np.full((1, len(ids)), -1.0), reference, np.zeros((1, len(ids))))
    credited, _ = Assessor(recipe, tokenizer)(Experience(0, 0, [response]), looked, np.array([1.0]), 0.1)
    lengths = credited.macros.length_BK[0]
    return [tokenizer.decode(ids[end - length : end]) for length, end in zip(lengths, np.cumsum(lengths), strict=True)]


def test_a_finished_program_is_parsed_and_its_end_joins_the_last_statement(tokenizer):
    found = _assessed(tokenizer, "syntax", PROGRAM)
    assert len(found) == 4, found
    assert found[1].strip() == "y = x + 1;"
    assert found[-1].strip() == f"return z\n{tokenizer.eos_token}"
    assert "".join(found) == PROGRAM + tokenizer.eos_token


def test_the_end_of_a_sentence_and_of_the_response_are_one(tokenizer):
    assert _assessed(tokenizer, "sentence", "So it is. Yes.") == ["So it is.", f" Yes.{tokenizer.eos_token}"]


def test_perplexity_is_the_references(tokenizer):
    rising = _assessed(tokenizer, "perplexity", "one two three four", lambda n: -np.arange(1.0, n + 1)[None])
    assert len(rising) == 5
    falling = _assessed(tokenizer, "perplexity", "one two three four", lambda n: -np.arange(n, 0.0, -1)[None])
    assert len(falling) == 1


def _leaf(text):
    return SimpleNamespace(children=[], label=text)


def _node(*children):
    return SimpleNamespace(children=list(children))


def _parsed(text, tokens, tree):
    """What stanza gives: tokens of one word or more, with the characters they are."""
    found, at = [], 0
    for word, count in tokens:
        start = text.index(word, at)
        at = start + len(word)
        found.append(SimpleNamespace(start_char=start, end_char=at, words=[None] * count))
    return lambda _: SimpleNamespace(sentences=[SimpleNamespace(tokens=found, constituency=tree)])


def test_phrases_begin_with_the_space_before_them(tokenizer, monkeypatch):
    text = "The old man saw a cat in the garden and can't sleep"
    words = [(word, 2 if word == "can't" else 1) for word in text.split()]
    leaves = [_leaf(word) for word, count in words for _ in range(count)]
    noun, place, end = _node(*leaves[:3]), _node(*leaves[6:9]), _node(*leaves[9:])
    tree = _node(_node(noun, _node(leaves[3], _node(*leaves[4:6]), place), end))
    monkeypatch.setattr(text_rules, "_parser", lambda: _parsed(text, words, tree))
    found = _pieces(tokenizer, "parse", text)
    assert "".join(found) == text
    assert found == ["The old man saw", " a cat", " in the garden", " and can't sleep"]
