"""The stage of Ray Data, called as Ray calls it, without Ray."""

import subprocess
import sys

import pyarrow as pa
import pytest

from engine.corpus.report import merge_counts
from engine.errors import SchemaError
from engine.lintseq import (
    LintSeqActor,
    LintSeqOptions,
    apply_edit_sequence,
    path_seed,
    sample_edit_sequence,
    statistics,
)

ADDED = ["edits", "seed", "path", "initial_errors", "_drop", "_error"]


def shard(programs: list[str | None], **extra: list[object]) -> pa.Table:
    count = len(programs)
    return pa.table(
        {
            "instruction": [f"Do {number}." for number in range(count)],
            "program": pa.array(programs, pa.string()),
            "source_part": ["a/part.parquet"] * count,
            "source_row": list(range(10, 10 + count)),
            "_drop": pa.array([None] * count, pa.string()),
            "_error": pa.array([None] * count, pa.string()),
            **extra,
        }
    )


def test_every_row_becomes_its_paths_and_they_can_be_sampled_again(stdlib_functions: list[str]) -> None:
    options = LintSeqOptions(paths=3, distinct=False)
    table = shard(stdlib_functions[:12], score=[float(each) for each in range(12)])
    output = LintSeqActor(options=options, seed=4)(table)
    assert output.num_rows == 36
    assert output.column_names == ["instruction", "program", "source_part", "source_row", "score", *ADDED]
    for at, row in enumerate(output.to_pylist()):
        assert (row["source_row"], row["path"], row["score"]) == (10 + at // 3, at % 3, float(at // 3))
        assert row["seed"] == path_seed(4, row["source_part"], row["source_row"], row["path"])
        assert row["edits"] == sample_edit_sequence(row["program"], seed=row["seed"], options=options)
    assert len(set(output["seed"].to_pylist())) == 36


def test_any_split_of_the_work_gives_the_same_rows(stdlib_functions: list[str]) -> None:
    table = shard(stdlib_functions[:10])
    whole = LintSeqActor(seed=1)(table)
    pieces = [LintSeqActor(seed=1)(table.slice(start, 3)) for start in (9, 3, 0, 6)]
    ordered = pa.concat_tables(sorted(pieces, key=lambda piece: piece["source_row"][0].as_py()))
    assert ordered.equals(whole)


def test_marked_rows_pass_and_poison_is_marked() -> None:
    table = shard(["x = 1", "y = 2", None, "z = 3"])
    marks = pa.array([None, "too_short", None, None], pa.string())
    table = table.set_column(table.column_names.index("_drop"), "_drop", marks)
    rows = LintSeqActor()(table).to_pylist()
    assert [row["_drop"] for row in rows] == [None, "too_short", "quarantine", None]
    assert [row["edits"] is None for row in rows] == [False, True, True, False]
    assert [row["path"] for row in rows] == [0, None, None, 0]
    assert "null" in rows[2]["_error"]
    assert rows[1]["_error"] is None


def test_a_linter_that_fails_costs_one_row_and_leaves_one_line() -> None:
    class Failing:
        def check(self, lines):
            if "bad" in lines:
                raise RuntimeError("no\nluck \ud800" + "!" * 1000)
            return []

    actor = LintSeqActor()
    actor._linter = Failing()
    rows = actor(shard(["a = 1", "bad", "b = 1"])).to_pylist()
    assert [row["_drop"] for row in rows] == [None, "quarantine", None]
    assert rows[1]["_error"].startswith("RuntimeError: no luck ?!!!")
    assert "\n" not in rows[1]["_error"]


def test_rejected_programs_are_marked_with_the_reason() -> None:
    options = LintSeqOptions(initial_errors="reject", paths=2, distinct=False)
    rows = LintSeqActor(options=options)(shard(["x = 1", "return 1", "def f(:"])).to_pylist()
    assert [row["_drop"] for row in rows] == [None, None, "initial_errors", "initial_errors"]
    assert rows[2]["initial_errors"] == 1


def test_an_empty_shard_keeps_the_schema() -> None:
    full = LintSeqActor()(shard(["x = 1"]))
    assert LintSeqActor()(shard(["x = 1"]).slice(0, 0)).schema == full.schema


def test_earlier_sequences_are_replaced() -> None:
    once = LintSeqActor(seed=1)(shard(["x = 1\ny = x\nz = 3"]))
    twice = LintSeqActor(seed=2)(once)
    assert twice.column_names == once.column_names
    assert twice["seed"] != once["seed"]


@pytest.mark.parametrize(
    ("table", "told"),
    [
        (pa.table({"text": ["x"]}), "no column 'program'"),
        (shard(["x"]).drop_columns(["source_row"]), "no column 'source_row'"),
        (pa.table({"program": [1], "source_part": ["a"], "source_row": [0]}), "holds int64, not text"),
        (pa.table({"program": ["x"], "source_part": ["a"], "source_row": [0.5]}), "holds double, not whole numbers"),
    ],
)
def test_a_wrong_input_is_told_in_one_sentence(table: pa.Table, told: str) -> None:
    with pytest.raises(SchemaError, match=told):
        LintSeqActor()(table)


def test_seeds_are_stable() -> None:
    assert path_seed(0, "a/part.parquet", 10, 0) == path_seed(0, "a/part.parquet", 10, 0)
    assert path_seed(0, "a", 1, 0) == 1433828787570305938
    seeds = {path_seed(s, p, r, k) for s in range(3) for p in ("a", "b") for r in range(20) for k in range(5)}
    assert len(seeds) == 600
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_statistics_count_and_add_up(stdlib_functions: list[str]) -> None:
    table = shard([*stdlib_functions[:9], "def f(:\n", "# only", None, "return 1\nx = 1"])
    output = LintSeqActor(options=LintSeqOptions(paths=2, distinct=False))(table)
    counts = statistics(output)
    rows = [row for row in output.to_pylist() if row["_drop"] is None]
    assert (counts["programs"], counts["sequences"]) == (12, 24)
    assert counts["edits"] == sum(len(row["edits"]) for row in rows)
    assert counts["single_insertions"] == sum(len(row["edits"]) == 1 for row in rows)
    assert sum(counts["edits_per_program"].values()) == 24
    assert sum(int(size) * times for size, times in counts["lines_per_edit"].items()) == sum(
        row["program"].count("\n") + 1 for row in rows
    )
    assert sum(counts["initial_errors"].values()) == 12
    assert counts["dropped"] == {"quarantine": 1}
    halves = [statistics(output.slice(0, 10)), statistics(output.slice(10))]
    assert merge_counts(halves) == counts
    assert merge_counts([statistics(output.slice(0, 0)), counts]) == counts


def test_the_stage_and_the_room_import_nothing_heavy() -> None:
    code = (
        "import sys, engine.lintseq, engine.lintseq.options\n"
        "heavy = {'ray', 'torch', 'pylint', 'astroid', 'vllm', 'matplotlib', 'pyarrow'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "from engine.lintseq import LintSeqActor\n"
        "LintSeqActor()\n"
        "assert not (heavy - {'pyarrow'}) & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_paths_of_a_program_differ_and_a_rigid_one_has_fewer(stdlib_functions: list[str]) -> None:
    programs = ["x = 1", "a = 1\nb = 2", "def f(:\n", *stdlib_functions[:20]]
    output = LintSeqActor(options=LintSeqOptions(paths=5))(shard(programs))
    rows = output.to_pylist()
    paths: dict[int, list[tuple[str, ...]]] = {}
    for row in rows:
        of_program = paths.setdefault(row["source_row"], [])
        assert row["path"] == len(of_program), "paths are numbered without gaps"
        of_program.append(tuple(row["edits"]))
        assert row["edits"] == sample_edit_sequence(row["program"], seed=row["seed"])
    assert all(len(set(each)) == len(each) for each in paths.values())
    assert [len(paths[number]) for number in (10, 11, 12)] == [1, 2, 1]
    assert sum(len(paths[number]) == 5 for number in range(13, 33)) >= 12
    counts = [len(each) for each in paths.values()]
    assert statistics(output)["paths_per_program"] == {str(each): counts.count(each) for each in set(counts)}


def test_repair_changes_the_program_and_drops_what_nothing_is_left_of() -> None:
    options = LintSeqOptions(initial_errors="repair")
    programs = ["x = 1\nreturn x\ny = x\n", "def f(:\n", "if x:\nprint(\na = 1\n", "b = 2\n"]
    rows = LintSeqActor(options=options)(shard(programs)).to_pylist()
    assert [row["_drop"] for row in rows] == [None, "initial_errors", None, None]
    assert [row["program"] for row in rows] == ["x = 1\ny = x\n", "def f(:\n", "a = 1\n", "b = 2\n"]
    assert [row["initial_errors"] for row in rows] == [1, 1, 1, 0]
    for row in rows:
        if row["edits"] is not None:
            assert apply_edit_sequence(row["edits"]) == row["program"]


def test_a_program_that_takes_too_long_is_dropped_and_says_so() -> None:
    options = LintSeqOptions(max_seconds=1e-9)
    rows = LintSeqActor(options=options)(shard(["x = 1\ny = 2\n"] * 2)).to_pylist()
    assert [(row["_drop"], row["edits"]) for row in rows] == [("time_limit", None)] * 2
    edits = sample_edit_sequence("x = 1\ny = 2\n", seed=0, options=options)
    assert edits == ["@@ -0,0 +1,3 @@\n+x = 1\n+y = 2\n+"]


def test_tokens_are_counted_where_there_is_a_training_text() -> None:
    seen = []

    def counted(tokenizer: object, instructions: list[str], edits: list[list[str]]) -> list[int]:
        seen.append((tokenizer, instructions, [len(each) for each in edits]))
        return [7] * len(instructions)

    table = shard(["x = 1\ny = 2\n", "z = 1", None]).set_column(0, "instruction", pa.array(["a", None, "b"]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("engine.lintseq.actor.token_lengths", counted)
        output = LintSeqActor(tokenizer="any")(table)
    assert output["tokens"].to_pylist() == [7, None, None]
    assert seen == [("any", ["a"], [len(output["edits"][0])])]
    assert statistics(output, tokens=True)["tokens_per_sequence"] == {"7": 1}


@pytest.mark.parametrize("column", [[["a", "list"]], ["text"], [5]])
def test_a_column_of_the_inputs_own_called_tokens_passes_unless_tokens_are_counted(column: list[object]) -> None:
    table = shard(["x = 1\ny = 2\n"], tokens=column)
    output = LintSeqActor()(table)
    assert output["tokens"].to_pylist() == column
    assert "tokens_per_sequence" not in statistics(output)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("engine.lintseq.actor.token_lengths", lambda *_: [7])
        output = LintSeqActor(tokenizer="any")(table)
    assert output.column_names.count("tokens") == 1
    assert output["tokens"].to_pylist() == [7]


@pytest.mark.parametrize(
    ("initial_errors", "drop", "program"),
    [
        ("keep_to_last", None, "return 1\nx = 2"),
        ("reject", "initial_errors", "return 1\nx = 2"),
        ("repair", None, "x = 2"),
    ],
)
def test_errors_of_the_whole_program_count_for_the_control_too(
    initial_errors: str, drop: str | None, program: str
) -> None:
    for algorithm in ("lintseq", "randseq"):
        options = LintSeqOptions(algorithm=algorithm, initial_errors=initial_errors)  # type: ignore[arg-type]
        (row,) = LintSeqActor(options=options)(shard(["return 1\nx = 2"])).to_pylist()
        assert (row["initial_errors"], row["_drop"], row["program"]) == (1, drop, program)
        edits = sample_edit_sequence("return 1\nx = 2", seed=0, options=options)
        assert apply_edit_sequence(edits) == program
        assert initial_errors != "reject" or len(edits) == 1


def test_other_languages_go_through_the_stage() -> None:
    program = 'fn area(w: u32, h: u32) -> u32 {\n    let size = w * h;\n    println!("{}", size);\n    size\n}\n'
    options = LintSeqOptions(linter="syntax", language="rust", paths=3)
    rows = LintSeqActor(options=options)(shard([program, "fn (\n"])).to_pylist()
    assert [row["source_row"] for row in rows] == [10, 10, 10, 11]
    assert all(apply_edit_sequence(row["edits"]) == row["program"] for row in rows)
    assert len({tuple(row["edits"]) for row in rows[:3]}) == 3
    assert sum(len(row["edits"]) for row in rows[:3]) > 3
    assert [row["initial_errors"] for row in rows] == [0, 0, 0, 1]
