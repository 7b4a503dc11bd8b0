"""What each linter objects to, and how far the fast one agrees with the oracle on real code."""

import subprocess
import sys

import astroid
import pytest
from pylint.lint import Run
from pylint.reporters import CollectingReporter

from engine.lintseq import FastLinter, Finding, LintSeqOptions, PylintLinter, apply_edit_sequence, pylint_linter
from engine.lintseq.sampler import prepare, weighted_draws

FAST = FastLinter()
ORACLE = PylintLinter()
BOTH = pytest.mark.parametrize("linter", [FAST, ORACLE], ids=["fast", "pylint"])

# Program (| separates lines), erroneous lines; both linters agree.
AGREED = [
    ("x = 1|print(x)", []),
    ("print(x)", [0]),
    ("def f(a):|    return b", [1]),
    ("def f(a):", [0]),
    ("if a:|    b", [0, 1]),
    ("x = (|    1", [0]),
    ("return 1", [0]),
    ("break", [0]),
    ("x = yield 3", [0]),
    ("def f(x):|    nonlocal y|    y = x", [1]),
    ("# pylint: disable=all|print(zz)", [1]),
    ("# pylint: skip-file|print(zz)", [1]),
    ("print(zz)  # pylint: disable=undefined-variable", [0]),
    ("import nowhere.to_be_found as n|n.x", []),
    ("def f():|    g()|def g():|    f()", []),
    ("g()|def g():|    pass", [0]),
    ("class A:|    x = 1|    y = [x for _ in range(x)]", [2]),
    ("class A:|    def f(self):|        return __class__", []),
    ("def f():|    global G|    G = 1|print(G)", []),
    ("__all__ = ['f']", [0]),
    ("def f(c):|    if c:|        x = 1|    return x", [3]),
    ("def f(c):|    if c:|        x = 1|    else:|        return 0|    return x", []),
    ("def f(c):|    if c:|        x = 1|    else:|        raise OSError|    return x", []),
    ("import sys|def f(c):|    if c:|        x = 1|    else:|        sys.exit()|    return x", []),
    ("def f(c):|    for a in c:|        x = a|    return x", []),
    ("def f(c):|    try:|        x = c()|    except OSError:|        pass|    return x", []),
    ("def f(c):|    try:|        c()|    except OSError:|        x = 1|    return x", [5]),
    ("def f(c):|    try:|        x = c()|    except OSError:|        return x", [4]),
    ("def f(c):|    while c:|        if c == 1:|            x = 3|            break|    return x", []),
    ("def f(c):|    with c as x:|        y = x|    return x, y", []),
    ("def f(c):|    match c:|        case [a, *b]:|            return a, b|    return c", []),
    ("def f(c):|    match c:|        case {'k': d, **e}:|            return d, e|    return c", []),
    ("def f(c):|    return [a for b in c for a in b if (k := a)], k", []),
    ("f = lambda a, *b, c=1, **d: (a, b, c, d, e)", [0]),
    ("x: int|print(x)", [1]),
    ("from __future__ import annotations|def f(a: A) -> A:|    return a|class A:|    pass", []),
    ("def f(a: A):|    return a|class A:|    pass", [0]),
    ("try:|    pass|except OSError as e:|    pass|print(e)", [4]),
    ("x = 1\ry = zz|y = tt", [0, 1]),
    ("x = 1\r|y = tt\r|", [1]),
    ("\x00", [0]),
    # A name bound later in the branch of an `if` or the body of a `for` in which it is used, and asked for only once.
    ("def f(c):|    for a in c:|        print(x)|        x = a", []),
    ("def f(a):|    if a:|        x = max(x, 1)|    return x", []),
    ("def f(a):|    if x < 0:|        x = 0|    return x", []),
    ("def f(a):|    for i in a:|        x += i|    return x", []),
    ("def f(a):|    if a:|        x = 0|        print(x)|    return x", []),
    ("def f(a):|    if a:|        x = 0|    return x", [3]),
    ("def f(a):|    if a:|        x += 1", [2]),
    ("def f(a):|    if a:|        print(x)|    else:|        x = 0", [2]),
    ("def f(a):|    while a:|        print(x)|        x = 0", [2]),
    ("def f(a):|    if a:|        print(x)|    x = 1", [2]),
    ("def f(a):|    x = x + 1|    return x", [1]),
    ("def f(a):|    if x is not None:|        while x is not None:|            x = a|    return a", [1]),
    ("def f(a):|    for i in a:|        c = x + i|        if i:|            x = c", [2]),
    ("def f(a):|    if a:|        try:|            print(x)|        except OSError:|            x = 1", [3]),
    ("def f(a):|    for i in a:|        while a:|            x = x + 1", []),
    ("def f(a):|    if x.y:|        x += 1|    return x", [1]),
    ("def f(a):|    if a:|        while x:|            x = x.y|    return a", [2]),
    ("def f():|    global g1|    del g1", [2]),
    ("def f():|    global g1|    g1 = 1|    del g1", []),
    ("if 1:|    x = x + 1", [1]),
    ("global g1|g1 = 1|def f():|    return g1", []),
]


