"""The golden tests of the specification, on both linters; 16 (pass@k) belongs to evaluation."""

from collections.abc import Iterable, Sequence

import pytest

from engine.lintseq import (
    FastLinter,
    Linter,
    LintSeqOptions,
    PylintLinter,
    apply_edit_sequence,
    resolve,
    sample_edit_sequence,
)
from engine.lintseq.linting import linter_for
from engine.lintseq.sampler import Prepared, prepare

COMPAT = {"reference_compat": True}
CHAIN = "a = 1|b = a + 1|print(b)"
FUNCTION = "def f(a):|    b = a|    return b|x = 1"
TWO_SPACES = "def f(a):|  b = a|  return b|x = 1"
CONSTANT = "FOO = [|    1,|    2,|]|x = FOO"
NUMPY = "import numpyzzz as np|x = np.zeros(3)|y = 2|print(y)"
TRY = "try:|    x = 1|except OSError:|    x = 2|y = 3"
BLANKS = "def f():|    x = 1||    return x|||y = 2"

# Test number, program, forced seed lines, the backward edits they must give, options.
PATHS = [
    (1, CHAIN, [0], [{0, 1, 2}], {}),
    (2, CHAIN, [2, 1, 0], [{2}, {1}, {0}], {}),
    (3, "def f(a):|    return a", [1], [{0, 1}], {}),
    (4, FUNCTION, [1, 3], [{0, 1, 2}, {3}], {}),
    (5, "# hi|x = 1", [1], [{1}, {0}], {}),
    (9, TWO_SPACES, [3], [{0, 1, 2, 3}], COMPAT),
    (9, TWO_SPACES, [0, 3], [{0, 1, 2}, {3}], COMPAT),
    (9, TWO_SPACES, [1, 3], [{0, 1, 2}, {3}], COMPAT),
    (10, NUMPY, [3, 2], [{0, 1, 3}, {2}], {"missing_imports": True}),
    (11, CONSTANT, [4, 0], [{4}, {0, 1, 2, 3}], {}),
    (11, CONSTANT, [0], [{0, 1, 2, 3, 4}], {}),
    (12, TRY, [2], [{0, 1, 2, 3, 4}], {}),
    (13, BLANKS, [0, 6], [{0, 1, 2, 3, 4, 5}, {6}], {}),
]

HEADERS = [
    (1, CHAIN, [0], ["@@ -0,0 +1,3 @@"], {}),
    (2, CHAIN, [2, 1, 0], ["@@ -0,0 +1 @@", "@@ -1,0 +2 @@", "@@ -2,0 +3 @@"], {}),
    (4, FUNCTION, [1, 3], ["@@ -0,0 +1 @@", "@@ -0,0 +1,3 @@"], {}),
    (5, "# hi|x = 1", [1], ["@@ -0,0 +1 @@", "@@ -1,0 +2 @@"], {}),
    (6, "||x = 1", [2], ["", "@@ -0,0 +1 @@"], COMPAT),
]

# Defects of the reference we do not have: what the same programs give without `reference_compat`.
OURS = [
    ("two spaces are no error", TWO_SPACES, [3, 0], [{3}, {0, 1, 2}], {}),
    ("imports that are not installed are no errors", NUMPY, [3, 2, 0], [{3}, {2}, {0, 1}], {}),
    ("blank lines are no step of their own", "||x = 1", [2], [{0, 1, 2}], {}),
    ("only comments", "# hi|# ho", [], [{0, 1}], {}),
]


@pytest.fixture(scope="module", params=["fast", "pylint"])
def linter_name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def plan(program: str, linter: str, options: dict[str, bool]) -> Prepared:
    chosen = LintSeqOptions(linter=linter, **options)  # type: ignore[arg-type]
    return prepare(program.replace("|", "\n"), linter_for(chosen), chosen)


def forced(lines: Iterable[int]):
    """A chooser that draws the given lines and fails where the sampler asks for more."""
    queue = iter(lines)

    def choose(remaining: Sequence[int], weights: Sequence[int]) -> int:
        line = next(queue)
        assert line in remaining
        assert len(remaining) == len(weights)
        return line

    return choose


@pytest.mark.parametrize(("number", "program", "seeds", "expected", "options"), PATHS + OURS)
def test_forced_seed_lines_give_the_backward_edits(number, program, seeds, expected, options, linter_name) -> None:
    groups = plan(program, linter_name, options).groups(forced(seeds))
    assert [set(group) for group in groups] == expected


@pytest.mark.parametrize(("number", "program", "seeds", "expected", "options"), HEADERS)
def test_forced_seed_lines_give_the_headers(number, program, seeds, expected, options, linter_name) -> None:
    prepared = plan(program, linter_name, options)
    edits = prepared.edits(prepared.groups(forced(seeds)))
    assert [edit.partition("\n")[0] for edit in edits] == expected


def test_7_a_program_of_comments_has_no_path_in_the_reference(linter_name: str) -> None:
    assert plan("# hi|# ho", linter_name, COMPAT).sample(0) == []


@pytest.mark.parametrize(
    ("program", "weights"),
    [
        ("def f(a):|    if a:|        y = 1|    else:|        y = 2|    return y", [1, 1, 2, 1, 2, 1]),
        (CONSTANT, [1, 0, 0, 0, 1]),
    ],
)
def test_8_and_11_weights(program: str, weights: list[int]) -> None:
    prepared = plan(program, "fast", {})
    own = [prepared.weights[line] if line in prepared.candidates else 0 for line in range(len(prepared.lines))]
    assert [weight / sum(own) for weight in own] == [weight / sum(weights) for weight in weights]


def test_14_hunks_of_one_edit_resolve_at_their_places_in_the_new_state() -> None:
    edits = ["@@ -0,0 +1,2 @@\n+a\n+c", "@@ -0,0 +1 @@\n+z\n@@ -1,0 +3 @@\n+b"]
    assert apply_edit_sequence(edits) == resolve(edits) == "z\na\nb\nc"


def test_15_the_reference_writes_the_stripped_program(stdlib_functions: list[str]) -> None:
    options = LintSeqOptions(reference_compat=True)
    odd = ["\n\n  x = 1\n\ny = 2  \n\n", "  if x:\n    y\n", "\u2028x = 1\n", "x\x0c\n\n# end \n"]
    for seed, program in enumerate([*odd, *stdlib_functions[:60]]):
        edits = sample_edit_sequence(program, seed=seed, options=options)
        assert apply_edit_sequence(edits) == resolve(edits) == program.strip()


def test_17_rigid_programs_have_one_path_and_others_mostly_different_ones(stdlib_functions: list[str]) -> None:
    def different(program: str) -> int:
        return len({tuple(sample_edit_sequence(program, seed=seed)) for seed in range(5)})

    assert different("def f(a):\n    return a") == 1
    shares = [different(program) / 5 for program in stdlib_functions[:15]]
    assert 0.6 < sum(shares) / len(shares) <= 1


@pytest.mark.parametrize("linter", [FastLinter(), PylintLinter()], ids=["fast", "pylint"])
def test_18_same_seed_same_output_whatever_was_sampled_before(linter: Linter, stdlib_functions: list[str]) -> None:
    programs = stdlib_functions[:8]
    forwards = [sample_edit_sequence(program, seed=7, linter=linter) for program in programs]
    backwards = [sample_edit_sequence(program, seed=7, linter=linter) for program in reversed(programs)]
    assert forwards == backwards[::-1]
