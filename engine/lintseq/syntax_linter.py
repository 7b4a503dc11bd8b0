"""Syntax, and nothing but syntax, of any language that has a tree-sitter grammar: no names, no types, no compiler.

A text is clean when the grammar parses it without an error. Grammars take a little more than compilers do: a `return`
outside a function, an attribute before nothing.

tree-sitter knows well whether a text is wrong but badly where: one brace too few can make an error of everything. What
brackets enclose is indented, though, so where they do not pair, indentation says which one is odd; only where they
pair is the place blamed at which the parser stumbled. Layout matters for the blame alone, never for what is clean.

Left out: Python (`engine.lintseq.fast_linter` knows its names too) and what to do about an error. Called by the
sampler. tree-sitter is imported here only, when a linter is built.
"""

import importlib
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from engine.errors import RecipeError
from engine.lintseq.linting import SYNTAX_ERROR, Finding, Unlintable

if TYPE_CHECKING:
    from tree_sitter import Language, Node

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_PARTNERS = {"(": ")", "[": "]", "{": "}"}
_CLOSING = re.compile(rb"\s*[)\]}][)\]};,\s]*")
# How grammars call strings and comments: template_string, raw_string_literal, heredoc_body, block_comment.
_TEXT = re.compile("string|heredoc|comment$")


class SyntaxLinter:
    """A `Linter` that knows the grammar of one language and nothing else; `language` as in `tree-sitter-<language>`.

    Threads may share it. Raises `RecipeError` where the grammar's package is not installed or cannot be used.
    """

    def __init__(self, language: str) -> None:
        self._language = _grammar(language)

    def check(self, lines: Sequence[str]) -> list[Finding]:
        """One `syntax-error` per line to blame; see `Linter.check`."""
        try:
            source = "\n".join(lines).encode()
        except UnicodeEncodeError as error:  # a lone surrogate
            raise Unlintable(str(error)) from error
        root = self._parsed(source)
        if not root.has_error:
            return []
        rows = source.split(b"\n")
        brackets = _brackets(root, rows)
        # The text as it is decides whether brackets pair; indentation only says which of them is the odd one.
        blamed = _unpaired(brackets) and (_unpaired(brackets, by_indentation=True) or _unpaired(brackets))
        return [Finding(row, SYNTAX_ERROR) for row in sorted(blamed or {_stumble(root, rows)})]

    def candidates(self, lines: Sequence[str]) -> list[int]:
        """The lines worth drawing, ascending: those with code of their own.

        Not worth it are blanks, comments, lines that begin inside a string, and lines of closing brackets alone: these
        go when their opener goes, and drawing them too would only make whole blocks go more often.
        """
        source = bytearray("\n".join(lines).encode(errors="surrogatepass"))
        inside: set[int] = set()
        for node in _nodes(self._parsed(bytes(source))):
            if node.type.endswith("comment"):
                span = slice(node.start_byte, node.end_byte)
                source[span] = re.sub(rb"[^\n]", b" ", source[span])
            elif _TEXT.search(node.type):
                inside.update(_continued(node))
        rows = bytes(source).split(b"\n")
        return [at for at, row in enumerate(rows) if at not in inside and row.strip() and not _CLOSING.fullmatch(row)]

    def indents(self, lines: Sequence[str]) -> list[int]:
        """The depth of each line: its leading white space, in characters.

        A blank line is as deep as the one before; what continues a string or a comment is one deeper than the line
        that begins it, however it is laid out, so that they go together.
        """
        depths: list[int] = []
        for line in lines:
            text = line.lstrip()
            depths.append(len(line) - len(text) if text or not depths else depths[-1])
        inside: set[int] = set()
        for node in _nodes(self._parsed("\n".join(lines).encode(errors="surrogatepass"))):
            if _TEXT.search(node.type):
                begin = node.start_point.row
                for row in _continued(node):
                    depths[row] = depths[begin] + (begin not in inside)
                inside.update(_continued(node))
        return depths

    def _parsed(self, source: bytes) -> "Node":
        """The root of the syntax tree."""
        from tree_sitter import Parser

        # A parser has state, a new one costs microseconds.
        return Parser(self._language).parse(source).root_node


