"""The options of the sampler, and input that is hard on it."""

import statistics

import pytest

from engine.config import build_recipe
from engine.errors import RecipeError
from engine.lintseq import FastLinter, LintSeqOptions, PylintLinter, apply_edit_sequence, layout, sample_edit_sequence
from engine.lintseq.sampler import Prepared, TimeLimit, prepare, weighted_draws
from jobs.lintseq import RECIPE

RANDSEQ = LintSeqOptions(algorithm="randseq")


def _sizes(programs, **options):
    """Lines per backward edit, of some seeds."""
    return [
        len(group)
        for program in programs
        for seed in range(3)
        for group in prepare(program, FastLinter(), LintSeqOptions(**options)).groups(weighted_draws(seed))
    ]


def test_edits_have_the_lines_that_were_asked_for(stdlib_functions):
    programs = stdlib_functions[:60]
    plain = _sizes(programs)
    small = _sizes(programs, max_edit_lines=2)
    large = _sizes(programs, min_edit_lines=6)
    assert statistics.mean(small) < statistics.mean(plain) < statistics.mean(large)
    for program in programs[:20]:
        groups = prepare(program, FastLinter(), LintSeqOptions(min_edit_lines=6)).groups(weighted_draws(0))
        assert all(len(group) >= 6 for group in groups[:-2])
        for options in ({"max_edit_lines": 2}, {"min_edit_lines": 6}):
            edits = sample_edit_sequence(program, seed=3, options=LintSeqOptions(**options))
            assert apply_edit_sequence(edits) == program


def test_randseq_takes_any_lines_and_has_two_edits_at_least(stdlib_functions):
    for seed, program in enumerate([*stdlib_functions[:40], "a\nb", "# x\n# y", "def f(:\n", "if x:\r\n\ty\r\n"]):
        edits = sample_edit_sequence(program, seed=seed, options=RANDSEQ)
        assert apply_edit_sequence(edits) == program
        assert len(edits) >= 2
        assert edits == sample_edit_sequence(program, seed=seed, options=RANDSEQ)
    assert sample_edit_sequence("x", seed=0, options=RANDSEQ) == ["@@ -0,0 +1 @@\n+x"]
    assert sample_edit_sequence("", seed=0, options=RANDSEQ) == []


def test_randseq_draws_every_chunk_size_and_every_line_alike():
    prepared = prepare("a\nb\nc\nd", FastLinter(), RANDSEQ)
    first = [prepared.draw(seed)[0] for seed in range(3000)]
    sizes = [len(group) for group in first]
    for size in (1, 2, 3):
        assert abs(sizes.count(size) / 3000 - 1 / 3) < 0.03
    singles = [group[0] for group in first if len(group) == 1]
    for line in range(4):
        assert abs(singles.count(line) / len(singles) - 1 / 4) < 0.06


def test_states_of_randseq_are_broken_and_those_of_lintseq_never(stdlib_functions):
    broken = {}
    for algorithm in ("lintseq", "randseq"):
        options = LintSeqOptions(algorithm=algorithm)
        found = [
            any(each.code == "syntax-error" for each in FastLinter().check(state.split("\n")))
            for program in stdlib_functions[:40]
            for edits in [sample_edit_sequence(program, seed=1, options=options)]
            for state in (apply_edit_sequence(edits[:length]) for length in range(1, len(edits)))
        ]
        broken[algorithm] = statistics.mean(found)
    assert broken["lintseq"] == 0
    assert broken["randseq"] > 0.5


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"language": "javascript"}, "add linter: syntax"),
        ({"min_edit_lines": 5, "max_edit_lines": 2}, "max_edit_lines is below min_edit_lines"),
        ({"max_seconds": 0}, "lintseq.max_seconds"),
    ],
)
def test_options_that_do_not_fit_are_one_sentence(keys, says):
    with pytest.raises(RecipeError, match=says):
        build_recipe(RECIPE, {"name": "a", "source": {"paths": ["x"]}, "lintseq": keys})


HARD = {
    "one line": "x = 1",
    "deep blocks": "".join(f"{' ' * depth}if x:\n" for depth in range(95)) + " " * 95 + "pass\n",
    "deeper than Python takes": "".join(f"{' ' * depth}if x:\n" for depth in range(300)) + " " * 300 + "pass\n",
    "deep lambdas": "f = " + "lambda: " * 80 + "1\n",
    "deep brackets": "x = " + "(" * 150 + "1" + ")" * 150 + "\n",
    "tabs and spaces": "if x:\n\ta = 1\n\tb = 2\nif y:\n        c = 3\n",
    "tabs against spaces": "if x:\n\ta = 1\n        b = 2\n",
    "null bytes": "x = 1\0\ny = 2\n",
    "pylint: disable": "# pylint: disable=all\n# pylint: skip-file\nx = 1\nprint(y)\n",
    "form feeds": "\f\nx = 1\n\fdef f():\n\f    return x\n",
    "line separators": "x = 'a\u2028b'\ny = x\n# \u2028 z\n",
    "next line": "x = 'a\x85b'\x0b\ny = x\n",
    "diff token": "x = '<|diff|>'\n<|diff|> = 1\n",
    "diff token in a string": 's = """\n<|diff|>@@ -0,0 +1 @@\n+a\n"""\nprint(s)\n',
    "lone returns": "x = 1\ry = 2\r\nz = 3\n",
    "walrus": "if (n := 1) and (m := n):\n    print(m,\n          n)\n",
    "shared lines": 'a = 1; b = a\nif a: b = 2\nelse: b = """x\ny"""; a = 3\n',
    "backslashes": "a = 1 + \\\n    2\nb = a\n",
    "decorated": "@property\n# why\n@staticmethod\ndef f():\n    # only\n\n    return 1\n",
    "comment after header": "def f():  # x\n    # y\n    pass\n",
    "string for a body": 'class A:\n    """\n    only\n    """\n',
    "else on a line": "for x in y: pass\nelse: z = 1\n",
    "lone surrogate": "x = '\ud800'\n",
}


