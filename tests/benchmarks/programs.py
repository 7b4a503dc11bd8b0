"""Real programs for the LintSeq benchmarks: functions, classes and modules of the standard library."""

import ast
import contextlib
import random
import textwrap
from pathlib import Path


def functions(shortest, longest, *, seed=0, methods=False):
    """Undecorated functions of so many lines, dedented; `methods` adds those inside classes and functions."""
    return _definitions(ast.FunctionDef, shortest, longest, seed, nested=methods)


def classes(shortest, longest, *, seed=0):
    """Undecorated top-level classes of so many lines."""
    return _definitions(ast.ClassDef, shortest, longest, seed, nested=False)


def modules(shortest, longest, *, seed=0):
    """Whole modules of so many lines."""
    return _shuffled((text for text, _ in _sources() if shortest <= text.count("\n") <= longest), seed)


def _definitions(kind, shortest, longest, seed, *, nested):
    found = []
    for text, tree in _sources():
        lines = text.split("\n")
        for node in ast.walk(tree) if nested else tree.body:
            if not isinstance(node, kind) or node.decorator_list:
                continue
            if shortest <= node.end_lineno - node.lineno + 1 <= longest:
                found.append(textwrap.dedent("\n".join(lines[node.lineno - 1 : node.end_lineno])))
    return _shuffled(found, seed)


def _sources():
    """Text and tree of every file of the standard library that parses."""
    for path in sorted(Path(ast.__file__).parent.rglob("*.py")):
        if {"site-packages", "lib2to3"} & set(path.parts):
            continue
        with contextlib.suppress(SyntaxError, ValueError, RecursionError):
            text = path.read_text(encoding="utf-8")
            yield text, ast.parse(text)


def _shuffled(programs, seed):
    """All of them, in the same order every time."""
    found = list(programs)
    random.Random(seed).shuffle(found)
    return found
