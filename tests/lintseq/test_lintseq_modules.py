"""Whole programs: layouts that only modules and classes have, and modules of the standard library, state by state."""

import ast
from pathlib import Path

import pytest

from engine.lintseq import FastLinter, LintSeqOptions, apply_edit_sequence
from engine.lintseq.sampler import prepare

LINTER = FastLinter()
HOME = Path(ast.__file__).parent
MODULES = ["bisect", "gettext", "ntpath", "sched", "colorsys", "selectors", "statistics", "contextlib"]

PROGRAMS = {
    "exports": "__all__ = [\n    'f',\n    'g',\n]\n\n\ndef f():\n    pass\n\n\ndef g():\n    pass\n",
    "late annotations": "from __future__ import annotations\n\n\ndef f(a: B):\n    return a\n\n\nclass B:\n    pass\n",
    "late annotations on several lines": (
        "from __future__ import (\n    annotations,\n    division,\n)\n\n\ndef f(a: B):\n    return a\n\n\n"
        "class B:\n    pass\n"
    ),
    "bracketed match": (
        "def f(x):\n    match (\n            x\n            ):\n        case 1:\n            y = 1\n        case (\n"
        "            2\n            | 3\n        ):\n            y = 2\n        case _:\n            y = 3\n"
        "    return y\n"
    ),
    "match closed at the margin": "match (\n    len\n):\n    case 1:\n        y = 1\n    case 2:\n        y = 2\n",
    "bracketed decorators": "z = len\n\n\n@(\n    len\n)\n@(  # why\n    z\n)\ndef g(a):\n    return a\n",
    "nonlocal in a class": "def f():\n    x = 1\n    class A:\n        nonlocal x\n        x = 2\n    return A, x\n",
    "global at the top": "global x\nx = 1\n\n\ndef f():\n    return x\n",
}


def _check_states(program, seeds):
    """Every state on the way compiles and is clean for the linter; the number of states."""
    prepared = prepare(program, LINTER, LintSeqOptions())
    states = 0
    for seed in seeds:
        edits = prepared.sample(seed)
        assert apply_edit_sequence(edits) == program
        for length in range(1, len(edits)):
            state = apply_edit_sequence(edits[:length])
            compile(state, "<state>", "exec", dont_inherit=True)
            found = [each for each in LINTER.check(state.split("\n")) if (each.code, each.name) not in prepared.given]
            assert found == [], state
            states += 1
    return states


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_state_of_an_awkward_layout_compiles(name):
    assert _check_states(PROGRAMS[name], range(25)) > 5


@pytest.mark.parametrize("name", MODULES)
def test_every_state_of_a_module_compiles(name):
    assert _check_states((HOME / f"{name}.py").read_text(encoding="utf-8"), [1]) > 10


def test_a_match_closed_at_the_margin_does_not_take_the_program_with_it():
    prepared = prepare(PROGRAMS["match closed at the margin"], LINTER, LintSeqOptions())
    assert max(len(prepared.sample(seed)) for seed in range(20)) > 1


def test_a_linter_that_blames_only_lines_that_have_gone_is_not_asked_for_ever():
    class Stubborn:
        initial = []

        def errors(self, alive, given):
            return [line for line, here in enumerate(alive) if not here]

    class Linter:
        def check(self, lines):
            return []

        def watch(self, lines):
            return Stubborn()

    assert len(prepare("a = 1\nb = 2\n", Linter(), LintSeqOptions()).sample(0)) == 2
