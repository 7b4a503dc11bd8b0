"""What an evaluation tells in its report: numbers with their intervals, why samples failed, what noise does, and code.

Left out: the page and the sections every job has (`engine.corpus`), and the numbers (`engine.evaluation.results`).
Called by `jobs.evaluate`.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from upath import UPath

from engine.artifacts import Dataset
from engine.evaluation.measures import Row, grouped, tests_passed
from engine.evaluation.questions import CLEAN
from engine.evaluation.results import Results, read_results, read_samples, shown
from engine.lintseq.text import parse_completion, resolve
from engine.observe import Report, plots

_SHOWN = 3
_QUARTERS = ("none", "less than 25 %", "less than 50 %", "less than 75 %", "less than all", "all")
_CHARS = 2500
_MOST_STATES = 12
_TILES = ("pass@", "tests passed", "bits per byte", "reward", "win rate")


def narrate(report: Report, dataset: Dataset, *, home: UPath) -> None:
    """Add an evaluation's sections to a report of its samples; `home` is the run directory with its results."""
    results = read_results(home)
    if results is None:
        return
    rows = read_samples(dataset)
    tiles = {name: each for name, each in results.headline().items() if any(word in name for word in _TILES)}
    report.facts({"model": results.model, **tiles})
    if results.humaneval:
        _humaneval(report, results, [row for row in rows if row["task"] == "humaneval" and row["variant"] == CLEAN])
    if results.perplexity:
        _perplexity(report, [row for row in rows if row["task"] == "heldout" and row["variant"] == CLEAN])
    if results.prompts:
        _prompts(report, [row for row in rows if row["task"] == "prompts" and row["variant"] == CLEAN])
    if results.robustness:
        _robustness(report, results)
    if results.judge:
        _judge(report, results)


def _humaneval(report: Report, results: Results, rows: Sequence[Row]) -> None:
    columns = ["measure", *results.humaneval]
    names = list(dict.fromkeys(name for each in results.humaneval.values() for name in each))
    table = [
        (name, *(shown(name, each[name]) if name in each else "–" for each in results.humaneval.values()))
        for name in names
    ]
    note = (
        "Means over problems, with 95 % bootstrap intervals over problems. Where all problems came out alike, such an"
    )
    note += " interval has no width; n problems without a success still leave room for a true share of about 3/n."
    report.table("HumanEval", columns, table, note)
    curves = {}
    for style, each in results.humaneval.items():
        found = {int(name.removeprefix("pass@")): each[name].value for name in each if name.startswith("pass@")}
        curves[style] = (list(found), list(found.values()))
    if any(len(x) > 2 for x, _ in curves.values()):
        report.figure("pass@k", plots.lines(curves, "k", "share of problems"))
    for style, reasons in results.reasons.items():
        report.figure(f"What became of the samples ({style})", plots.bars(reasons, "samples"))
    for style, of_style in grouped(rows, "style").items():
        shares = Counter(_quarter(tests_passed(row)) for row in of_style)
        figure = plots.bars({name: shares[name] for name in _QUARTERS}, "samples")
        report.figure(f"Share of its tests that a sample passes ({style})", figure, "Each test run by itself.")
    for style, of_style in grouped(rows, "style").items():
        _samples(report, style, of_style)


def _samples(report: Report, style: str, rows: Sequence[Row]) -> None:
    """The best and the worst programs of a style, and of edits one as it grew."""
    ranked = sorted(rows, key=lambda row: (-tests_passed(row), len(row["program"]), row["id"]))
    best = _one_each(ranked)[:_SHOWN]
    for row in best:
        _program(report, f"Best ({style})", row)
    seen = {row["problem"] for row in best}
    for row in _one_each([row for row in reversed(ranked) if row["why"] and row["problem"] not in seen])[:_SHOWN]:
        _program(report, f"Worst ({style})", row)
    if style == "edits":
        grown = max(best, key=lambda row: len(parse_completion(row["text"])))
        edits = parse_completion(grown["text"])[:_MOST_STATES]
        states = [resolve(edits[: at + 1]) for at in range(len(edits))]
        if states:
            report.growth("A program as the model wrote it, edit by edit", states, grown["problem"])


