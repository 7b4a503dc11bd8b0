"""Where a macro action ends: every termination rule, over a batch of responses (MA-RLHF, arXiv 2410.02743, section 3).

    token              each token is a macro              perplexity        until the next token would raise the macro's
    fixed:N            every N tokens                                       perplexity
    random             2, 3, 5 and 10 tokens, three times perplexity_step   until a token is less likely than the last
                       each, in an order drawn per row    sentence          sentences and lines of text
    whole              the response is one macro          syntax            statements of Python, else lines
                                                          parse             phrases of a parse tree

A rule partitions the tokens that the policy wrote, in their order: every macro has at least one, and padding, prompt
and tool output belong to none. Rules are applied after sampling: they regroup credit and change nothing else.

Left out: what becomes of macros (`engine.rlhf.credit`), what the reference does instead (`engine.rlhf.reference`),
syntax and parsing (`engine.rlhf.text_rules`). Called by the loop; `segment` by anyone.

Shapes: B rows, T places of a padded row, R tokens of one response, K macros of the row with most.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.errors import HeadraceError
from engine.finetune.order import mixed
from engine.rlhf.text_rules import parse_cuts, sentence_cuts, syntax_cuts

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

NONE = -1
"""The macro of a token that belongs to none."""
RANDOM_LENGTHS = (2, 3, 5, 10)
RANDOM_REPEATS = 3
"""The paper's pool: 60 tokens are covered, what is left is one macro."""


@dataclass(frozen=True)
class Responses:
    """A batch as rules see it. Rules ask for what they need: `texts` and `offsets`, for each row one (first, last) pair
    of characters per token, (T, 2); or `logprobs_BT`, natural, of whichever model the recipe names."""

    written_BT: Bools
    """Whether the policy wrote the token."""
    seeds_B: Ints
    """A number of each sample's own, so that a row's macros do not depend on its batch."""
    texts: Sequence[str] | None = None
    offsets: Sequence[Ints] | None = None
    logprobs_BT: Floats | None = None


Rule = Callable[["_Compact"], Bools]
"""Rows without gaps -> whether a macro begins at each token, (B, R); what it says of padding does not matter."""


@dataclass(frozen=True)
class _Compact:
    """The written tokens alone, to the left."""

    lengths_B: Ints
    places_BR: Ints
    """Where each was in its row."""
    batch: Responses

    @property
    def position_R(self) -> Ints:
        return np.arange(self.places_BR.shape[1])

    def logprobs(self, rule: str) -> Floats:
        found = self.batch.logprobs_BT
        if found is None:
            raise HeadraceError(f"The rule {rule} needs the tokens' log-probabilities.", "Give logprobs.")
        return np.take_along_axis(found, self.places_BR, 1)

    def at_cuts(self, rule: str, cuts: Callable[[str, Ints], Sequence[int]]) -> Bools:
        """A macro begins with the first token at or after each of a row's cuts, in characters of its text."""
        texts, offsets = self.batch.texts, self.batch.offsets
        if texts is None or offsets is None:
            raise HeadraceError(f"The rule {rule} needs the text.", "Give text and text_offsets.")
        starts_BR = np.zeros(self.places_BR.shape, bool)
        for row, (length, text) in enumerate(zip(self.lengths_B, texts, strict=True)):
            # A token of nothing but the end of a text may be given any offset.
            firsts = np.maximum.accumulate(offsets[row][self.places_BR[row, :length], 0])
            inside = [each for each in cuts(text, firsts) if each < len(text)]
            begins = np.searchsorted(firsts, np.array(inside, np.int64))
            starts_BR[row, begins[begins < length]] = True
        return starts_BR


class Segmenter:
    """A rule by its name, applied to batches. Raises `HeadraceError` for a name that there is not."""

    def __init__(self, rule: str) -> None:
        self.rule = rule
        self._starts = _rule(rule)

    def __call__(self, batch: Responses) -> Ints:
        """The macro of each token, (B, T): 0, 1, ... in each row, `NONE` where the policy did not write it."""
        written_BT = batch.written_BT
        lengths_B = written_BT.sum(1)
        most = int(lengths_B.max(initial=0))
        # Stable: written tokens first, in their order.
        places_BR = np.argsort(~written_BT, axis=1, kind="stable")[:, :most]
        compact = _Compact(lengths_B, places_BR, batch)
        real_BR = compact.position_R < lengths_B[:, None]
        starts_BR = self._starts(compact) & real_BR
        starts_BR[:, :1] |= real_BR[:, :1]
        macros_BT = np.full(written_BT.shape, NONE, np.int64)
        np.put_along_axis(macros_BT, places_BR, np.where(real_BR, starts_BR.cumsum(1) - 1, NONE), 1)
        return macros_BT


