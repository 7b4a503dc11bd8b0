"""What a `generate` job counts over its responses and tells in its report.

Where rows have an answer of their own (`reference`), responses that are equal to it are counted.

Left out: the page and the sections every job has (`engine.corpus`). Called by `jobs.generate`.
"""

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from engine.artifacts import Dataset
from engine.observe import Report, plots

_SHOWN = 8
_SHOWN_CHARS = 300


def response_statistics(table: pa.Table) -> dict[str, Any]:
    """Counts of a part: responses, their tokens, how they ended and how long they are, those equal to a reference."""
    powers: dict[str, int] = {}
    for tokens in table["tokens"].to_pylist():
        power = str(max(tokens, 1).bit_length() - 1)
        powers[power] = powers.get(power, 0) + 1
    ended = pc.sum(pc.equal(table["finish_reason"], "stop")).as_py() or 0
    found = {"responses": len(table), "tokens": pc.sum(table["tokens"]).as_py() or 0, "ended": ended, "log2": powers}
    if "reference" in table.column_names and pa.types.is_string(table.schema.field("reference").type):
        trimmed = [pc.utf8_trim_whitespace(table[name]) for name in ("response", "reference")]
        same = pc.equal(*trimmed)
        found |= {"references": len(same) - same.null_count, "same": pc.sum(same).as_py() or 0}
    return found


def response_facts(dataset: Dataset) -> dict[str, str]:
    """What a terminal shows."""
    counts = dataset.manifest.statistics
    responses = counts.get("responses", 0)
    if not responses:
        return {}
    facts = {
        "tokens written": f"{counts['tokens']:,} ({counts['tokens'] / responses:,.1f} a response)",
        "ended by themselves": f"{counts['ended'] / responses:.1%}",
    }
    if counts.get("references"):
        facts["equal to the reference"] = f"{counts['same'] / counts['references']:.1%} of {counts['references']:,}"
    return facts


def narrate_responses(report: Report, dataset: Dataset) -> None:
    """Add the job's sections to a report of its dataset."""
    facts = response_facts(dataset)
    if not facts:
        report.text("No responses", "Every row was dropped; the reasons are above.")
        return
    report.facts(facts)
    powers = {int(power): count for power, count in dataset.manifest.statistics["log2"].items()}
    report.figure("Length of responses", plots.histogram(powers, "tokens, as a power of two", "responses"))
    part = dataset.parts[len(dataset.parts) // 2]
    with (dataset.path / part.file).open("rb") as file:
        rows = next(pq.ParquetFile(file).iter_batches(batch_size=_SHOWN)).to_pylist()
    shown = [(_cut(_asked(row)), _cut(row["response"]), row["finish_reason"]) for row in rows]
    report.table("Prompts and responses", ["prompt", "response", "ended by"], shown)


def _asked(row: dict[str, Any]) -> str:
    if "messages" not in row:
        return str(row["prompt"])
    return "\n".join(f"{turn['role']}: {turn['content']}" for turn in row["messages"][:-1])


def _cut(text: str) -> str:
    return f"{text[:_SHOWN_CHARS]} [cut]" if len(text) > _SHOWN_CHARS else text
