"""What the committed records of a run add up to so far: for the progress bar, the metrics and the quarantine limit.

Left out: the records themselves (`engine.corpus.ledger`). Called by `engine.corpus.transform`.
"""

from collections.abc import Iterable

from engine.corpus.ledger import Record
from engine.corpus.plan import Plan
from engine.errors import QuarantineExceeded

_TOLERATED = 10
"""Poison rows that never stop a job, so that a small input with a few bad lines still goes through."""


class Tally:
    """Running totals: shards, rows read, rows written, rows in quarantine, and planned bytes done."""

    def __init__(self, plan: Plan, records: Iterable[Record] = ()) -> None:
        self._sizes = {shard.index: shard.size for shard in plan.shards}
        self._planned = plan.size
        self._seconds = 0.0
        self._bytes = 0
        self.shards = self.rows = self.rows_out = self.quarantined = self.size = 0
        for record in records:
            self.add(record)

    def add(self, record: Record) -> None:
        """Count one more shard."""
        self.shards += 1
        self.rows += record.rows_in
        self.rows_out += record.rows_out
        self.quarantined += record.quarantined
        self.size += self._sizes[record.shard]
        self._seconds += sum(record.seconds.values())
        self._bytes += record.bytes_in

    @property
    def rate(self) -> float:
        """Uncompressed megabytes of input per CPU-second of the workers."""
        return self._bytes / max(self._seconds, 1e-9) / 1e6

    def check(self, max_quarantine: float, folder: object) -> None:
        """Raise `QuarantineExceeded` once the poison rows pass this share of the rows expected in all."""
        expected = self.rows * self._planned / max(1, self.size)
        if self.quarantined > max(_TOLERATED, max_quarantine * expected):
            raise QuarantineExceeded(
                f"{self.quarantined} rows are in quarantine, more than max_quarantine={max_quarantine} allows.",
                f"Look at {folder}; correct the input and add --fresh, or raise max_quarantine to resume.",
            )
