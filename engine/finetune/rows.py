"""A step's examples as packed rows, made one at a time as the learner comes to them.

Left out: how examples are spread over rows (`engine.finetune.packing`), the tensors of a row
(`engine.finetune.batches`). Called by the tasks that learn from next tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from engine.finetune.batches import Row, make_row
from engine.finetune.loop import Portion
from engine.finetune.order import Indices
from engine.finetune.packing import pack, share
from engine.finetune.store import TokenStore


class PackedExamples:
    """The examples of a store in rows of at most `capacity` tokens; one to a row unless they keep `apart` there."""

    def __init__(self, store: TokenStore, capacity: int) -> None:
        self._store, self._capacity = store, capacity
        self.apart = True

    def drawn(self, indices: Indices, epochs: Indices, rank: int, workers: int) -> Portion:
        """A worker's part of these examples to learn from, each in the copy of its epoch."""
        train = self._store.train
        return self.of([int(each) for each in train[indices, epochs % train.shape[1]]], rank, workers)

    def held_out(self, rank: int, workers: int) -> Portion | None:
        """A worker's part of what is measured on, if anything."""
        numbers = [int(each) for each in self._store.held_out[:, 0]]
        return self.of(numbers, rank, workers) if numbers else None

    def of(self, numbers: Sequence[int], rank: int, workers: int) -> Portion:
        """A worker's part of the examples of these numbers."""
        store = self._store
        lengths = [store.length(number) for number in numbers]
        packed = pack(lengths, self._capacity) if self.apart else [[at] for at in range(len(lengths))]
        rows = [[numbers[at] for at in row] for row in share(packed, workers)[rank]]
        weight = int(store.loss_tokens[list(numbers)].sum())
        return Portion(Lazily(rows, self._row), weight, sum(lengths))

    def _row(self, numbers: list[int]) -> Row:
        return replace(make_row([self._store[number] for number in numbers]), numbers=tuple(numbers))


class Lazily(Sequence[Any]):
    """A sequence whose members are made when they are asked for: a step may be many of them."""

    def __init__(self, given: Sequence[Any], make: Callable[[Any], Any]) -> None:
        self._given, self._make = given, make

    def __len__(self) -> int:
        return len(self._given)

    def __getitem__(self, at: Any) -> Any:
        return self._make(self._given[at])
