"""Training workers on Ray Train: started, watched from the driver, and what they had to say.

A worker that dies takes the others down; Ray Train starts all of them anew, and they go on from the last checkpoint.
What the user has to mend comes back as a value, since starting anew would not help. The driver draws the progress from
the run's metrics and ends the wait when none come any more.

Left out: what a worker does (`engine.finetune.work`, `engine.rlhf.work`). Called by the jobs' engine halves.
"""

import json
import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from upath import UPath

from engine import errors
from engine.errors import DeadlineExceeded, HeadraceError
from engine.finetune.checkpoints import Checkpoints
from engine.finetune.options import ParallelOptions
from engine.observe import Progress, read_metrics
from engine.storage import replace

_NEWEST = 1 << 16
"""Bytes of the metrics that are looked at while training: hundreds of steps, and the last measurement among them."""
_POLL_SECONDS = 0.5
_FAILED = "failed.json"
"""In the run directory: what one of several workers had to say."""
_LAST_WORDS_SECONDS = 10.0
"""What fails everywhere at once ends by itself within this."""


def run_workers(
    work: Callable[[Any], None],
    given: Any,
    *,
    name: str,
    home: UPath,
    parallel: ParallelOptions,
    restarts: int,
    stall_seconds: float,
    steps: int | None = None,
    shown: Sequence[str] = ("loss", "held_out/loss"),
) -> None:
    """Call `work(given)` in every worker, with Ray up, until it returns. For the progress bar: there are
    `steps` at most, and `shown` are metrics.

    Raises `HeadraceError`s, also what a worker raised.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    # Otherwise each worker works in a directory of Ray Train's, where relative paths mean something else.
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory(prefix="headrace-train-", ignore_cleanup_errors=True) as scratch:
        trainer = _without_cleaner(TorchTrainer)(
            _work,
            train_loop_config={"work": work, "given": given, "home": str(home)},
            scaling_config=_scaling(ScalingConfig, parallel),
            torch_config=TorchConfig(backend="nccl" if parallel.gpus else "gloo", timeout_s=int(max(stall_seconds, 1))),
            run_config=RunConfig(name=name, storage_path=scratch, failure_config=FailureConfig(max_failures=restarts)),
        )
        error = _watched(trainer, home, stall_seconds, parallel, restarts, steps, shown)
    if error:
        raise _named(error)


def _without_cleaner(kind: Any) -> Any:
    """A trainer that starts no actor to remove its placement group after its controller's death: that actor outlives
    the driver, and for ever where it finds no dashboard, or several Rays. Ray removes the group with the driver."""

    class Trainer(kind):  # type: ignore[misc]
        def _create_default_callbacks(self) -> list[Any]:
            callbacks = super()._create_default_callbacks()
            return [each for each in callbacks if type(each).__name__ != "PlacementGroupCleanerCallback"]

    return Trainer


def _scaling(kind: Any, parallel: ParallelOptions) -> Any:
    resources = {"CPU": parallel.cpus} | ({"GPU": parallel.gpus} if parallel.gpus else {})
    workers = parallel.workers if parallel.least == parallel.workers else (parallel.least, parallel.workers)
    return kind(num_workers=workers, use_gpu=parallel.gpus > 0, resources_per_worker=resources)


def _watched(
    trainer: Any,
    home: UPath,
    stall_seconds: float,
    parallel: ParallelOptions,
    restarts: int,
    steps: int | None,
    shown: Sequence[str],
) -> dict[str, str] | None:
    """Wait for the training and show how far it is; what a worker had to say if it could not go on."""
    result: dict[str, Any] = {}

    def fit() -> None:
        try:
            result["value"] = trainer.fit().return_value
        # Whatever it is, it is looked at in the main thread.
        except BaseException as error:  # noqa: BLE001
            result["error"] = error

    # Apart from the main thread, so that Ctrl-C means what it means everywhere, and a wait can end.
    thread = threading.Thread(target=fit, name="ray-train", daemon=True)
    if (home / _FAILED).exists():
        (home / _FAILED).unlink()
    thread.start()
    state = Checkpoints(home).latest()
    done = state.steps if state else 0  # steps after it are done again
    with Progress("train", steps, "steps", done=done) as progress:
        moved, newest = time.monotonic(), _last(read_metrics(home, newest=_NEWEST))
        while thread.is_alive():
            thread.join(_POLL_SECONDS)
            lines = read_metrics(home, newest=_NEWEST)
            now = _last(lines)
            if now != newest:
                newest, moved = now, time.monotonic()
                if now.get("step", 0) > done:
                    progress.advance(now["step"] - done, **_shown(lines, shown))
                    done = now["step"]
            if parallel.workers > 1 and (home / _FAILED).exists():
                # The others wait for it in an exchange that never comes; leaving Ray ends them.
                thread.join(_LAST_WORDS_SECONDS)
                if thread.is_alive():
                    return _failed(home)
            if time.monotonic() - moved > stall_seconds:
                raise DeadlineExceeded(
                    f"Training workers have not finished a step for {stall_seconds:g} s after step {done:,}.",
                    "Look at their logs, or raise stall_seconds if a step may take that long; rerunning resumes.",
                )
        progress.advance(max(_steps(home) - done, 0), **_shown(read_metrics(home, newest=_NEWEST), shown))
    if "error" in result:
        return _died(result["error"], home, restarts)
    value: dict[str, str] | None = result["value"]
    return value


def _died(error: BaseException, home: UPath, restarts: int) -> dict[str, str]:
    """What is told of workers that died more often than is allowed; raises what is none of that."""
    if not isinstance(error, Exception):
        raise error
    state = Checkpoints(home).latest()
    at = f"the checkpoint of step {state.steps:,} is kept" if state else "no checkpoint was due yet"
    failures = getattr(error, "worker_failures", None) or {0: error}
    rank, first = min(failures.items())
    # Ray puts the worker's traceback before what was wrong.
    why = f"worker {rank}: " + str(first).strip().rpartition("\n")[2][:300].rstrip(".")
    return {
        "kind": "HeadraceError",
        "problem": f"Training workers died {restarts + 1} times, and {at} ({why}).",
        "remedy": "If memory ran out, lower parallel.tokens_per_device; the same command goes on from there.",
    }


def _work(config: dict[str, Any]) -> dict[str, str] | None:
    """A worker, from start to end; what the user has to mend, if there is such a thing."""
    import torch

    try:
        config["work"](config["given"])
    except HeadraceError as error:
        said = {"kind": type(error).__name__, "problem": error.problem, "remedy": error.remedy}
        if torch.distributed.get_world_size() > 1:
            # Ray Train hands on what the first worker returns once all have; some may be waiting for this one.
            replace(UPath(config["home"]) / _FAILED, json.dumps(said).encode())
        return said
    return None


def _failed(home: UPath) -> dict[str, str]:
    said: dict[str, str] = json.loads((home / _FAILED).read_bytes())
    return said


def _named(said: dict[str, str]) -> HeadraceError:
    kind: type[HeadraceError] = getattr(errors, said["kind"])
    return kind(said["problem"], said["remedy"])


def _steps(home: UPath) -> int:
    return int(_last(read_metrics(home, newest=_NEWEST)).get("step", 0))


def _last(lines: list[dict[str, Any]]) -> dict[str, Any]:
    return lines[-1] if lines else {}


def _shown(lines: list[dict[str, Any]], names: Sequence[str]) -> dict[str, str]:
    """The newest numbers, for the progress bar."""
    shown = {}
    for name in names:
        value = next((line[name] for line in reversed(lines) if line.get(name) is not None), None)
        if value is not None:
            shown[name.replace("_", "-").replace("/", " ")] = f"{value:.4f}"
    return shown
