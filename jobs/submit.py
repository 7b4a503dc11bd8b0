"""Hand a job to a running cluster through the Ray Jobs API, and look after it there.

    headrace submit JOB RECIPE.yaml [key=value ...] --address http://127.0.0.1:8265
    headrace status | logs | stop SUBMISSION --address ...

The recipe is resolved here, so that mistakes show at once; the cluster runs `python -m jobs.JOB recipe.yaml` in a
directory that holds the code and that recipe. Handing in the same thing again finds the first submission.

Left out: starting clusters (`ray up cluster.yaml`, KubeRay), and everything about the job itself.
Called by `jobs.cli`.
"""

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from engine import submission
from engine.cluster import is_loopback
from engine.config import load_recipe, read_yaml, write_yaml
from engine.errors import RecipeError
from engine.storage import scheme_of
from engine.submission import State
from jobs.registry import load_job


def _show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def submit(
    job: str,
    recipe_path: str | Path,
    overrides: Sequence[str],
    address: str,
    *,
    follow: bool = True,
    again: bool = False,
    allow_unauthenticated: bool = False,
    write: Callable[[str], object] = _show,
) -> State:
    """Submit a job and, with `follow`, write its log until it is done; its state.

    The same job, recipe and code is not started twice while it runs or once it has succeeded (`again` does start it);
    after a failure a new attempt begins. Raises `RecipeError` and `ClusterError`.
    """
    recipe = load_recipe(load_job(job).RECIPE, recipe_path, overrides)
    resolved = recipe.model_dump(mode="json") | {"runs": lasting(recipe.runs, address)}
    if job == "tune" and isinstance(resolved["recipe"], str):
        resolved["recipe"] = read_yaml(resolved["recipe"])  # the cluster has no such file
    package = submission.bundle(write_yaml(resolved))
    client = submission.connect(address, allow_unauthenticated=allow_unauthenticated)
    entrypoint = f"python -m {load_job(job).__name__} {submission.RECIPE}"
    state, started = submission.hand_in(client, job, package, entrypoint, again=again)
    if not started:
        write(f"{state.id} is there already: {state.status.lower()}.\n")
    if follow and not (state.done and not started):
        state = submission.follow(client, state.id, write)
    return state


def status(address: str, submission_id: str, *, allow_unauthenticated: bool = False) -> State:
    """The state of a submission. Raises `ClusterError`."""
    return submission.look(submission.connect(address, allow_unauthenticated=allow_unauthenticated), submission_id)


def stop(address: str, submission_id: str, *, allow_unauthenticated: bool = False) -> State:
    """Stop a submission (SIGTERM, half a minute to leave a resumable state, SIGKILL); its state then."""
    return submission.halt(submission.connect(address, allow_unauthenticated=allow_unauthenticated), submission_id)


def logs(
    address: str,
    submission_id: str,
    *,
    follow: bool = False,
    allow_unauthenticated: bool = False,
    write: Callable[[str], object] = _show,
) -> State:
    """Write what a submission has printed, and with `follow` what it goes on to print; its state."""
    client = submission.connect(address, allow_unauthenticated=allow_unauthenticated)
    if follow:
        return submission.follow(client, submission_id, write)
    write(submission.read_logs(client, submission_id))
    return submission.look(client, submission_id)


def lasting(runs: str, address: str) -> str:
    """Where a submitted job keeps its runs: not relative, since its working directory vanishes with it.

    On this machine a relative directory means what it means here. Raises `RecipeError` for one of another machine.
    """
    if scheme_of(runs) != "file" or re.match(r"^(file:)?/", runs):
        return runs
    host = urlsplit(address if "://" in address else f"http://{address}").hostname or ""
    if not is_loopback(host):
        raise RecipeError(
            f"`runs` is {runs!r}, a directory in the cluster's scratch space that vanishes with the job.",
            "Set it to a bucket or a shared directory: runs=s3://BUCKET/runs.",
        )
    return str(Path(runs).expanduser().resolve())
