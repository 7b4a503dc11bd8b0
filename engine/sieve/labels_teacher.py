"""A teacher that reads the truth off a labels column, for experiments in which it is known.

Left out: reading the column into `Snippet.truth` (whoever cuts documents into snippets). Called by the active loop
through the budget ledger, as any other teacher: its answers cost a query each, and no tokens.
"""

from collections.abc import Iterator, Sequence

from engine.sieve.teacher import Snippet, Verdict, hash_of


class LabelsTeacher:
    """Says what the labels column says; `passes` are the values that pass, in any order."""

    at_once = 256
    # The same text may carry another label in another data set or column.
    shared = False

    def __init__(self, passes: Sequence[str]) -> None:
        self.fingerprint = hash_of("labels", sorted(passes))

    def most_tokens(self, snippet: Snippet) -> tuple[int, int]:
        """Nothing: a column is not asked in tokens."""
        return 0, 0

    def judge(self, snippets: Sequence[Snippet]) -> Iterator[tuple[int, Verdict]]:
        """Each snippet's label; where the column is null a verdict without a decision, reason `no label`."""
        for at, snippet in enumerate(snippets):
            yield at, Verdict(snippet.truth, "no label" if snippet.truth is None else "")
