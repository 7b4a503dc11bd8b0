"""Measures against their definitions, win rates in both orders, and which programs count as the same."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.evaluation import RewardJudge, RuleJudge, TextJudge, win_rate
from engine.evaluation.judging import Pair, outcome, pairs_of
from engine.evaluation.measures import difference, humaneval_measures, mean, prompt_measures, reasons
from engine.evaluation.perplexity import Perplexity, ratio
from engine.evaluation.programs import parses, same_as
from engine.evaluation.reward import RewardModel


def sample(problem, number, passed, **more):
    return {
        "problem": problem, "sample": number, "passed": passed, "why": "" if passed else "test (AssertionError)",
        "tests": 4, "tests_passed": 4 if passed else 1, "parses": True, "same_as": str(number % 2), "tokens": 10,
        "finished": passed, "text": str(number), **more,
    }  # fmt: skip


ROWS = [sample("a", at, at == 0) for at in range(4)] + [sample("b", at, False) for at in range(4)]


def test_problems_count_alike():
    found = humaneval_measures(ROWS, [1, 2, 5])
    assert {name: each.value for name, each in found.items()} == pytest.approx(
        {"pass@1": 0.125, "pass@2": 0.25, "tests passed": 0.34375, "parses": 1, "distinct": 0.5, "tokens": 10,
         "cut off": 0.875}
    )  # fmt: skip
    assert all(each.low <= each.value <= each.high for each in found.values())
    assert {each.over for each in found.values()} == {2}
    assert reasons(ROWS) == {"test (AssertionError)": 7, "passed": 1}
    lopsided = [*ROWS, *(sample("a", at, True) for at in range(4, 100))]
    assert humaneval_measures(lopsided, [])["parses"].over == 2


def test_differences_are_paired():
    clean = [sample(name, at, name in "ab") for name in "abc" for at in range(2)]
    noisy = [sample(name, 0, name == "a") for name in "abd"]
    change = difference(clean, noisy, lambda row: float(row["passed"]))
    assert (change.value, change.over) == (-0.5, 2)
    assert difference([], noisy, lambda row: 1.0) is None
    assert mean([]) is None


def test_rewards_are_measured_where_all_have_one():
    assert prompt_measures([sample("a", 0, True, reward=2.0), sample("b", 0, True, reward=4.0)])["reward"].value == 3.0
    assert "reward" not in prompt_measures([sample("a", 0, True, reward=None)])


@given(st.lists(st.tuples(st.floats(0, 10), st.integers(1, 9)), min_size=1, max_size=9))
def test_a_ratio_is_of_sums(pairs):
    amounts, counts = (np.array(each, float) for each in zip(*pairs, strict=True))
    value, low, high = ratio(amounts, counts, rounds=50)
    assert value == pytest.approx(amounts.sum() / counts.sum())
    assert low <= high
    assert math.isnan(ratio(np.zeros(2), np.zeros(2))[0])


def test_perplexity_is_that_of_the_model(tiny_lm):
    import torch

    from engine.models import load_causal_lm

    ids = [5, 9, 200, 30, 31, 7]
    logp = load_causal_lm(tiny_lm)(input_ids=torch.tensor([ids])).logits[0].detach().log_softmax(-1)
    expected = -sum(float(logp[at - 1, ids[at]]) for at in (2, 3, 5))
    nats, tokens = Perplexity(tiny_lm).nats(ids, [2, 4, 5, 6])
    assert (nats, tokens) == (pytest.approx(expected, rel=1e-5), 3)
    assert Perplexity(tiny_lm).nats(ids, []) == (0.0, 0)


SAME = [
    "def f(a, b):\n    '''Words.'''\n    c = a + b\n    return c\n",
    "def f(x, y):  # a comment\n    total = (x + y)\n\n    return total",
]
OTHER = ["def f(a, b):\n    c = b + a\n    return c", "def g(a, b):\n    c = a + b\n    return c", "def f(a, b:", ""]


def test_which_programs_are_the_same():
    assert len({same_as(each) for each in SAME}) == 1
    assert len({same_as(each) for each in [SAME[0], *OTHER]}) == 1 + len(OTHER)
    assert [parses(each) for each in OTHER] == [True, True, False, True]
    assert same_as("def f(x):\n    def g(y): return x + y\n    return g") == same_as(
        "def f(a):\n    def g(b): return a + b\n    return g"
    )
    assert same_as("(" * 500)


PAIRS = [Pair("p", "longer answer", "short"), Pair("q", "a", "b"), Pair("r", "s", "longer")]


def test_a_judge_is_asked_in_both_orders():
    judged = win_rate(PAIRS, RuleJudge(len), against="x", unmatched=3)
    assert (judged.wins, judged.ties, judged.losses, judged.flipped) == (1, 1, 1, 0)
    assert judged.rate.value == 0.5
    assert judged.unmatched == 3
    assert judged.examples["win"] == [["p", "longer answer", "short"]]


def test_a_judge_that_favours_a_place_gives_ties():
    judged = win_rate(PAIRS, TextJudge(lambda texts: [True] * len(texts)), against="x")
    assert (judged.ties, judged.flipped, judged.rate.value) == (3, 3, 0.5)


def test_what_has_no_verdict_is_left_out():
    judged = win_rate(PAIRS, TextJudge(lambda texts: [None if "q" in text else True for text in texts]), against="x")
    assert (judged.no_verdict, judged.ties, judged.rate.over) == (1, 2, 2)
    assert win_rate([], RuleJudge(len), against="x").rate is None
    assert outcome("first", None) == "no verdict"
    assert outcome("tie", "second") == "tie"


def test_a_text_judge_sees_both_answers():
    seen = []
    win_rate(PAIRS[:1], TextJudge(lambda texts: seen.extend(texts) or [True] * len(texts)), against="x")
    assert seen[0].index("longer answer") < seen[0].index("short") < len(seen[0])
    assert seen[1].index("short") < seen[1].index("longer answer")


def test_pairs_are_of_the_same_question():
    ours = [
        {"id": name, "text": name, "prompt": "p", "reference": None, "variant": variant}
        for name, variant in [("a", "clean"), ("b", "clean"), ("c", "clean"), ("d", "order")]
    ]
    theirs = [{"id": "a", "text": "x", "prompt": "p"}, {"id": "b", "text": "x", "prompt": "another"}]
    assert pairs_of(ours, theirs, 9) == ([Pair("p", "a", "x")], 2)
    ours[0]["reference"] = "r"
    assert pairs_of(ours, None, 9) == ([Pair("p", "a", "r")], 2)


def test_a_reward_model_scores_the_last_real_token(tiny_reward):
    model = RewardModel(tiny_reward, window=64)
    prompts, answers = ["a", "b", "c" * 200], ["x", "a much longer answer", "y"]
    together = model.scores(prompts, answers)
    alone = [model.scores([prompt], [answer])[0] for prompt, answer in zip(prompts, answers, strict=True)]
    assert together == pytest.approx(alone, abs=1e-5)
    assert len(set(together)) == 3
    judge = RewardJudge(model)
    both = judge.compare([("a", "x", "y"), ("a", "y", "x"), ("a", "x", "x")])
    assert sorted(map(str, both[:2])) == ["first", "second"]
    assert both[2] == "tie"
    assert RewardJudge(model, margin=100.0).compare([("a", "x", "y")]) == ["tie"]
