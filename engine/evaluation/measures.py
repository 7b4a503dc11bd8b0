"""What samples of one question set add up to: each measure a mean over problems, with a bootstrap interval.

    pass@k          unbiased, from all samples of a problem (`engine.evaluation.passk`)
    tests passed    share of a problem's tests, each run by itself (`engine.evaluation.grading`)
    parses          share of samples that are Python
    distinct        different programs (`engine.evaluation.programs`) of a problem, per sample
    tokens, cut off how long answers are, and the share that reached the limit
    reward          mean score of the answers to a prompt

Problems count alike, however many samples they have. Left out: reading samples and drawing pictures. Called by
`engine.evaluation.results`.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.config import Section
from engine.evaluation.passk import interval, pass_at_k

Row = Mapping[str, Any]
Floats = npt.NDArray[np.float64]


class Measured(Section):
    """A mean with its 95 % bootstrap interval, and the number of problems (or texts) it is over."""

    value: float
    low: float
    high: float
    over: int


def grouped(rows: Sequence[Row], by: str = "problem") -> dict[Any, list[Row]]:
    """Rows by the value of a column, in order of appearance."""
    found: dict[Any, list[Row]] = {}
    for row in rows:
        found.setdefault(row[by], []).append(row)
    return found


def mean(values: Sequence[float] | Floats) -> Measured | None:
    """The mean of one value per problem; None without any."""
    found = np.asarray(values, np.float64)
    if not len(found):
        return None
    low, high = interval(found, rounds=2000)
    return Measured(value=float(found.mean()), low=low, high=high, over=len(found))


def per_problem(rows: Sequence[Row], value: Callable[[Row], float]) -> dict[Any, float]:
    """The mean of a value over each problem's samples."""
    return {name: float(np.mean([value(row) for row in each])) for name, each in grouped(rows).items()}


def difference(clean: Sequence[Row], other: Sequence[Row], value: Callable[[Row], float]) -> Measured | None:
    """How much larger a value is in `other`, problem by problem; only problems and samples that both have count."""
    both = {(row["problem"], row["sample"]) for row in clean} & {(row["problem"], row["sample"]) for row in other}
    kept = [[row for row in rows if (row["problem"], row["sample"]) in both] for rows in (clean, other)]
    before, after = (per_problem(rows, value) for rows in kept)
    return mean([after[name] - before[name] for name in before])


def passes(rows: Sequence[Row], ks: Sequence[int]) -> dict[str, Measured]:
    """pass@k for each k that every problem has samples enough for."""
    problems = grouped(rows).values()
    drawn = [len(each) for each in problems]
    right = [sum(bool(row["passed"]) for row in each) for each in problems]
    return {f"pass@{k}": found for k in ks if drawn and min(drawn) >= k and (found := mean(pass_at_k(drawn, right, k)))}


def tests_passed(row: Row) -> float:
    """The share of its tests that a sample passes; 1 or 0 where they cannot be taken apart."""
    return row["tests_passed"] / row["tests"] if row["tests"] else float(row["passed"])


def humaneval_measures(rows: Sequence[Row], ks: Sequence[int]) -> dict[str, Measured]:
    """All measures of answers to HumanEval."""
    found = {
        **passes(rows, ks),
        "tests passed": mean([*per_problem(rows, tests_passed).values()]),
        "parses": mean([*per_problem(rows, lambda row: float(row["parses"])).values()]),
        "distinct": mean([len({row["same_as"] for row in each}) / len(each) for each in grouped(rows).values()]),
        **lengths(rows),
    }
    return {name: each for name, each in found.items() if each}


def prompt_measures(rows: Sequence[Row]) -> dict[str, Measured]:
    """All measures of answers to prompts; their reward if they have one."""
    found = {
        **lengths(rows),
        "distinct": mean([len({row["text"] for row in each}) / len(each) for each in grouped(rows).values()]),
    }
    if all(row.get("reward") is not None for row in rows):
        found["reward"] = mean([*per_problem(rows, lambda row: float(row["reward"])).values()])
    return {name: each for name, each in found.items() if each}


def lengths(rows: Sequence[Row]) -> dict[str, Measured | None]:
    """Tokens of an answer, and the share that was cut off."""
    return {
        "tokens": mean([*per_problem(rows, lambda row: float(row["tokens"])).values()]),
        "cut off": mean([*per_problem(rows, lambda row: float(not row["finished"])).values()]),
    }


def reasons(rows: Sequence[Row]) -> dict[str, int]:
    """Why samples failed, the most frequent first; `passed` for those that did not."""
    return dict(Counter(row["why"] or "passed" for row in rows).most_common())
