"""The teacher seam: whoever can say of a snippet whether it passes, at a price.

    Teacher    labels column | OpenAI-compatible endpoint | causal LM that writes | causal LM that scores words

A teacher never decides what it may be asked or how often: the budget ledger (`engine.sieve.budget`) does, and it keeps
every answer. Left out: the teachers themselves, one file each. Called by the budget ledger and the active loop.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

PROMPT = (
    "You decide whether a text meets a criterion.\n\nCriterion: {criterion}\n\nText:\n{snippet}\n\n"
    "Reason briefly, then end your answer with the single word PASS if the text meets the criterion, or FAIL if not."
)
"""The default prompt of a teacher that writes; `{criterion}` and `{snippet}` are filled in, nothing else."""

TRANSIENT = ("timeout", "unreachable", "no answer")
"""Reasons that say nothing of the snippet: such a verdict is never shared with other runs."""
FINAL = ("no label", "too long")
"""Reasons that asking again cannot change."""


@dataclass(frozen=True, slots=True)
class Snippet:
    """A piece of a document: its text, where it came from, and what a labels column says (None: nothing)."""

    text: str
    part: str = ""
    row: int = 0
    piece: int = 0
    truth: bool | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """A teacher's answer: pass or fail, or neither with the reason; tokens read and written, and its own words.

    `score` is the teacher's graded opinion where it has one: above zero it passes.
    """

    passed: bool | None
    reason: str = ""
    tokens_in: int = 0
    tokens_out: int = 0
    words: str = ""
    score: float | None = None


class Teacher(Protocol):
    """Judges snippets; see the module's text."""

    fingerprint: str
    """Hash of all that decides its answers (model, prompt, criterion): part of the key that answers are kept under."""
    at_once: int
    """How many snippets it works on at a time: the budget ledger asks in portions of this size."""
    shared: bool
    """Whether fingerprint and text decide its answers alone, so that runs may share them; a labels column's do not."""

    def most_tokens(self, snippet: Snippet) -> tuple[int, int]:
        """An upper bound on the tokens that one question reads and writes, for reserving a budget."""

    def judge(self, snippets: Sequence[Snippet]) -> Iterator[tuple[int, Verdict]]:
        """The index of each snippet with its verdict, in the order in which they arrive, each exactly once.

        A question that fails for good comes back as a verdict without a decision; only what makes every further
        question pointless (a refused key, an unknown model) is raised, as a `HeadraceError`.
        """


def fill(prompt: str, criterion: str, snippet: str) -> str:
    """A prompt with criterion and snippet filled in; braces in either are left alone.

    What is no Unicode (half a surrogate pair, from text that was not UTF-8) becomes a question mark.
    """
    parts = re.split(r"(\{criterion\}|\{snippet\})", prompt)
    filled = "".join({"{criterion}": criterion, "{snippet}": snippet}.get(part, part) for part in parts)
    return filled.encode("utf-8", "replace").decode()


def parse_verdict(words: str) -> bool | None:
    """What an answer ends in: True for PASS, False for FAIL, None for anything else.

    Rule of ours: the last word decides, in any case, whatever stands around it (`**Pass**.`). An answer that was cut
    off or ends in another word is no verdict.
    """
    last = re.findall(r"[^\W_]+", words)[-1:]
    return {"pass": True, "fail": False}.get(last[0].lower()) if last else None


def hash_of(*parts: object) -> str:
    """Hash (32 hex digits) of plain values; the fingerprints of teachers and the keys of answers are made of it."""
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()
