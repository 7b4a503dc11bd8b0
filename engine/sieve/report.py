"""What a SIEVE job reports: how well the student follows its teacher, what that cost, and where they differ.

Left out: the page and the sections every job has (`engine.corpus`). Called by `jobs.sieve`.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from upath import UPath

from engine.artifacts import Dataset
from engine.corpus import Ledger
from engine.observe import Report, plots
from engine.sieve.distillation import Learned, Opinion
from engine.sieve.filter import FAILED
from engine.sieve.loop import Round
from engine.sieve.options import BudgetOptions
from engine.sieve.recipe import SieveRecipe
from engine.sieve.threshold import Confusion, balanced_accuracy_interval, confusion

_SHOWN = 8
_CHARS = 300
_SCALES = (100_000, 1_000_000, 10_000_000, 100_000_000)


def narrate(report: Report, dataset: Dataset, *, recipe: SieveRecipe, student: UPath) -> None:
    """Add SIEVE's sections to a report of its dataset."""
    learned = Learned.model_validate_json((student.parent / "loop" / "learned.json").read_bytes())
    rule, rounds = next(iter(learned.rounds.items()))
    last, card = rounds[-1], learned.card
    report.facts(
        {
            "criterion": recipe.criterion,
            "labels": f"{card.labels:,}",
            "questions": f"{learned.questions:,} of {recipe.budget.queries:,}" + _cached(learned),
            "answers without a verdict": f"{sum(learned.discards.values()):,}",
            "passes among the labels": f"{last.passes / last.labels:.1%}",
            "passes in the stream, estimated": f"{card.rate:.1%}",
            "threshold": f"{card.threshold:.3f}",
            "the loop ended": learned.ended[rule],
            **(
                {"teacher agrees with itself": f"{learned.self_agreement:.1%} of {learned.rechecked:,}"}
                if learned.self_agreement is not None
                else {}
            ),
            **(
                {"controls were charged besides": _charged(learned, recipe.budget)}
                if any(queries for queries, _ in learned.controls.values())
                else {}
            ),
        }
    )
    _curves(report, learned)
    _histogram(report, learned, rounds)
    _rounds(report, rule, rounds)
    if learned.opinions:
        _agreement(report, learned, recipe)
    if recipe.teacher.kind != "labels":
        _cost(report, learned, recipe, student.parent)
    if learned.opinions:
        _readings(report, learned)


def _cached(learned: Learned) -> str:
    kept = learned.questions - learned.queries
    return f", {kept:,} of them answered by earlier runs" if kept > 0 else ""


def _charged(learned: Learned, budget: BudgetOptions) -> str:
    return "; ".join(
        f"{rule} {queries:,} questions" + (f" ({money:,.2f})" if budget.money is not None else "")
        for rule, (queries, money) in learned.controls.items()
    )


def describe_scores(report: Report, dataset: Dataset) -> None:
    """Add what the filter alone can tell to a report of its dataset."""
    counts = {int(bin) * 5: count for bin, count in dataset.manifest.statistics.get("scores", {}).items()}
    if counts:
        report.figure("Scores of what was published", plots.histogram(counts, "score in hundredths", "texts"))


def _curves(report: Report, learned: Learned) -> None:
    validated = {
        rule: ([each.questions for each in rounds], [each.validation[0] for each in rounds if each.validation])
        for rule, rounds in learned.rounds.items()
        if all(each.validation for each in rounds)
    }
    if validated:
        sizes = len(learned.opinions)
        note = f"Balanced accuracy against the teacher on {sizes:,} random snippets that nobody trained on."
        if len(validated) == 1:
            note += " Name controls in the recipe to see other rules beside it."
        report.figure("Learning curve", plots.lines(validated, "questions", "balanced accuracy"), note)
    balance = {
        rule: ([each.questions for each in rounds], [each.passes / each.labels for each in rounds])
        for rule, rounds in learned.rounds.items()
    }
    report.figure("Passes among the labels", plots.lines(balance, "questions", "share that passes"))


