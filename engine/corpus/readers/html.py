"""HTML: one page per file, its main text and its title; boilerplate and comments are left out by trafilatura.

A page without any main text is dropped with the reason `no_text`. Encodings are found by trafilatura.

Left out: fetching. Called through `engine.corpus.readers.base`, and `extract` by the WARC reader.
"""

import codecs
import logging
from collections.abc import Iterator

import trafilatura

from engine.corpus.readers.rows import NO_TEXT, FileReader, Row

# It warns of every page without text; here that is a counted reason.
logging.getLogger("trafilatura").setLevel(logging.CRITICAL)


class HtmlReader(FileReader):
    """Reads a page as one row; a page that breaks the extractor is quarantined."""

    columns = ("text", "title")

    def parse(self, data: bytes) -> Iterator[Row]:
        """The one row of a page."""
        yield extract(data, 0, {})


def extract(page: bytes, number: int, values: dict[str, str], *, charset: str | None = None) -> Row:
    """The row of a page: `values`, its `text` and its `title`. `charset` is what the server said it is."""
    try:
        tree = trafilatura.load_html(_decoded(page, charset))
        title = "" if tree is None else (tree.findtext(".//title") or "").strip()
        text = "" if tree is None else trafilatura.extract(tree, include_comments=False) or ""
    except Exception as error:  # noqa: BLE001 - a page nobody has seen may break the extractor in any way
        return Row.poison(number, f"the extractor failed: {type(error).__name__}: {error}"[:300], values)
    return Row(number, {**values, "text": text, "title": title}, None if text else NO_TEXT)


def _decoded(page: bytes, charset: str | None) -> str | bytes:
    try:
        return page.decode(codecs.lookup(charset).name) if charset else page
    except (LookupError, UnicodeDecodeError):
        return page
