"""The results of an evaluation: read off the published samples, written to RUN/metrics.json for machines.

Left out: the measures themselves (`engine.evaluation.measures`, `engine.evaluation.judging`) and the page
(`engine.evaluation.report`). Called by `jobs.evaluate`, through `engine.corpus.run_transform`.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from upath import UPath

from engine.artifacts import Dataset, read_dataset
from engine.config import Section
from engine.errors import ArtifactError
from engine.evaluation.judging import Judge, Pair, WinRate, layout, pairs_of, win_rate
from engine.evaluation.measures import (
    Measured,
    Row,
    difference,
    grouped,
    humaneval_measures,
    mean,
    per_problem,
    prompt_measures,
    reasons,
    tests_passed,
)
from engine.evaluation.perplexity import ratio
from engine.evaluation.questions import CLEAN
from engine.evaluation.recipe import EvaluationRecipe
from engine.observe import Stopwatch
from engine.storage import locate, replace

METRICS = "metrics.json"
REFERENCE = "reference"
"""In place of another evaluation's samples: each row's own reference answer."""
_UNREAD = ("ids", "loss", "seed")


class Disturbed(Section):
    """One measure of a question set, clean and disturbed in one way, on the same problems and samples."""

    task: str
    style: str
    kind: str
    measure: str
    clean: Measured
    disturbed: Measured
    difference: Measured
    """Disturbed less clean, problem by problem."""


class Results(Section):
    """All that was measured; what was not is empty."""

    model: str
    models: dict[str, str]
    """Role -> fingerprint."""
    humaneval: dict[str, dict[str, Measured]] = {}
    """By style, on clean questions."""
    reasons: dict[str, dict[str, int]] = {}
    """By style: why samples failed."""
    prompts: dict[str, Measured] = {}
    perplexity: dict[str, Measured] = {}
    robustness: list[Disturbed] = []
    judge: WinRate | None = None

    def headline(self) -> dict[str, str]:
        """What a terminal shows."""
        found = {
            f"{style}: {name}": shown(name, each)
            for style, measures in self.humaneval.items()
            for name, each in measures.items()
        }
        found |= {f"prompts: {name}": shown(name, each) for name, each in self.prompts.items()}
        found |= {name: shown(name, each) for name, each in self.perplexity.items()}
        if self.judge and self.judge.rate:
            found[f"win rate against {self.judge.against}"] = shown("win rate", self.judge.rate)
        return found


def shown(name: str, each: Measured) -> str:
    """A measure with its interval, shares in percent."""
    if name.startswith("pass@") or name in _SHARES:
        return f"{each.value:.1%} ({each.low:.1%} – {each.high:.1%})"
    digits = 1 if abs(each.value) >= 10 else 3
    return f"{each.value:,.{digits}f} ({each.low:,.{digits}f} – {each.high:,.{digits}f})"


_SHARES = ("tests passed", "parses", "distinct", "cut off", "win rate")


def conclude(
    recipe: EvaluationRecipe,
    home: UPath,
    judging: "Judging | None",
    dataset: Dataset,
    watch: Stopwatch,
) -> None:
    """Compute everything and write RUN/metrics.json, judge included. Raises what the judge raises."""
    with watch.phase("results"):
        rows = read_samples(dataset)
        results = results_of(recipe, rows, dataset.manifest.models)
    if judging:
        with watch.phase("judge"):
            results = results.model_copy(update={"judge": judging.run(rows)})
    replace(home / METRICS, results.model_dump_json(indent=1).encode())


def read_results(home: UPath) -> Results | None:
    """What RUN/metrics.json holds; None where there is none."""
    path = home / METRICS
    return Results.model_validate_json(path.read_bytes()) if path.exists() else None


class Judging:
    """How a win rate is come by: a judge that is made when it is needed, and what it compares with.

    `judge` is given the texts that a text judge will see, each pair in both orders, for a judge that has to find out
    first which letter it favours.
    """

    def __init__(
        self, judge: Callable[[Sequence[str]], AbstractContextManager[Judge]], against: str, pairs: int
    ) -> None:
        self._judge, self._against, self._pairs = judge, against, pairs
        self._theirs = None if against == REFERENCE else _samples_at(against)

    def run(self, ours: Sequence[Row]) -> WinRate:
        """Compare. Raises `ArtifactError` where no answer has a counterpart."""
        theirs = read_samples(self._theirs) if self._theirs else None
        pairs, unmatched = pairs_of(ours, theirs, self._pairs)
        if not pairs:
            raise ArtifactError(
                f"None of the answers has a counterpart in {self._against}.",
                "Evaluate the other model with the same sections and seed, then give its dataset as judge.against.",
            )
        texts = [layout(each.prompt, *both) for each in pairs for both in _orders(each)]
        with self._judge(texts) as judge:
            return win_rate(pairs, judge, against=self._against, unmatched=unmatched)


def _orders(pair: Pair) -> tuple[tuple[str, str], tuple[str, str]]:
    return (pair.ours, pair.theirs), (pair.theirs, pair.ours)


def read_samples(dataset: Dataset) -> list[dict[str, Any]]:
    """All rows of published samples, without their tokens."""
    tables = []
    for part in dataset.parts:
        with (dataset.path / part.file).open("rb") as file:
            parquet = pq.ParquetFile(file)
            tables.append(parquet.read([name for name in parquet.schema_arrow.names if name not in _UNREAD]))
    rows: list[dict[str, Any]] = pa.concat_tables(tables).to_pylist() if tables else []
    return rows


def results_of(recipe: EvaluationRecipe, rows: Sequence[Row], models: Mapping[str, str]) -> Results:
    """Every measure of the rows, all but the judge's."""
    clean = [row for row in rows if row["variant"] == CLEAN]
    tasks = grouped(clean, "task")
    styles = grouped(tasks.get("humaneval", []), "style")
    ks = recipe.humaneval.k if recipe.humaneval else []
    return Results(
        model=recipe.model,
        models=dict(models),
        humaneval={style: humaneval_measures(each, ks) for style, each in styles.items()},
        reasons={style: reasons(each) for style, each in styles.items()},
        prompts=prompt_measures(tasks["prompts"]) if "prompts" in tasks else {},
        perplexity=_perplexity(tasks["heldout"]) if "heldout" in tasks else {},
        robustness=_robustness(rows),
    )


