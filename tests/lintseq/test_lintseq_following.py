"""The fast linter follows lines that go; what it says has to be what a parse of the rest would say."""

import random
import textwrap
from pathlib import Path

import pytest

from engine.lintseq import FastLinter, LintSeqOptions, apply_edit_sequence
from engine.lintseq.fast_linter import Followed
from engine.lintseq.linting import SYNTAX_ERROR
from engine.lintseq.sampler import prepare, weighted_draws

LINTER = FastLinter()
OPTIONS = LintSeqOptions()


def _followed(program):
    prepared = prepare(program, LINTER, OPTIONS)
    assert isinstance(prepared.watched, Followed)
    return prepared


def _parsed(programs):
    """Those that parse: text of a string may stand left of its function, which then cannot be cut out of its class."""
    found = [program for program in programs if prepare(program, LINTER, OPTIONS).workable]
    assert len(found) > 0.98 * len(programs)
    return found


def _errors_of_text(prepared, alive):
    """What the linter says of the text of a state, with line numbers of the whole program."""
    numbers = [index for index, here in enumerate(alive) if here]
    found = LINTER.check([prepared.lines[index] for index in numbers])
    return [each._replace(line=numbers[each.line]) for each in found if (each.code, each.name) not in prepared.given]


def _without(prepared, gone):
    return bytearray(index not in gone for index in range(len(prepared.lines)))


def test_every_state_of_a_path_is_clean_when_parsed_anew(stdlib_functions):
    states = 0
    for seed, program in enumerate(_parsed(stdlib_functions[:300])):
        prepared = _followed(program)
        groups = prepared.groups(weighted_draws(seed))
        assert apply_edit_sequence(prepared.edits(groups)) == program
        alive = bytearray(b"\1") * len(prepared.lines)
        for group in groups[:-1]:
            for index in group:
                alive[index] = 0
            assert _errors_of_text(prepared, alive) == []
            states += 1
    assert states > 500


def test_any_choice_of_lines_has_the_errors_that_a_parse_finds(stdlib_functions):
    generator = random.Random(5)
    same = 0
    for program in _parsed(stdlib_functions[:250]):
        prepared = _followed(program)
        for _ in range(6):
            alive = bytearray(b"\1") * len(prepared.lines)
            for _ in range(generator.randint(1, 4)):
                index = generator.randrange(len(alive))
                for each in range(index, max(index + 1, prepared.family_end[index])):
                    alive[each] = 0
            said = prepared.watched.errors(alive, prepared.given)
            found = _errors_of_text(prepared, alive)
            if any(each.code == SYNTAX_ERROR for each in found):
                assert said
            elif said != sorted({each.line for each in found}):
                # The one stated difference: a clause may not change its statement.
                assert prepared.lines[said[0]].lstrip().startswith(("else", "elif", "except", "finally"))
            else:
                same += 1
    assert same > 500


def test_a_module_is_sampled_whole_and_every_state_parses():
    program = Path(textwrap.__file__).read_text(encoding="utf-8")
    prepared = _followed(program)
    groups = prepared.groups(weighted_draws(1))
    assert apply_edit_sequence(prepared.edits(groups)) == program
    assert len(groups) > 50
    alive = bytearray(b"\1") * len(prepared.lines)
    for number, group in enumerate(groups[:-1]):
        for index in group:
            alive[index] = 0
        if number % 10 == 0:
            assert _errors_of_text(prepared, alive) == []


# A program (lines apart by "|"), the lines that go, the lines then in error. One-letter names are given.
FORMS = [
    ("if a:|    b|else:|    c", [0, 1], [2, 3]),
    ("if a:|    b|elif c:|    d|else:|    e", [2, 3], []),
    ("for i in b:|    c|else:|    d", [3], [2]),
    ("while a:|    break", [1], [0]),
    ("try:|    a|except E:|    b|c", [2, 3], [4]),
    ("try:|    a|except E:|    b|else:|    c|d", [2, 3], [4]),
    ("try:|    a|finally:|    b", [1], [0]),
    ("match a:|    case 1:|        b", [1, 2], [0]),
    ("with a as k:|    k", [1], [0]),
    ("@a|def f():|    pass", [0], []),
    ("@a|def f():|    pass", [1, 2], [0]),
    ("class A:|    k = 1|    l = k", [1], [2]),
    ("def f(k,|      l):|    return k", [1], [0]),
    ("def f(|    k,|    l,|):|    return l", [1], []),
    ("def f(|    k,|    l,|):|    return l", [2], [4]),
    ("x = {|    1: 2,|    3: 4,|}", [1], []),
    ("x = {|    1: 2,|    3: 4,|}", [0], [1, 2, 3]),
    ("x = {|    1: 2,|    3: 4,|}", [3], [0, 1, 2]),
    ('def f():|    """a|    b|    """|    c', [2], []),
    ('def f():|    """a|    b|    """|    c', [1], [2, 3]),
    ("for i in (1,|          2,|          3):|    i", [1], []),
    ("def f():|    k = 1|    def g():|        nonlocal k|        k = 2|    return g", [1], [3]),
    ("def f():|    global k|    k = 1|f()|print(k)", [1], [4]),
    ("from os import *|print(path)", [0], [1]),
    ("from os import *|k = 1|print(path, k)|def f():|    return k, path", [1], [2, 4]),
    ("__all__ = [|    'k',|    'l',|]|k = l = 1", [4], [1, 2]),
    ("__all__ = [|    'k',|    'l',|]|k = 1|l = 1", [1, 4], []),
    ("if (n := a):|    print(n)", [1], [0]),
    ("k = [i for i in b]|l = k", [0], [1]),
    ("def f():|    return g()|def g():|    return 1", [2, 3], [1]),
    ("class A:|    k = 1|    l = [k for i in b]", [], [2]),
    ("def f():|    if a:|        k = 1|    else:|        k = 2|    return k", [3, 4], [5]),
    ("for i in b:|    k = i|print(k)", [1], [0]),
    ("while True:|    k = 1|    break|print(k)", [1], [3]),
    ("def f():|    class A:|        k = 1|        l = k|    return A", [2], [3]),
    ("def f(k=lambda: z9):|    return k", [], [0]),
]


@pytest.mark.parametrize(("program", "gone", "errors"), FORMS)
def test_what_goes_wrong_when_lines_go(program, gone, errors):
    prepared = _followed(program.replace("|", "\n"))
    given = frozenset(("undefined-variable", name) for name in "abcdeE")
    assert prepared.watched.errors(_without(prepared, gone), given) == errors


def test_what_is_remembered_of_a_function_names_no_line_outside_it():
    prepared = _followed("def f():\n    try:\n        k = 1\n    except OSError:\n        k = 2\nb = f\n")
    assert prepared.watched.errors(_without(prepared, [3, 4]), frozenset()) == [5]
    assert prepared.watched.errors(_without(prepared, [3, 4, 5]), frozenset()) == [6]
