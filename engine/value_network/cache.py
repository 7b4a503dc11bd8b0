"""A frozen base's logits, computed once before the first step and read from the disk after that.

They lie under RUN/base-logits/KEY in parts of some size, each written whole and then given its name: what a kill leaves
half-written has no name, and whoever resumes computes the parts that are missing. KEY stands for the base's weights,
the number format, what is kept, and which examples of which tokens. Workers share the parts, which are mapped into
memory and never change. Once the model is published nothing needs them, and they go; in a directory that runs share
(the recipe's `shared`) they stay, and a part is made by the run that comes first.

    full    every logit in the base's own number format: the same loss as without
    top_k   the k greatest, the next token's always among them, and the mass of all others, which is spread evenly:
            each of them has probability (1 - mass of the k) / (V - k). The base's own loss stays exact; the mix's
            differs by how unevenly the value network weighs the others, times their mass (ours).

Left out: which examples a training needs (`engine.value_network.keeping`). Called by it.

Shapes: T tokens of a row, L positions, V columns of the base's logits, k of them kept.
"""

import hashlib
import json
import math
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from upath import UPath

from engine.artifacts.cache import alone
from engine.errors import RecipeError, StorageError
from engine.finetune.batches import IGNORED, Row
from engine.finetune.store import TokenStore
from engine.storage import is_local, make_directory, storage_errors, writable
from engine.value_network.losses import CHUNK, BaseLogits
from engine.value_network.networks import Base, fit
from engine.value_network.recipe import CacheOptions, ValueRecipe

FOLDER = "base-logits"
_PART_BYTES, _PART_TOKENS = 128 << 20, 1 << 16
"""Of a part, at most: what is held in memory while it is made, and what is read again after a kill."""
_PARTS = 256
"""Of a cache, about at most."""

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Form:
    """How the logits of a position are written: `columns` of them, all or the `k` greatest (0: all)."""

    columns: int
    k: int
    dtype: str

    @classmethod
    def of(cls, options: CacheOptions, columns: int, dtype: str) -> "Form":
        """That of a recipe."""
        return cls(columns, min(options.k, columns) if options.keep == "top_k" else 0, dtype)

    @property
    def record(self) -> np.dtype[Any]:
        """The logits of a position. numpy has no bfloat16: its bits are kept as an integer."""
        if self.k:
            return np.dtype([("ids", "<i4", (self.k,)), ("logits", "<f4", (self.k,)), ("rest", "<f4")])
        return np.dtype([("logits", "<i2" if self.dtype == "bfloat16" else "<f4", (self.columns,))])

    def written(self, logits_LV: torch.Tensor, targets_L: torch.Tensor) -> npt.NDArray[Any]:
        """Logits as records, (L,)."""
        records = np.zeros(len(logits_LV), self.record)
        if not self.k:
            records["logits"] = (logits_LV.view(torch.int16) if self.dtype == "bfloat16" else logits_LV).cpu().numpy()
            return records
        logits_LV = logits_LV.float()
        first_LV = logits_LV.scatter(1, targets_L.clamp(min=0)[:, None], math.inf)
        ids_Lk = first_LV.topk(self.k).indices
        others_L = logits_LV.scatter(1, ids_Lk, -math.inf).logsumexp(1)
        records["ids"] = ids_Lk.cpu().numpy()
        records["logits"] = logits_LV.gather(1, ids_Lk).cpu().numpy()
        records["rest"] = (others_L - math.log(max(self.columns - self.k, 1))).cpu().numpy()
        return records

    def read(self, records: npt.NDArray[Any]) -> torch.Tensor:
        """Records as logits, (L, V)."""
        logits = torch.from_numpy(records["logits"])
        if not self.k:
            return logits.view(torch.bfloat16) if self.dtype == "bfloat16" else logits
        rest_LV = torch.from_numpy(records["rest"])[:, None].expand(-1, self.columns)
        return rest_LV.scatter(1, torch.from_numpy(records["ids"]).long(), logits)