def _histogram(report: Report, learned: Learned, rounds: Sequence[Round]) -> None:
    last = next((each for each in reversed(rounds) if each.low is not None), rounds[-1])
    counts = Counter(min(int(score * 100), 99) for score in learned.sample)
    marks = {"threshold": learned.card.threshold * 100, "least error": last.trm * 100}
    if last.low is not None and last.high is not None and last.high - last.low < 1:
        marks |= {"band from": last.low * 100, "band to": last.high * 100}
    report.figure(
        "Scores of the stream",
        plots.histogram(dict(counts), "score in hundredths", "snippets", marks),
        f"A random sample of {len(learned.sample):,} snippets, by the finished student.",
    )


def _rounds(report: Report, rule: str, rounds: Sequence[Round]) -> None:
    columns = [
        "round",
        "labels",
        "pass",
        "band",
        "accepted",
        "batch passes",
        "nearest minority",
        "changed",
        "validation",
    ]
    rows = [
        (
            each.number,
            each.labels,
            f"{each.passes / each.labels:.0%}",
            "–" if each.low is None or each.high is None else f"{each.low:.3f} – {each.high:.3f}",
            f"{each.asked / each.seen:.1%}" if each.seen else "–",
            f"{each.batch_passes / each.asked:.0%}" if each.asked else "–",
            "–" if each.nearest_minority is None else f"{each.nearest_minority:.0%}",
            f"{each.changed:.1%}",
            _with_interval(each.validation),
        )
        for each in rounds
    ]
    note = (
        "Accepted: share of the snippets seen that lay in the band. Nearest minority: the rarer class among the labels"
        " on both sides of the batch's own cut of least error, by theory never below 25 %. Changed: share of the stream"
        " on which the decision is another than the round before."
    )
    report.table(f"Rounds ({rule})", columns, rows, note)


def _agreement(report: Report, learned: Learned, recipe: SieveRecipe) -> None:
    teacher = [each.teacher for each in learned.opinions]
    student = [each.score > learned.card.threshold for each in learned.opinions]
    rows = [("student against teacher", *_measures(student, teacher))]
    if learned.other:
        other = [score > learned.other[-1] for score in learned.other[:-1]]
        kind = "frozen" if learned.card.kind == "encoder" else "encoder"
        rows.append((f"{kind} student against teacher", *_measures(other, teacher)))
    known = [at for at, each in enumerate(learned.opinions) if each.truth is not None]
    if known and recipe.teacher.kind != "labels":
        truth = [bool(learned.opinions[at].truth) for at in known]
        rows.append(("teacher against the truth", *_measures([teacher[at] for at in known], truth)))
        rows.append(("student against the truth", *_measures([student[at] for at in known], truth)))
    columns = [
        "",
        "pass, pass",
        "fail, pass",
        "pass, fail",
        "fail, fail",
        "balanced accuracy",
        "F1",
        "precision",
        "recall",
    ]
    report.table(
        "Agreement",
        columns,
        rows,
        f"On {len(learned.opinions):,} random snippets that nobody trained on. Columns name the first's verdict, then"
        " the second's; intervals hold 95 %.",
    )


