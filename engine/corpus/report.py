"""The report sections that every job over a corpus has, and the counts they are drawn from.

Left out: the page itself (`engine.observe.report`) and a method's own sections. Called by `engine.corpus.transform`
and, for its statistics, by `jobs.corpus`.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from engine.artifacts import Dataset
from engine.config import Recipe, write_yaml
from engine.observe import Report, Share, bottleneck, plots

_EXAMPLES = 3
_SHOWN_CHARS = 1500


def common_sections(
    job: str,
    recipe: Recipe,
    dataset: Dataset,
    facts: Mapping[str, str],
    shares: Sequence[Share],
    hints: Mapping[str, str],
) -> Report:
    """A report with what every such job has to tell: facts, where rows and time went."""
    manifest = dataset.manifest
    report = Report(f"headrace {job}: {recipe.name}", f"{manifest.schema_name} at {dataset.path}")
    report.facts(facts)
    fate = {"published": dataset.rows} | {
        name.removeprefix("dropped: "): count
        for name, count in manifest.counts.items()
        if count and (name.startswith("dropped: ") or name == "quarantined")
    }
    report.figure("What became of the rows", plots.bars(fate, "rows"))
    if shares:
        report.figure("Where the time went", plots.waterfall(shares), bottleneck(shares, hints))
    lengths = manifest.statistics.get("log2_chars")
    if lengths:
        powers = {int(power): count for power, count in lengths.items()}
        report.figure("Length", plots.histogram(powers, "characters, as a power of two", "rows"))
    return report


def closing_sections(report: Report, dataset: Dataset, content: str) -> None:
    """The end of a report: some rows to read, the columns, the recipe and where everything came from."""
    for row in _examples(dataset):
        shown = str(row[content])
        cut = f"{shown[:_SHOWN_CHARS]}\n[cut]" if len(shown) > _SHOWN_CHARS else shown
        language = "python" if content == "program" else "text"
        report.code(f"A row: {row.get('source_part')} [{row.get('source_row')}]", cut, language)
    manifest = dataset.manifest
    report.table("Columns", ["column", "type"], list(manifest.columns.items()))
    if manifest.parents:
        report.table("Made from", ["dataset", "contents"], [(each.uri, each.fingerprint) for each in manifest.parents])
    report.code("Recipe", write_yaml(manifest.recipe), "yaml")
    report.text("Made by", f"Code {manifest.code_version}, seed {manifest.seed}; contents {dataset.fingerprint}.")


def count_documents(column: str) -> Callable[[pa.Table], dict[str, Any]]:
    """Statistics of a part: characters in all, and how many rows have a length of 2^k to 2^(k+1) characters."""
    return partial(_count, column)


def merge_counts(statistics: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Counts of all parts added up, nested maps key by key."""
    total: dict[str, Any] = {}
    for each in statistics:
        for key, value in each.items():
            if isinstance(value, Mapping):
                total[key] = merge_counts([total.get(key, {}), value])
            else:
                total[key] = total.get(key, 0) + value
    return total


def _count(column: str, table: pa.Table) -> dict[str, Any]:
    lengths = pc.utf8_length(table[column]).to_numpy()
    powers, counts = np.unique(np.log2(np.maximum(lengths, 1)).astype(int), return_counts=True)
    histogram = {str(power): int(count) for power, count in zip(powers, counts, strict=True)}
    return {"chars": int(lengths.sum()), "log2_chars": histogram}


def _examples(dataset: Dataset) -> list[dict[str, Any]]:
    if not dataset.parts:
        return []
    middle = dataset.parts[len(dataset.parts) // 2]
    with (dataset.path / middle.file).open("rb") as file:
        batch = next(pq.ParquetFile(file).iter_batches(batch_size=_EXAMPLES))
    rows: list[dict[str, Any]] = batch.to_pylist()
    return rows
