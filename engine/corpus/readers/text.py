"""Text: one document per file, decoded strictly in `source.encoding` (UTF-8 unless the recipe says otherwise).

Left out: splitting of files into documents. Called through `engine.corpus.readers.base`.
"""

from collections.abc import Iterator

from engine.corpus.readers.rows import FileReader, Row


class TextReader(FileReader):
    """Reads a file as one row, its bytes' line ends kept; a file that cannot be decoded is quarantined."""

    columns = ("text",)

    def parse(self, data: bytes) -> Iterator[Row]:
        """The one row of a file."""
        # A byte order mark is no part of the text.
        encoding = "utf-8-sig" if self.config.encoding == "utf-8" else self.config.encoding
        try:
            yield Row(0, {"text": data.decode(encoding)})
        except UnicodeDecodeError as error:
            yield Row.poison(0, f"not valid {self.config.encoding} at byte {error.start}")
