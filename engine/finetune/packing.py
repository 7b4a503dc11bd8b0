"""How a step's examples share micro-batches: by length into rows of at most so many tokens, none of them cut.

First fit, longest first, is within 11/9 of the fewest rows there could be (plus 6/9; Dósa 2007). Workers then get the
same number of rows each, empty ones among them if need be, so that every collective has all of them. Which examples
make up a step never depends on packing or workers, so neither do its loss and gradient beyond rounding. Left out:
which examples these are (`engine.finetune.order`) and attention between them (`engine.finetune.batches`). Called by
the loop.
"""

from collections.abc import Sequence


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Rows of indices into `lengths`, the lengths of a row adding up to at most `capacity`; deterministic.

    Raises `ValueError` for an example that is longer than that.
    """
    order = sorted(range(len(lengths)), key=lambda at: (-lengths[at], at))
    if order and lengths[order[0]] > capacity:
        raise ValueError(f"an example of {lengths[order[0]]} tokens in rows of {capacity}")
    rows: list[list[int]] = []
    room = _Rooms(len(order), capacity)
    for at in order:
        row = room.first(lengths[at])
        if row == len(rows):
            rows.append([])
        rows[row].append(at)
        room.take(row, lengths[at])
    return rows


def share(rows: Sequence[list[int]], workers: int) -> list[list[list[int]]]:
    """The rows of each worker, as many for each; what is missing are empty rows. Neighbours in size go to different
    workers, so that their micro-batches take about as long."""
    each = -(-len(rows) // workers)
    padded = [*rows, *([] for _ in range(each * workers - len(rows)))]
    return [[padded[at * workers + worker] for at in range(each)] for worker in range(workers)]


class _Rooms:
    """The room left in each of n rows, and the first row with enough of it in log n steps (a tree of maxima)."""

    def __init__(self, rows: int, capacity: int) -> None:
        self._leaves = 1 << max(rows - 1, 0).bit_length()
        self._most = [capacity] * (2 * self._leaves)

    def first(self, wanted: int) -> int:
        """The first row with so much room; each example has a row of its own if nothing else."""
        node = 1
        while node < self._leaves:
            node = 2 * node if self._most[2 * node] >= wanted else 2 * node + 1
        return node - self._leaves

    def take(self, row: int, tokens: int) -> None:
        """Use up room in a row."""
        node = self._leaves + row
        self._most[node] -= tokens
        while node > 1:
            node //= 2
            self._most[node] = max(self._most[2 * node], self._most[2 * node + 1])