class LogitCache:
    """The logits of a base at positions of the examples `numbers` of a store, ascending: those with a target, or
    `everywhere`. It stands for the base where `vocabulary` columns are wanted; `base` is the fingerprint of that."""

    def __init__(
        self,
        home: Path,
        base: str,
        form: Form,
        store: TokenStore,
        numbers: Ints,
        *,
        vocabulary: int,
        everywhere: bool,
    ) -> None:
        which = hashlib.sha256(np.ascontiguousarray(numbers, "<i8").tobytes()).hexdigest()
        told = [base, repr(form), store.fingerprint, which, everywhere]
        key = hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]
        self.folder, self.columns, self._form = home / FOLDER / key, form.columns, form
        self._numbers, self._vocabulary, self._everywhere = numbers, vocabulary, everywhere
        tokens = store.lengths[numbers]
        counts = tokens if everywhere else store.loss_tokens[numbers]
        self._starts = np.concatenate([[0], np.cumsum(counts)])
        # Each part that is mapped holds a file open, of which a process may have a thousand or so.
        size = counts * form.record.itemsize
        most_bytes, most_tokens = max(_PART_BYTES, size.sum() / _PARTS), max(_PART_TOKENS, tokens.sum() / _PARTS)
        shares = np.maximum(size / most_bytes, tokens / most_tokens)
        _, first = np.unique((np.cumsum(shares) - shares).astype(np.int64), return_index=True)
        self._cuts = np.append(first, len(numbers))
        """A part has the examples between two of these."""
        self._edges: Ints = self._starts[self._cuts]
        self._mapped: dict[int, npt.NDArray[Any]] = {}

    @property
    def parts(self) -> range:
        """Numbers of all parts."""
        return range(len(self._cuts) - 1)

    def bytes_of(self, parts: Iterable[int]) -> int:
        """What parts take on the disk."""
        return sum(int(self._edges[part + 1] - self._edges[part]) for part in parts) * self._form.record.itemsize

    def missing(self) -> list[int]:
        """Parts that are not there yet."""
        return [part for part in self.parts if not self._path(part).exists()]

    @contextmanager
    def held(self, part: int) -> Iterator[bool]:
        """Keep other runs from making a part while the block runs; whether it is still missing. Raises as `alone`."""
        make_directory(UPath(self.folder))
        with alone(self._path(part)):
            yield not self._path(part).exists()

    def examples(self, part: int) -> list[int]:
        """Numbers of a part's examples."""
        return [int(each) for each in self._numbers[self._cuts[part] : self._cuts[part + 1]]]

    def make(self, part: int, base: Base, rows: Iterable[Row], device: Any) -> None:
        """Compute and write a part from its examples' rows. Raises `StorageError` for a full disk."""
        first, last = self._edges[part : part + 2]
        records = np.zeros(last - first, self._form.record)
        for row in rows:
            places_T, here = self._places(row), row.to(device)
            at_L = torch.from_numpy(np.flatnonzero(places_T >= 0)).to(device)
            if not len(at_L):
                continue
            logits, targets_T = base.logits(here, at_L), here.targets_1T[0]
            for start in range(0, len(at_L), CHUNK):
                at = slice(start, start + CHUNK)
                records[places_T[at_L[at].cpu().numpy()] - first] = self._form.written(logits(at), targets_T[at_L[at]])
        self._write(part, records)

    def logits(self, row: Row, at_L: torch.Tensor) -> BaseLogits:
        """As `FrozenBase.logits`; zeros where nothing is learnt, if nothing was kept there."""
        places_L = self._places(row)[at_L.cpu().numpy()]

        def found(at: slice) -> torch.Tensor:
            return fit(self._form.read(self._records(places_L[at])).to(at_L.device), self._vocabulary)

        return found

    def _places(self, row: Row) -> Ints:
        """Where each token of a row is among the records, (T,); -1 where it is not."""
        targets_T = row.targets_1T[0].cpu().numpy()
        places_T = np.full(len(targets_T), -1)
        if row.numbers:
            at = np.searchsorted(self._numbers, row.numbers)
            spans = [np.arange(self._starts[each], self._starts[each + 1]) for each in at]
            places_T[slice(None) if self._everywhere else targets_T != IGNORED] = np.concatenate(spans)
        return places_T

    def _records(self, places_L: Ints) -> npt.NDArray[Any]:
        records = np.zeros(len(places_L), self._form.record)
        parts_L = np.where(places_L < 0, -1, np.searchsorted(self._edges, places_L, side="right") - 1)
        for part in np.unique(parts_L[parts_L >= 0]):
            here = parts_L == part
            records[here] = self._part(int(part))[places_L[here] - self._edges[part]]
        return records

    def _part(self, part: int) -> npt.NDArray[Any]:
        if part not in self._mapped:
            try:
                self._mapped[part] = np.load(self._path(part), mmap_mode="r")
            except (OSError, ValueError) as error:
                raise StorageError(
                    f"A part of the base's logits cannot be read ({error}).",
                    f"Remove {self.folder} and run again; with several machines, keep runs on a disk they share.",
                ) from error
        return self._mapped[part]

    def _write(self, part: int, records: npt.NDArray[Any]) -> None:
        path = self._path(part)
        partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
        make_directory(UPath(self.folder))
        try:
            with storage_errors(UPath(path)), partial.open("wb") as file:
                np.save(file, records)
            partial.rename(path)
        finally:
            partial.unlink(missing_ok=True)

    def _path(self, part: int) -> Path:
        return self.folder / f"part-{part:05d}.npy"


def check_room(size: int, options: CacheOptions, home: UPath) -> None:
    """Raise `RecipeError` or `StorageError` where so many bytes of logits are not to be kept beside a run."""
    if not is_local(home):
        raise RecipeError(
            f"Logits of the bases are mapped into memory, which {home} does not allow.",
            "Keep runs on a disk, or set cache.keep: none.",
        )
    less = "Keep fewer (cache.keep: top_k with a smaller cache.k), or none"
    if size > options.most_gb * 1e9:
        raise RecipeError(
            f"The bases' logits would take {size / 1e9:,.1f} GB, more than cache.most_gb ({options.most_gb:g}).",
            f"{less}; or raise that.",
        )
    there = next(each for each in (home, *home.parents) if each.exists())
    free = shutil.disk_usage(str(there)).free
    if size > free:
        raise StorageError(
            f"The bases' logits would take {size / 1e9:,.1f} GB, and {there} has {free / 1e9:,.1f} GB left.",
            f"{less}; or choose another disk with runs=...",
        )


def cache_place(recipe: ValueRecipe, home: UPath) -> UPath:
    """Below which directory a run's logits lie: its own, or the one it shares."""
    return writable(recipe.shared) if recipe.shared else home


def remove_cache(recipe: ValueRecipe, home: UPath) -> None:
    """Remove what a training that has ended kept beside it; what runs share stays."""
    if is_local(home) and not recipe.shared:
        shutil.rmtree(str(home / FOLDER), ignore_errors=True)
