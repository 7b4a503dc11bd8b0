"""The report of a selection: what was chosen and why, what else could have been, and whether to believe it.

Left out: the page itself (`engine.observe.report`). Called by `engine.selection.job`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from upath import UPath

from engine.artifacts import Dataset
from engine.config import write_yaml
from engine.finetune.checkpoints import State
from engine.observe import Report, Share, bottleneck, plots
from engine.selection.estimator import Estimator
from engine.selection.meta import MARGIN_LOSS
from engine.selection.methods import BOOTSTRAPS, Chosen
from engine.selection.panel import Panel
from engine.selection.recipe import SelectRecipe

HINTS = {
    "meta-training": "fewer training.epochs or examples, lora.layers, or more parallel.workers on more machines.",
    "gradients": "lora.layers, or more parallel.workers; a rerun reads them from the cache.",
    "selection": "a smaller estimate.width, or fewer candidates.",
    "start Ray": "give --address of a running Ray to skip it.",
}
"""What would make a phase shorter."""


def write_report(
    path: UPath,
    recipe: SelectRecipe,
    estimator: Estimator,
    chosen: Chosen,
    panel: Panel,
    state: State,
    dataset: Dataset,
    shares: Sequence[Share],
) -> None:
    """Write RUN/report.html."""
    report = Report(f"headrace select-tasks: {recipe.name}", f"chosen tasks at {dataset.path}")
    report.facts(
        {
            "chosen": f"{len(chosen.choice.chosen)} of {len(estimator.tasks)} tasks",
            "estimated loss (nats)": f"{chosen.loss:.4f} ± {1.96 * chosen.uncertainty:.4f}",
            "method": recipe.select.method,
            "examples": len(estimator.margins),
            "target examples": len(estimator.target_margins),
            "subsets solved per second": round(panel.per_second),
        }
    )
    _tasks(report, estimator, chosen)
    _others(report, recipe, estimator, chosen)
    if len(chosen.choice.trace) > 1:
        sizes = [float(len(subset)) for subset, _ in chosen.choice.trace]
        losses = [loss for _, loss in chosen.choice.trace]
        report.figure("The choice as it grew", plots.lines({"loss": (sizes, losses)}, "tasks", "loss (nats)"))
    _meta(report, estimator, state)
    _panel(report, estimator, panel)
    if shares:
        report.figure("Where the time went", plots.waterfall(shares), bottleneck(shares, HINTS))
    report.code("Recipe", write_yaml(dataset.manifest.recipe), "yaml")
    report.write(path)


def _tasks(report: Report, estimator: Estimator, chosen: Chosen) -> None:
    ranks = {task: rank for rank, task in enumerate(chosen.choice.chosen, 1)}
    counts = np.bincount(estimator.task_numbers, minlength=len(estimator.tasks))
    order = sorted(range(len(counts)), key=lambda task: (ranks.get(task, len(counts)), chosen.effects[task]))
    rows = [
        (
            estimator.tasks[task],
            ranks.get(task, "–"),
            int(counts[task]),
            _number(chosen.effects[task]),
            _number(1.96 * chosen.errors[task]),
            "–" if np.isnan(chosen.shares[task]) else f"{100 * chosen.shares[task]:.0f} %",
        )
        for task in order
    ]
    note = (
        "Effect: what the task does to the estimated loss of the chosen ones, with it less without it, in nats; ± is a"
        f" 95 % interval over target examples. Resampled: share of {BOOTSTRAPS} choices, each on a target drawn anew"
        " from its examples, that hold the task; near one half, chance decides."
    )
    report.table("Tasks", ["task", "chosen as", "examples", "effect", "±", "resampled"], rows, note)


def _others(report: Report, recipe: SelectRecipe, estimator: Estimator, chosen: Chosen) -> None:
    own = (recipe.select.method, (chosen.choice.chosen, chosen.loss, chosen.uncertainty))
    rows = [
        (
            name,
            len(tasks),
            f"{loss:.4f}",
            f"{1.96 * error:.4f}",
            ", ".join(estimator.tasks[task] for task in sorted(tasks)),
        )
        for name, (tasks, loss, error) in (own, *chosen.compared.items())
    ]
    report.table(
        "Other ways to choose, by the same estimates", ["method", "tasks", "loss", "±", "which"], rows,
        "Estimated loss of the target in nats; ± is a 95 % interval over the subset's and the target's examples. To"
        " know rather than estimate, train: headrace tune with search: subsets.",
    )  # fmt: skip


def _meta(report: Report, estimator: Estimator, state: State) -> None:
    measured = [(float(each.step), each.values[MARGIN_LOSS]) for each in state.measured if MARGIN_LOSS in each.values]
    if measured:
        steps, losses = zip(*measured, strict=True)
        report.figure(
            "Meta-training", plots.lines({"target": (steps, losses)}, "optimiser steps", "loss of margins (nats)"),
            "Trained on all candidates, measured on the target's rows that tasks are chosen by.",
        )  # fmt: skip
    if len(estimator.curve):
        report.figure(
            "How long a step is",
            plots.lines({"length": tuple(estimator.curve.T.tolist())}, "sum of learning rates", "length"),
            "The length of the projected step by which the estimate for all tasks is what was measured.",
        )  # fmt: skip


def _panel(report: Report, estimator: Estimator, panel: Panel) -> None:
    rows: list[Sequence[Any]] = [
        (f"{share:g}", f"{error:.2e}", f"{without:.2e}")
        for share, error, without in zip(panel.shares, panel.errors, panel.without, strict=True)
    ]
    report.table(
        "Sanity: how far the first order goes", ["share of the step", "linear", "without gradients"], rows,
        "Squared error of the target's margins against those of the model itself, moved by this share of the chosen"
        " tasks' step, divided by the squared margins. Linear should be far below the control.",
    )  # fmt: skip
    wide = estimator.gradients.shape[1]
    widths: list[Sequence[Any]] = [(width, f"{rank:.3f}", f"{off:.4f}") for width, (rank, off) in panel.widths.items()]
    report.table(
        "Sanity: projection", ["projected numbers", f"rank correlation with {wide}", "mean difference (nats)"], widths,
        "Of 200 random halves of the tasks. Far below 1: raise estimate.width.",
    )  # fmt: skip
    report.text(
        "Sanity: solver",
        f"{panel.per_second:,.0f} regressions a second; the largest deviation of an estimate from the exact solver's is"
        f" {panel.deviation:.1e} nats.",
    )


def _number(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:+.4f}"
