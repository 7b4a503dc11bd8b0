"""What Ray's C++ layer writes to stderr by itself: lines that tell a user nothing are left out, the rest passes.

Two kinds are. Ray Data hands its actors their constructor through the object store, and Ray then warns that such an
actor could not be restarted once that object is lost; the driver keeps it for as long as the stream runs. And what Ray
itself marks as information is information, though it comes as an error. Neither a switch nor Python's logging reaches
these lines, so they pass through `grep`, a process of its own: what Ray says before it aborts this one is still shown.

Left out: Ray's Python loggers (`engine.corpus.stream`, `engine.cluster.connection`). Called by
`engine.cluster.connection`.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

_NOISE = ("has constructor arguments in the object store and max_restarts > 0", " :info_message: ")
_LAST_WORDS = 5.0
"""Seconds for the last lines to pass; longer only if some other process holds on to our stderr."""


@contextmanager
def without_noise() -> Iterator[None]:
    """Filter file descriptor 2 while the block runs; `sys.stderr`, if it is that, goes on to the terminal by itself."""
    command = ["grep", "--line-buffered", "-v", "-F", *(word for noise in _NOISE for word in ("-e", noise))]
    with ExitStack() as stack:
        try:
            terminal = stack.enter_context(os.fdopen(os.dup(2), "wb"))
            # A session of its own: Ctrl-C in the terminal must not end it before us.
            grep = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=terminal, start_new_session=True)
        except OSError:  # stderr is closed, or this system has no grep
            yield
            return
        assert grep.stdin is not None
        before = sys.stderr
        if _descriptor(before) == 2:
            before.flush()
            sys.stderr = stack.enter_context(
                open(os.dup(terminal.fileno()), "w", buffering=1, encoding=before.encoding, errors=before.errors)
            )
        os.dup2(grep.stdin.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(terminal.fileno(), 2)
            sys.stderr = before
            grep.stdin.close()
            with suppress(subprocess.TimeoutExpired):
                grep.wait(_LAST_WORDS)


def _descriptor(stream: Any) -> int | None:
    try:
        return int(stream.fileno())
    except (AttributeError, OSError, ValueError):  # none, or a test's
        return None
