"""The report of a fine-tuning: curves, what was measured, calibration, what was trained on, and where memory went.

Left out: the page itself (`engine.observe.report`). Called by `engine.finetune.job`.
"""

from collections.abc import Sequence
from typing import Any

from upath import UPath

from engine.artifacts import Dataset, Model
from engine.config import write_yaml
from engine.finetune.checkpoints import State
from engine.finetune.forecast import Memory
from engine.finetune.loop import LOSS
from engine.finetune.recipe import FineTuningRecipe
from engine.finetune.reward import CALIBRATION, read_calibration
from engine.finetune.tokenise import BIN
from engine.observe import Report, Share, bottleneck, plots, read_metrics
from engine.storage import is_local

HINTS = {
    "train": "a smaller model, lora, fewer tokens.window, or more parallel.workers on more machines.",
    "tokenise": "add cores with workers=...",
    "start Ray": "give --address of a running Ray to skip it.",
}
"""What would make a phase shorter."""


def write_report(
    path: UPath,
    job: str,
    recipe: FineTuningRecipe,
    model: Model,
    dataset: Dataset,
    state: State,
    memory: Memory,
    shares: Sequence[Share],
) -> None:
    """Write RUN/report.html."""
    report = Report(f"headrace {job}: {recipe.name}", f"a model at {model.path}")
    report.facts(
        {
            "steps": state.steps,
            "published from step": state.best or state.steps,
            "tokens": state.tokens,
            "tokens per second": round(state.tokens / max(state.seconds, 1e-9)),
            "parameters trained": memory.trained,
            **dict(sorted(model.manifest.metrics.items())),
        }
    )
    report.text("How it ended", f"{state.ended[:1].upper()}{state.ended[1:]}.")
    _curves(report, path.parent, state)
    if is_local(model.path) and (model.path / CALIBRATION).exists():
        _calibration(report, model)
    if shares:
        report.figure("Where the time went", plots.waterfall(shares), bottleneck(shares, HINTS))
    _data(report, dataset)
    report.text("Memory of a training worker, as forecast", str(memory))
    report.code("Recipe", write_yaml(model.manifest.recipe), "yaml")
    report.table("Made from", ["what", "contents"], [(each.uri, each.fingerprint) for each in model.manifest.parents])
    report.text("Made by", f"Code {model.manifest.code_version}, seed {recipe.seed}; contents {model.fingerprint}.")
    report.write(path)


def _curves(report: Report, home: UPath, state: State) -> None:
    steps: dict[int, dict[str, Any]] = {}
    for line in read_metrics(home):  # a resume repeats steps: the later line holds
        steps[line["step"]] = {**steps.get(line["step"], {}), **line}
    trained = [(step, line) for step, line in sorted(steps.items()) if line.get(LOSS) is not None]
    measured = [(each.step, each.values[LOSS]) for each in state.measured]
    series = {"training": ([step for step, _ in trained], [line[LOSS] for _, line in trained])}
    if measured:
        series["held out"] = ([step for step, _ in measured], [loss for _, loss in measured])
    report.figure("Loss", plots.lines(series, "step", "nats"))
    for name, label in (("gradient_norm", "norm of the gradient"), ("tokens_per_second", "tokens per second")):
        points = [(step, line[name]) for step, line in trained if line.get(name) is not None]
        drawn = {label: ([step for step, _ in points], [value for _, value in points])}
        report.figure(label[:1].upper() + label[1:], plots.lines(drawn, "step", label))
    others = sorted({name for each in state.measured for name in each.values} - {LOSS})
    if others:
        rows = [(each.step, *(each.values[name] for name in (LOSS, *others))) for each in state.measured]
        report.table("Measured on what is held out", ["step", LOSS, *others], rows)


def _calibration(report: Report, model: Model) -> None:
    found = read_calibration(model.local())
    shown = ([each.probability for each in found.bins], [each.positives for each in found.bins])
    report.figure(
        "Calibration",
        plots.lines({"model": shown, "as it should be": ([0.0, 1.0], [0.0, 1.0])}, "probability", "share of positives"),
        f"{found.examples:,} held out; expected calibration error {found.error:.3f}, Brier score {found.brier:.3f},"
        f" accuracy of the commoner answer {found.majority:.3f}.",
    )
    rows = [(f"{each.probability:.2f}", f"{each.positives:.2f}", each.examples) for each in found.bins]
    report.table("Calibration, bin by bin", ["mean probability", "share of positives", "examples"], rows)


def _data(report: Report, dataset: Dataset) -> None:
    counts, told = dataset.manifest.counts, dataset.manifest.statistics
    lengths = {int(length): count for length, count in told.get("lengths", {}).items()}
    report.figure("Length of the examples", plots.histogram(lengths, "tokens", "examples", width=BIN))
    fate = {"learnt from": dataset.rows - told["held_out"], "held out": told["held_out"]}
    fate |= {name.removeprefix("dropped: "): count for name, count in counts.items() if name.startswith("dropped: ")}
    fate |= {"quarantined": counts["quarantined"]} if counts.get("quarantined") else {}
    report.figure(
        "What became of the rows",
        plots.bars(fate, "examples"),
        f"{counts['read']:,} rows gave {told['tokens']:,} tokens, {told['loss_tokens']:,} of them with loss.",
    )
