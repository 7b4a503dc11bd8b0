"""Termination rules that look at the text: sentences, statements of programs, phrases of a parse tree.

Each says where macros begin, as characters of the text in ascending order; 0 need not be among them. Tokens that begin
with a space belong to what comes after it, so sentences are cut before it.

Left out: which tokens lie there (`engine.rlhf.segmenters`, which calls these).
"""

import ast
import io
import re
import tokenize
import warnings
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.observe import get_logger

Tree = list["Tree"] | int
"""A parse tree as its leaves' numbers of tokens."""

PHRASE = 5
"""Tokens that a phrase has to have to be taken apart (the paper's C)."""
FALLBACK = 5
"""Tokens of a macro where there is no parser."""
_SENTENCE = re.compile(r"""[.!?]+["'”’)\]]*(?:[ \t]*\n+|(?=\s))|[。！？]+|\n+""")
_LINE = re.compile(r"^(?=.*\S)", re.MULTILINE)

_log = get_logger("rlhf")


def sentence_cuts(text: str, firsts: NDArray[np.int64]) -> list[int]:
    """After the punctuation that ends a sentence, and after line breaks."""
    return [found.end() for found in _SENTENCE.finditer(text)]


def syntax_cuts(text: str, firsts: NDArray[np.int64]) -> list[int]:
    """Before every statement and clause of a Python program; of any other text (edits, half a program) before every
    line that is not blank."""
    try:
        return sorted(_statements(text))
    # What parsers of Python raise for what is none, or for line ends that they count differently.
    except (SyntaxError, tokenize.TokenError, ValueError, IndexError, RecursionError, MemoryError):
        return [found.start() for found in _LINE.finditer(text)]


def parse_cuts(text: str, firsts: NDArray[np.int64]) -> list[int]:
    """Before every phrase of its sentences' constituency trees that `phrases` makes one macro; where no parser is
    installed, before every fifth token."""
    parser = _parser()
    if parser is None:
        return [int(each) for each in firsts[::FALLBACK]]
    found, at = [], 0
    for sentence in parser(text).sentences:
        # The token in which each begins: its space may stand before it. A word is what a tree has for a leaf, a token
        # of one word or of several (can't), the first of which then has the whole of it.
        begins = [int(np.searchsorted(firsts, each.start_char, side="right")) - 1 for each in sentence.tokens]
        ends = [*begins[1:], int(np.searchsorted(firsts, sentence.tokens[-1].end_char))]
        counts = iter(
            [
                length if number == 0 else 0
                for each, length in zip(sentence.tokens, np.subtract(ends, begins).tolist(), strict=True)
                for number in range(len(each.words))
            ]
        )
        at = begins[0]
        for length in phrases(_counted(sentence.constituency, counts)):
            found.append(at)
            at += length
    return [int(firsts[each]) for each in found if each < len(firsts)]


def phrases(tree: Tree, most: int = PHRASE) -> list[int]:
    """Macro lengths of a tree, depth first: a node of fewer than `most` tokens is one macro, a single leaf joins the
    macro before it, any other node is taken apart (section 3 and the reference's parsing mode)."""
    found: list[int] = []
    for length, joins in _phrases(tree, most):
        if joins and found:
            found[-1] += length
        elif length:
            found.append(length)
    return found


def _phrases(tree: Tree, most: int) -> Iterator[tuple[int, bool]]:
    """Tokens of a node, and whether they join what is before."""
    while isinstance(tree, list) and len(tree) == 1:
        tree = tree[0]
    if isinstance(tree, int):
        yield tree, True
    elif _tokens(tree) < most:
        yield _tokens(tree), False
    else:
        for child in tree:
            yield from _phrases(child, most)


def _tokens(tree: Tree) -> int:
    return tree if isinstance(tree, int) else sum(_tokens(child) for child in tree)


def _counted(node: Any, counts: Iterator[int]) -> Tree:
    """A tree of stanza's as the numbers of tokens of its words."""
    if not node.children:
        return next(counts)
    return [_counted(child, counts) for child in node.children]


@cache
def _parser() -> Any:
    """A constituency parser for English, or None: stanza and its models are the user's to install."""
    try:
        import stanza

        return stanza.Pipeline(
            "en", processors="tokenize,pos,constituency", download_method=None, verbose=False, tokenize_no_ssplit=False
        )
    # Without its models it raises exceptions of several kinds of its own.
    except Exception as error:  # noqa: BLE001
        _log.warning("no parser, so macros are of five tokens", why=str(error).partition("\n")[0], install="stanza")
        return None


def _statements(text: str) -> set[int]:
    """Where statements and clauses begin; one that begins a line, with the line. Raises `SyntaxError`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what the program does; it is not ours to say
        tree = ast.parse(text)
    lines = io.StringIO(text).readlines()
    starts = np.cumsum([0, *map(len, lines)])
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.stmt):
            before = lines[node.lineno - 1].encode()[: node.col_offset].decode()
            if before.strip():
                found.add(int(starts[node.lineno - 1]) + len(before.rstrip()))
    begun = False
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in (tokenize.NL, tokenize.COMMENT, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER):
            continue
        if not begun:
            found.add(int(starts[token.start[0] - 1]))
        begun = token.type != tokenize.NEWLINE
    return found