def statistics(table: pa.Table) -> dict[str, Any]:
    """Counts of a part, for the manifest: rows by task, and of HumanEval those that passed, by style and variant."""
    found: dict[str, Any] = {"rows": dict(Counter(table["task"].to_pylist()))}
    if "passed" in table.column_names:
        right = table.filter(pc.fill_null(table["passed"], False))
        names = zip(right["style"].to_pylist(), right["variant"].to_pylist(), strict=True)
        found["passed"] = dict(Counter(f"{style}/{variant}" for style, variant in names))
    return found


def _perplexity(rows: Sequence[Row]) -> dict[str, Measured]:
    nats, tokens, sizes = (np.array([row[name] for row in rows], float) for name in ("nats", "nats_tokens", "bytes"))
    each = ratio(nats, tokens)
    bits = ratio(nats / np.log(2), sizes)
    names = ("value", "low", "high")
    return {
        "nats per token": Measured(**dict(zip(names, each, strict=True)), over=len(rows)),
        "perplexity": Measured(**dict(zip(names, np.exp(each).tolist(), strict=True)), over=len(rows)),
        "bits per byte": Measured(**dict(zip(names, bits, strict=True)), over=len(rows)),
    }


def _robustness(rows: Sequence[Row]) -> list[Disturbed]:
    found = []
    for task, of_task in grouped(rows, "task").items():
        for style, of_style in grouped(of_task, "style").items():
            variants = grouped(of_style, "variant")
            clean = variants.pop(CLEAN, [])
            for kind, other in variants.items():
                both = {(row["problem"], row["sample"]) for row in other}
                same = [row for row in clean if (row["problem"], row["sample"]) in both]
                for name, value in _values(task, of_style).items():
                    before, after = (mean([*per_problem(each, value).values()]) for each in (same, other))
                    change = difference(same, other, value)
                    if before and after and change:
                        names = {"task": task, "style": style, "kind": kind, "measure": name}
                        found.append(Disturbed(**names, clean=before, disturbed=after, difference=change))
    return found


def _values(task: str, rows: Sequence[Row]) -> dict[str, Callable[[Row], float]]:
    """The measures that are compared, each a number of one row."""
    if task == "humaneval":
        return {"pass@1": lambda row: float(row["passed"]), "tests passed": tests_passed}
    if task == "heldout":
        return {"nats per token": lambda row: row["nats"] / max(row["nats_tokens"], 1)}
    return {"reward": lambda row: float(row["reward"])} if all(row.get("reward") is not None for row in rows) else {}


def _samples_at(against: str) -> Dataset:
    dataset = read_dataset(locate(against))
    if dataset.schema_name != "samples":
        raise ArtifactError(
            f"{against} holds {dataset.schema_name}, not the samples of an evaluation.",
            "Give RUN/dataset of another evaluation as judge.against, or the word reference.",
        )
    return dataset
