"""How friendly a text is by a list of words, VADER's (Hutto and Gilbert, 2014): a check that learns nothing.

A reward that is a model can be gamed; what games a classifier seldom pleases a word list by the same amount. Called as
a function reward: `engine.rlhf.vader:compound`.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

from engine.errors import SourceError


def compound(prompts: Sequence[str], responses: Sequence[str], references: Sequence[str | None]) -> list[float]:
    """VADER's compound score of each response, from -1 to 1. Raises `SourceError` where it is not installed."""
    return [float(_analyzer().polarity_scores(each)["compound"]) for each in responses]


@cache
def _analyzer() -> Any:
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError as error:
        raise SourceError(f"VADER cannot be imported ({error}).", "Run: pip install vaderSentiment==3.3.2") from None
    return SentimentIntensityAnalyzer()