@BOTH
@pytest.mark.parametrize(("program", "lines"), AGREED)
def test_erroneous_lines(program: str, lines: list[int], linter: FastLinter | PylintLinter) -> None:
    found = {each.line for each in linter.check(program.split("|")) if each.code != "invalid-character-carriage-return"}
    assert sorted(found) == lines


@pytest.mark.parametrize(
    ("program", "lines"),
    [
        # Wrong when run; pylint takes the program's word for it.
        ("def f():|    x = 1|    del x|    return x", [3]),
    ],
)
def test_the_fast_linter_is_stricter_where_the_order_of_execution_is_plain(program: str, lines: list[int]) -> None:
    assert [each.line for each in FAST.check(program.split("|"))] == lines
    assert ORACLE.check(program.split("|")) == []


def test_findings_name_the_variable() -> None:
    program = ["def f(c):", "    print(u)", "    if c:", "        p = 1", "    return p"]
    for linter in (FAST, ORACLE):
        assert linter.check(program) == [
            Finding(1, "undefined-variable", "u"),
            Finding(4, "possibly-used-before-assignment", "p"),
        ]


@BOTH
def test_long_programs_of_one_statement_keep_their_lines(linter: FastLinter | PylintLinter) -> None:
    program = ["x = [", *["    1,"] * 50, "]", "print(y)"]
    assert [each.line for each in linter.check(program)] == [52]


def test_missing_imports_count_only_when_asked_for() -> None:
    program = ["import numpyzzz", "from numpyzzz.a import b", "import os.path", "from . import c", "numpyzzz, b, os, c"]
    assert FAST.check(program) == []
    assert {each.line for each in FastLinter(missing_imports=True).check(program)} == {0, 1}
    assert {each.line for each in PylintLinter(missing_imports=True).check(program)} >= {0, 1}


@pytest.mark.parametrize("kind", [FastLinter, PylintLinter])
def test_strict_indentation_wants_four_spaces_a_level(kind: type) -> None:
    linter = kind(strict_indentation=True)
    right = (
        "def f(a):|    if a:|        b = 1|    elif f:|        b = [|  2]|    else:|        b = 3|    return b",
        "try:|    x = 1|except OSError:|    x = 2|else:|    x = 3|finally:|    y = 4",
        "x = 1|match x:|    case 1:|        y = x",
    )
    wrong = ("def f(a):|  if a:|    return a", "def f(a):|\tif a:|\t\treturn a", "def f(a):|     if a:|       return a")
    for program in right:
        assert linter.check(program.split("|")) == []
    for program in wrong:
        assert {each.line for each in linter.check(program.split("|"))} == {1, 2}
        assert kind().check(program.split("|")) == []