def _cost(report: Report, learned: Learned, recipe: SieveRecipe, home: UPath) -> None:
    effort, records = learned.effort, Ledger(home).records().values()
    texts = sum(record.rows_out + record.dropped.get(FAILED, 0) for record in records)
    count = round(texts * learned.snippets_per_text)
    scored = sum(record.seconds.get("score", 0.0) for record in records)
    if not (count and scored):
        return
    if not effort.answered:
        report.table("Cost", ["", ""], [("a question (t)", "not measured: earlier runs had every answer")])
        return
    student, teacher = scored / count, effort.teaching / effort.answered
    local = recipe.teacher.kind != "endpoint"
    rows: list[tuple[str, str, str]] = [
        ("questions asked (Q)", f"{learned.questions:,}", f"{learned.tokens:,} tokens"),
        (
            "a question (t)",
            f"{teacher * 1e3:,.1f} ms",
            "CPU time of the teacher's processes" if local else "time in which answers were waited for, per answer",
        ),
        ("a snippet through the filter (s)", f"{student * 1e3:,.1f} ms", "CPU time of the filter's actors"),
        ("training and scoring (T)", f"{effort.training:,.1f} s", "CPU time of the student's processes in the loop"),
    ]
    sizes = [count, *(each for each in _SCALES if each > count)]
    for size in sizes:
        relative = relative_cost(size, learned.questions, student / teacher, effort.training / teacher)
        how = "Q/N + s/t + T/(N t), of asking about every snippet" if size == count else "projected"
        rows.append((f"{'these ' if size == count else ''}{size:,} snippets", f"{relative:.2%}", how))
    report.table("Cost", ["", "", "how it is counted"], rows, "Projections keep Q, s, t and T as measured in this run.")
    _prices(report, learned, recipe.budget, sizes, student, teacher if local else 0.0)


def _prices(
    report: Report, learned: Learned, budget: BudgetOptions, sizes: Sequence[int], student: float, teacher: float
) -> None:
    """What SIEVE and asking about everything cost in money; `student` and `teacher` are core seconds a snippet."""
    core = budget.price_core_hour / 3600
    question = (learned.money / learned.queries if learned.queries else 0.0) + teacher * core
    if not (question and (core or learned.money)):
        return
    rows = [
        (
            f"{size:,}",
            f"{size * question:,.2f}",
            f"{learned.questions * question:,.2f}",
            f"{(size * student + learned.effort.training) * core:,.2f}",
        )
        for size in sizes
    ]
    report.table(
        "Cost in money",
        ["snippets", "the teacher on all of them", "SIEVE: its questions", "SIEVE: the student"],
        rows,
        "By the prices of the recipe (budget.price_in, price_out, price_core_hour) and this run's measurements.",
    )


def relative_cost(snippets: int, queries: int, student: float, training: float = 0.0) -> float:
    """Cost of filtering so many snippets, beside asking the teacher about each: the share asked about, the student's
    cost per snippet and its training, both in questions."""
    return queries / snippets + student + training / snippets


def _readings(report: Report, learned: Learned) -> None:
    threshold = learned.card.threshold
    apart = [each for each in learned.opinions if each.teacher != (each.score > threshold)]
    alike = [each for each in learned.opinions if each.teacher == (each.score > threshold)]
    rng = np.random.default_rng(0)
    for title, found in (("Disagreements", apart), ("Agreements, a sample", alike)):
        chosen = [found[at] for at in rng.permutation(len(found))[:_SHOWN]]
        note = f"{len(found):,} of {len(learned.opinions):,} random snippets."
        report.table(title, ["teacher", "score", "truth", "text"], [_reading(each) for each in chosen], note)


def _reading(each: Opinion) -> tuple[str, str, str, str]:
    truth = "–" if each.truth is None else _word(each.truth)
    text = each.text if len(each.text) <= _CHARS else f"{each.text[:_CHARS]} [cut]"
    return _word(each.teacher), f"{each.score:.3f}", truth, text


def _measures(predicted: Sequence[bool], actual: Sequence[bool]) -> tuple[object, ...]:
    counts = confusion(np.array(predicted), np.array(actual))
    return (
        counts.true_pass, counts.false_fail, counts.false_pass, counts.true_fail,
        _accuracy(counts), f"{counts.f1:.3f}", f"{counts.precision:.3f}", f"{counts.recall:.3f}",
    )  # fmt: skip


def _accuracy(counts: Confusion) -> str:
    return _with_interval((counts.balanced_accuracy, *balanced_accuracy_interval(counts)))


def _with_interval(measured: tuple[float, float, float] | None) -> str:
    if measured is None:
        return "–"
    value, low, high = measured
    return f"{value:.1%} ({low:.1%} – {high:.1%})"


def _word(passed: bool) -> str:
    return "pass" if passed else "fail"
