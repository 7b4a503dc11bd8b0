"""Plots as SVG texts for the report: histogram, horizontal bars, lines, and the waterfall of where the time went.

Text stays text, colours are CSS variables (`--plot-ink`, `--plot-grid`, `--plot-1` ... `--plot-6`) with mid-tones to
fall back on, so one drawing serves dark and light pages; the same data gives the same bytes. Without data each gives
a drawing that says so.

Left out: saving, titles and notes (`engine.observe.report`). matplotlib is loaded by the first plot. Called by `jobs`.
"""

import io
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from engine.observe.clock import Share, apportion, duration

# matplotlib knows no CSS variables: these stand in for them while it draws.
_INK, _GRID = "#0d0a01", "#0d0a02"
_SERIES = ("#0d0b01", "#0d0b02", "#0d0b03", "#0d0b04", "#0d0b05", "#0d0b06")
_FALLBACKS = ("#2f86b7", "#d98a29", "#3f9d78", "#9070c4", "#c8586c", "#7d8794")
_VARIABLES = {
    _INK: "var(--plot-ink, #6b7785)",
    _GRID: "var(--plot-grid, #8a94a040)",
    **{_SERIES[i]: f"var(--plot-{i + 1}, {_FALLBACKS[i]})" for i in range(len(_SERIES))},
}
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "headrace",
    "text.parse_math": False,  # a dollar sign in a label is a dollar sign
    "font.size": 10.5,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": _GRID,
    "grid.linewidth": 0.8,
    "xtick.color": _GRID,
    "ytick.color": _GRID,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "xtick.major.size": 0.0,
    "ytick.major.size": 0.0,
    "xtick.major.pad": 6.0,
    "ytick.major.pad": 6.0,
    "lines.linewidth": 2.0,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}
_WIDTH = 6.4  # inches; the SVG scales with the page
_MOST_BARS = 60
_MOST_POINTS = 2000
_MOST_LETTERS = 40


