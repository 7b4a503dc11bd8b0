"""The recipe keys that every job over a corpus shares.

Left out: the keys of a job's own stages. Called by the recipe classes in `jobs`; imports nothing heavy.
"""

from pydantic import Field

from engine.config import Recipe, knob
from engine.corpus.config import SourceConfig


class StreamRecipe(Recipe):
    """How rows are spread over workers, where they are published, and what happens to those that fail."""

    output: str | None = None
    """Where the dataset is published; RUN/dataset if not given."""
    workers: int | None = knob(None, ge=1)
    """Cores to work on; all of the machine or cluster if not given."""
    max_quarantine: float = knob(0.01, ge=0, le=1)
    """Share of poison rows past which the job stops; ten are always tolerated."""
    keep_dropped: bool = Field(False)
    """Write the rows that filters drop, with their reasons, to RUN/dropped."""
    stall_seconds: float = knob(900, gt=0)
    """Time without any progress after which the job stops and names the shards it waited for."""


class DataRecipe(StreamRecipe):
    """The same, and what is read."""

    source: SourceConfig
    """Where the rows come from."""
