"""What a LintSeq job tells in its report: how long sequences are, how big edits are, how many tokens they make, what
the oracle says of the states in between, and a program growing.

Left out: the page and the sections every job has (`engine.corpus`). Called by `jobs.lintseq`.
"""

from collections import Counter
from typing import Any

import pyarrow.parquet as pq

from engine.artifacts import Dataset
from engine.lintseq.agreement import oracle_agreement
from engine.lintseq.diffs import apply_edit_sequence
from engine.lintseq.options import LintSeqOptions
from engine.lintseq.training import length_quantiles, share_within
from engine.observe import Report, plots

_CANDIDATES = 500
_LINES = (12, 30)
"""A program of this many lines shows growth and still fits a screen."""


def narrate(report: Report, dataset: Dataset, *, options: LintSeqOptions, oracle_states: int = 0) -> None:
    """Add LintSeq's sections to a report of its dataset; pylint is shown `oracle_states` states of the sampled rows."""
    counts = dataset.manifest.statistics
    sequences = counts.get("sequences", 0)
    if not sequences:
        report.text("No sequences", "Every program was dropped; the reasons are above.")
        return
    programs = counts["programs"]
    full = counts["paths_per_program"].get(str(options.paths), 0)
    erroneous = programs - counts["initial_errors"].get("0", 0)
    facts = {
        "programs": f"{programs:,}",
        "edit sequences": f"{sequences:,}",
        f"programs with {options.paths} {'different ' if options.distinct else ''}paths": f"{full / programs:.1%}",
        "edits per sequence": f"{counts['edits'] / sequences:.2f}",
        "single insertions": f"{counts['single_insertions'] / sequences:.1%}",
        "programs with errors of their own": f"{erroneous / programs:.1%}",
    }
    tokens = _numbers(counts.get("tokens_per_sequence", {}))
    if tokens:
        half, most, nearly_all, longest = length_quantiles(tokens)
        facts["tokens per sequence"] = f"half {half:,}, 90 % {most:,}, 99 % {nearly_all:,}, longest {longest:,}"
        facts[f"within {options.max_tokens:,} tokens"] = f"{share_within(tokens, options.max_tokens):.1%}"
    rows = _sample(dataset)
    if oracle_states and options.language == "python":
        seen = oracle_agreement(rows, oracle_states, options)
        if seen.states:
            others = "; ".join(f"{count} {what}" for what, count in Counter(seen.because).most_common(3))
            share = f"{seen.accepted / seen.states:.1%} of {seen.states:,} states"
            share += f" of the first {len(rows):,} rows of one part"
            facts["accepted by pylint"] = share + (f" ({others})" if others else "")
    report.facts(facts)
    report.figure(
        "Edits per sequence",
        plots.histogram(_numbers(counts["edits_per_program"]), "edits", "sequences"),
        "A program that does not parse, or whose lines all hang together, is one insertion.",
    )
    report.figure("Lines per edit", plots.histogram(_numbers(counts["lines_per_edit"]), "inserted lines", "edits"))
    if erroneous:
        errors = {lines: count for lines, count in _numbers(counts["initial_errors"]).items() if lines}
        report.figure(
            "Programs with errors of their own",
            plots.histogram(errors, "erroneous lines", "programs"),
            "Names of a function's module count as errors here, and are taken as given while sampling.",
        )
    if tokens:
        report.figure("Tokens per sequence", plots.histogram(tokens, "tokens", "sequences"))
    example = _example(rows)
    if example:
        edits = example["edits"]
        states = [apply_edit_sequence(edits[: count + 1]) for count in range(len(edits))]
        where = f"{example['source_part']} [{example['source_row']}], path {example['path']}"
        clean = f"The linter ({options.linter}) finds no error in any state that the whole program has not."
        if options.algorithm == "randseq":
            clean = "No linter was asked."
        report.growth("A program growing, edit by edit", states, f"{clean} From {where}.")


def _numbers(histogram: dict[str, int]) -> dict[int, int]:
    """A histogram with its values as numbers again."""
    return {int(value): count for value, count in histogram.items()}


def _sample(dataset: Dataset) -> list[dict[str, Any]]:
    """The first rows of a part in the middle."""
    part = dataset.parts[len(dataset.parts) // 2]
    with (dataset.path / part.file).open("rb") as file:
        rows: list[dict[str, Any]] = next(pq.ParquetFile(file).iter_batches(batch_size=_CANDIDATES)).to_pylist()
    return rows


def _example(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Of some rows, the one with the most edits among programs of a readable size."""
    shortest, longest = _LINES
    fitting = [row for row in rows if shortest <= row["program"].count("\n") + 1 <= longest] or rows
    return max(fitting, key=lambda row: len(row["edits"]), default=None)
