"""How the lines of a Python program hang together by their looks: which may be drawn, and how deep each one stands.

Linters of other languages bring their own (`engine.lintseq.linting.Layout`). Left out: every judgement about errors.
Called by the sampler.
"""

from collections.abc import Sequence


def candidates(lines: Sequence[str]) -> list[int]:
    """Lines that may be drawn: no blanks, no comments, no inner lines of a constant's literal (`NAME = [ ... ]`)."""
    found: list[int] = []
    closer = ""
    for index, line in enumerate(lines):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        if closer:
            if text.endswith(closer):
                closer = ""
            continue
        found.append(index)
        target, equals, _ = text.partition("=")
        if equals and text[-1] in "([" and target.replace(" ", "").isupper():
            closer = {"(": ")", "[": "]"}[text[-1]]
    return found


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
