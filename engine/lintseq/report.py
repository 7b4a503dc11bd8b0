"""What a LintSeq job tells in its report: how long sequences are, how big edits are, and a program growing.

Left out: the page and the sections every job has (`engine.corpus`). Called by `jobs.lintseq`.
"""

from typing import Any

import pyarrow.parquet as pq

from engine.artifacts import Dataset
from engine.lintseq.diffs import apply_edit_sequence
from engine.observe import Report, plots

_CANDIDATES = 500
_LINES = (12, 30)
"""A program of this many lines shows growth and still fits a screen."""


def narrate(report: Report, dataset: Dataset) -> None:
    """Add LintSeq's sections to a report of its dataset."""
    counts = dataset.manifest.statistics
    sequences = counts.get("sequences", 0)
    if not sequences:
        report.text("No sequences", "Every program was dropped; the reasons are above.")
        return
    report.facts(
        {
            "programs": f"{counts['programs']:,}",
            "edit sequences": f"{sequences:,}",
            "edits per sequence": f"{counts['edits'] / sequences:.2f}",
            "single insertions": f"{counts['single_insertions'] / sequences:.1%}",
        }
    )
    report.figure(
        "Edits per sequence",
        plots.histogram(_numbers(counts["edits_per_program"]), "edits", "sequences"),
        "A program that does not parse, or whose lines all hang together, is one insertion.",
    )
    report.figure("Lines per edit", plots.histogram(_numbers(counts["lines_per_edit"]), "inserted lines", "edits"))
    example = _example(dataset)
    if example:
        edits = example["edits"]
        states = [apply_edit_sequence(edits[: count + 1]) for count in range(len(edits))]
        where = f"{example['source_part']} [{example['source_row']}], path {example['path']}"
        report.growth("A program growing, edit by edit", states, f"Every state is free of linter errors. From {where}.")


def _numbers(histogram: dict[str, int]) -> dict[int, int]:
    return {int(value): count for value, count in histogram.items()}


def _example(dataset: Dataset) -> dict[str, Any] | None:
    """Of the first sequences, the one with the most edits among programs of a readable size."""
    part = dataset.parts[len(dataset.parts) // 2]
    with (dataset.path / part.file).open("rb") as file:
        rows: list[dict[str, Any]] = next(pq.ParquetFile(file).iter_batches(batch_size=_CANDIDATES)).to_pylist()
    shortest, longest = _LINES
    fitting = [row for row in rows if shortest <= row["program"].count("\n") + 1 <= longest] or rows
    return max(fitting, key=lambda row: len(row["edits"]), default=None)
