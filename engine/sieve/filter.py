"""The filter: a published student as a stage of Ray Data, which scores every text and keeps or tags it.

Left out: where the student comes from (`engine.sieve.distillation`). Called by `jobs.sieve` and `jobs.sieve_apply`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from upath import UPath

from engine.artifacts import read_model
from engine.corpus import Stage
from engine.corpus.annotator import Annotator
from engine.sieve.options import FilterOptions
from engine.sieve.student import Student

SCORE = "sieve_score"
FAILED = "sieve"
"""The reason of a row that the student did not let pass."""


class SieveFilter(Annotator):
    """Adds `sieve_score` (float32, in [0, 1]); under `mode: keep` a text that does not pass is dropped."""

    columns = {SCORE: pa.float32()}

    def __init__(self, *, student: str, options: FilterOptions, reads: str = "text") -> None:
        import torch

        torch.set_num_threads(max(1, int(options.cpus)))
        model = read_model(UPath(student))
        self.reads = reads
        self.version = model.fingerprint
        self._student = Student.load(model.local(), options.dtype)
        self._options = options
        self._threshold = self._student.card.threshold if options.threshold is None else options.threshold

    def annotate(self, texts: Sequence[str]) -> Mapping[str, Sequence[Any]]:
        """A score for each text."""
        return {SCORE: self._student.scores(texts, self._options.batch_tokens).tolist()}

    def drops(self, annotated: pa.Table) -> Mapping[str, pa.ChunkedArray]:
        """What does not pass, unless all is kept and tagged."""
        if self._options.mode == "tag":
            return {}
        return {FAILED: pc.less_equal(pc.cast(annotated[SCORE], pa.float64()), self._threshold)}


def filter_stages(student: UPath, options: FilterOptions) -> Callable[[int], list[Stage]]:
    """The filter's stage for a number of cores: as many actors as have room there, or as the options say."""
    arguments = {"student": str(student), "options": options}

    def stages(cores: int) -> list[Stage]:
        actors = options.actors or max(1, cores // math.ceil(options.cpus))
        return [Stage("score", SieveFilter, arguments, actors=actors, cpus=options.cpus, gpus=options.gpus)]

    return stages


def statistics(table: pa.Table) -> dict[str, Any]:
    """How many rows have a score of each twentieth of [0, 1]."""
    scores = table[SCORE].to_numpy()
    counts: dict[str, int] = {}
    for bin in (min(int(score * 20), 19) for score in scores):
        counts[str(bin)] = counts.get(str(bin), 0) + 1
    return {"scores": counts}
