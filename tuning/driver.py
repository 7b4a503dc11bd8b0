"""The process of a trial: the job as anybody would run it, with a connection to Ray of its own.

What a driver starts belongs to its job of Ray, and ends with it however it ends: training workers, engines, rewards,
and the placement groups that hold their CPUs. So each trial has a driver of its own, which ends with the trial: it
reads from a pipe that its trial's actor holds, and goes when nobody holds it any more.

    python -m tuning.driver < one line of JSON

Left out: what is told of a trial (`tuning.trial`). Called by it.
"""

import json
import os
import pkgutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engine.config import Recipe, build_recipe
from engine.errors import HeadraceError, RunBusy
from engine.runs import Invocation

_BUSY_SECONDS = 90.0
"""A claim of a driver that died on another machine is believed for a minute."""


@contextmanager
def running(
    job: str, load_job: Callable[[str], Any], recipe: Recipe, *, address: str, command: str, outcome: Path
) -> Iterator["subprocess.Popen[bytes]"]:
    """A process that carries out a job on the Ray at `address` and leaves at `outcome` why it could not, if so; it is
    killed at the end of the `with` block. `load_job` has to be found by its name."""
    task = {
        "job": job,
        "load_job": f"{load_job.__module__}:{load_job.__qualname__}",
        "recipe": recipe.model_dump(mode="json"),
        "address": address,
        "command": command,
        "outcome": str(outcome),
    }
    import ray

    kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_") or "_AUTH_" in key}
    # A search that was submitted has files and variables that its trials need, too; so a submitted driver is told.
    given = json.loads(ray.get_runtime_context().get_runtime_env_string() or "{}")
    kept |= {"RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps({"runtime_env": given})} if given else {}
    process = subprocess.Popen(
        [sys.executable, "-m", "tuning.driver"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env={**kept, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        start_new_session=True,
    )
    assert process.stdin
    try:
        process.stdin.write(json.dumps(task).encode() + b"\n")
        process.stdin.flush()
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdin.close()


def main() -> None:
    """Carry out what the first line on stdin says."""
    task = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_the_trial, daemon=True).start()
    outcome = Path(task["outcome"])
    try:
        _run(task)
    except HeadraceError as error:
        why = str(error)
    # Whatever it is, the other trials go on; why this one did not is told.
    except Exception as error:  # noqa: BLE001
        cause = getattr(error, "cause", None) or error
        first = (str(cause).strip() or "no reason given").splitlines()[0][:300]
        why = f"{type(cause).__name__}: {first}"
    else:
        why = ""
    outcome.write_text(json.dumps(why))


def _end_with_the_trial() -> None:
    sys.stdin.buffer.read(1)
    os.killpg(0, signal.SIGKILL)


def _run(task: dict[str, Any]) -> None:
    load_job = pkgutil.resolve_name(task["load_job"])
    job, call, since = load_job(task["job"]), Invocation(task["command"], task["address"]), time.monotonic()
    recipe = build_recipe(job.RECIPE, task["recipe"])
    while True:
        try:
            job.run(recipe, call)
            return
        except RunBusy:  # the driver before this one is about to end
            if time.monotonic() - since > _BUSY_SECONDS:
                raise
            time.sleep(1.0)


if __name__ == "__main__":
    main()
