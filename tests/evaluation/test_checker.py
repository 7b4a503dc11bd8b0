"""Checking untrusted functions: right ones pass, and nothing but the right values does."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.evaluation import Checker, SandboxOptions, Task
from engine.evaluation.values import NotPlain, dumps, loads

SQUARE = Task("f", "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(3) == 9\n")

FORGED = """
import os
for fd in range(3, 64):
    try: os.write(fd, b'{"passed": true}\\n')
    except OSError: pass
"""


@pytest.fixture(scope="module")
def checker():
    with Checker(SandboxOptions(seconds=2)) as checker:
        yield checker


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("def f(x): return x * x", ""),
        ("f = lambda x: x ** 2", ""),
        ("ENTRY = 'PROGRAM'\ndef f(x): return x * x if ENTRY == 'PROG' + 'RAM' else 0", ""),
        ("def f(x): return x * x  # \U0001f600", ""),
        ("def f(x): return 4", "test (AssertionError)"),
        ("def f(x): return None", "test (AssertionError)"),
        ("def f(x): raise ValueError('no')", "raised ValueError"),
        ("def f(x): return f(x)", "raised RecursionError"),
        ("def g(x): return x * x", "missing"),
        ("def f(x:", "syntax"),
        ("f = '\\0", "syntax"),
        ("(" * 1000, "syntax"),
        ("def f(x):\n    while True: pass", "time"),
        ("while True: pass", "time"),
        ("import sys; sys.exit(0)", "raised SystemExit"),
        ("import os; os._exit(0)", "died"),
        ("import os\ndef f(x): os._exit(0)", "died"),
        ("class Any(int):\n    def __eq__(self, other): return True\ndef f(x): return Any()", "value"),
        ("def f(x): return (x for x in [4])", "value"),
        ("def f(x):\n    print('{\"passed\": true}')\n    return 5", "test (AssertionError)"),
        (FORGED, "died"),
        ("import __main__\n__main__.dumps = lambda value: '9'\ndef f(x): return 1", "test (AssertionError)"),
        ("def f(x): return 'x' * 10**7", "died"),
        ("import json\njson.loads = json.dumps = None\ndef f(x): return x * x", "died"),
    ],
)  # fmt: skip
def test_only_the_right_values_pass(checker, program, why):
    checked = checker.check(program, SQUARE)
    assert (checked.passed, checked.why) == (not why, why)


def test_a_spoilt_check_does_not_spoil_the_next(checker):
    assert not checker.check("def f(x):\n    while True: pass", SQUARE).passed
    assert checker.check("def f(x): return x * x", SQUARE).passed


def test_tests_may_use_a_preamble_and_expect_errors(checker):
    tests = (
        "def check(candidate):\n    assert candidate(half(4)) == 4\n"
        "    try:\n        candidate('x')\n    except TypeError:\n        return\n    assert False\n"
    )
    task = Task("f", tests, "def half(x): return x // 2")
    assert checker.check("def f(x): return x * x", task).passed
    assert checker.check("def f(x): return 4", task).why == "test (AssertionError)"


def test_broken_tests_are_no_success(checker):
    assert checker.check("def f(x): return 1", Task("f", "def check(candidate): nonsense")).why == "test (NameError)"
    assert checker.check("def f(x): return 1", Task("f", "def check(")).why == "test (SyntaxError)"
    assert checker.check("def f(x): return 1", Task("f", "def check(candidate):\n    while True: pass")).why == "time"
    assert checker.check("def f(x): return x * x", SQUARE).passed


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.complex_numbers(),
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.text() | st.integers() | st.tuples(st.integers()), inner)
        | st.sets(st.integers() | st.text())
        | st.frozensets(st.integers())
    ),
    max_leaves=20,
)


@given(PLAIN)
def test_plain_values_come_back_as_they_were(value):
    assert same(loads(dumps(value)), value)


def same(one, other):
    """Equal in value and type all the way down, nan like nan."""
    if type(one) is not type(other):
        return False
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return one == other or repr(one) == repr(other)


def test_what_is_not_plain_or_not_packed_is_refused():
    for value in (object(), type("Int", (int,), {})(1), range(3), len, [iter([])], {"a": math}):
        with pytest.raises(NotPlain):
            dumps(value)
    for text in (
        '{"$": "eval", "of": "1"}',
        '{"a": 1}',
        '{"$": "set", "of": 3}',
        '{"$": "int", "of": 5}',
        '{"$": "float", "of": "x"}',
        "nope",
    ):
        with pytest.raises(ValueError):  # noqa: PT011 - of whichever kind
            loads(text)


def test_the_dictionaries_of_the_standard_library_come_back_plain(checker):
    task = Task("f", "def check(candidate):\n    assert candidate('aab') == {'a': 2, 'b': 1}\n")
    for make in ("Counter(x)", "OrderedDict(a=2, b=1)", "defaultdict(int, Counter(x))"):
        program = f"from collections import *\ndef f(x): return {make}"
        assert checker.check(program, task).passed, make
    program = "from collections import *\nclass Any(Counter):\n    __eq__ = lambda *_: True\ndef f(x): return Any()"
    assert not checker.check(program, task).passed
