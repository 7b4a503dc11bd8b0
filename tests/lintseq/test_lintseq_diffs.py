"""Edits are written and applied exactly, and damaged ones refused or skipped by stated rules."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.lintseq import MalformedEdit, apply_edit_sequence, parse_completion, prompt_text, resolve, to_training_text
from engine.lintseq.diffs import insertion_edit


def test_headers_count_like_diff_does() -> None:
    lines = list("abcdef")
    assert insertion_edit(lines, [1, 4], [0, 2, 3, 5]) == (
        "@@ -0,0 +1 @@\n+a\n@@ -1,0 +3,2 @@\n+c\n+d\n@@ -2,0 +6 @@\n+f"
    )
    assert insertion_edit(lines, [0, 1], []) == ""


def test_repeated_lines_never_become_deletions() -> None:
    lines = ["a", "b", "a", "a"]
    assert insertion_edit(lines, [0, 2, 3], [1]) == "@@ -1,0 +2 @@\n+b"


@given(st.lists(st.tuples(st.text(st.characters(exclude_characters="\n")), st.integers(0, 4)), min_size=1))
def test_any_partition_of_the_lines_writes_them(rows: list[tuple[str, int]]) -> None:
    lines = [text for text, _ in rows]
    kept: list[int] = []
    edits = []
    for step in range(5):
        inserted = [at for at, (_, when) in enumerate(rows) if when == step]
        edits.append(insertion_edit(lines, kept, inserted))
        kept = sorted(kept + inserted)
    assert apply_edit_sequence(edits) == resolve(edits) == "\n".join(lines)


@pytest.mark.parametrize(
    "edits",
    [
        ["x"],
        ["@@ -0,0 +1 @@"],
        ["@@ -0,0 +1 @@\nx"],
        ["@@ -0,0 +1,2 @@\n+x"],
        ["@@ -0,0 +1 @@\n+x\n+y"],
        ["@@ -0,0 +1,0 @@"],
        ["@@ -0,0 +0 @@\n+x"],
        ["@@ -0,1 +1 @@\n+x"],
        ["@@ -0,0 +2 @@\n+x"],
        ["@@ -1,0 +2 @@\n+x"],
        ["@@ -0,0 +1 @@\n+x", "@@ -0,0 +2 @@\n+y"],
        ["@@ -0,0 +1 @@\n-x"],
        ["@@ -0,0 +1 @@ \n+x"],
        ["@@ -0,0 +١ @@\n+x"],
        ["@@ -0,0 +" + "9" * 5000 + " @@\n+x"],
    ],
)
def test_a_damaged_edit_is_refused(edits: list[str]) -> None:
    with pytest.raises(MalformedEdit):
        apply_edit_sequence(edits)
    with pytest.raises(MalformedEdit):
        resolve(edits, malformed="strict")


@pytest.mark.parametrize(
    ("edits", "program"),
    [
        (["nothing", "@@ -0,0 +1 @@\n+x"], "x"),
        (["text\n@@ -0,0 +1 @@\n+x"], "x"),
        (["@@ -0,0 +1 @@\n+x\n@@ broken @@\n+y\n@@ -0,0 +2 @@\n+z"], "x\nz"),
        (["@@ -0,0 +1 @@\n-x\n@@ -0,0 +1 @@\n+y"], "y"),
        (["@@ -1,1 +1 @@\n+x\n@@ -0,0 +1 @@\n+y"], "y"),
        (["@@ -0,0 +9,4 @@\n+x\n+y"], "x\ny"),
        (["@@ -0,0 +0 @@\n+x"], "x"),
        (["@@ -0,0 +1 @@\n++1\n+-2\n+@@ 3 @@"], "+1\n-2\n@@ 3 @@"),
        ([], ""),
    ],
)
def test_resolve_skips_what_is_damaged(edits: list[str], program: str) -> None:
    assert resolve(edits) == program


def test_the_text_of_a_sequence() -> None:
    edit = "@@ -0,0 +1 @@\n+x"
    assert to_training_text("Do it.", [edit]) == f"Do it.\n<|diff|>{edit}\n<|diff|>\n<|diff|>"
    assert to_training_text("Do it.", [edit]).startswith(prompt_text("Do it."))
    assert parse_completion("\n<|diff|>") == []


def test_only_an_exact_eos_is_taken_off_and_only_once() -> None:
    edit = "@@ -0,0 +1 @@\n+return node"
    assert parse_completion(edit + "<|endoftext|>", "<|endoftext|>") == [edit]
    assert parse_completion(edit, "<|endoftext|>") == [edit]
    assert parse_completion(edit + "</s></s>", "</s>") == [edit + "</s>"]


def test_a_cut_off_completion_keeps_what_it_has() -> None:
    assert parse_completion("@@ -0,0 +1 @@\n+a\n<|diff|>@@ -1,0") == ["@@ -0,0 +1 @@\n+a", "@@ -1,0"]
    assert parse_completion("@@ -0,0 +1 @@\n+a\n<|diff|>") == ["@@ -0,0 +1 @@\n+a"]
