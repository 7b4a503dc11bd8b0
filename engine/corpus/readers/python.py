"""Python sources: one `instructions` row per function, the docstring as instruction, the function as program.

Taken are functions and methods at module or class level, also under `if` and `try`; a function inside a function is
part of that one. The program is the function's own lines, decorators included, moved to the left margin, without the
docstring (it would repeat the instruction) and the blank lines after it; lines inside multi-line strings do not move,
and line ends are line feeds, as Python itself reads them. Nothing is taken of a function that is nothing but a
docstring. `source_row` is the line of the `def`.

Left out: whole modules as documents (the text reader does that). Called through `engine.corpus.readers.base`.
"""

import ast
import inspect
import io
import tokenize
import warnings
from collections.abc import Iterator, Sequence

import pyarrow as pa

from engine.corpus.readers.rows import FileReader, Row
from engine.corpus.sources import InputFile
from engine.errors import SchemaError

_Function = ast.FunctionDef | ast.AsyncFunctionDef


class PythonReader(FileReader):
    """Reads the functions of a module; a module that does not parse is one quarantined row."""

    columns = ("instruction", "program", "qualname")

    def schema(self, files: Sequence[InputFile]) -> pa.Schema:
        """The columns of an instruction. Raises `SchemaError` where documents are asked for."""
        if "text" in self.required and "text" not in self.config.columns:
            raise SchemaError(
                f"{files[0].name} is Python source, which gives instructions and no documents.",
                "Set rows=instructions, or source.format=text to take whole files as documents.",
            )
        return super().schema(files)

    def parse(self, data: bytes) -> Iterator[Row]:
        """The rows of a module, in the order of the file."""
        try:
            encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
            text = data.decode(encoding).replace("\r\n", "\n").replace("\r", "\n")
            tree = _parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            yield Row.poison(0, f"the module does not parse: {type(error).__name__}: {error}"[:300])
            return
        # Not splitlines(): a form feed ends a line there, but not in Python.
        lines = [line + "\n" for line in text.split("\n")]
        for name, function in _functions(tree.body, ""):
            row = self._row(name, function, lines)
            if row is not None:
                yield row

    def _row(self, name: str, function: _Function, lines: list[str]) -> Row | None:
        docstring = ast.get_docstring(function, clean=False)
        if not (docstring or "").strip() and self.config.require_docstring:
            return None
        instruction = inspect.cleandoc(docstring or "")
        program = _program(function, lines, has_docstring=docstring is not None)
        if program is None or not self.config.min_lines <= program.count("\n") <= self.config.max_lines:
            return None
        try:
            instruction.encode()
        except UnicodeEncodeError:
            return Row.poison(function.lineno, f"the docstring of {name} holds a lone surrogate")
        if len(program) > self.config.max_row_bytes:
            return Row.poison(function.lineno, f"{name} is longer than max_row_mb")
        return Row(function.lineno, {"instruction": instruction, "program": program, "qualname": name})


def _functions(body: list[ast.stmt], prefix: str) -> Iterator[tuple[str, _Function]]:
    for node in body:
        if isinstance(node, _Function):
            yield prefix + node.name, node
        elif isinstance(node, ast.ClassDef):
            yield from _functions(node.body, f"{prefix}{node.name}.")
        elif isinstance(node, ast.If | ast.Try | ast.TryStar | ast.With | ast.For | ast.While):
            yield from _functions(node.body, prefix)
            for handler in getattr(node, "handlers", []):
                yield from _functions(handler.body, prefix)
            yield from _functions(getattr(node, "orelse", []), prefix)
            yield from _functions(getattr(node, "finalbody", []), prefix)


def _program(function: _Function, lines: list[str], *, has_docstring: bool) -> str | None:
    """The function's source at the left margin, without its docstring; None where nothing parseable would be left."""
    first = min([function.lineno, *(each.lineno for each in function.decorator_list)])
    last = function.end_lineno or function.lineno
    kept = list(range(first, last + 1))
    if has_docstring:
        docstring, *rest = function.body
        end = docstring.end_lineno or docstring.lineno
        # Where code shares a line with the docstring, whole lines cannot be taken out.
        if not rest or docstring.lineno == function.lineno or rest[0].lineno == end:
            return None
        while end < last and not lines[end].strip():
            end += 1
        kept = [number for number in kept if not docstring.lineno <= number <= end]
    source = [lines[number - 1] for number in kept]
    margin = function.col_offset
    if margin:
        inside = _inside_strings(source)
        source = [line if index in inside else _moved(line, margin) for index, line in enumerate(source)]
    program = "".join(source)
    try:
        _parse(program)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return program


def _moved(line: str, margin: int) -> str:
    # Comments and continued lines may stand further left than the function: they lose what white space they have.
    blank = len(line) - len(line.lstrip(" \t\f"))
    return line[min(blank, margin) :]


def _inside_strings(source: list[str]) -> set[int]:
    """Indices of the lines that begin inside a string."""
    text = "".join(source)
    if not any(sign in text for sign in ('"""', "'''", "\\\n")):
        return set()
    inside: set[int] = set()
    opened: list[int] = []
    # A block header in front makes the indented lines a module of their own; it is line 1.
    for token in tokenize.generate_tokens(io.StringIO("if 1:\n" + text).readline):
        name = tokenize.tok_name[token.type]
        if name == "STRING":
            inside.update(range(token.start[0] - 1, token.end[0] - 1))
        elif name == "FSTRING_START":
            opened.append(token.start[0])
        elif name == "FSTRING_END":
            inside.update(range(opened.pop() - 1, token.end[0] - 1))
    return inside


def _parse(text: str) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an invalid escape in somebody's code is no concern of the user
        return ast.parse(text)
