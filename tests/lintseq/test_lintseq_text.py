"""What a model wrote is read by stated rules: whatever it is, `strict` refuses and `skip` reads, both in good time."""

from contextlib import suppress

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine.lintseq import MalformedEdit, apply_edit_sequence, parse_completion, resolve, to_training_text

HEADERS = [
    "@@ -0,0 +1 @@",
    "@@ -1,0 +2,2 @@",
    "@@ -0,0 +999999999,999999999 @@",
    "@@ -0,0 +0,0 @@",
    "@@ -0,0 +1,0 @@",
    "@@ -1,2 +1 @@",
    "@@ -1 +1 @@",
    "@@ -0,0 +-1 @@",
    "@@ -0,0 +1 @@ def f():",
    "@@ -0,0 +1 @@\r",
    "@@ -٠,0 +١ @@",
    "@@ -0,0 +" + "9" * 5000 + " @@",
    "@@",
    "@@ @@",
]
ROWS = [
    "+x",
    "+",
    "++1",
    "+-1",
    "-x",
    " x",
    "",
    "x",
    "+@@ -0,0 +1 @@",
    "+<|diff|>",
    "<|diff|>",
    "<|di",
    "+\ud800",
    "\x00",
]
generated = st.lists(st.one_of(st.sampled_from(HEADERS), st.sampled_from(ROWS), st.text(max_size=6)), max_size=20).map(
    "\n".join
)


@settings(max_examples=500, deadline=None)
@given(generated)
@example("\n<|diff|>".join(HEADERS))
def test_skip_reads_anything_and_strict_refuses_in_one_way(text: str) -> None:
    edits = parse_completion(text, "</s>")
    program = resolve(edits, malformed="skip")
    inserted = [row[1:] for row in text.split("\n") if row.startswith("+")]
    assert not program or set(program.split("\n")) <= set(inserted)
    with suppress(MalformedEdit):
        # What `strict` accepts, `skip` reads the same.
        assert resolve(edits, malformed="strict") == program


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(st.sampled_from(ROWS), min_size=1), max_size=6), st.data())
def test_any_code_comes_back_from_a_completion(blocks: list[list[str]], data: st.DataObject) -> None:
    program: list[str] = []
    edits = []
    for block in blocks:
        lines = [row.replace("\n", "") for row in block]
        at = data.draw(st.integers(0, len(program)))
        program[at:at] = lines
        length = f",{len(lines)}" if len(lines) != 1 else ""
        edits.append("\n".join([f"@@ -{at},0 +{at + 1}{length} @@", *(f"+{line}" for line in lines)]))
    completion = to_training_text("", edits).removeprefix("\n<|diff|>") + "</s>"
    assert parse_completion(completion, "</s>") == edits
    assert apply_edit_sequence(edits) == resolve(edits) == "\n".join(program)


def test_a_hunk_above_the_one_before_it_is_a_flaw() -> None:
    edits = ["@@ -0,0 +1,2 @@\n+a\n+b", "@@ -2,0 +3 @@\n+c\n@@ -0,0 +2 @@\n+d"]
    with pytest.raises(MalformedEdit):
        resolve(edits, malformed="strict")
    assert resolve(edits, malformed="skip") == "a\nd\nb\nc"


@pytest.mark.parametrize(
    "text",
    [
        "@@ -0,0 +1 @@\n+x\n" * 100_000,
        "@@" * 1_000_000,
        "\n@@" * 1_000_000,
        "\n<|diff|>" * 300_000,
        "@@ -0,0 +1,999999999 @@\n" + "+x\n" * 500_000,
        "@@ -" + "9" * 3_000_000,
        "@@ -0,0 +1 @@\n" + "+" * 3_000_000,
    ],
    ids=["hunks", "signs", "damaged", "empty", "count", "digits", "plus"],
)
def test_large_generated_text_is_read(text: str) -> None:
    edits = parse_completion(text)
    resolve(edits)
    with suppress(MalformedEdit):
        resolve(edits, malformed="strict")


@pytest.mark.parametrize(
    ("edits", "program"),
    [
        (["@@ -0,0 +1 @@\n+a\n"], "a"),
        (["@@ -0,0 +1 @@\n+a\n\n@@ -1,0 +2 @@\n+b\n\n"], "a\nb"),
        (["@@ -0,0 +1,2 @@\n+a\n\n+b"], ""),
        (["@@ -0,0 +1 @@\n+\n"], ""),
    ],
)
def test_empty_lines_at_the_end_of_a_hunk_are_ignored(edits: list[str], program: str) -> None:
    assert resolve(edits) == program


def test_there_are_two_ways_to_read() -> None:
    with pytest.raises(ValueError, match="typo"):
        resolve([], malformed="typo")  # type: ignore[arg-type]
