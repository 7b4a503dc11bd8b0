"""pass@k: the chance that at least one of k samples passes, unbiased (arXiv 2107.03374, section 2.1), with intervals.

Left out: how samples are drawn and checked. Called by `engine.evaluation.report`.
"""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def pass_at_k(samples: npt.ArrayLike, passed: npt.ArrayLike, k: int) -> Floats:
    """1 - C(samples - passed, k) / C(samples, k), as a product that never overflows; one number, or one per problem.

    Raises `ValueError` where a problem has fewer than k samples or more passed than were drawn.
    """
    drawn, right = np.asarray(samples, np.int64), np.asarray(passed, np.int64)
    if k < 1 or (drawn < k).any():
        raise ValueError(f"pass@{k} needs at least {k} samples of every problem")
    if drawn.shape != right.shape or (right < 0).any() or (right > drawn).any():
        raise ValueError("as many as were drawn can have passed, and no more")
    # The k draws without replacement, one after the other: (wrong - i) of (drawn - i) are still wrong.
    step = np.arange(k)
    wrong = np.clip(drawn[..., None] - right[..., None] - step, 0, None)
    found: Floats = 1.0 - (wrong / (drawn[..., None] - step)).prod(axis=-1)
    return found


def interval(values: Floats, *, seed: int = 0, confidence: float = 0.95, rounds: int = 10_000) -> tuple[float, float]:
    """Bootstrap interval of a mean over problems (percentiles); nan for no problems."""
    if not len(values):
        return float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    means = np.array([rng.choice(values, len(values)).mean() for _ in range(rounds)])
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