def _grammar(language: str) -> "Language":
    """The grammar of a language from its installed package. Raises `RecipeError`."""
    name = re.sub("[-.]", "_", language)
    if not _NAME.fullmatch(name):
        raise RecipeError(
            f"{language!r} cannot name a language.",
            "Take the name from its grammar package: rust for tree-sitter-rust.",
        )
    package = "tree-sitter-" + name.replace("_", "-")
    try:
        from tree_sitter import Language

        module = importlib.import_module(f"tree_sitter_{name}")
    except ImportError as error:
        needed = f"tree-sitter {package}" if error.name == "tree_sitter" else package
        raise RecipeError(
            f"The syntax of {name!r} needs {needed}, which cannot be imported.", f"Install it: pip install {needed}"
        ) from error
    try:
        # A package of several grammars, such as TypeScript's, has a function for each.
        factory = getattr(module, "language", None) or getattr(module, f"language_{name}")
        return Language(factory())
    except (AttributeError, TypeError, ValueError) as error:
        raise RecipeError(
            f"The installed {package} offers no grammar of {name!r} that the installed tree-sitter can use.",
            f"Install releases that fit: pip install --upgrade tree-sitter {package}",
        ) from error


def _nodes(root: "Node") -> Iterator["Node"]:
    """All nodes in the order of the text, parents before their children."""
    pending = [root]
    while pending:
        node = pending.pop()
        yield node
        pending += reversed(node.children)


def _continued(node: "Node") -> range:
    """The rows after a node's first that it reaches into."""
    end = node.end_point
    # A comment may own the newline that ends it; a string that ends at the beginning of a row has its quote there.
    owns_newline = end.column == 0 and node.type.endswith("comment")
    return range(node.start_point.row + 1, end.row + (not owns_newline))


class _Bracket(NamedTuple):
    """One bracket token: where it stands, and what it opens or closes."""

    row: int
    indent: int  # of its row
    leads: bool  # whether nothing stands before it in its row
    opens: str  # the closing bracket that it asks for; "" when it is one
    closes: str


def _brackets(root: "Node", rows: Sequence[bytes]) -> list[_Bracket]:
    """The bracket tokens of the text; those in strings and comments are none."""
    found = []
    for node in _nodes(root):
        if node.is_named or node.is_missing or node.child_count:
            continue
        # A bracket may have company in its token: `${` in a template.
        first, last = node.type[:1], node.type[-1:]
        if last in _PARTNERS or first in _PARTNERS.values():
            row, column = node.start_point
            found.append(
                _Bracket(row, _indent(rows[row]), column == _indent(rows[row]), _PARTNERS.get(last, ""), first)
            )
    return found


def _unpaired(brackets: Sequence[_Bracket], *, by_indentation: bool = False) -> set[int]:
    """Rows of the brackets that have no partner.

    With `by_indentation`, a closing bracket that leads its row belongs to a row of the same indentation: what was
    opened deeper is not closed, and where nothing is open at that depth the closing bracket is the odd one.
    """
    odd: set[int] = set()
    pending: list[_Bracket] = []
    for bracket in brackets:
        if bracket.opens:
            pending.append(bracket)
            continue
        placed = by_indentation and bracket.leads
        while placed and pending and _surely_open(pending[-1], bracket):
            odd.add(pending.pop().row)
        fits = bool(pending) and pending[-1].opens == bracket.closes
        if fits and (not placed or pending[-1].indent == bracket.indent):
            pending.pop()
        else:
            odd.add(bracket.row)
    return odd | {bracket.row for bracket in pending}


def _surely_open(opener: _Bracket, closer: _Bracket) -> bool:
    """Whether a bracket opened deeper, or of another kind at the same depth, than the one that closes."""
    return opener.indent > closer.indent or (opener.indent == closer.indent and opener.opens != closer.closes)


def _stumble(root: "Node", rows: Sequence[bytes]) -> int:
    """The row to blame for the first error of a text whose brackets pair; later errors often follow from it."""
    node = root
    while child := next((child for child in node.children if child.has_error), None):
        node = child
    row, column = node.start_point
    parent = node.parent
    if parent is not None and node.is_missing:
        row = parent.start_point.row  # What lacks its end goes from its beginning.
    elif parent is not None and parent.parent is not None and column == _indent(rows[row]):
        begin = parent.start_point.row
        if begin < row and _indent(rows[begin]) >= _indent(rows[row]):
            row -= 1  # The parser read on into a line that no longer belongs to what it was reading.
    row = min(row, len(rows) - 1)
    while row and not rows[row].strip():
        row -= 1
    return row


def _indent(row: bytes) -> int:
    return len(row) - len(row.lstrip())