def segment(
    rule: str,
    token_ids: Sequence[int],
    *,
    text: str | None = None,
    text_offsets: Sequence[tuple[int, int]] | None = None,
    logprobs: Sequence[float] | None = None,
    seed: int = 0,
) -> list[int]:
    """The lengths of one response's macros, each at least 1, their sum the tokens; an empty list for none.

    `text_offsets` hold one (first, last) pair of characters into `text` per token; `logprobs` one natural
    log-probability per token. Raises `HeadraceError` for an unknown rule, or without what the rule needs.
    """
    count = len(token_ids)
    for name, given in (("text_offsets", text_offsets), ("logprobs", logprobs)):
        if given is not None and len(given) != count:
            raise HeadraceError(f"{name} has {len(given):,} entries for {count:,} tokens.", "Give one per token.")
    batch = Responses(
        np.ones((1, count), bool),
        np.array([seed], np.int64),
        None if text is None else [text],
        None if text_offsets is None else [np.asarray(text_offsets, np.int64).reshape(count, 2)],
        None if logprobs is None else np.asarray(logprobs, np.float64).reshape(1, count),
    )
    macros_BT = Segmenter(rule)(batch)
    return [int(each) for each in np.bincount(macros_BT[0])] if count else []


def random_order(seeds_B: Ints) -> Ints:
    """The lengths of the rule `random` in an order of each seed's own, (B, 12)."""
    pool = np.repeat(np.array(RANDOM_LENGTHS, np.int64), RANDOM_REPEATS)
    drawn = np.arange(1, len(pool) + 1, dtype=np.uint64)
    keys = mixed(mixed(seeds_B.astype(np.uint64))[:, None] + drawn)
    order: Ints = pool[np.argsort(keys, axis=1, kind="stable")]
    return order


def starts_of(lengths_BK: Ints, tokens: int) -> Bools:
    """Whether a macro begins at each of so many tokens, from macro lengths in order; what they do not cover is one."""
    ends_BK = lengths_BK.cumsum(1)
    starts = np.zeros((len(ends_BK), tokens + 1), bool)
    np.put_along_axis(starts, np.minimum(ends_BK, tokens), True, 1)
    starts[:, 0] = True
    return starts[:, :tokens]


def _rule(name: str) -> Rule:
    kind, _, number = name.partition(":")
    if kind == "fixed" and number.isdigit() and int(number) > 0:
        return lambda rows: np.broadcast_to(rows.position_R % int(number) == 0, rows.places_BR.shape)
    found = _RULES.get(name)
    if found is None:
        known = ", ".join(sorted([*_RULES, "fixed:N"]))
        raise HeadraceError(f"There is no termination rule {name!r}.", f"There are: {known} (N from 1).")
    return found


def _perplexity(rows: _Compact) -> Bools:
    """A token that would raise the mean of the macro's negative log-probabilities begins the next."""
    nll_RB = -rows.logprobs("perplexity").T
    starts_RB = np.zeros(nll_RB.shape, bool)
    sums_B = np.zeros(nll_RB.shape[1])
    counts_B = np.zeros(nll_RB.shape[1])
    # Where a macro begins depends on where the last one did: one step per place, all rows at once.
    for place, nll_B in enumerate(nll_RB):
        raised_B = nll_B * counts_B > sums_B
        starts_RB[place] = raised_B
        sums_B = np.where(raised_B, 0.0, sums_B) + nll_B
        counts_B = np.where(raised_B, 0.0, counts_B) + 1
    return starts_RB.T


def _perplexity_step(rows: _Compact) -> Bools:
    """A token less likely than the one before it begins the next macro."""
    logprobs_BR = rows.logprobs("perplexity_step")
    return np.diff(logprobs_BR, axis=1, prepend=logprobs_BR[:, :1]) < 0


_RULES: dict[str, Rule] = {
    "token": lambda rows: np.ones(rows.places_BR.shape, bool),
    "whole": lambda rows: np.zeros(rows.places_BR.shape, bool),
    "random": lambda rows: starts_of(random_order(rows.batch.seeds_B), rows.places_BR.shape[1]),
    "perplexity": _perplexity,
    "perplexity_step": _perplexity_step,
    "sentence": lambda rows: rows.at_cuts("sentence", sentence_cuts),
    "syntax": lambda rows: rows.at_cuts("syntax", syntax_cuts),
    "parse": lambda rows: rows.at_cuts("parse", parse_cuts),
}