def test_the_oracle_in_process_says_what_pylint_says(tmp_path) -> None:
    """The same messages as a run of pylint under the reference's options and filter."""
    programs = [program.split("|") for program, _ in AGREED if "pylint:" not in program and "\x00" not in program]
    programs += [
        each.split("|")
        for each in (
            "class A:|    def __init__(self):|        self.x = 1|class B(A):|    def __init__(self):|        pass",
            "def g(a):|    return a|g()",
            "print('%s %s' % (1,))|x = None|x.y",
            "if x:|  y = 1",
        )
    ]
    oracle = PylintLinter(missing_imports=True, strict_indentation=True)
    paths = [tmp_path / f"program_{number}.py" for number in range(len(programs))]
    for path, lines in zip(paths, programs, strict=True):
        path.write_bytes("\n".join(lines).encode())
    reporter = CollectingReporter()
    options = ["--disable=C,R", "--reports=n", "--score=n", "--persistent=n", "--generated-members=cv2.*"]
    Run([*options, *map(str, paths)], reporter=reporter, exit=False)
    for path, lines in zip(paths, programs, strict=True):
        told = {
            (message.symbol, message.line)
            for message in reporter.messages
            if message.abspath == str(path) and (message.category != "warning" or message.msg_id in ("W0311", "W0231"))
        }
        told_here = {(each.code, each.line) for each in oracle.check(lines)}
        if not any("\r" in line for line in lines) and "syntax-error" not in dict(told):
            assert told_here == {(symbol, line - 1) for symbol, line in told}, lines
        else:
            assert {code for code, _ in told_here} == {symbol for symbol, _ in told}


def test_clearing_the_caches_changes_nothing_and_bounds_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pylint_linter, "_LINTS_BETWEEN_CLEARINGS", 3)
    linter = PylintLinter()
    program = ["import json", "import os", "print(os.sep, json.nothing, missing)", "len(1, 2)"]
    first = linter.check(program)
    sizes = set()
    for _ in range(7):
        assert linter.check(program) == first
        sizes.add(len(astroid.MANAGER.astroid_cache))
    assert "no-member" in {each.code for each in first}
    assert max(sizes) < 200


def test_the_oracle_accepts_the_states_of_the_fast_linter(stdlib_functions: list[str]) -> None:
    accepted = total = 0
    for seed, program in enumerate(stdlib_functions[:40]):
        prepared = prepare(program, FAST, LintSeqOptions())
        whole = {(each.code, each.name) for each in ORACLE.check(prepared.lines)}
        kept = set(range(len(prepared.lines)))
        for group in prepared.groups(weighted_draws(seed))[:-1]:
            kept -= set(group)
            found = ORACLE.check([prepared.lines[line] for line in sorted(kept)])
            total += 1
            accepted += all((each.code, each.name) in whole for each in found)
    assert total > 80
    assert accepted / total >= 0.98


def test_real_functions_come_back_and_every_state_compiles(stdlib_functions: list[str]) -> None:
    assert len(stdlib_functions) > 400
    several = 0
    for seed, program in enumerate(stdlib_functions[:150]):
        prepared = prepare(program, FAST, LintSeqOptions())
        groups = prepared.groups(weighted_draws(seed))
        assert apply_edit_sequence(prepared.edits(groups)) == program
        kept = set(range(len(prepared.lines)))
        for group in groups[:-1]:
            kept -= set(group)
            compile("\n".join(prepared.lines[line] for line in sorted(kept)), "<state>", "exec")
        several += len(groups) > 1
    assert several > 110


def test_a_star_import_may_define_anything() -> None:
    assert FAST.check(["from nowhere import *", "anything"]) == []
    assert [each.line for each in FAST.check(["anything"])] == [0]


@pytest.mark.skipif(sys.version_info < (3, 12), reason="generics are new in Python 3.12")
def test_type_parameters_are_names_of_their_own() -> None:
    program = "def f[T](a: T) -> T:|    return a|class C[K](list[K]):|    k: K|type P[V] = list[V]|print(T)"
    assert [each.line for each in FAST.check(program.split("|"))] == [5]


def test_names_put_among_the_built_in_ones_are_not_defined() -> None:
    code = (
        "import builtins; builtins.injected = lambda: 1; builtins._ = builtins.also = 3\n"
        "from engine.lintseq import FastLinter\n"
        "print([each.name for each in FastLinter().check(['injected', '_', 'also', 'open', 'OSError', 'Ellipsis'])])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found == "['injected', '_', 'also']\n"
