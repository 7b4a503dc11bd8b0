"""Conversations in ChatterBot's YAML: each statement and the answer that follows it, as `prompt` and `response`.

A file is a mapping with `conversations`, a list of lists of statements; a conversation of four is two rows. A number is
taken as the text it is written as. The first of the file's `categories` is the `task` of its rows. A file of any other
shape is quarantined.

Left out: a conversation as a whole. Called through `engine.corpus.readers.base`.
"""

from collections.abc import Iterator
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from engine.corpus.readers.rows import FileReader, Row


class DialogueReader(FileReader):
    """Reads a file of conversations; a statement that nobody answers is left out."""

    columns = ("prompt", "response", "task")

    def parse(self, data: bytes) -> Iterator[Row]:
        """The rows of a file."""
        try:
            found: Any = YAML(typ="safe", pure=True).load(data.decode("utf-8-sig"))
            conversations = found["conversations"]
            if not isinstance(conversations, list) or not all(isinstance(each, list) for each in conversations):
                raise TypeError("conversations is no list of lists")
            topics = found.get("categories")
            task = {"task": str(topics[0])} if isinstance(topics, list) and topics else {}
            pairs = [pair for each in conversations for pair in zip(each[::2], each[1::2], strict=False)]
        except (YAMLError, TypeError, KeyError, ValueError, AttributeError, RecursionError) as error:
            why = str(error).strip().partition("\n")[0][:200] or type(error).__name__
            yield Row.poison(0, f"no conversations can be read: {why}")
            return
        for number, (prompt, response) in enumerate(pairs):
            yield Row(number, {"prompt": str(prompt), "response": str(response), **task})
