"""A random projection of gradients onto a few numbers, made block by block from a seed: it is never whole in memory.

P in {+1, -1}^(p x d) / sqrt(d), as GradEx (arXiv 2409.19458, section 3) has it: the product of two projected vectors
is, on average, that of the vectors themselves. The signs of a block of parameters depend on the seed and the block's
number alone, so any process can make any block, and the first columns of a wide projection are a narrower one.

Left out: where gradients come from (`engine.selection.gradients`). Called by it and by the estimates' sanity panel.

Shapes: p parameters, d projected numbers, n vectors.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]
BLOCK = 1 << 15
"""Parameters whose signs are made at a time: at d = 200, 26 MB of them."""


class Projection:
    """P of `parameters` x `width`, drawn from a `seed`."""

    def __init__(self, parameters: int, width: int, seed: int) -> None:
        if parameters < 1 or width < 1:
            raise ValueError(f"a projection of {parameters} parameters onto {width} numbers")
        self.parameters, self.width, self._seed = parameters, width, seed

    def project(self, vectors: Floats) -> npt.NDArray[np.float32]:
        """P^T v of each vector: (n, p) -> (n, d), float32."""
        if vectors.shape[-1] != self.parameters:
            raise ValueError(f"vectors of {vectors.shape[-1]} numbers for a projection of {self.parameters}")
        found = np.zeros((len(vectors), self.width), np.float32)
        for start in range(0, self.parameters, BLOCK):
            found += vectors[:, start : start + BLOCK].astype(np.float32, copy=False) @ self._block(start)
        return found / np.float32(np.sqrt(self.width))

    def expand(self, projected: Floats) -> npt.NDArray[np.float32]:
        """P w of each vector: (n, d) -> (n, p), float32: a step in the parameters."""
        scaled = projected.astype(np.float32) / np.float32(np.sqrt(self.width))
        return np.concatenate(
            [scaled @ self._block(start).T for start in range(0, self.parameters, BLOCK)], axis=-1, dtype=np.float32
        )

    def _block(self, start: int) -> npt.NDArray[np.float32]:
        """Signs of the parameters from `start` on, (at most BLOCK, d)."""
        rows = min(BLOCK, self.parameters - start)
        # Column by column from streams of their own, so that a wider projection begins with this one.
        columns = []
        for column in range(self.width):
            stream = np.random.Philox(key=[self._seed & (2**64 - 1), (start // BLOCK << 20) + column])
            bits = np.frombuffer(np.random.Generator(stream).bytes(-(-rows // 8)), np.uint8)
            columns.append(np.unpackbits(bits)[:rows])
        return (2 * np.stack(columns, axis=1).astype(np.float32)) - 1


def narrowed(projected: Floats, width: int) -> Floats:
    """What a narrower projection of the same seed gives: (n, D) -> (n, width)."""
    wide = projected.shape[-1]
    if not 0 < width <= wide:
        raise ValueError(f"{width} of {wide} projected numbers")
    return np.asarray(projected[:, :width] * np.sqrt(wide / width), projected.dtype)
