"""Which examples a step trains on: a function of seed and position alone, so that a resume needs a number, not a list.

An epoch is a permutation of all examples, computed where it is needed by a keyed bijection (a Feistel network walked
until it falls inside, as in format-preserving encryption), without any list of n. Epochs follow one another without a
gap: a step may take the end of one and the beginning of the next. Left out: what the examples are
(`engine.finetune.tokenise`) and how a step is cut into micro-batches (`engine.finetune.packing`). Called by the loop.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]
_ROUNDS = 6
_MIX = (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


@dataclass(frozen=True)
class DataOrder:
    """The order of `examples` examples for a seed; without `shuffle` it is the one they are stored in."""

    examples: int
    seed: int
    shuffle: bool = True

    def take(self, start: int, count: int) -> tuple[Indices, Indices]:
        """Examples number `start` to `start + count` of the whole training: their indices and epochs, (count,) each."""
        positions = np.arange(start, start + count, dtype=np.int64)
        epochs, within = np.divmod(positions, self.examples)
        if not self.shuffle:
            return within, epochs
        found = np.empty(count, np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            found[here] = _permuted(within[here], self.examples, _keys(self.seed, int(epoch)))
        return found, epochs


def _keys(seed: int, epoch: int) -> npt.NDArray[np.uint64]:
    digest = hashlib.blake2b(f"{seed} {epoch}".encode(), digest_size=8 * _ROUNDS).digest()
    return np.frombuffer(digest, "<u8")


def _permuted(positions: Indices, size: int, keys: npt.NDArray[np.uint64]) -> Indices:
    """Where each position in [0, size) goes under the permutation of [0, size) that the keys choose."""
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    found = _feistel(positions.astype(np.uint64), half, keys)
    while (
        outside := found >= size
    ).any():  # less than four steps on average: the domain is at most four times the size
        found[outside] = _feistel(found[outside], half, keys)
    return found.astype(np.int64)


def _feistel(values: npt.NDArray[np.uint64], half: int, keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """A bijection of the numbers below 4 ** half."""
    mask, shift = np.uint64((1 << half) - 1), np.uint64(half)
    left, right = values >> shift, values & mask
    for key in keys:
        left, right = right, left ^ (mixed(right + key) & mask)
    return (left << shift) | right


def mixed(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Numbers that look drawn, the same on every machine: the finaliser of SplitMix64 (Steele et al. 2014), in which
    every bit of the input moves every bit of the output."""
    values = values + np.uint64(_MIX[0])
    values = (values ^ (values >> np.uint64(30))) * np.uint64(_MIX[1])
    values = (values ^ (values >> np.uint64(27))) * np.uint64(_MIX[2])
    found: npt.NDArray[np.uint64] = values ^ (values >> np.uint64(31))
    return found
