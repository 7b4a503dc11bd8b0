"""Real programs for the LintSeq benchmarks: top-level functions of the standard library, undecorated, dedented."""

import ast
import random
from pathlib import Path


def functions(shortest, longest, *, seed=0):
    """Sources of all functions of so many lines, shuffled."""
    found = []
    home = Path(ast.__file__).parent
    for path in sorted(home.rglob("*.py")):
        if {"site-packages", "lib2to3"} & set(path.parts):
            continue
        try:
            text = path.read_text(encoding="utf-8")
            tree = ast.parse(text)
        except (SyntaxError, ValueError, RecursionError):
            continue
        lines = text.split("\n")
        for node in tree.body:
            length = node.end_lineno - node.lineno + 1
            if isinstance(node, ast.FunctionDef) and not node.decorator_list and shortest <= length <= longest:
                found.append("\n".join(lines[node.lineno - 1 : node.end_lineno]))
    random.Random(seed).shuffle(found)
    return found