def _one_each(rows: Sequence[Row]) -> list[Row]:
    """The first row of each problem."""
    return [each[0] for each in grouped(rows).values()]


def _quarter(share: float) -> str:
    return _QUARTERS[0] if share <= 0 else _QUARTERS[-1] if share >= 1 else _QUARTERS[1 + min(int(share * 4), 3)]


def _program(report: Report, title: str, row: Row) -> None:
    how = "passed" if row["passed"] else f"failed: {row['why']}"
    report.code(
        f"{title}: {row['problem']}, {row['tests_passed']} of {row['tests']} tests, {how}", _cut(row["program"])
    )


def _perplexity(report: Report, rows: Sequence[Row]) -> None:
    bits = {row["problem"]: row["nats"] / math.log(2) / row["bytes"] for row in rows if row["bytes"]}
    hundredths = Counter(round(100 * each) for each in bits.values())
    note = "Bits per byte compare any two models; nats per token only those that share a tokenizer."
    report.figure("Held-out texts", plots.histogram(dict(hundredths), "bits per byte, in hundredths", "texts"), note)
    ranked = sorted(bits, key=lambda name: bits[name])
    texts = {row["problem"]: row["prompt"] for row in rows}
    shown_rows = [(name, f"{bits[name]:.3f}", texts[name][:200]) for name in [*ranked[:_SHOWN], *ranked[-_SHOWN:]]]
    report.table("Texts it foresees best and worst", ["text", "bits per byte", "begins"], shown_rows)


def _prompts(report: Report, rows: Sequence[Row]) -> None:
    scored = [row for row in rows if row.get("reward") is not None]
    if not scored:
        chosen: list[Any] = list(rows[: 2 * _SHOWN])
        table = [("–", row["prompt"][:300], _cut(row["text"])) for row in chosen]
    else:
        tenths = Counter(round(10 * row["reward"]) for row in scored)
        report.figure("Reward", plots.histogram(dict(tenths), "score, in tenths", "answers"))
        ranked = sorted(scored, key=lambda row: -row["reward"])
        chosen = ranked if len(ranked) <= 2 * _SHOWN else [*ranked[:_SHOWN], *ranked[-_SHOWN:]]
        table = [(f"{row['reward']:.3f}", row["prompt"][:300], _cut(row["text"])) for row in chosen]
    report.table("Answers, the best and the worst", ["reward", "prompt", "answer"], table)


def _robustness(report: Report, results: Results) -> None:
    rows = [
        (
            f"{each.task}, {each.style}", each.kind, each.measure, shown(each.measure, each.clean),
            shown(each.measure, each.disturbed), f"{each.difference.value:+.3f}",
            f"{each.difference.low:+.3f} – {each.difference.high:+.3f}", f"{each.difference.over:,}",
        )
        for each in results.robustness
    ]  # fmt: skip
    columns = ["questions", "disturbed", "measure", "clean", "disturbed", "difference", "interval", "problems"]
    note = (
        "Differences are paired: the same problems, samples and seeds. An interval without 0 is an effect of the noise."
    )
    report.table("Robustness", columns, rows, note)


def _judge(report: Report, results: Results) -> None:
    judged = results.judge
    assert judged
    counts = {"wins": judged.wins, "ties": judged.ties, "losses": judged.losses, "no verdict": judged.no_verdict}
    note = f"Each pair asked in both orders; {judged.flipped:,} of the ties because the verdict followed the order."
    report.figure(f"Compared with {judged.against}", plots.bars(counts, "pairs"), note)
    rows = [
        (outcome, pair[0][:300], _cut(pair[1])[:800], _cut(pair[2])[:800])
        for outcome, pairs in judged.examples.items()
        for pair in pairs
    ]
    report.table("Some pairs", ["outcome", "prompt", "this model", "the other"], rows)


def _cut(text: str) -> str:
    return text if len(text) <= _CHARS else f"{text[:_CHARS]}\n[cut]"
