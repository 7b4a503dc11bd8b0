"""The command line: `headrace JOB RECIPE.yaml [key=value ...]`, `headrace submit|status|logs|stop`, `headrace models`,
`headrace doctor`.

Parses, loads the recipe, calls the job and shows what came out. Imports of a job and of anything heavy wait until they
are needed, so that help is quick.

Left out: everything a job does. Called by the console script and by `python -m jobs.JOB`.
"""

import _thread
import os
import shlex
import signal
import sys
import threading
from typing import Any

import click

from engine.errors import HeadraceError
from jobs.bridge import bridge
from jobs.commands import ADDRESS, doctor, logs, status, stop, submit
from jobs.models import models
from jobs.registry import JOBS, known_job, load_job
from jobs.show import show_outcome, write_keys

_EXAMPLES = """\b
Examples:
  headrace pipeline jobs/recipes/pipeline_smoke.yaml          the whole road, on this machine
  headrace corpus jobs/recipes/corpus_smoke.yaml --dry-run    what would happen
  headrace lintseq jobs/recipes/lintseq_smoke.yaml seed=7 lintseq.paths=3
  headrace submit corpus jobs/recipes/corpus_smoke.yaml --address http://127.0.0.1:8265
"""


class _Jobs(click.Group):
    """The fixed commands, and one per job, made when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*JOBS, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        return _job_command(name) if name in JOBS else super().get_command(ctx, name)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if self.get_command(ctx, args[0]) is None:
            known_job(args[0], self.list_commands(ctx))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Jobs"):
            formatter.write_dl(list(JOBS.items()))
        others = [(name, command.get_short_help_str(90)) for name, command in sorted(self.commands.items())]
        with formatter.section("Commands"):
            formatter.write_dl(others)


class _JobCommand(click.Command):
    """A job's command; its help is what its module says, and ends with every key of its recipe."""

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        self.help = load_job(str(self.name)).__doc__.partition("\nLeft out:")[0].strip()
        super().format_help_text(ctx, formatter)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        write_keys(load_job(str(self.name)).RECIPE, formatter)


def _job_command(name: str) -> click.Command:
    @click.argument("recipe", metavar="RECIPE.yaml")
    @click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
    @click.option("--dry-run", is_flag=True, help="Show what would be done, with derived numbers; do nothing.")
    @click.option("--fresh", is_flag=True, help="Set an earlier run of this name aside and start over.")
    @ADDRESS
    def command(recipe: str, overrides: tuple[str, ...], dry_run: bool, fresh: bool, address: str | None) -> None:
        from engine.config import load_recipe
        from engine.runs import Invocation

        job = load_job(name)
        loaded = load_recipe(job.RECIPE, recipe, overrides)
        place = ["--address", address] if address else []
        call = Invocation(shlex.join(["headrace", name, recipe, *overrides, *place]), address, dry_run, fresh)
        show_outcome(job.run(loaded, call), loaded if dry_run else None)

    return _JobCommand(name, callback=command, params=command.__click_params__[::-1], short_help=JOBS[name])  # type: ignore[attr-defined]


@click.group(
    cls=_Jobs, epilog=_EXAMPLES, context_settings={"max_content_width": 110, "help_option_names": ["-h", "--help"]}
)
@click.version_option(package_name="headrace", prog_name="headrace")
def cli() -> None:
    """Headrace: a Ray-distributed engine for post-training language models.

    A job reads published artifacts (or plain files), publishes one, and can be killed and repeated at any moment. Every
    recipe key can be set on the command line as key=value.
    """


for _command in (bridge, doctor, models, submit, status, logs, stop):
    cli.add_command(_command)


def _interrupt_again(lost: Any) -> None:
    """Deliver an interrupt once more that came while an object was being disposed of, where Python drops it."""
    if isinstance(lost.exc_value, KeyboardInterrupt):
        threading.Timer(0.1, _thread.interrupt_main).start()
    else:
        sys.__unraisablehook__(lost)


def main(job: str | None = None) -> None:
    """Run the command line; `job` stands in for the first word when a job's module is run by itself.

    Exit codes: 0 done, 2 a `HeadraceError` or a wrong call (one sentence on stderr), 130 interrupted, 1 a bug.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = _interrupt_again
    arguments = sys.argv[1:] if job is None else [job, *sys.argv[1:]]
    try:
        code = cli.main(arguments, prog_name="headrace", standalone_mode=False) or 0
    except HeadraceError as error:
        click.secho(f"Error: {error}", fg="red", err=True)
        code = error.exit_code
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.secho("Interrupted. What is committed is kept; the same command resumes.", fg="yellow", err=True)
        code = 130
    except Exception as error:
        if os.environ.get("HEADRACE_DEBUG"):
            raise
        # Ray wraps what a worker raised, and prints the worker's traceback where a message is due.
        cause = getattr(error, "cause", None) or error
        reason = (str(cause).strip() or "no reason given").splitlines()[0]
        click.secho(
            f"Internal error, please report it: {type(cause).__name__}: {reason}\n"
            "Set HEADRACE_DEBUG=1 and repeat the command to see where it comes from.",
            fg="red",
            err=True,
        )
        code = 1
    if code == 130:  # a second Ctrl-C on the way out has nothing left to say
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(code)
