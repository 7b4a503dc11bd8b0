"""What can be said of a program without running it: whether it is Python, and whether two are the same.

Two programs are the same if their syntax trees are, docstrings left out and the names that a function binds replaced by
numbers in order of appearance; so neither layout, comments nor the choice of a variable's name makes another program.
Left out: running them (`engine.evaluation.checker`). Called by the stage that checks.
"""

import ast
import hashlib

from engine.evaluation.checker import parses

__all__ = ["parses", "same_as"]


def same_as(program: str) -> str:
    """A hash (16 hex digits), equal for programs that are the same; of text that does not parse, for equal texts."""
    if not parses(program):
        return _hash(f"text\n{program}")
    tree = ast.parse(program)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module):
            _drop_docstring(node)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            _rename(node)
    try:
        return _hash(ast.dump(tree))
    except RecursionError:
        return _hash(f"text\n{program}")


def _drop_docstring(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module) -> None:
    if ast.get_docstring(node, clean=False) is not None:
        node.body = node.body[1:] or [ast.Pass()]


def _rename(function: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
    """Give the arguments and the names bound inside a function their numbers."""
    arguments = [each for each in ast.walk(function) if isinstance(each, ast.arg)]
    stored = [each for each in ast.walk(function) if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)]
    numbers: dict[str, str] = {}
    for name in [*(each.arg for each in arguments), *(each.id for each in stored)]:
        # A name of an outer function has its number already.
        if not name.startswith("\0"):
            numbers.setdefault(name, f"\0{len(numbers)}")
    for node in ast.walk(function):
        if isinstance(node, ast.arg):
            node.arg = numbers.get(node.arg, node.arg)
        elif isinstance(node, ast.Name):
            node.id = numbers.get(node.id, node.id)


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(errors="replace"), digest_size=8).hexdigest()