@pytest.mark.parametrize("name", HARD)
def test_hard_programs_come_back_byte_for_byte(name):
    program = HARD[name]
    for seed in range(8):
        for algorithm in ("lintseq", "randseq"):
            edits = sample_edit_sequence(program, seed=seed, options=LintSeqOptions(algorithm=algorithm))
            assert apply_edit_sequence(edits) == program


def test_a_program_of_20_000_lines_is_sampled():
    part = "def f{0}(a, b):|    c = a + b|    if c:|        return f{0}(b, c)|    return [|        a,|        b,|    ]|"
    part = part.replace("|", chr(10))
    program = "".join(part.format(number) for number in range(2500))
    edits = sample_edit_sequence(program, seed=0, options=LintSeqOptions(max_seconds=500))
    assert apply_edit_sequence(edits) == program
    assert len(edits) > 500


@pytest.mark.parametrize("closing", ["]", "]  # comment", "] + [2]"])
def test_a_constants_literal_ends_where_it_ends(closing):
    program = f"FOO = [\n    1,\n{closing}\n\n\ndef f(a):\n    b = a\n    return b\n\n\nx = f(1)\ny = x\n".split("\n")
    assert layout.candidates(program) == [0, 5, 6, 7, 10, 11]
    swallowed = [0] if closing.endswith("comment") else [0, 5, 6, 7, 10, 11]
    assert layout.candidates(program, by_looks=True) == swallowed


def test_what_looks_like_a_literal_in_a_text_is_none():
    assert layout.candidates(["s = '''", "FOO = [", "'''", "x = 1"]) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("keys", "written"),
    [({}, "\n\nreturn 1\nx = 1\n"), ({"reference_compat": True}, "return 1\nx = 1")],
)
def test_a_program_that_takes_too_long_is_written_as_the_options_say(keys, written):
    options = LintSeqOptions(max_seconds=1e-9, **keys)
    (edit,) = sample_edit_sequence("\n\nreturn 1\nx = 1\n", seed=0, options=options)
    assert apply_edit_sequence([edit]) == written


def test_a_repaired_program_that_takes_too_long_stays_repaired(monkeypatch):
    monkeypatch.setattr(Prepared, "sample", _too_long)
    options = LintSeqOptions(initial_errors="repair")
    assert sample_edit_sequence("return 1\nx = 1", seed=0, options=options) == ["@@ -0,0 +1 @@\n+x = 1"]


def _too_long(prepared, seed):
    raise TimeLimit


class Slow:
    """A linter that takes a second of the clock for every lint."""

    def __init__(self, patch, waited):
        self.seconds = 0.0
        patch.setattr("engine.lintseq.sampler.time.thread_time", lambda: self.seconds)
        patch.setattr("engine.lintseq.sampler.time.perf_counter", lambda: self.seconds * (1 + waited))

    def check(self, lines):
        self.seconds += 1
        return []


@pytest.mark.parametrize("waited", [0, 1000])
@pytest.mark.parametrize(("keys", "lints"), [({}, 21), ({"max_seconds": 3}, 4)])
def test_a_program_stops_at_the_first_lint_after_its_time_however_busy_the_machine(monkeypatch, keys, lints, waited):
    linter = Slow(monkeypatch, waited)
    program = "\n".join(f"x{number} = 1" for number in range(100))
    edits = sample_edit_sequence(program, seed=0, linter=linter, options=LintSeqOptions(**keys))
    assert len(edits) == 1
    assert linter.seconds == lints


def test_thousands_of_names_used_before_they_are_bound_are_told_in_the_default_time():
    program = "".join(f"print(n{number})\n" for number in range(4000)) + "".join(
        f"n{number} = 1\n" for number in range(4000)
    )
    assert len({each.line for each in FastLinter().check(program.split("\n"))}) == 4000
    outline = FastLinter().watch(program.split("\n"))._flows[0]._outline
    assert [line for line, _, _ in outline.module.binders_of(outline.bit("n7"))] == [4007]


def test_what_is_remembered_of_a_long_statement_is_bounded():
    program = "x = {\n" + "".join(f"    'k{number}': {number},\n" for number in range(400)) + "}\n"
    watched = FastLinter().watch(program.split("\n"))
    (step,) = watched._flows[0]._outline.body
    for gone in range(1, 400):
        alive = bytearray(b"\1") * 403
        alive[gone] = 0
        assert watched.errors(alive, frozenset()) == []
    assert 0 < len(step.span._known) <= 100


def test_a_byte_order_mark_is_no_error():
    program = "\ufeff# é\nx = 1\ny = x\n"
    for linter in (FastLinter(), PylintLinter()):
        assert linter.check(program.split("\n")) == []
        edits = sample_edit_sequence(program, seed=1, linter=linter)
        assert len(edits) > 1
        assert apply_edit_sequence(edits) == program
    assert [len(sample_edit_sequence("\ufeff'''a\nb'''\nx = 1\n", seed=seed)) for seed in range(4)] == [2] * 4
