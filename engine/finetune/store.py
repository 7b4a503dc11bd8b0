"""A dataset of tokens as arrays on this machine's disk, mapped into memory: any example in no time, by its number.

Where rows say of which task they are, a store can be had `of_tasks`: some to learn from, another to be measured on.

Parquet cannot be addressed by row, so each machine that trains unpacks the published parts once, into the cache, under
the dataset's fingerprint; a month after its last use it goes. Workers of one machine share the pages. Left out: which
example comes when (`engine.finetune.order`). Called by the loop's tasks.
"""

import copy
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from engine.artifacts import Dataset, build_once, cache_folder
from engine.errors import SourceError
from engine.finetune.formats import Example

Ints = npt.NDArray[np.int64]
_KEPT_SECONDS = 30 * 86_400
_ARRAYS = ("ids", "ends", "loss", "loss_ends", "loss_tokens", "labels", "tasks", "train", "held_out")
_FOLDER = "token-stores"


class TokenStore:
    """The examples of a tokens dataset by number.

    `train` are the numbers of what is learnt from, (rows, copies), and `held_out` of what is not, (rows, copies there);
    a row has as many copies as every other of its side.
    """

    def __init__(self, folder: Path, measured: int | None = None) -> None:
        arrays: dict[str, Any] = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in _ARRAYS}
        self._ids, self._ends, self._loss, self._loss_ends = (arrays[name] for name in _ARRAYS[:4])
        self.loss_tokens: Ints = arrays["loss_tokens"]
        """Tokens with loss of each example, (n,)."""
        self.labels: npt.NDArray[np.float32] = arrays["labels"]
        """Label of each example, nan where there is none, (n,)."""
        self.tasks: Ints = arrays["tasks"]
        """Task of each example, (n,), the place of its name in `task_names`; -1 where the row had none."""
        self.task_names: tuple[str, ...] = tuple(json.loads((folder / "tasks.json").read_text(encoding="utf-8")))
        self.train: Ints = arrays["train"]
        self._all_held_out: Ints = arrays["held_out"]
        self._measured = measured
        self.held_out: Ints = self._all_held_out[:measured]
        self.fingerprint = folder.name
        """That of the dataset, where it is a published one's."""

    @classmethod
    def of(cls, dataset: Dataset, measured: int | None = None) -> "TokenStore":
        """The store of a published dataset, unpacked the first time; of what is held out the first `measured` rows."""

        def build(folder: Path) -> None:
            _build(dataset, folder)

        folder = build_once(cache_folder() / _FOLDER / dataset.fingerprint, build)
        os.utime(folder)
        _forget(folder.parent)
        return cls(folder, measured)

    def of_tasks(
        self,
        chosen: Sequence[str] | None,
        target: str | None = None,
        measured: Literal["held_out", "others"] = "held_out",
    ) -> "TokenStore":
        """The same with the examples of the `chosen` tasks to learn from (all but the target if not told), and to
        measure on those of the `target`, or what is held out of the chosen ones. Raises `SourceError` where nothing is
        left to measure on."""
        names = [name for name in self.task_names if name != target] if chosen is None else chosen
        # In an order of no meaning, as those held out are.
        others = np.random.default_rng(0).permutation(self.train)
        held = self._all_held_out if measured == "held_out" else others
        some = copy.copy(self)
        some.train = self._only(self.train, names)
        some.held_out = self._only(self._all_held_out, names) if target is None else self._only(held, [target])
        if target is not None and not len(some.held_out):
            raise SourceError(
                f"There is no row of the target {target!r} to measure on.",
                "Correct tasks.target, give more rows, or raise tokens.held_out.",
            )
        some.held_out = some.held_out[: self._measured]
        return some

    def _only(self, rows: Ints, names: Sequence[str]) -> Ints:
        """Of some rows, (rows, copies), those of these tasks."""
        tasks = [number for number, name in enumerate(self.task_names) if name in names]
        return np.asarray(rows[np.isin(self.tasks[rows[:, 0]], tasks)] if len(rows) else rows)

    @property
    def lengths(self) -> Ints:
        """Tokens of each example, (n,)."""
        return np.diff(self._ends, prepend=0)

    def length(self, number: int) -> int:
        """Tokens of an example."""
        return int(self._ends[number] - (self._ends[number - 1] if number else 0))

    def __getitem__(self, number: int) -> Example:
        start = int(self._ends[number - 1]) if number else 0
        first = int(self._loss_ends[number - 1]) if number else 0
        edges = self._loss[first : self._loss_ends[number]].tolist()
        ids = self._ids[start : self._ends[number]].tolist()
        return Example(ids, list(zip(edges[::2], edges[1::2], strict=True)))


