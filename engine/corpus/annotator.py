"""The base of actors that look at texts and add typed columns: a classifier's score, a quality mark, a language.

A subclass says which columns it adds and computes them for a list of texts; marked rows pass untouched with nulls. Its
version names the model behind it, so that a published dataset says what annotated it. Left out: where it runs
(`engine.corpus.stream.Stage` takes the class). Called by the method rooms.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from engine.corpus.marks import DROP, mark, unmarked


class Annotator(ABC):
    """Adds `columns` (name -> Arrow type) to tables, computed from the text column `reads`."""

    reads: str
    columns: Mapping[str, pa.DataType]
    version: str
    """Fingerprint of the model behind it."""

    @abstractmethod
    def annotate(self, texts: Sequence[str]) -> Mapping[str, Sequence[Any]]:
        """A value for each text and column."""

    def drops(self, annotated: pa.Table) -> Mapping[str, pa.ChunkedArray]:
        """Which rows to drop now, reason -> one boolean per row (null counts as false); none unless overridden."""
        return {}

    def __call__(self, block: pa.Table) -> pa.Table:
        """The block with the columns appended, in place of its own of these names."""
        live = unmarked(block).to_pylist() if DROP in block.column_names else [True] * len(block)
        kept = [at for at, alive in enumerate(live) if alive]
        texts: list[str] = block[self.reads].take(pa.array(kept, pa.int64())).to_pylist()
        values = self.annotate(texts)
        for name, kind in self.columns.items():
            column: list[Any] = [None] * len(block)
            for at, value in zip(kept, values[name], strict=True):
                column[at] = value
            if name in block.column_names:
                block = block.drop_columns([name])
            block = block.append_column(name, pa.array(column, kind))
        for reason, mask in self.drops(block).items():
            block = mark(block, mask, reason)
        return block
