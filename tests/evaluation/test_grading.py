"""Tests taken apart: credit for each that passes, and never another verdict."""

import pytest

from engine.evaluation import Checker, SandboxOptions, Task, problems
from engine.evaluation.grading import taken_apart

TESTS = """
def check(candidate):
    half = candidate(2) / 2
    assert candidate(1) == 1
    assert candidate(2) == 4, "two"
    for n in range(3, 6):
        assert candidate(n) == n * n
    assert True, "says nothing"
    if half:
        assert half == 2
"""


@pytest.fixture(scope="module")
def checker():
    with Checker(SandboxOptions(seconds=2)) as checker:
        yield checker


@pytest.mark.parametrize(
    ("program", "passed", "why"),
    [
        ("def f(x): return x * x", 4, ""),
        ("def f(x): return 1", 1, "test (AssertionError)"),
        ("def f(x): return 4", 2, "test (AssertionError)"),
        ("def f(x):\n    if x > 2: raise KeyError\n    return x * x", 3, "raised KeyError"),
        ("def f(x):\n    while x > 2: pass\n    return x * x", 2, "time"),
        ("import os\ndef f(x): return os._exit(0) if x > 2 else x * x", 2, "died"),
        ("def f(x): return '4'", 0, "test (TypeError)"),
        ("def f(x:", 0, "syntax"),
        ("x = 1", 0, "missing"),
    ],
)
def test_each_test_counts_by_itself(checker, program, passed, why):
    graded = checker.check(program, Task("f", TESTS), graded=True)
    plain = checker.check(program, Task("f", TESTS))
    assert (graded.tests, graded.tests_passed, graded.why) == (4, passed, why)
    assert graded.passed == plain.passed == (not why)
    assert (plain.tests, plain.tests_passed) == (0, 0)


@pytest.mark.parametrize(
    "tests",
    ["def check(", "x = 1", "def check(candidate):\n    assert True\n", "def check(c): pass\ndef check(c): pass\n", ""],
)
def test_what_holds_no_test_stays_as_it_is(tests):
    assert taken_apart(tests) == (tests, 0)


def test_a_test_that_leaves_or_defines_is_left_whole():
    tests = "def check(c):\n    try:\n        c(1)\n        assert c(2) == 1\n    except ValueError:\n        return\n"
    assert taken_apart(tests) == (tests, 0)


def test_humaneval_can_all_be_taken_apart_and_its_solutions_pass_every_test():
    assert all(taken_apart(problem.tests)[1] for problem in problems())
    with Checker() as checker:
        for problem in problems()[3::20]:
            checked = checker.check(problem.prompt + problem.solution, problem.task, graded=True)
            assert checked.passed, problem.name
            assert checked.tests == checked.tests_passed > 0
            wrong = checker.check(problem.prompt + "    return None\n", problem.task, graded=True)
            assert not wrong.passed
            assert wrong.tests_passed < wrong.tests
