"""This process as a Ray driver, from `ray.init` to `ray.shutdown`, both run to their end whatever signal comes.

Ray interrupted while it connects crashes the process when it exits, and it takes SIGTERM for itself when it starts;
what a signal means is the command line's to say.

Left out: which Ray (`engine.cluster.private`, `engine.cluster.connection`: the callers).
"""

import logging
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from engine.cluster.access import first_line
from engine.errors import ClusterError


@contextmanager
def driver(refused: Callable[[str], ClusterError], **settings: Any) -> Iterator[None]:
    """Be a driver of the Ray that `ray.init(**settings)` starts or joins, for the length of a `with` block.

    Raises what `refused` makes of Ray's own words if that fails.
    """
    import ray

    try:
        with _uninterrupted():
            try:
                ray.init(log_to_driver=False, logging_level=logging.WARNING, **settings)
            except Exception as error:
                raise refused(first_line(error)) from error
        yield
    except BaseException as error:
        # What Ray left in the frames of a failed block ends itself when it is forgotten. Forgotten after the shutdown,
        # an executor of Ray Data starts another Ray to end itself in.
        traceback.clear_frames(error.__traceback__)
        raise
    finally:
        with _uninterrupted():
            ray.shutdown()


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Run the block to its end, put the signal handlers back, then raise `KeyboardInterrupt` if a signal came."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in handlers:
        signal.signal(number, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            if handler is not None:  # None: it was set outside Python
                signal.signal(number, handler)
        if came:
            raise KeyboardInterrupt
