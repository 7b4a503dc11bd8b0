"""Real programs for the LintSeq benchmarks: top-level functions of the standard library, undecorated, dedented."""

import ast
import random
import textwrap
from pathlib import Path


def functions(shortest, longest, *, seed=0, methods=False):
    """Sources of all functions of so many lines, shuffled; `methods` adds those inside classes and functions."""
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
        for node in ast.walk(tree) if methods else tree.body:
            if not isinstance(node, ast.FunctionDef) or node.decorator_list:
                continue
            if shortest <= node.end_lineno - node.lineno + 1 <= longest:
                found.append(textwrap.dedent("\n".join(lines[node.lineno - 1 : node.end_lineno])))
    random.Random(seed).shuffle(found)
    return found
