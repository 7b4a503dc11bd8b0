"""Tests taken apart, so that a program gets credit for those it passes: `check` as a series of tests.

The rule: each statement in the body of `check` (not in functions inside it) that holds an `assert` about something, a
whole loop included, is one test. It is run by itself: when it fails, the ones after it still run. All other statements
run as they stand, and an error in one of them ends the tests, those that were not reached having failed. An assert of a
constant (`assert True, "..."`) is no test. Whether all tests pass is what it was before.

Left out: running them (`engine.evaluation.checker`). Called by it.
"""

import ast
from functools import lru_cache

PASSED, FAILED = "__test_passed__", "__test_failed__"
"""What the rewritten tests call: the first without arguments, the second with what was raised."""


@lru_cache(maxsize=4096)
def taken_apart(tests: str) -> tuple[str, int]:
    """Source in which every test of `check` reports by itself, and how many tests there are.

    Source without a plain `check`, or without any test in it, comes back as it is, with 0.
    """
    try:
        tree = ast.parse(tests)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return tests, 0
    checks = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "check"]
    if len(checks) != 1:
        return tests, 0
    body = checks[0].body
    graded = [at for at, statement in enumerate(body) if _is_test(statement)]
    for at in graded:
        body[at] = _reporting(body[at])
    return (ast.unparse(ast.fix_missing_locations(tree)), len(graded)) if graded else (tests, 0)


def _is_test(statement: ast.stmt) -> bool:
    """Whether it asserts something that is not a constant; one that leaves `check`, or defines names, is none."""
    if not isinstance(statement, ast.Assert | ast.For | ast.While | ast.If | ast.With | ast.Try):
        return False
    inside = list(ast.walk(statement))
    if any(isinstance(node, ast.Return | ast.FunctionDef | ast.Lambda) for node in inside if node is not statement):
        return isinstance(statement, ast.Assert)
    asserts = [node.test for node in inside if isinstance(node, ast.Assert)]
    return any(isinstance(node, ast.Name) for test in asserts for node in ast.walk(test))


def _reporting(statement: ast.stmt) -> ast.Try:
    frame = ast.parse(f"try:\n    pass\nexcept Exception as __error__:\n    {FAILED}(__error__)\nelse:\n    {PASSED}()")
    reporting = frame.body[0]
    assert isinstance(reporting, ast.Try)
    reporting.body = [statement]
    return reporting
