"""Insertion edits: written from line numbers, applied exactly.

A state of a program is a list of lines, the result of `text.split("\\n")`; nothing is ever stripped, and the state
before the first edit has no lines. An edit is a unified diff without context, as `diff -U0` writes it: for each run
of inserted lines a header `@@ -A,0 +C,D @@` (A lines of the old state come before; the run is lines C to C+D-1 of the
new one; `,D` is left out when D is 1) and one body line `+LINE` each. Every body line begins with `+`, so code that
looks like a header or a diff token is never mistaken for one.

Left out: tolerance for damaged edits (`engine.lintseq.text.resolve`) and deletions, which LintSeq has none of. No
difference is searched for: the sampler knows which lines it took away. Called by the sampler and by readers of
edit sequences.
"""

import re
from collections.abc import Iterator, Sequence

HEADER = re.compile(r"@@ -([0-9]{1,9}),0 \+([0-9]{1,9})(?:,([0-9]{1,9}))? @@")


class MalformedEdit(ValueError):
    """An edit is not a well-formed insertion into the state it is applied to."""


def insertion_edit(lines: Sequence[str], kept: Sequence[int], inserted: Sequence[int]) -> str:
    """The edit that adds the lines numbered `inserted` to the state of the lines numbered `kept`.

    Both are ascending, disjoint 0-based line numbers into `lines`. Nothing inserted gives the empty edit `""`.
    """
    hunks = []
    before = position = 0
    while position < len(inserted):
        while before < len(kept) and kept[before] < inserted[position]:
            before += 1
        limit = kept[before] if before < len(kept) else len(lines)
        run = position
        while run < len(inserted) and inserted[run] < limit:
            run += 1
        length = f",{run - position}" if run - position != 1 else ""
        body = "".join(f"\n+{lines[index]}" for index in inserted[position:run])
        hunks.append(f"@@ -{before},0 +{before + position + 1}{length} @@{body}")
        position = run
    return "\n".join(hunks)


def apply_edit_sequence(edits: Sequence[str]) -> str:
    """The program that a sequence of insertion edits writes, byte for byte; no edits give the empty program.

    Raises `MalformedEdit` where a hunk is damaged or does not fit the state it meets.
    """
    state: list[str] = []
    for edit in edits:
        added = reached = 0
        for before, start, body in _hunks(edit):
            # A hunk above an earlier one of its edit would count lines that are not above it.
            if before < reached or start != before + added or start > len(state):
                raise MalformedEdit(f"a hunk inserts at line {start + 1}, which does not fit {len(state)} lines")
            state[start:start] = body
            added += len(body)
            reached = before
    return "\n".join(state)


def _hunks(edit: str) -> Iterator[tuple[int, int, list[str]]]:
    """Each hunk as (lines of the old state before it, 0-based place in the new state, inserted lines)."""
    if not edit:
        return
    rows = edit.split("\n")
    at = 0
    while at < len(rows):
        header = HEADER.fullmatch(rows[at])
        if header is None:
            raise MalformedEdit(f"{rows[at][:80]!r} is not the header of an insertion")
        count = int(header[3] or 1)
        body = rows[at + 1 : at + 1 + count]
        if count == 0 or header[2] == "0" or len(body) < count or not all(row.startswith("+") for row in body):
            raise MalformedEdit(f"the hunk {rows[at]} does not hold the {count} added lines it announces")
        yield int(header[1]), int(header[2]) - 1, [row[1:] for row in body]
        at += 1 + count
