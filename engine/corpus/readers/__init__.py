"""One module per input format behind one Protocol; `reader_for` picks the one a recipe names."""

from engine.corpus.readers.base import Reader, Slice, reader_for

__all__ = ["Reader", "Slice", "reader_for"]
