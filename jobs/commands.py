"""The commands that are no jobs: `doctor`, and `submit`, `status`, `logs` and `stop` of submissions.

Left out: what they do (`engine.doctor`, `jobs.submit`). Called by `jobs.cli`.
"""

import sys

import click

from jobs.registry import known_job
from jobs.show import show_doctor, show_state

ADDRESS = click.option("--address", metavar="ADDRESS", help="Ray cluster to run on; without it, one of this process.")
_CLUSTER = click.option("--address", required=True, metavar="URL", help="Jobs API of the cluster: http://HOST:8265.")
_TRUST = click.option("--allow-unauthenticated", is_flag=True, help="Accept a remote cluster without a token.")


@click.command()
@ADDRESS
@click.option("--runs", default="runs", show_default=True, help="Directory (or URI) for run directories.")
def doctor(address: str | None, runs: str) -> None:
    """Check versions, disk, memory, Ray and storage."""
    from engine.doctor import examine

    sys.exit(show_doctor(examine(address, runs)))


@click.command()
@click.argument("job", metavar="JOB")
@click.argument("recipe", metavar="RECIPE.yaml")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@_CLUSTER
@click.option("--no-follow", is_flag=True, help="Hand it in and return; do not stream its log.")
@click.option("--again", is_flag=True, help="Start it once more though it has succeeded.")
@_TRUST
def submit(
    job: str,
    recipe: str,
    overrides: tuple[str, ...],
    address: str,
    no_follow: bool,
    again: bool,
    allow_unauthenticated: bool,
) -> None:
    """Run a job on a cluster through the Ray Jobs API."""
    from jobs import submit as jobs_api

    known_job(job)
    trust = {"allow_unauthenticated": allow_unauthenticated}
    state = jobs_api.submit(job, recipe, overrides, address, follow=not no_follow, again=again, **trust)
    sys.exit(show_state(state))


@click.command()
@click.argument("submission")
@_CLUSTER
@_TRUST
def status(submission: str, address: str, allow_unauthenticated: bool) -> None:
    """Show how a submission stands."""
    from jobs import submit as jobs_api

    sys.exit(show_state(jobs_api.status(address, submission, allow_unauthenticated=allow_unauthenticated)))


@click.command()
@click.argument("submission")
@_CLUSTER
@click.option("--follow", is_flag=True, help="Go on until it is done.")
@_TRUST
def logs(submission: str, address: str, follow: bool, allow_unauthenticated: bool) -> None:
    """Show what a submission has printed."""
    from jobs import submit as jobs_api

    trust = {"allow_unauthenticated": allow_unauthenticated}
    sys.exit(show_state(jobs_api.logs(address, submission, follow=follow, **trust)))


@click.command()
@click.argument("submission")
@_CLUSTER
@_TRUST
def stop(submission: str, address: str, allow_unauthenticated: bool) -> None:
    """Stop a submission; its state stays resumable."""
    from jobs import submit as jobs_api

    sys.exit(show_state(jobs_api.stop(address, submission, allow_unauthenticated=allow_unauthenticated)))
