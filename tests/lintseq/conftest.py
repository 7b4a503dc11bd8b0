"""Real programs for the tests: functions of the standard library, the same ones every time."""

import ast
import random
import textwrap
from pathlib import Path

import pytest

_MODULES = (
    "_pydecimal argparse bisect calendar cmd configparser copy csv datetime difflib dis doctest fractions ftplib "
    "functools gettext glob heapq imaplib inspect locale mailbox ntpath optparse pathlib pdb pickletools platform "
    "posixpath pprint pydoc random shlex shutil statistics string tarfile textwrap threading tokenize traceback "
    "turtle types uuid webbrowser zipfile"
)


@pytest.fixture(scope="session")
def stdlib_functions() -> list[str]:
    """Sources of functions of 5 to 40 lines with a docstring, dedented, shuffled with a fixed seed."""
    found: list[str] = []
    home = Path(ast.__file__).parent
    for name in _MODULES.split():
        path = home / f"{name}.py"
        if not path.exists():
            continue
        text = path.read_text(encoding="utf-8")
        lines = text.split("\n")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(node):
                first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
                source = textwrap.dedent("\n".join(lines[first - 1 : node.end_lineno]))
                if 5 <= source.count("\n") + 1 <= 40:
                    found.append(source)
    random.Random(2410).shuffle(found)
    return found
