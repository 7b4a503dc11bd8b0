"""A run's report: one HTML file that opens from disk, with no network, in light and dark, on screen and on paper.

Everything given to it is shown as text and escaped; only figures are markup, and those must be drawings of
`engine.observe.plots`. The page forbids itself, by its content security policy, to load anything or to run any script
but its own. The same report gives the same bytes.

Left out: what to report (each job decides) and drawing (`engine.observe.plots`). Called by every job.
"""

import base64
import difflib
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any
from xml.etree import ElementTree

from upath import UPath

import engine
from engine.storage import make_directory, replace

_NUMBER = re.compile(r"[-+−]?[\d.,]+(\s?\S{1,6})?|–")
_DRAWING_TAGS = {"svg", "g", "defs", "clipPath", "path", "rect", "line", "circle", "use", "text", "tspan", "title"}
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")


class Report:
    """Collects sections in the order of the calls; `write` makes the file."""

    def __init__(self, title: str, subtitle: str = "") -> None:
        self._title, self._subtitle = title, subtitle
        self._blocks: list[dict[str, Any]] = []

    def facts(self, facts: Mapping[str, object]) -> None:
        """A row of tiles, each a big value over its label."""
        self._add("facts", "", tiles=[(label, _shown(value)) for label, value in facts.items()])

    def text(self, title: str, *paragraphs: str) -> None:
        """Paragraphs of plain text; a blank line inside one begins another."""
        split = [part.strip() for paragraph in paragraphs for part in re.split(r"\n\s*\n", paragraph)]
        self._add("text", title, paragraphs=[part for part in split if part])

    def table(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], note: str = "") -> None:
        """A table, each row as long as `columns`; columns of numbers only (a unit may follow) stand flush right."""
        cells = [[_shown(value) for _, value in zip(columns, row, strict=True)] for row in rows]
        numeric = [bool(cells) and all(_NUMBER.fullmatch(row[i]) for row in cells) for i in range(len(columns))]
        self._add("table", title, columns=columns, rows=cells, numeric=numeric, note=note)

    def figure(self, title: str, svg: str, note: str = "") -> None:
        """A drawing of `engine.observe.plots`; figures that follow one another stand side by side where there is room.

        Raises `ValueError` for anything but an `<svg>` that runs and loads nothing.
        """
        _check_drawing(svg)
        # Drawings name their parts alike; on one page the names must differ.
        prefix = f"f{len(self._blocks)}-"
        svg = re.sub(r'(\sid="|url\(#|href="#)', rf"\1{prefix}", svg)
        self._add("figure", title, svg=svg.removeprefix("<svg"), note=note)

    def code(self, title: str, source: str, language: str = "python") -> None:
        """A listing with line numbers; an unknown language is shown without colours."""
        self._add("code", title, lines=_highlighted(source, language))

    def growth(self, title: str, states: Sequence[str], note: str = "", language: str = "python") -> None:
        """One program growing edit by edit: `states` are the whole programs after each edit, first to last.

        Every state is in the page with its new lines marked; a script puts them behind a slider.
        """
        steps = []
        before: list[str] = []
        for state in states:
            after = _lines(state)
            new = _inserted(before, after)
            steps.append({"lines": _highlighted(state, language), "new": new, "count": len(new)})
            before = after
        self._add("growth", title, steps=steps, note=note)

    def html(self) -> str:
        """The page as text."""
        style, script = _part("report.css"), _part("report.js")
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        sections = [block for block in self._blocks if block["title"]]
        for number, block in enumerate(sections, start=1):
            block["anchor"] = f"section-{number}"
        page: str = _template().render(
            title=self._title,
            subtitle=self._subtitle,
            groups=_grouped(self._blocks),
            sections=sections,
            style=style,
            script=script,
            script_hash=digest,
            version=engine.__version__,
        )
        return _UNPRINTABLE.sub("\ufffd", page)

    def write(self, path: UPath) -> None:
        """Write the page as one file, replacing an earlier one whole. Raises `StorageError`."""
        make_directory(path.parent)
        replace(path, self.html().encode())

    def _add(self, kind: str, title: str, **content: Any) -> None:
        self._blocks.append({"kind": kind, "title": title, **content})


@cache
def _template() -> Any:
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(_part("report.html"))


def _part(name: str) -> str:
    return resources.files("engine.observe").joinpath(name).read_text(encoding="utf-8")


def _grouped(blocks: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Blocks as rows of the page: figures that follow one another share a row, all else stands alone."""
    groups: list[list[dict[str, Any]]] = []
    for block in blocks:
        if groups and block["kind"] == groups[-1][-1]["kind"] == "figure":
            groups[-1].append(block)
        else:
            groups.append([block])
    return groups


def _check_drawing(svg: str) -> None:
    try:
        root = ElementTree.fromstring(svg)
    except ElementTree.ParseError as error:
        raise ValueError(f"a figure is an <svg> text: {error}") from None
    for element in root.iter():
        if element.tag.partition("}")[2] not in _DRAWING_TAGS or not svg.startswith("<svg"):
            raise ValueError(f"a figure has no place for {element.tag}")
        for name, value in element.attrib.items():
            if name.startswith("on") or (name.endswith("href") and not value.startswith("#")):
                raise ValueError(f"a figure has no place for the attribute {name}")


def _shown(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


def _lines(source: str) -> list[str]:
    lines = source.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return lines[:-1] if lines[-1] == "" else lines


def _highlighted(source: str, language: str) -> list[str]:
    """Each line of a source as HTML of its own, escaped and coloured by Pygments' short class names."""
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import get_lexer_by_name
    from pygments.lexers.special import TextLexer
    from pygments.util import ClassNotFound

    lines = _lines(source)
    try:
        lexer = get_lexer_by_name(language, stripnl=False)
    except ClassNotFound:
        lexer = TextLexer(stripnl=False)
    marked = highlight("\n".join(lines) + "\n", lexer, HtmlFormatter(nowrap=True)).split("\n")[: len(lines)]
    assert len(marked) == len(lines), "Pygments kept the lines"
    return [str(line) for line in marked]


def _inserted(before: Sequence[str], after: Sequence[str]) -> set[int]:
    """The indexes of the lines of `after` that are new; for an insertion exactly as many as were inserted."""
    kept, found = set(), 0
    for i, line in enumerate(after):
        if found < len(before) and line == before[found]:
            kept.add(i)
            found += 1
    if found < len(before):  # more than an insertion: the first fit says little, the best one is wanted
        blocks = difflib.SequenceMatcher(a=before, b=after, autojunk=False).get_matching_blocks()
        kept = {block.b + i for block in blocks for i in range(block.size)}
    return set(range(len(after))) - kept
