"""What a job prints at its end: what it published, where the time went, the bottleneck and the next command.

Left out: printing it (the command line does). Called by every job.
"""

from collections.abc import Mapping, Sequence

from rich.bar import Bar
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from engine.observe.clock import Share, apportion, bottleneck, duration

_BAR_WIDTH = 32
_COLOURS = ("cyan", "blue", "magenta", "yellow", "green", "red")


def closing(
    published: str,
    facts: Mapping[str, object],
    shares: Sequence[Share],
    next_command: str,
    hints: Mapping[str, str] | None = None,
) -> RenderableType:
    """The end of a job as a rich renderable; `hints` as for `bottleneck`, an empty `published` or
    `next_command` leaves its line out.

    Texts are shown as they are: square brackets in them are no markup.
    """
    parts: list[RenderableType] = [_line("Published", published, "bold green")] if published else []
    if facts:
        parts.append(Padding(_facts(facts), (1, 0, 0, 2)))
    if shares:
        parts += [Padding(_waterfall(shares), (1, 0, 0, 2)), Text(""), Text(bottleneck(shares, hints))]
    if next_command:
        parts.append(_line("Next", next_command, "bold cyan"))
    return Group(*parts)


def _line(label: str, text: str, style: str) -> Text:
    # Neither cut nor wrapped: it is there to be copied.
    return Text.assemble((f"{label}: ", "bold"), (text, style), overflow="ignore", no_wrap=True)


def _facts(facts: Mapping[str, object]) -> Table:
    table = Table.grid(padding=(0, 2))
    for label, value in facts.items():
        shown = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
        table.add_row(Text(label, style="dim"), Text(shown))
    return table


def _waterfall(shares: Sequence[Share]) -> Table:
    """One row per share, each bar beginning where the one before ended; the rounded percentages add up to 100."""
    wall = sum(share.seconds for share in shares)
    percents = apportion([share.seconds for share in shares], 100 if wall else 0)
    table = Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column(justify="right")
    table.add_column(justify="right")
    table.add_column(width=_BAR_WIDTH)
    begin = 0.0
    for i, (share, percent) in enumerate(zip(shares, percents, strict=True)):
        bar = Bar(wall or 1.0, begin, begin + share.seconds, width=_BAR_WIDTH, color=_COLOURS[i % len(_COLOURS)])
        table.add_row(Text(share.name), Text(duration(share.seconds)), Text(f"{percent} %"), bar)
        begin += share.seconds
    table.add_row(Text("wall clock", style="dim"), Text(duration(wall)), Text("100 %" if wall else ""), "")
    return table
