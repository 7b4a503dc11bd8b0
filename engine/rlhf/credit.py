"""Credit for macro actions: token rewards, what a macro earns and is worth, advantages and returns, per token again.

MA-RLHF (arXiv 2410.02743): a macro is one decision of the token-level process, made in the state before its first
token. A token earns -beta * KL, the last one the response's score besides (Ouyang et al., arXiv 2203.02155); a macro
earns the sum of its tokens' rewards; generalised advantage estimation (arXiv 1506.02438) runs over macros, and every
token of a macro gets its advantage and its return. One token per macro is token-level PPO, one macro per response the
bandit. Beside it are the advantages of RLOO (arXiv 2402.14740) and GRPO (arXiv 2402.03300), which need no values.

Everything is float64 on the CPU: (B, T) of a whole step is small, and no sum depends on how a batch was padded.

Left out: where macros end (`engine.rlhf.segmenters`), losses (`engine.rlhf.losses`), what the reference does otherwise
(`engine.rlhf.reference`). Called by the loop; `macro_gae` by anyone.

Shapes: B rows, T places of a padded row, R tokens of one response, K macros of the row with most.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from engine.errors import HeadraceError
from engine.rlhf.segmenters import NONE, Bools, Floats, Ints

Weighting = Literal["equal", "unit", "first_heavy", "last_heavy"]
Aggregation = Literal["sum", "mean", "weighted"]
Discount = Literal["macro", "smdp"]

Number = TypeVar("Number", np.int64, np.float64)

WEIGHTINGS: tuple[Weighting, ...] = ("equal", "unit", "first_heavy", "last_heavy")


@dataclass(frozen=True)
class Gae:
    """How macros are credited. `discount`: once per macro, or by its length (a semi-Markov decision process: gamma^n,
    rewards inside discounted too); the same at gamma 1."""

    gamma: float = 1.0
    lam: float = 0.95
    value_weighting: Weighting = "equal"
    reward_aggregation: Aggregation = "sum"
    discount: Discount = "macro"


@dataclass(frozen=True)
class Macros:
    """Which macro each token belongs to, from `Segmenter`, and what follows from it."""

    macro_BT: Ints
    """0, 1, ... in each row; `NONE` where the policy did not write the token."""
    length_BK: Ints
    """Tokens; 0 past a row's last macro."""

    @classmethod
    def of(cls, macro_BT: Ints) -> "Macros":
        """The same with every macro's length."""
        most = int(macro_BT.max(initial=NONE)) + 1
        written = macro_BT != NONE
        flat = (np.arange(len(macro_BT))[:, None] * most + macro_BT)[written]
        lengths = np.bincount(flat, minlength=len(macro_BT) * most)
        return cls(macro_BT, lengths.reshape(len(macro_BT), most).astype(np.int64))

    @property
    def written_BT(self) -> Bools:
        """Whether the policy wrote the token."""
        written_BT: Bools = self.macro_BT != NONE
        return written_BT

    @property
    def place_BT(self) -> Ints:
        """How many tokens of its macro come before a token; 0 where there is no macro."""
        before_BT = self.written_BT.cumsum(1) - 1
        first_BK = self.length_BK.cumsum(1) - self.length_BK
        return np.where(self.written_BT, before_BT - self.at_tokens(first_BK), 0)

    def sums(self, values_BT: Floats) -> Floats:
        """The sum over each macro's tokens, (B, K), in their order."""
        rows, most = self.length_BK.shape
        flat_BT = np.arange(rows)[:, None] * most + self.macro_BT
        written_BT = self.written_BT
        summed = np.bincount(flat_BT[written_BT], values_BT[written_BT].astype(np.float64), minlength=rows * most)
        return np.asarray(summed.reshape(rows, most), np.float64)

    def to_tokens(self, values_BK: Floats) -> Floats:
        """What belongs to a macro, at each of its tokens; 0 where there is no macro, (B, T)."""
        return np.where(self.written_BT, self.at_tokens(values_BK), 0.0)

    def at_tokens(self, values_BK: NDArray[Number]) -> NDArray[Number]:
        """As `to_tokens`, but with anything where there is no macro."""
        if not values_BK.shape[1]:
            return np.zeros(self.macro_BT.shape, values_BK.dtype)
        return np.take_along_axis(values_BK, np.maximum(self.macro_BT, 0), 1)


