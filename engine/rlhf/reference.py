"""What the reference implementation of MA-RLHF does where it differs (option `strict_reference_compat`).

Its segmentation cuts before the last token of every response, whatever the rule, so that the score escapes the mean
over a macro; where a cut was there already, a macro of no token appears, worth and earning 0. It averages a macro's
rewards with the weights of its values. Kept apart so that ours stays plain; for comparisons with its published runs.

Called by the loop under that option.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from engine.rlhf.credit import Gae, Macros
from engine.rlhf.segmenters import NONE, Ints


def reference_lengths(lengths: Sequence[int]) -> list[int]:
    """Macro lengths of a rule as the reference would have them: R = 11 in fives is 5, 5, 0, 1."""
    count = sum(lengths)
    if not count:
        return []
    inner = [int(end) for end in np.cumsum(lengths) if end < count]
    return [int(each) for each in np.diff([0, *inner, count - 1, count])]


def reference_macros(macro_BT: Ints) -> Macros:
    """The macros of a rule, (B, T), as the reference would have them."""
    written_BT = macro_BT != NONE
    rows = [
        reference_lengths(np.bincount(row[row != NONE]).tolist()) if (row != NONE).any() else [] for row in macro_BT
    ]
    length_BK = np.zeros((len(rows), max(map(len, rows), default=0)), np.int64)
    theirs_BT = np.full(macro_BT.shape, NONE, np.int64)
    for row, lengths in enumerate(rows):
        length_BK[row, : len(lengths)] = lengths
        theirs_BT[row, written_BT[row]] = np.repeat(np.arange(len(lengths)), lengths)
    return Macros(theirs_BT, length_BK)


def reference_options(options: Gae) -> Gae:
    """The options with the reference's aggregation of rewards."""
    return replace(options, reward_aggregation="weighted", discount="macro")
