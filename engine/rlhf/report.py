"""The report of an RLHF run: reward, KL and length over its steps, macros, answers before and after, where time went.

Left out: the page itself (`engine.observe.report`). Called by `engine.rlhf.job`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from upath import UPath

from engine.artifacts import Model
from engine.config import write_yaml
from engine.finetune.checkpoints import State
from engine.observe import Report, Share, bottleneck, duration, plots, read_metrics
from engine.rlhf.experience import read_step
from engine.rlhf.gains import gains
from engine.rlhf.prompts import read_prompts
from engine.rlhf.recipe import RlhfRecipe

HINTS = {
    "train": "fewer layers or epochs, shorter responses, more engines: the report says where a step's time goes.",
    "start Ray": "give --address of a running Ray to skip it.",
}
"""What would make a phase shorter."""
MACRO = "macros of "
"""Begins the names under which a state counts macros by their length."""
_CURVES = {
    "reward": "Reward",
    "kl": "KL to the reference, nats per response",
    "length": "Tokens per response",
    "entropy": "Entropy, nats per token (mean of -log p)",
    "clip_fraction": "Share of terms that the clip stops",
    "explained_variance": "Variance of returns that the critic explains",
    "mismatch": "Difference between engine and learner, nats per token",
}
_SHOWN = 8
"""Held-out prompts that are shown with their answers."""


def write_report(path: UPath, recipe: RlhfRecipe, model: Model, state: State, shares: Sequence[Share]) -> None:
    """Write RUN/report.html."""
    home = path.parent
    report = Report(f"headrace rlhf: {recipe.name}", f"a model at {model.path}")
    before = state.measured[0].values if state.measured else {}
    facts: dict[str, Any] = {"steps": state.steps, "time in steps": duration(state.seconds)}
    for name, value in model.manifest.metrics.items():
        first = before.get(name.removeprefix("held-out "))
        facts[name] = f"{value:.4g}" if first is None else f"{value:.4g} (before: {first:.4g})"
    report.facts(facts)
    report.text("How it ended", f"{state.ended[:1].upper()}{state.ended[1:]}.")
    if found := gains(home, state.steps):
        rows = []
        for each in found:
            difference = each.after - each.before
            numbers = (f"{value:+.3f}" for value in (each.before, each.after, difference, each.low, each.high))
            rows.append((each.name, *numbers, f"{each.p:.1g}"))
        columns = ["score", "before", "after", "difference", "at least (95 %)", "at most", "p"]
        report.table("Held-out prompts", columns, rows)
        report.text(
            "What that says",
            "Scores rise wherever a policy finds what the reward likes: read the answers below, and look at a score"
            " that nothing was learnt from, at KL (small is near the reference) and at how many different pairs of"
            f" words are left. {_ends(home, state)}",
        )
    lines: dict[int, dict[str, Any]] = {}
    for line in read_metrics(home):  # a resume repeats steps: the later line holds
        lines[line["step"]] = {**lines.get(line["step"], {}), **line}
    for name, title in _CURVES.items():
        _curve(report, lines, name, title)
    lengths = {int(name.removeprefix(MACRO)): int(count) for name, count in state.extra.items() if MACRO in name}
    if lengths:
        report.figure(
            "Length of the macros", plots.histogram(lengths, "tokens", "macros"), f"Rule {recipe.macro.rule}."
        )
    _answers(report, home, state, recipe.prompts.measured)
    _time(report, lines, recipe)
    if shares:
        report.figure("Where the time of this call went", plots.waterfall(shares), bottleneck(shares, HINTS))
    report.code("Recipe", write_yaml(model.manifest.recipe), "yaml")
    report.text("Made by", f"Code {model.manifest.code_version}, seed {recipe.seed}; contents {model.fingerprint}.")
    report.write(path)


def _ends(home: UPath, state: State) -> str:
    """How many responses came to an end by themselves."""
    last: dict[str, Any] = next((line for line in reversed(read_metrics(home)) if "finished" in line), {})
    share = f"{last['finished']:.0%}" if last else "None"
    return f"{share} of the last step's responses ended by themselves; the others were cut at rollout.max_tokens."


def _curve(report: Report, lines: Mapping[int, Mapping[str, Any]], name: str, title: str) -> None:
    series = {}
    for label, key in (("training", name), ("held out", f"held_out/{name}")):
        points = [(step, line[key]) for step, line in sorted(lines.items()) if line.get(key) is not None]
        if points:
            series[label] = ([step for step, _ in points], [value for _, value in points])
    if series:
        report.figure(title, plots.lines(series, "step", name.replace("_", " ")))


def _answers(report: Report, home: UPath, state: State, measured: int) -> None:
    """Answers to the same held-out prompts before the first step and after the last, side by side."""
    before, after = (read_step(home, step, held_out=True) for step in (0, state.steps))
    if before is None or after is None:
        return
    prompts = read_prompts(home, measured).held_out
    later = {(each.prompt, each.number): at for at, each in enumerate(after.responses)}
    rows = []
    for at, each in enumerate(before.responses[:_SHOWN]):
        then = later.get((each.prompt, each.number))
        if then is not None:
            scores = (f"{some.scores['reward'][place]:.2f}" for some, place in ((before, at), (after, then)))
            rows.append((prompts[each.prompt].text, each.text, next(scores), after.responses[then].text, next(scores)))
    if rows:
        report.table("Before and after", ["prompt", "before", "reward", "after", "reward"], rows)


def _time(report: Report, lines: Mapping[int, Mapping[str, Any]], recipe: RlhfRecipe) -> None:
    """What the seconds of a step are, and what that says about more engines or going asynchronous."""
    spent: dict[str, float] = {}
    for line in lines.values():
        for name, value in line.items():
            if name.startswith("seconds/") and value is not None:
                spent[name.removeprefix("seconds/")] = spent.get(name.removeprefix("seconds/"), 0.0) + value
    whole = spent.pop("step", 0.0)
    if not whole:
        return
    spent["idle and other"] = max(whole - sum(spent.values()), 0.0)
    shares = {name: value / whole for name, value in spent.items()}
    generate, learn = shares.get("generate", 0.0), shares.get("learn", 0.0) + shares.get("look", 0.0)
    rollout = recipe.rollout
    if rollout.recorded:
        advice = "Nothing was drawn: responses came from a recorded run."
    elif rollout.asynchronous:
        advice = "Drawing goes on beside learning: what is left of it here is what learning waits for."
    elif generate > 2 * learn and rollout.with_actors:
        advice = (
            "Drawing takes most: more engines (rollout.engines) on cores or GPUs of their own would shorten a step."
        )
    elif generate > 2 * learn:
        advice = "Drawing takes most: vLLM (rollout.engine) draws many responses at a time."
    elif generate < 0.2:
        advice = "Drawing takes little: more engines would not help; fewer layers or epochs would."
    else:
        most = max(generate, 1 - generate)
        advice = (
            f"Drawing beside learning (rollout.asynchronous) could shorten a step to {most:.0%} of it at best, given"
            " cores or GPUs of its own; where both share cores it gains nothing."
        )
    report.figure("Where a step's time goes", plots.bars(shares, "share of a step"), advice)
