"""How outcomes, checks, models and recipe keys look on a terminal.

Left out: parsing (`jobs.cli`). Called by `jobs.cli` and the commands beside it.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from engine.config import Recipe


_WIDE = 200
"""Characters in a line that goes to a file or another program."""


def show_outcome(outcome: Any, recipe: "Recipe | None") -> None:
    """Print what a job published, where the time went and the next command; with `recipe`, a dry run's forecast."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if recipe is not None:
        from engine.config import write_yaml

        console.print("[bold]Resolved recipe[/bold]")
        console.print(write_yaml(recipe.model_dump(mode="json")), markup=False, highlight=False)
        table = Table(
            "", "", title=f"headrace {outcome.job}: what would happen", title_justify="left", show_header=False
        )
        for name, value in outcome.facts.items():
            table.add_row(name, value)
        console.print(table)
        return
    from engine.observe import closing

    if outcome.reused:
        console.print(f"{outcome.output} is published already and still matches; nothing to do.", soft_wrap=True)
    summary = closing(
        str(outcome.output) if outcome.published else "",
        outcome.facts,
        outcome.shares,
        outcome.next_command,
        outcome.hints,
    )
    console.print(summary, crop=False)
    if outcome.report:
        console.print(f"Report: {outcome.report}", soft_wrap=True)


def show_state(state: Any) -> int:
    """Print how a submission stands; returns the exit code: 1 if it failed."""
    click.echo(f"{state.id}: {state.status.lower()}" + (f"; {state.message}" if state.message else ""))
    return int(state.status == "FAILED")


def show_doctor(checks: Sequence[Any]) -> int:
    """Print the checks as a table; returns the exit code: 1 if one failed."""
    from rich.console import Console
    from rich.table import Table

    marks = {True: "[green]ok[/green]", False: "[red]FAILED[/red]", None: "[yellow]note[/yellow]"}
    table = Table("check", "", "detail", "remedy", title="headrace doctor", title_justify="left")
    for check in checks:
        table.add_row(check.name, marks[check.ok], check.detail, check.remedy or "")
    Console().print(table)
    return int(any(check.ok is False for check in checks))


def show_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows under their columns, the first two of text and then numbers, which are never cut."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left")
    for at, name in enumerate(columns):
        table.add_column(name, overflow="fold", no_wrap=at > 1, justify="right" if at > 1 else "left")
    for row in rows:
        table.add_row(*map(Text, row))
    _paper().print(table if table.row_count else f"{title}: nothing.", markup=False)


def show_facts(heading: str, facts: Mapping[str, str]) -> None:
    """Print a line that can be copied and what there is to know of it, a fact per line."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(Text(f"  {name}", style="dim"), Text(value))
    click.echo(heading)
    _paper().print(table)


def _paper() -> Any:
    """Where tables are drawn: as wide as the terminal, and wide where there is none."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=_WIDE)


def in_short(number: int) -> str:
    """A number of at most four characters and a unit: 134.5 M."""
    for size, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number} "


def write_keys(model: "type[Recipe]", formatter: click.HelpFormatter) -> None:
    """Every key of a recipe class, for a job's help."""
    from engine.config import describe

    with formatter.section("Recipe keys (YAML, or KEY=VALUE after the recipe)"):
        rows = []
        for key in describe(model):
            default = "required" if key.default == "required" else f"default {key.default}"
            rows.append((key.name, f"{key.help} [{key.type}; {default}]"))
        formatter.write_dl(rows, col_max=28)
