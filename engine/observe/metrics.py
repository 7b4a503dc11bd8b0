"""A run's numbers over its steps: `metrics.jsonl`, one JSON object per line, and TensorBoard events beside it.

A line cut short by a kill is passed over when reading and cut away when the run resumes, which then continues the
file. Numbers that are not finite are written as null: JSON knows no NaN.

Left out: what to measure, and removing the steps after a checkpoint that a resume repeats (they appear twice, the
later line holds). TensorBoard events are written on a local disk only. Called by `jobs` and by training loops.
"""

import json
import math
import os
import sys
import time
import uuid
from types import TracebackType
from typing import Any

from upath import UPath

from engine.storage import is_local, make_directory, replace, storage_errors

_FILE = "metrics.jsonl"
# An object store cannot append: the whole object is put again, so not at every step.
_REMOTE_SECONDS = 30.0


class MetricsWriter:
    """Appends to a run's metrics, as a context manager; one writer per run directory.

    On a local disk each line is in the file when `log` returns; on an object store after at most 30 s of steps and at
    the end. Raises `StorageError` when the directory cannot be written.
    """

    def __init__(self, run_dir: UPath) -> None:
        self._path = run_dir / _FILE
        self._local = is_local(run_dir)
        self._board_dir = run_dir / "tensorboard" if self._local else None
        self._board: _Board | None = None
        self._lines = b""  # what the file held; for an object store all it holds
        self._put_at = time.monotonic()

    def __enter__(self) -> "MetricsWriter":
        make_directory(self._path.parent)
        with storage_errors(self._path):
            text = _read(self._path)
            self._lines = _whole_lines(text)
            if self._local:
                if self._lines != text:
                    replace(self._path, self._lines)
                self._file = open(str(self._path), "ab")  # closed by __exit__
        return self

    def log(self, step: int, **metrics: float) -> None:
        """Append one line: the step and its metrics, all numbers; names with a slash: `**{"loss/train": 1.0}`."""
        values = {name: value if isinstance(value, int) else float(value) for name, value in metrics.items()}
        shown = {name: value if math.isfinite(value) else None for name, value in values.items()}
        line = json.dumps({"step": int(step), **shown}, allow_nan=False).encode() + b"\n"
        with storage_errors(self._path):
            if self._local:
                self._file.write(line)
                self._file.flush()
                self._log_to_board(step, values)
            else:
                self._lines += line
                if time.monotonic() - self._put_at >= _REMOTE_SECONDS:
                    self._put()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with storage_errors(self._path):
            if self._board is not None:
                self._board.close()
            if self._local:
                self._file.close()
            elif self._lines:
                self._put()

    def _put(self) -> None:
        replace(self._path, self._lines)
        self._put_at = time.monotonic()

    def _log_to_board(self, step: int, values: dict[str, float]) -> None:
        if self._board is None:
            self._board = _Board(str(self._board_dir))
        self._board.write(step, values)


def read_metrics(run_dir: UPath, *, newest: int | None = None) -> list[dict[str, Any]]:
    """Every whole line of a run's metrics, in order, or those in its `newest` bytes; none where there is no file."""
    lines = _read(run_dir / _FILE, newest).splitlines()
    return [entry for entry in map(_entry, lines) if entry is not None]


def _read(path: UPath, newest: int | None = None) -> bytes:
    try:
        if newest is None:
            return bytes(path.read_bytes())
        with path.open("rb") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - newest, 0))
            return bytes(file.read())
    except FileNotFoundError:
        return b""


def _entry(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None


def _whole_lines(text: bytes) -> bytes:
    """The text without the broken lines at its end, closed by a line break."""
    lines = text.splitlines(keepends=True)
    while lines and _entry(lines[-1]) is None:
        lines.pop()
    return b"".join(lines).removesuffix(b"\n") + b"\n" if lines else b""


class _Board:
    """A TensorBoard event file, written as it comes: tensorboardX's own writer has a thread that a full disk kills."""

    def __init__(self, directory: str) -> None:
        # Loading it must not load torch, which tensorboardX takes along wherever it finds it.
        hide = "torch" not in sys.modules
        if hide:
            sys.modules["torch"] = None  # type: ignore[assignment]
        try:
            from tensorboardX.event_file_writer import EventsWriter
            from tensorboardX.proto.event_pb2 import Event
        finally:
            if hide:
                del sys.modules["torch"]
        self._event = Event
        os.makedirs(directory, exist_ok=True)
        # File names carry the second of their making; the suffix keeps a quick resume from overwriting the first.
        self._file = EventsWriter(os.path.join(directory, "events"), f".{uuid.uuid4().hex[:8]}")
        self.close = self._file.close

    def write(self, step: int, values: dict[str, float]) -> None:
        scalars = [{"tag": name, "simple_value": value} for name, value in values.items()]
        self._file.write_event(self._event(step=int(step), wall_time=time.time(), summary={"value": scalars}))
        self._file.flush()
