"""Laws that hold for every program: exact round trip, nested states, clean states, the same edits everywhere."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.lintseq import (
    FastLinter,
    LintSeqOptions,
    PylintLinter,
    apply_edit_sequence,
    parse_completion,
    prompt_text,
    resolve,
    sample_edit_sequence,
    to_training_text,
)
from engine.lintseq.sampler import Prepared, prepare, weighted_draws

FAST = FastLinter()
ODD = ["\r", "\n", "\r\n", "\t", "\x0c", "\x00", "\u2028", "\ud800", "@@", "@@ -0,0 +1 @@", "+", "-", "<|diff|>", "#"]
any_text = st.lists(
    st.one_of(st.text(st.characters(exclude_categories=()), max_size=8), st.sampled_from(ODD)), max_size=12
).map("".join)
STATEMENTS = (
    """
x = 1|y = x|def f(a):|def g(x, *y): return x|class C(B):|if x:|elif y:|else:|try:|except E as e:|finally:|for i in x:|
while True:|break|continue|return x|yield x|del x|with open(x) as h:|import os|from m import *|global x|nonlocal y|
FOO = [|1,|]|pass|match x:|case [a, *b]:|@f|x = (|)|'''doc|'''|# note||lambda q: q + x|async def h():|await x|
[a for a in x if (b := a)]|print(f'{x!r:>{y}}')|x += 1|z: int = 3|assert False|@@ x @@|raise|sys.exit()|
__all__ = ['f', 'nope']|(w := 1)|from __future__ import annotations|def k(|++1|x = '\\d'|if x == 1: y = 2|else: pass|
print(w)|-x|x\r|type T = int|a, *b = x
""".replace("|\n", "|")
    .strip("\n")
    .split("|")
)
python_like = st.lists(
    st.tuples(st.integers(0, 3), st.sampled_from([*STATEMENTS, "<|diff|>"]), st.sampled_from(["", "", "", "\r", " "])),
    max_size=14,
).map(lambda rows: "\n".join("    " * depth + text + end for depth, text, end in rows))
programs = st.one_of(any_text, python_like)
seeds = st.integers(0, 2**63 - 1)


def states(prepared: Prepared, groups: list[list[int]]) -> Iterator[list[str]]:
    """Every state but the whole program and the empty one."""
    kept = set(range(len(prepared.lines)))
    for group in groups[:-1]:
        kept -= set(group)
        yield [prepared.lines[line] for line in sorted(kept)]


@settings(max_examples=400, deadline=None)
@given(programs, seeds)
def test_every_program_comes_back_byte_for_byte(program: str, seed: int) -> None:
    edits = sample_edit_sequence(program, seed=seed)
    assert apply_edit_sequence(edits) == resolve(edits) == program
    assert all(edit.startswith("@@ ") for edit in edits)


@settings(max_examples=200, deadline=None)
@given(programs, st.text(max_size=10), seeds)
def test_training_text_gives_every_sequence_back(program: str, instruction: str, seed: int) -> None:
    edits = sample_edit_sequence(program, seed=seed)
    text = to_training_text(instruction, edits) + "</s>"
    completion = text.removeprefix(prompt_text(instruction))
    assert len(completion) < len(text)
    assert parse_completion(completion, "</s>") == edits


@settings(max_examples=250, deadline=None)
@given(python_like, seeds, st.sampled_from(["given", "error"]))
def test_18_edits_partition_the_lines_and_every_state_is_clean(program: str, seed: int, names: str) -> None:
    prepared = prepare(program, FAST, LintSeqOptions(undefined_names=names))  # type: ignore[arg-type]
    groups = prepared.groups(weighted_draws(seed))
    assert sorted(line for group in groups for line in group) == list(range(len(prepared.lines)))
    assert all(groups)
    for state in states(prepared, groups):
        assert [each for each in FAST.check(state) if (each.code, each.name) not in prepared.given] == []


@settings(max_examples=100, deadline=None)
@given(programs, seeds)
def test_reference_compat_writes_the_stripped_program(program: str, seed: int) -> None:
    edits = sample_edit_sequence(program, seed=seed, options=LintSeqOptions(reference_compat=True))
    has_code = any(line.strip() and not line.strip().startswith("#") for line in program.split("\n"))
    assert apply_edit_sequence(edits) == (program.strip() if has_code else "")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(programs, seeds)
def test_the_oracle_round_trips_too(program: str, seed: int) -> None:
    assert apply_edit_sequence(sample_edit_sequence(program, seed=seed, linter=ORACLE)) == program


ORACLE = PylintLinter()


@pytest.mark.parametrize(
    "program",
    [
        "",
        "\n",
        "\n\n\n",
        "   ",
        "# only\n# comments\n",
        "x = 1",
        "x = 1\n",
        "x = 1\r\ny = x\r\n",
        "x = 1\ry = x\rz = y",
        "if x:\n\ty = 1\n\tz = y\n",
        "if x:\n  y = 1\n  if y:\n      z = y\n",
        "x = '''\n@@ -0,0 +1 @@\n+a\n-b\n<|diff|>\n'''\n",
        "def f():\n\x0c    return 1\n",
        "x = '\u2028'\ny = x\n",
        "x = '\ud800'\n",
        "x = 1\x00\n",
        "﻿x = 1\n",
        "not python at all {",
        "return 1\n",
        "x = '\\d'\n",
        "(" * 500,
        "[" * 150 + "]" * 150,
        "lambda: " * 300 + "1",
        "-" * 20000 + "1",
        "x = " + "1+" * 5000 + "1",
        "x" + ".y" * 3000,
        "\n".join("    " * depth + "if x:" for depth in range(99)) + "\n" + "    " * 99 + "pass\n",
        "\n".join("    " * depth + "def f():" for depth in range(60)) + "\n" + "    " * 60 + "pass\n",
        "if x == 0:\n    y = 0\n" + "".join(f"elif x == {n}:\n    y = {n}\n" for n in range(400)),
        "x = [\n" + "    1,\n" * 300 + "]\n",
    ],
    ids=lambda program: repr(program[:24]),
)
def test_awkward_programs_round_trip(program: str) -> None:
    assert apply_edit_sequence(sample_edit_sequence(program, seed=5)) == program


def test_programs_without_a_path_are_single_insertions() -> None:
    assert sample_edit_sequence("", seed=0) == []
    assert sample_edit_sequence("def f(:\n  pass", seed=0) == ["@@ -0,0 +1,2 @@\n+def f(:\n+  pass"]
    assert sample_edit_sequence("# a\n", seed=0) == ["@@ -0,0 +1,2 @@\n+# a\n+"]


def test_initial_errors_go_last_or_reject_the_program() -> None:
    program = "return 1\nx = 1\ny = 2"
    for seed in range(5):
        assert "+return 1" in sample_edit_sequence(program, seed=seed)[-1]
    rejected = sample_edit_sequence(program, seed=0, options=LintSeqOptions(initial_errors="reject"))
    assert rejected == ["@@ -0,0 +1,3 @@\n+return 1\n+x = 1\n+y = 2"]


def test_names_of_the_module_a_function_came_from_are_given_unless_told_otherwise() -> None:
    program = "def f(a):\n    b = os.sep\n    c = b + a\n    return c"

    def most(names: str) -> int:
        options = LintSeqOptions(undefined_names=names)  # type: ignore[arg-type]
        return max(len(sample_edit_sequence(program, seed=seed, options=options)) for seed in range(20))

    assert most("given") > 1
    assert most("error") == 1


def test_rounds_are_bounded_and_the_rest_comes_first() -> None:
    program = "\n".join(f"x{n} = {n}" for n in range(20))
    edits = sample_edit_sequence(program, seed=1, options=LintSeqOptions(max_rounds=3))
    assert [edit.count("\n+") for edit in edits] == [17, 1, 1, 1]


def test_the_same_edits_in_any_process_whatever_its_hash_seed(stdlib_functions: list[str]) -> None:
    code = (
        "import sys, json, hashlib; from engine.lintseq import sample_edit_sequence as s\n"
        "programs = json.load(sys.stdin)\n"
        "print(hashlib.sha256(repr([s(p, seed=9) for p in programs]).encode()).hexdigest())"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            input=json.dumps(stdlib_functions[:40]),
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert len(outputs) == 1


def test_threads_do_not_disturb_each_other(stdlib_functions: list[str]) -> None:
    # An invalid escape makes the parser warn, and here every warning is an error.
    batch = [*stdlib_functions[:20], "x = '\\d'\ny = x\n"] * 4

    def run(program: str) -> list[str]:
        return sample_edit_sequence(program, seed=3)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(run, batch)) == [run(program) for program in batch]
