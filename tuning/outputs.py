"""What a search leaves: the best recipe, a leaderboard, and a report with curves and parallel coordinates.

Left out: drawing (`engine.observe.plots`). Called by `tuning.search`.
"""

import csv
import io
import os
from collections.abc import Sequence
from typing import Any

from upath import UPath

from engine.config import write_yaml
from engine.observe import Report, plots
from engine.storage import replace
from tuning.history import Trial
from tuning.space import shown

BEST = "best_recipe.yaml"
_CURVES = 12
"""Curves that can be told apart."""


def write_outputs(search: Any, ranked: Sequence[Trial]) -> UPath:
    """Write best_recipe.yaml, leaderboard.csv and report.html; returns the report's path."""
    home: UPath = search.home.path
    replace(home / BEST, best_recipe(search, ranked[0]).encode())
    keys = [*dict.fromkeys(key for each in ranked for key in each.values)]
    replace(home / "leaderboard.csv", _leaderboard(search, ranked, keys).encode())
    report = home / "report.html"
    _report(search, ranked, keys, report)
    return report


def best_recipe(search: Any, best: Trial) -> str:
    """The base recipe with what the search set and the best trial's values: it runs as it is."""
    data = search.space.data(best.values)
    data["name"] = f"{search.recipe.name}-best"
    if search.base.get("output"):
        data["output"] = search.base["output"]
    else:
        data.pop("output", None)
    value = f"{search.metric} {_told(best, 6)}"
    if best.lineage:
        value += ". It took over weights of other trials: these are its last values, and its model is the one to take"
    return f"# The best of {len(search.history.trials)} trials of headrace tune: {value}.\n{write_yaml(data)}"


def facts_of(search: Any, ranked: Sequence[Trial]) -> dict[str, str]:
    """What is told when a search has ended."""
    best, states = ranked[0], [each.state for each in ranked]
    counts = {name: states.count(name) for name in ("finished", "stopped", "failed") if name in states}
    failed = [each for each in ranked if each.state == "failed"]
    found = {
        "trials": ", ".join(f"{count} {name}" for name, count in counts.items()),
        search.metric: f"{_told(best, 4)} (trial {best.number})",
        "values": ", ".join(f"{key} {shown(value)}" for key, value in best.values.items()),
        "its run": os.fspath(search.home.path / "trials" / search.recipe.job / best.name),
    }
    finished = [each for each in ranked if each.best is not None]
    if len(finished) > 1:
        found["worst trial"] = f"{_told(finished[-1], 4)} (trial {finished[-1].number})"
    if failed:
        found["first failure"] = f"trial {failed[0].number}: {failed[0].why}"
    return found


def _told(trial: Trial, digits: int) -> str:
    return "no number" if trial.best is None else f"{trial.best:.{digits}g}"


def _leaderboard(search: Any, ranked: Sequence[Trial], keys: Sequence[str]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["rank", "trial", "state", search.metric, "steps", "seconds", *keys, "why"])
    for rank, each in enumerate(ranked, 1):
        values = [each.values.get(key, "") for key in keys]
        steps = max(each.results, default=0)
        best = "" if each.best is None else each.best
        writer.writerow([rank, each.name, each.state, best, steps, round(each.seconds, 1), *values, each.why])
    return text.getvalue()


def _report(search: Any, ranked: Sequence[Trial], keys: Sequence[str], path: UPath) -> None:
    recipe = search.recipe
    report = Report(f"headrace tune: {recipe.name}", f"{len(ranked)} trials of {recipe.job}, {recipe.where}")
    report.facts({name: told for name, told in facts_of(search, ranked).items() if name not in ("values", "its run")})
    columns = ["rank", "trial", "state", search.metric, "steps", *keys]
    rows = [
        (rank, each.name, each.state, each.best, max(each.results, default=0), *(_cell(each, key) for key in keys))
        for rank, each in enumerate(ranked, 1)
    ]
    report.table("Leaderboard", columns, rows)
    measured = [each for each in ranked if each.best is not None]
    shown_keys = [key for key in keys if not isinstance(ranked[0].values.get(key), list | dict)]
    axes = [*shown_keys, search.metric]
    lines = [[*(each.values.get(key) for key in shown_keys), each.best] for each in measured]
    report.figure(
        "Values and what they gave",
        plots.parallel(axes, lines, best_is_low=search.mode == "min"),
        "A line is a trial; the strongest is the best. A line that stops short had no value there.",
    )
    curves = {f"trial {each.name}": _curve(each) for each in measured[:_CURVES]}
    report.figure(f"{search.metric} over the steps", plots.lines(curves, "step", search.metric))
    taken = [
        (each.number, step["step"], step["from"], ", ".join(f"{k} {shown(v)}" for k, v in step["values"].items()))
        for each in ranked
        for step in each.lineage
    ]
    if taken:
        report.table("Who took from whom", ["trial", "at step", "took the weights of trial", "and left behind"], taken)
    failed = [(each.number, each.why) for each in ranked if each.state == "failed"]
    if failed:
        report.table("Trials that failed", ["trial", "why"], failed)
    told = getattr(search.proposer, "tell", None)
    if told:
        told(report, search.history.trials.values())
    report.code("Best recipe", best_recipe(search, ranked[0]), "yaml")
    report.write(path)


def _curve(trial: Trial) -> tuple[list[float], list[float]]:
    points: dict[int, float] = {}
    for step in trial.lineage:
        points |= {int(at): value for at, value in step["results"].items()}
    points |= trial.results
    found = sorted(points.items())
    return [step for step, _ in found], [value for _, value in found]


def _cell(trial: Trial, key: str) -> object:
    value = trial.values.get(key)
    return (
        ", ".join(map(str, value)) if isinstance(value, list) else value if not isinstance(value, dict) else str(value)
    )