def _forget(stores: Path) -> None:
    """Remove what no training has used for long; one that still runs keeps what it has mapped."""
    for each in stores.iterdir():
        with suppress(FileNotFoundError):  # another worker was faster
            if each.is_dir() and time.time() - each.stat().st_mtime > _KEPT_SECONDS:
                shutil.rmtree(each, ignore_errors=True)


def _build(dataset: Dataset, folder: Path) -> None:
    ends, loss_ends, loss, loss_tokens, labels, copies, held, tasks = ([] for _ in range(8))
    names: dict[str, int] = {}
    at = at_loss = 0
    # Token by token this is as large as the corpus, so it is written as it is read; the rest is small.
    with (folder / "ids.raw").open("wb") as raw:
        for batch in _batches(dataset):
            ids, ranges = batch["ids"], batch["loss"]
            values = ids.flatten().to_numpy().astype(np.int32)
            raw.write(values.tobytes())
            ends.append(at + np.cumsum(ids.value_lengths().to_numpy(), dtype=np.int64))
            loss_ends.append(at_loss + np.cumsum(ranges.value_lengths().to_numpy(), dtype=np.int64))
            edges = ranges.flatten().to_numpy().astype(np.int64)
            loss.append(edges)
            loss_tokens.append(_counted(edges, ranges.value_lengths().to_numpy()))
            labels.append(batch["label"].to_numpy(zero_copy_only=False).astype(np.float32))
            copies.append(batch["copy"].to_numpy().astype(np.int64))
            held.append(batch["held_out"].to_numpy(zero_copy_only=False).astype(bool))
            tasks.append(_numbered(batch, names))
            at, at_loss = at + len(values), at_loss + len(edges)
    ids_all: Any = np.lib.format.open_memmap(folder / "ids.npy", "w+", np.int32, (at,))  # type: ignore[no-untyped-call]
    if at:
        ids_all[:] = np.memmap(folder / "ids.raw", np.int32, "r")
        ids_all.flush()
    (folder / "ids.raw").unlink()
    copy, out = _joined(copies, np.int64), _joined(held, bool)
    arrays = {
        "ends": _joined(ends, np.int64),
        "loss": _joined(loss, np.int64),
        "loss_ends": _joined(loss_ends, np.int64),
        "loss_tokens": _joined(loss_tokens, np.int64),
        "labels": _joined(labels, np.float32),
        "tasks": _joined(tasks, np.int64),
        "train": _rows(np.flatnonzero(~out), copy),
        # In an order of no meaning, so that the first of them stand for all.
        "held_out": np.random.default_rng(0).permutation(_rows(np.flatnonzero(out), copy)),
    }
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    (folder / "tasks.json").write_text(json.dumps(list(names)), encoding="utf-8")


def _batches(dataset: Dataset) -> Iterator[pa.RecordBatch]:
    for part in dataset.parts:
        with (dataset.path / part.file).open("rb") as file:
            parquet = pq.ParquetFile(file)
            wanted = ["ids", "loss", "label", "copy", "held_out", "task"]
            yield from parquet.iter_batches(columns=[name for name in wanted if name in parquet.schema_arrow.names])


def _numbered(batch: pa.RecordBatch, names: dict[str, int]) -> Ints:
    """The task of each row as a number, new names added to those known; -1 where there is none."""
    if "task" not in batch.schema.names:
        return np.full(len(batch), -1, np.int64)
    found = [None if each is None else str(each) for each in batch["task"].to_pylist()]
    return np.array([-1 if each is None else names.setdefault(each, len(names)) for each in found], np.int64)


def _counted(edges: Ints, lengths: Ints) -> Ints:
    """Tokens with loss of each example, from its ranges; the first token is never predicted."""
    starts, stops = np.maximum(edges[::2], 1), edges[1::2]
    totals = np.concatenate([[0], np.cumsum(np.maximum(stops - starts, 0))])
    last = np.cumsum(lengths // 2)
    return np.asarray(totals[last] - totals[last - lengths // 2], np.int64)


def _rows(numbers: Ints, copy: Ints) -> Ints:
    """Numbers of examples by row and copy: the copies of a row follow one another from 0."""
    if not len(numbers):
        return np.empty((0, 1), np.int64)
    most = int(copy[numbers].max()) + 1
    return numbers.reshape(-1, most)


def _joined(parts: list[Any], kind: Any) -> Any:
    return np.concatenate(parts) if parts else np.empty(0, kind)