def histogram(
    counts: Mapping[int, int], xlabel: str, ylabel: str, marks: Mapping[str, float] | None = None, *, width: int = 1
) -> str:
    """How often each whole number occurs; a range wider than 60 bars is gathered into bins of equal width.

    `width`: each number stands for so many, from itself on, counted together before.
    `marks` are places on the horizontal axis, each a dashed line with its name.
    """

    def draw(axes: Any) -> None:
        low, high = min(counts), max(counts)
        step = max(math.ceil((high - low + width) / _MOST_BARS / width), 1) * width
        bins: dict[int, int] = {}
        for value, count in counts.items():
            bins[(value - low) // step] = bins.get((value - low) // step, 0) + count
        centres = [low + i * step + (step - 1) / 2 for i in bins]
        axes.bar(centres, list(bins.values()), width=0.82 * step, color=_SERIES[0])
        axes.set_xlim(low - 0.6 * step, low + (max(bins) + 0.6) * step + (step - 1) / 2)
        for number, (name, place) in enumerate((marks or {}).items()):
            axes.axvline(place, color=_SERIES[(number + 1) % len(_SERIES)], linestyle="--", linewidth=1.4)
            axes.annotate(
                name, (place, 0.97 - 0.08 * number), xycoords=("data", "axes fraction"), xytext=(4, 0),
                textcoords="offset points", va="top", color=_SERIES[(number + 1) % len(_SERIES)],
            )  # fmt: skip
        axes.set_xlabel(xlabel if step == 1 else f"{xlabel} (bins of {step:,})")
        axes.set_ylabel(ylabel)
        _whole_ticks(axes.xaxis)
        _whole_ticks(axes.yaxis)

    return _render(draw, 3.3, empty=not counts)


def bars(mapping: Mapping[str, float], xlabel: str = "") -> str:
    """Horizontal bars in the order given, each with its value; past thirty the rest is gathered into one."""
    kept = dict(list(mapping.items())[:29]) if len(mapping) > 30 else dict(mapping)
    if len(kept) < len(mapping):
        kept[f"{len(mapping) - len(kept)} more"] = sum(list(mapping.values())[len(kept) :])

    def draw(axes: Any) -> None:
        rows = range(len(kept))
        values = [value if math.isfinite(value) else 0.0 for value in kept.values()]
        axes.barh(rows, values, height=0.62, color=_SERIES[0])
        for row, (bar, value) in enumerate(zip(values, kept.values(), strict=True)):
            place = {"xytext": (6, 0), "textcoords": "offset points", "va": "center"}
            axes.annotate(_number(value), (max(bar, 0.0), row), **place)
        axes.set_yticks(rows, [_short(name) for name in kept])
        axes.invert_yaxis()
        axes.grid(visible=False)
        axes.margins(x=0.14)
        axes.tick_params(axis="x", labelbottom=False)
        axes.spines["bottom"].set_visible(False)
        axes.axvline(0, color=_GRID, linewidth=1.0)
        axes.set_xlabel(xlabel)

    return _render(draw, 0.7 + 0.34 * len(kept), empty=not kept)


def lines(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    xlabel: str = "",
    ylabel: str = "",
    log_y: bool = False,
) -> str:
    """One line per name through its (x, y); points that are not finite are gaps, past 2000 points evenly thinned."""
    drawn = {name: _points(x, y) for name, (x, y) in series.items()}

    def draw(axes: Any) -> None:
        for i, (name, (x, y)) in enumerate(drawn.items()):
            marker = "o" if len(x) <= 12 else ""
            style = "-" if i < len(_SERIES) else "--"
            axes.plot(x, y, style, color=_SERIES[i % len(_SERIES)], label=_short(name), marker=marker, markersize=4)
        if log_y and all(value > 0 for _, y in drawn.values() for value in y if not math.isnan(value)):
            axes.set_yscale("log")
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        if len(drawn) > 1:
            axes.figure.legend(loc="outside upper left", ncols=min(len(drawn), 4))

    return _render(draw, 3.5, empty=not any(math.isfinite(value) for _, y in drawn.values() for value in y))


def parallel(axes: Sequence[str], rows: Sequence[Sequence[Any]], *, best_is_low: bool) -> str:
    """Parallel coordinates: a line per row through its value on each axis; the last axis ranks them, and the best line
    is drawn strongest. Numbers are spread by size (by factor where they span more than 30), other values by name; a
    line breaks where a value is None."""
    places = [_spread([row[at] for row in rows]) for at in range(len(axes))]
    order = sorted(range(len(rows)), key=lambda at: rows[at][-1], reverse=not best_is_low)

    def draw(axis: Any) -> None:
        for rank, at in reversed(list(enumerate(order))):
            heights = [math.nan if place[0][at] is None else place[0][at] for place in places]
            strength = 1.0 - 0.8 * rank / max(len(order) - 1, 1)
            axis.plot(
                range(len(axes)), heights, color=_SERIES[1 if rank == 0 else 0], alpha=strength, marker="o",
                markersize=4, linewidth=2.6 if rank == 0 else 1.4,
            )  # fmt: skip
        for at, (_, ticks) in enumerate(places):
            axis.axvline(at, color=_GRID, linewidth=1.0)
            for height, name in ticks:
                last = at == len(places) - 1
                axis.annotate(
                    name, (at, height), xytext=(-6 if last else 6, 0), textcoords="offset points", va="center",
                    ha="right" if last else "left",
                )  # fmt: skip
        axis.set_xticks(range(len(axes)), [_short(name.rpartition(".")[2] or name) for name in axes])
        axis.set_yticks([])
        axis.set_ylim(-0.08, 1.08)
        axis.grid(visible=False)
        axis.spines["bottom"].set_visible(False)

    return _render(draw, 3.8, empty=not rows or len(axes) < 2)


def _spread(values: Sequence[Any]) -> tuple[list[float | None], list[tuple[float, str]]]:
    """Heights between 0 and 1 of values on an axis, and its ticks."""
    there = [value for value in values if value is not None]
    if there and all(isinstance(value, int | float) and not isinstance(value, bool) for value in there):
        low, high = min(there), max(there)
        scale: Callable[[float], float] = math.log if low > 0 and high / low > 30 else float
        span = scale(high) - scale(low)
        heights = [None if each is None else (scale(each) - scale(low)) / span if span else 0.5 for each in values]
        return heights, [(0.0, _number(low)), (1.0, _number(high))] if span else [(0.5, _number(low))]
    names = sorted({str(value) for value in there})
    step = 1 / max(len(names) - 1, 1)
    where = {name: at * step if len(names) > 1 else 0.5 for at, name in enumerate(names)}
    return [None if each is None else where[str(each)] for each in values], [(y, _short(n)) for n, y in where.items()]


def waterfall(shares: Sequence[Share]) -> str:
    """Where the time went: the wall clock as one stacked bar, and below it each part where it stands in that bar."""
    wall = sum(share.seconds for share in shares)
    percents = apportion([share.seconds for share in shares], 100)

    def draw(axes: Any) -> None:
        begin = 0.0
        for row, (share, percent) in enumerate(zip(shares, percents, strict=True), start=1):
            colour = _SERIES[-1] if share.name == "other" else _SERIES[(row - 1) % (len(_SERIES) - 1)]
            axes.barh([0, row], [share.seconds] * 2, left=begin, height=[0.72, 0.5], color=colour)
            begin += share.seconds
            # The label stands on the side of the bar that has more room.
            right = begin - share.seconds / 2 < 0.6 * wall
            axes.annotate(
                f"{duration(share.seconds)} · {percent} %",
                (begin if right else begin - share.seconds, row),
                xytext=(6 if right else -6, 0),
                textcoords="offset points",
                va="center",
                ha="left" if right else "right",
            )
        names = ["wall clock", *(_short(share.name) for share in shares)]
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.set_xlim(0, wall)
        axes.grid(visible=True, axis="x")
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(f"seconds, {duration(wall)} in all")

    return _render(draw, 1.1 + 0.36 * (len(shares) + 1), empty=not wall)


def _render(draw: Callable[[Any], None], height: float, *, empty: bool) -> str:
    import matplotlib
    from matplotlib.figure import Figure

    stream = io.StringIO()
    with matplotlib.rc_context(), warnings.catch_warnings():
        # The page's fonts show what matplotlib's own font lacks; only its measure of such a label is a guess.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        matplotlib.rcdefaults()  # whatever a user's matplotlibrc says
        matplotlib.rcParams.update(_STYLE)
        figure = Figure(figsize=(_WIDTH, 1.2 if empty else height))
        axes = figure.add_subplot()
        if empty:
            axes.set_axis_off()
            axes.text(0.5, 0.5, "No data to show", ha="center", va="center", transform=axes.transAxes)
        else:
            draw(axes)
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(stream, format="svg", transparent=True, metadata=nothing)
    return _for_a_page(stream.getvalue())


def _for_a_page(svg: str) -> str:
    """A drawing to stand inside HTML: no prologue, no size of its own, no style sheet, CSS variables for colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"', r'\1 style="stroke-linejoin: round"', svg, count=1)
    # Inside a page its `*` rule would hold for everything.
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>\s*", "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r"font-family: [^;]*;", "font-family: var(--plot-font, system-ui, sans-serif);", svg)
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font: \1 var(--plot-font, system-ui, sans-serif)", svg)
    return re.sub("|".join(_VARIABLES), lambda match: _VARIABLES[match.group()], svg)


def _points(x: Sequence[float], y: Sequence[float]) -> tuple[list[float], list[float]]:
    pairs = list(zip(x, y, strict=True))
    step = math.ceil(len(pairs) / _MOST_POINTS) or 1
    thinned = pairs[::step] + (pairs[-1:] if (len(pairs) - 1) % step else [])
    finite = [(float(a), float(b) if math.isfinite(b) else math.nan) for a, b in thinned if math.isfinite(a)]
    return [a for a, _ in finite], [b for _, b in finite]


def _whole_ticks(axis: Any) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axis.set_major_locator(MaxNLocator(nbins=10, steps=[1, 2, 5, 10], integer=True))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def _short(name: str) -> str:
    name = "".join(letter if letter.isprintable() else " " for letter in name)
    return name if len(name) <= _MOST_LETTERS else f"{name[: _MOST_LETTERS - 1]}…"