def token_rewards(
    scores_B: Floats,
    logp_BT: Floats,
    reference_BT: Floats,
    written_BT: Bools,
    *,
    beta: float,
    clip: float | None = None,
) -> Floats:
    """What each token earns, (B, T): -beta times its log-ratio of policy to reference; the last one that was written
    the score of the response too, clipped to +-`clip`. A response without tokens earns nothing."""
    scores_B = scores_B if clip is None else np.clip(scores_B, -clip, clip)
    rewards_BT = np.where(written_BT, -beta * (logp_BT - reference_BT), 0.0)
    some_B = written_BT.any(1)
    last_B = written_BT.shape[1] - 1 - written_BT[:, ::-1].argmax(1)
    rewards_BT[np.flatnonzero(some_B), last_B[some_B]] += scores_B[some_B]
    return rewards_BT


def value_weights(macros: Macros, weighting: Weighting) -> Floats:
    """The weight of each token's value in its macro's, (B, T); they sum to 1 in each macro.

    `equal` 1/n; `unit` the last token alone; `first_heavy` as 1/(i+1) and `last_heavy` as 1/(n-i), i from 0: the paper
    and its code disagree on which of the two it is.
    """
    place_BT, length_BT = macros.place_BT, macros.at_tokens(macros.length_BK)
    if weighting == "equal":
        raw_BT = np.ones(place_BT.shape)
    elif weighting == "unit":
        raw_BT = (place_BT == length_BT - 1).astype(np.float64)
    elif weighting == "first_heavy":
        raw_BT = 1.0 / (place_BT + 1)
    elif weighting == "last_heavy":
        raw_BT = 1.0 / np.maximum(length_BT - place_BT, 1)
    else:
        raise HeadraceError(f"There is no value weighting {weighting!r}.", f"There are: {', '.join(WEIGHTINGS)}.")
    weights_BT: Floats = raw_BT / np.where(macros.written_BT, macros.at_tokens(macros.sums(raw_BT)), 1.0)
    return weights_BT


def macro_values(values_BT: Floats, macros: Macros, weighting: Weighting = "equal") -> Floats:
    """What the critic says a macro's decision state is worth, (B, K)."""
    return macros.sums(values_BT * value_weights(macros, weighting))


def macro_rewards(rewards_BT: Floats, macros: Macros, options: Gae) -> Floats:
    """What a macro earns, (B, K): its tokens' rewards summed, averaged, or `weighted` as their values are."""
    if options.discount == "smdp" and options.gamma != 1.0:
        rewards_BT = rewards_BT * options.gamma**macros.place_BT
    if options.reward_aggregation == "weighted":
        return macros.sums(rewards_BT * value_weights(macros, options.value_weighting))
    summed_BK = macros.sums(rewards_BT)
    return summed_BK if options.reward_aggregation == "sum" else summed_BK / np.maximum(macros.length_BK, 1)


def gae(rewards_BK: Floats, values_BK: Floats, length_BK: Ints, options: Gae) -> Floats:
    """Advantages, (B, K): A_k = R_k + g V_{k+1} - V_k + g lam A_{k+1}, where g is gamma or gamma^n; nothing follows
    the last macro. Rows end in macros of length 0, without rewards or values."""
    most = rewards_BK.shape[1]
    gamma, lam = options.gamma, options.lam
    advantages_BK = np.zeros_like(rewards_BK)
    following_B = next_B = np.zeros(len(rewards_BK))
    for k in reversed(range(most)):  # each needs the next: one step per macro, all rows at once
        decay = gamma if options.discount == "macro" else gamma ** length_BK[:, k]
        delta_B = rewards_BK[:, k] + decay * next_B - values_BK[:, k]
        following_B = delta_B + decay * lam * following_B
        advantages_BK[:, k], next_B = following_B, values_BK[:, k]
    return advantages_BK


