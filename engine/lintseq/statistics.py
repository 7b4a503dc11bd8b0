"""Counts that describe edit sequences, per shard, made to be added up.

Left out: plots and averages (the report draws them from these counts). Called by `jobs.lintseq`.
"""

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc


def statistics(table: pa.Table, *, tokens: bool = False) -> dict[str, Any]:
    """Counts over a table as `LintSeqActor` returns it; those of several tables add up.

    `programs`, `sequences` and `edits` are totals; `single_insertions` counts the sequences of one edit. The
    histograms map a number, written as text so that JSON keeps it, to how often it occurs: `edits_per_program` (edits
    in a sequence), `lines_per_edit`, `initial_errors` (erroneous lines of a program as it stands). `dropped` maps the
    reason a row was marked with to the number of rows; `paths_per_program` and, where the actor counted `tokens`,
    `tokens_per_sequence` are histograms too.
    """
    marked = table["_drop"].is_valid()
    kept = table.filter(pc.invert(marked))
    lengths = pc.list_value_length(kept["edits"])
    edits = pc.list_flatten(kept["edits"])
    # Each row of an edit follows a newline but the first header; a row is a header or an inserted line.
    lines = pc.subtract(pc.count_substring(edits, "\n"), pc.count_substring(edits, "\n@@ "))
    programs = kept.filter(pc.equal(kept["path"], 0))
    paths = kept.group_by(["source_part", "source_row"]).aggregate([("path", "count")])["path_count"]
    counted = {"tokens_per_sequence": _histogram(kept["tokens"].drop_null())} if tokens else {}
    return {
        **counted,
        "paths_per_program": _histogram(paths),
        "programs": programs.num_rows,
        "sequences": kept.num_rows,
        "edits": len(edits),
        "single_insertions": pc.sum(pc.equal(lengths, 1)).as_py() or 0,
        "edits_per_program": _histogram(lengths),
        "lines_per_edit": _histogram(lines),
        "initial_errors": _histogram(programs["initial_errors"]),
        "dropped": _histogram(table.filter(marked)["_drop"]),
    }


def _histogram(values: pa.ChunkedArray) -> dict[str, int]:
    """How often each value occurs, in ascending order."""
    counts = pc.value_counts(values)
    ordered = sorted(zip(counts.field("values").to_pylist(), counts.field("counts").to_pylist(), strict=True))
    return {str(value): count for value, count in ordered}
