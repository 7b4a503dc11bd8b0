"""What a training job asks before it starts again, and says when it is stopped.

Left out: checkpoints themselves (`engine.finetune.checkpoints`) and the ledger. Called by the jobs that train.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from upath import UPath

from engine import artifacts
from engine.artifacts import Model
from engine.corpus.ledger import Identity
from engine.corpus.publication import check_published
from engine.errors import ArtifactError, Interrupted, RunBusy
from engine.finetune.checkpoints import Checkpoints

T = TypeVar("T")
_LOOK_SECONDS = 0.5


def after_others(work: Callable[[], T]) -> T:
    """Do what another run may be doing at the moment, once that one has done it or is gone: a claim dies with its
    process, so nobody waits for the dead."""
    while True:
        try:
            return work()
        except RunBusy:
            time.sleep(_LOOK_SECONDS)


def published_before(output: UPath, identity: Identity, changed: Callable[[], str]) -> Model | None:
    """The model at the output if it is what this run would make. Raises as `check_published`."""
    if not is_published(output):
        return None
    model = artifacts.read_model(output)
    check_published(output, model.manifest, identity, changed)
    return model


def is_published(output: UPath) -> bool:
    """Whether a whole model is there."""
    try:
        return artifacts.is_model(output)
    except ArtifactError:  # an upload that was cut off: publishing takes it over
        return False


@contextmanager
def interruptible(home: UPath, command: str) -> Iterator[None]:
    """Ctrl-C within says what is kept, and the command that goes on from it."""
    try:
        yield
    except KeyboardInterrupt:
        state = Checkpoints(home).latest()
        kept = f"the checkpoint of step {state.steps:,} is kept" if state else "no checkpoint was due yet"
        raise Interrupted(f"Interrupted; {kept}.", f"Resume with: {command}") from None