def credit(rewards_BT: Floats, values_BT: Floats, macros: Macros, options: Gae) -> tuple[Floats, Floats]:
    """The advantage and the return (advantage plus value) of each token's macro, each (B, T), 0 outside macros."""
    values_BK = macro_values(values_BT, macros, options.value_weighting)
    advantages_BK = gae(macro_rewards(rewards_BT, macros, options), values_BK, macros.length_BK, options)
    return macros.to_tokens(advantages_BK), macros.to_tokens(advantages_BK + values_BK)


def macro_gae(
    rewards: ArrayLike,
    values: ArrayLike,
    lengths: Sequence[int],
    *,
    gamma: float = 1.0,
    lam: float = 0.95,
    value_weighting: Weighting = "equal",
    reward_aggregation: Aggregation = "sum",
    discount: Discount = "macro",
) -> tuple[Floats, Floats]:
    """The advantages and the returns of one response's macros, each (K,).

    `rewards` and `values` have one number per token, (R,), `lengths` the macros' tokens in order, summing to R (a 0 is
    a macro of nothing, worth and earning 0, as the reference has them). Raises `HeadraceError` for other shapes.
    """
    rewards_R, values_R = np.asarray(rewards, np.float64).reshape(-1), np.asarray(values, np.float64).reshape(-1)
    length_K = np.asarray(lengths, np.int64).reshape(-1)
    if not len(rewards_R) == len(values_R) == length_K.sum() or (length_K < 0).any():
        raise HeadraceError(
            f"{len(rewards_R):,} rewards, {len(values_R):,} values and macros of {length_K.sum():,} tokens do not fit.",
            "Give a reward and a value for each token, and lengths that sum to their number.",
        )
    options = Gae(gamma, lam, value_weighting, reward_aggregation, discount)
    macros = Macros(np.repeat(np.arange(len(length_K)), length_K)[None], length_K[None])
    values_BK = macro_values(values_R[None], macros, value_weighting)
    advantages_BK = gae(macro_rewards(rewards_R[None], macros, options), values_BK, macros.length_BK, options)
    return advantages_BK[0], (advantages_BK + values_BK)[0]


def rloo(returns_B: Floats, group_B: Ints) -> Floats:
    """Each response's return less the mean of the other responses to its prompt, (B,); 0 for one alone."""
    sums, counts = _by_group(returns_B, group_B)
    others = np.maximum(counts - 1, 1)
    return np.where(counts > 1, returns_B - (sums - returns_B) / others, 0.0)


def grpo(returns_B: Floats, group_B: Ints, *, scaled: bool = True) -> Floats:
    """Each response's return less the mean over its prompt's responses, in their standard deviations, (B,).

    Not `scaled`: the difference alone (Dr. GRPO, arXiv 2503.20783). Responses that all got the same get 0.
    """
    sums, counts = _by_group(returns_B, group_B)
    centred_B = returns_B - sums / counts
    if not scaled:
        return centred_B
    squares, _ = _by_group(centred_B**2, group_B)
    deviation_B = np.sqrt(squares / np.maximum(counts - 1, 1))
    return np.where(deviation_B > 1e-8, centred_B / np.maximum(deviation_B, 1e-8), 0.0)


def whitened(advantages_BT: Floats, written_BT: Bools) -> Floats:
    """Advantages less their mean over all written tokens, in their standard deviations; 0 elsewhere."""
    some = advantages_BT[written_BT]
    if len(some) < 2:
        return advantages_BT
    return np.where(written_BT, (advantages_BT - some.mean()) / (some.std(ddof=1) + 1e-8), 0.0)


def _by_group(values_B: Floats, group_B: Ints) -> tuple[Floats, Ints]:
    """The sum of the values of each row's group, and how many they are, (B,)."""
    _, index_B = np.unique(group_B, return_inverse=True)
    counts = np.bincount(index_B)
    sums = np.bincount(index_B, values_B).astype(np.float64)
    return sums[index_B], counts[index_B].astype(np.int64)
