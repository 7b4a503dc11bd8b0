"""How the lines of a Python program hang together by their looks: which may be drawn, and how deep each one stands.

Linters of other languages bring their own (`engine.lintseq.linting.Layout`). Left out: every judgement about errors.
Called by the sampler.
"""

import ast
from collections.abc import Sequence

from engine.lintseq.linting import LineNumbers, no_warnings, without_mark


def candidates(lines: Sequence[str], *, by_looks: bool = False) -> list[int]:
    """Lines that may be drawn: no blanks, no comments, no inner lines of a constant's literal (`NAME = [ ... ]`).

    `by_looks` is the reference's way: a literal ends at the first line that ends in its bracket, comments included.
    """
    found: list[int] = []
    ends: dict[int, int] | None = None
    end = -1
    for index, line in enumerate(lines):
        text = line.strip()
        if index <= end or not text or text.startswith("#"):
            continue
        found.append(index)
        target, equals, _ = text.partition("=")
        if equals and text[-1] in "([" and target.replace(" ", "").isupper():
            if ends is None:
                ends = {} if by_looks else _ends_of_assignments(lines)
            end = _end_by_looks(lines, index) if by_looks else ends.get(index, index)
    return found


def _end_by_looks(lines: Sequence[str], start: int) -> int:
    """The line on which a literal ends for the reference."""
    closer = {"(": ")", "[": "]"}[lines[start].strip()[-1]]
    for index in range(start + 1, len(lines)):
        text = lines[index].strip()
        if text.endswith(closer) and not text.startswith("#"):
            return index
    return len(lines)


def _ends_of_assignments(lines: Sequence[str]) -> dict[int, int]:
    """First and last line of each assignment; none where the program does not parse."""
    numbers = LineNumbers(lines)
    try:
        with no_warnings():
            tree = ast.parse("\n".join(without_mark(lines)))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}
    assignments = (each for each in ast.walk(tree) if isinstance(each, ast.Assign | ast.AnnAssign))
    return {numbers.index(each.lineno): numbers.index(each.end_lineno) for each in assignments}


def indentations(lines: Sequence[str]) -> list[int]:
    """Leading white space per line; a line of at most one character (blank, a closing bracket) takes the one before."""
    indents: list[int] = []
    current = 0
    for line in lines:
        text = line.lstrip()
        if len(text.rstrip()) > 1:
            current = len(line) - len(text)
        indents.append(current)
    return indents


def family_ends(indents: Sequence[int]) -> list[int]:
    """For each line, the first later line that is not indented deeper (or the number of lines)."""
    ends = [len(indents)] * len(indents)
    pending: list[int] = []
    for index, indent in enumerate(indents):
        while pending and indents[pending[-1]] >= indent:
            ends[pending.pop()] = index
        pending.append(index)
    return ends
