"""Questions disturbed: noise in letters, noise in words, another order; drawn from a seed, still readable.

    characters   letters swapped with the next, dropped, doubled, or struck a key beside (US keyboard)
    tokens       words dropped or doubled
    order        sentences shuffled; of a docstring its lines, or the sentences of a single line

Only prose is touched. Of a function to be written that is the prose of its docstring: signature, helpers, examples and
every line that names the function or stands under `>>>` stay as they are, so what is asked for is still the same
program. Left out: which questions are disturbed (`engine.evaluation.questions`). Called by it.
"""

import ast
import re
from collections.abc import Callable, Sequence

import numpy as np

from engine.evaluation.options import Perturbation

_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
_WORD = re.compile(r"[A-Za-z]+(?:['-][A-Za-z]+)*")
_TRIES = 8
"""Shuffles drawn before something that is still in its old order is left so."""


def perturb(kind: Perturbation, text: str, *, rate: float, seed: int) -> str:
    """The text disturbed; `rate` in (0, 1] is the share of letters or words, and says nothing to `order`.

    The same text, rate and seed give the same result. White space, digits and signs stay where they are.
    """
    rng = np.random.default_rng(seed)
    return _KINDS[kind](text, rate, rng)


def perturb_function(kind: Perturbation, prompt: str, entry_point: str, *, rate: float, seed: int) -> str:
    """A function's prompt (imports, helpers, signature, docstring) with the prose of its docstring disturbed.

    A prompt without a docstring in that function, or one that does not parse, comes back as it is; so does one that
    would no longer parse.
    """
    span = _docstring(prompt, entry_point)
    if span is None:
        return prompt
    start, end = span
    lines = prompt[start:end].split("\n")
    prose = _prose(lines, entry_point)
    rng = np.random.default_rng(seed)
    if kind == "order":
        disturbed = _reordered([lines[at] for at in prose], rng)
    else:
        disturbed = [_KINDS[kind](lines[at], rate, rng) for at in prose]
    for at, line in zip(prose, disturbed, strict=True):
        lines[at] = line
    changed = prompt[:start] + "\n".join(lines) + prompt[end:]
    return changed if _docstring(changed, entry_point) else prompt


def _characters(text: str, rate: float, rng: np.random.Generator) -> str:
    letters = list(text)
    draws = rng.random(len(letters))
    for at in range(len(letters)):
        # A letter behind a backslash is part of an escape.
        if not _is_letter(letters[at]) or draws[at] >= rate or (at and text[at - 1] == "\\"):
            continue
        how = int(rng.integers(4))
        following = letters[at + 1] if at + 1 < len(letters) else ""
        if how == 0 and _is_letter(following):
            letters[at], letters[at + 1] = following, letters[at]
        elif how == 1:
            letters[at] = ""
        elif how == 2:
            letters[at] *= 2
        else:
            letters[at] = _beside(letters[at], rng)
    return "".join(letters)


def _tokens(text: str, rate: float, rng: np.random.Generator) -> str:
    found: list[str] = []
    end = 0
    for match in _WORD.finditer(text):
        found.append(text[end : match.start()])
        end = match.end()
        draw = rng.random()
        # A name (`my_list`, `x2`, an escape) is code in prose: it stays.
        alone = not re.match(r"[\w\\]", text[match.start() - 1 : match.start()]) and not re.match(r"\w", text[end:])
        if draw >= rate or not alone:
            found.append(match.group())
        elif draw < rate / 2:
            found.append(f"{match.group()} {match.group()}")
    return "".join([*found, text[end:]])


def _order(text: str, rate: float, rng: np.random.Generator) -> str:
    del rate
    head = re.match(r"\s*", text)
    tail = re.search(r"\s*\Z", text)
    assert head
    assert tail
    inner = text[head.end() : tail.start()]
    parts = re.split(r"(?<=[.!?])(\s+)", inner)
    if len(parts) < 3:
        return text
    sentences, gaps = _shuffled(parts[::2], rng), [*parts[1::2], ""]
    mixed = "".join(sentence + gap for sentence, gap in zip(sentences, gaps, strict=True))
    return head.group() + mixed + tail.group()


_KINDS: dict[Perturbation, Callable[[str, float, np.random.Generator], str]] = {
    "characters": _characters,
    "tokens": _tokens,
    "order": _order,
}


def _reordered(lines: Sequence[str], rng: np.random.Generator) -> list[str]:
    """Lines in another order, each at the indentation of the place it comes to; a single one: its sentences."""
    if len(lines) < 2:
        return [_order(line, 0.0, rng) for line in lines]
    mixed = _shuffled([line.strip() for line in lines], rng)
    return [line[: len(line) - len(line.lstrip())] + text for line, text in zip(lines, mixed, strict=True)]


def _shuffled(items: Sequence[str], rng: np.random.Generator) -> list[str]:
    for _ in range(_TRIES):
        mixed = [items[at] for at in rng.permutation(len(items))]
        if mixed != list(items):
            return mixed
    return list(items)


def _docstring(prompt: str, entry_point: str) -> tuple[int, int] | None:
    """Where the inside of the function's docstring stands in the prompt; None where there is none."""
    source = prompt + "\n    pass\n"
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == entry_point and ast.get_docstring(node) is not None:
            string = node.body[0]
            assert string.end_lineno is not None
            assert string.end_col_offset is not None
            start = _offset(source, string.lineno, string.col_offset)
            end = _offset(source, string.end_lineno, string.end_col_offset)
            opening = re.match(r"[rRuU]?(\"\"\"|'''|\"|')", source[start:end])
            if opening is None:
                return None
            return start + opening.end(), end - len(opening[1])
    return None


def _offset(source: str, line: int, column: int) -> int:
    """Index of a place that the parser gives: a line from 1, a column in UTF-8 bytes."""
    lines = source.split("\n")
    return sum(len(each) + 1 for each in lines[: line - 1]) + len(lines[line - 1].encode()[:column].decode())


def _prose(lines: Sequence[str], entry_point: str) -> list[int]:
    """Indices of the lines that a reader reads as sentences."""
    found = []
    example = False
    for at, line in enumerate(lines):
        text = line.strip()
        example = text.startswith(">>>") or (example and bool(text))
        names = re.search(rf"\b{re.escape(entry_point)}\b", text) or re.search(r"==|=>|->|[\[({].*[\])}]", text)
        if text and not example and not names and len(_WORD.findall(text)) >= 2:
            found.append(at)
    return found


def _is_letter(letter: str) -> bool:
    return len(letter) == 1 and letter.isascii() and letter.isalpha()


def _beside(letter: str, rng: np.random.Generator) -> str:
    """A letter whose key is left or right of this one's."""
    row = next(row for row in _ROWS if letter.lower() in row)
    at = row.index(letter.lower())
    keys = [row[place] for place in (at - 1, at + 1) if 0 <= place < len(row)]
    struck = keys[int(rng.integers(len(keys)))]
    return struck.upper() if letter.isupper() else struck
