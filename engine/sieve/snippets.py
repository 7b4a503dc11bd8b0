"""The stream of snippets: documents read by Ray Data, cut to the student's length, in a fixed random order.

Shards are read in an order drawn from the seed and their snippets pass through a buffer from which the next is drawn at
random, so that a corpus sorted by topic becomes a sample. The order depends on the corpus, the seed and the size of the
buffer, not on how many workers read or how fast. A snippet is handed out once; `peek` and `put_back` are for those
that have been looked at but not used.

Left out: which snippets are asked about (`engine.sieve.loop`). Called by it.
"""

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from fnmatch import fnmatchcase
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from engine.corpus.block import BlockInfo
from engine.corpus.marks import SOURCE_PART, SOURCE_ROW, unmarked
from engine.corpus.plan import Plan, Shard
from engine.corpus.stream import IO_CPUS, Read, stream
from engine.sieve.cutting import load_cutter, pieces
from engine.sieve.options import StudentOptions, TruthOptions
from engine.sieve.teacher import Snippet

if TYPE_CHECKING:
    from tokenizers import Tokenizer


_GROUP_BYTES = 64 << 20
"""Uncompressed bytes of the shards read in one go; their snippets are held in memory until they are taken."""


class SnippetStream:
    """Hands out snippets in random order; close it to end the reading."""

    def __init__(self, snippets: Iterator[Snippet], *, buffer: int, seed: int) -> None:
        self._source = snippets
        self._rng = np.random.default_rng(seed)
        self._size = buffer
        self._buffer: list[Snippet] = []
        self._front: deque[Snippet] = deque()
        self.taken = 0
        """Snippets handed out and not put back."""

    def take(self, count: int) -> list[Snippet]:
        """The next so many snippets; fewer where the stream ends."""
        taken = [each for each in (self._next() for _ in range(count)) if each is not None]
        self.taken += len(taken)
        return taken

    def put_back(self, snippets: Sequence[Snippet]) -> None:
        """Hand these out again first, in their order."""
        self._front.extendleft(reversed(snippets))
        self.taken -= len(snippets)

    def peek(self, count: int) -> list[Snippet]:
        """The next so many snippets, which stay in the stream."""
        seen = self.take(count)
        self.put_back(seen)
        return seen

    def close(self) -> None:
        """End the reading."""
        if isinstance(self._source, Generator):
            self._source.close()

    def _next(self) -> Snippet | None:
        if self._front:
            return self._front.popleft()
        while len(self._buffer) < self._size:
            new = next(self._source, None)
            if new is None:
                break
            self._buffer.append(new)
        if not self._buffer:
            return None
        # The last one takes the place of the one that is drawn.
        at = int(self._rng.integers(len(self._buffer)))
        self._buffer[at], self._buffer[-1] = self._buffer[-1], self._buffer[at]
        return self._buffer.pop()


def read_snippets(
    plan: Plan, read: Read, options: StudentOptions, *, truth: "Truth | None", seed: int, stall_seconds: float,
    cores: int | None = None,
) -> Generator[Snippet, None, None]:  # fmt: skip
    """The snippets of all shards, shards in an order drawn from the seed, rows and pieces in theirs.

    Shards are read some at a time and to their end, so that no read ever waits for whoever takes the snippets: that may
    be hours, and would pass for a read that hangs.
    """
    order = np.random.default_rng(seed).permutation(len(plan.shards))
    cut = _Cut(read.column, options.model, options.max_tokens, options.long, truth)
    for shards in _groups([plan.shards[at] for at in order]):
        with closing(stream(shards, read, (), cut, stall_seconds=stall_seconds, cores=cores, cpus=IO_CPUS)) as results:
            found = {result["shard"]: result["snippets"] for result in results}
        for shard in shards:
            for row in found.pop(shard.index):
                yield Snippet(**row)


def _groups(shards: Sequence[Shard]) -> Iterator[list[Shard]]:
    """Neighbouring shards, as many as are read in one go."""
    group: list[Shard] = []
    for shard in shards:
        group.append(shard)
        if sum(each.size for each in group) >= _GROUP_BYTES:
            yield group
            group = []
    if group:
        yield group


class Truth:
    """Reads a column: a value passes if, as text and in any case, it fits one of the globs; null says nothing."""

    def __init__(self, options: TruthOptions) -> None:
        self.column = options.column
        self._globs = [each.casefold() for each in options.passes]

    def __call__(self, value: object) -> bool | None:
        """What one value says."""
        if value is None:
            return None
        text = str(value).casefold()
        return any(fnmatchcase(text, glob) for glob in self._globs)


class _Cut:
    """Turns a shard's block into one row that lists its snippets; runs in Ray Data's tasks."""

    def __init__(self, column: str, model: str, max_tokens: int, long: str, truth: Truth | None) -> None:
        self.column, self.model, self.max_tokens, self.long, self.truth = column, model, max_tokens, long, truth

    def __call__(self, block: pa.Table) -> pa.Table:
        shard = BlockInfo.of(block).shard
        kept = block.filter(unmarked(block))
        texts, parts, rows = (kept[name].to_pylist() for name in (self.column, SOURCE_PART, SOURCE_ROW))
        truths = (
            [self.truth(value) for value in kept[self.truth.column].to_pylist()] if self.truth else [None] * len(kept)
        )
        cut = pieces(_cutter(self.model), texts, self.max_tokens, self.long)
        snippets = [
            {"text": piece, "part": part, "row": row, "piece": number, "truth": truth}
            for each, part, row, truth in zip(cut, parts, rows, truths, strict=True)
            for number, piece in enumerate(each)
            if piece.strip()
        ]
        return pa.table({"shard": [shard], "snippets": pa.array([snippets], _SNIPPETS)})


_SNIPPETS = pa.list_(
    pa.struct({"text": pa.string(), "part": pa.string(), "row": pa.int64(), "piece": pa.int32(), "truth": pa.bool_()})
)


@cache
def _cutter(model: str) -> "Tokenizer":
    """One tokenizer for all shards that a worker process reads."""
    return load_cutter(model)
