"""pass@k against its definition, and HumanEval: its solutions pass, stubs do not, and texts that hold it are found."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.evaluation import Checker, given_away, interval, pass_at_k, problems


@given(st.integers(1, 9).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_it_is_the_share_of_draws_with_a_success(case):
    n, right, k = case
    draws = list(itertools.combinations([True] * right + [False] * (n - right), k))
    assert pass_at_k([n], [right], k)[0] == pytest.approx(np.mean([any(draw) for draw in draws]))


def test_many_samples_do_not_overflow():
    assert pass_at_k([10_000], [3], 1)[0] == pytest.approx(3e-4)
    assert pass_at_k([10_000], [9_999], 2)[0] == 1.0


@pytest.mark.parametrize(("drawn", "right", "k"), [([3], [1], 4), ([3], [4], 1), ([3], [-1], 1), ([3, 3], [1], 1)])
def test_what_cannot_be_is_refused(drawn, right, k):
    with pytest.raises(ValueError, match=r"pass@|passed"):
        pass_at_k(drawn, right, k)


def test_the_interval_covers_the_mean():
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        low, high = interval(rng.binomial(1, 0.3, 100).astype(float), seed=seed, rounds=500)
        covered += low <= 0.3 <= high
    assert 180 <= covered <= 200
    assert np.isnan(interval(np.empty(0))).all()


def test_humaneval_is_passed_by_its_solutions_alone():
    some = problems()[::8]
    assert len(problems()) == 164
    with Checker() as checker:
        for problem in some:
            assert checker.check(problem.prompt + problem.solution, problem.task).passed, problem.name
            assert not checker.check(problem.prompt + "    pass\n", problem.task).passed, problem.name


def test_texts_that_hold_a_problem_are_found():
    one, other = problems()[3], problems()[40]
    laid_out = " ".join(one.prompt.split())
    assert given_away(["def f(x): return x", laid_out, other.prompt, one.prompt]) == {one.name: 1, other.name: 2}
    assert given_away(["for i in range(len(arr)):\n    for j in range(i + 1, len(arr)):\n        pass\n" * 3]) == {}
