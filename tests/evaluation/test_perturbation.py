"""Noise that is drawn from a seed, touches prose only, and leaves the program that is asked for the same."""

import ast
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.evaluation import perturb, perturb_function, problems

KINDS = ("characters", "tokens", "order")
TEXT = st.text(st.sampled_from("abcdefg ABC.,!?\n 123_'\"\\é"), max_size=80)


@given(st.sampled_from(KINDS), TEXT, st.floats(0.01, 1), st.integers(0, 2**40))
def test_the_same_seed_gives_the_same_noise(kind, text, rate, seed):
    once = perturb(kind, text, rate=rate, seed=seed)
    assert once == perturb(kind, text, rate=rate, seed=seed)
    if kind == "order":
        assert sorted(once) == sorted(text)
    else:
        untouched = r"[^A-Za-z ]"
        assert re.findall(untouched, once.replace("'", "")) == re.findall(untouched, text.replace("'", "")) or (
            kind == "tokens"
        )
    assert once.count("\\") == text.count("\\") or kind == "tokens"


@pytest.mark.parametrize("kind", KINDS)
def test_it_disturbs_and_the_rate_says_how_much(kind):
    text = "The quick brown fox jumps over the lazy dog. It does so again. And again, with much joy." * 4
    little, much = (perturb(kind, text, rate=rate, seed=1) for rate in (0.02, 0.9))
    assert text not in (little, much)
    if kind != "order":

        def same(other):
            return len(set(text.split()) & set(other.split()))

        assert same(little) > same(much) or kind == "tokens"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [0, 1])
def test_code_stays_as_it_is(kind, seed):
    changed = 0
    for problem in problems():
        prompt = perturb_function(kind, problem.prompt, problem.entry_point, rate=0.3, seed=seed)
        assert _bare(prompt) == _bare(problem.prompt), problem.name
        # Examples and what names the function are code to a reader.
        kept = [line for line in problem.prompt.split("\n") if ">>>" in line or problem.entry_point + "(" in line]
        assert all(line in prompt.split("\n") for line in kept), problem.name
        changed += prompt != problem.prompt
    assert changed > 110


def test_what_has_no_docstring_or_does_not_parse_stays():
    for prompt in ("def f(x):\n", "def f(:\n    '''Words here.'''\n", "def g():\n    '''Some words.'''\n"):
        assert perturb_function("characters", prompt, "f", rate=1.0, seed=0) == prompt


def _bare(prompt):
    """Its syntax tree without docstrings."""
    tree = ast.parse(prompt + "\n    pass\n")
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return ast.dump(tree)
