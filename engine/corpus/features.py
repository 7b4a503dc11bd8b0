"""Features of a frozen encoder, kept in Parquet so that a text meets the encoder once.

A cache is a folder for one encoder, layer, pooling, dtype and length; in it are parts, each a file that is written
once, whole or not at all, under a name of its own. So any number of processes may write at the same time: the same
text in two parts costs space and nothing else. A part that cannot be read is skipped, and its texts are computed anew.

A part is cut into small row groups, for a shuffled epoch reads texts from everywhere. What is held in memory: 24 bytes
for each text known, some row groups, and the rows not yet flushed. From an object store a row group costs one request:
read in the order of writing there, or give it memory enough to hold everything.

Left out: the encoder (`engine.models`) and when to flush and refresh, which is up to the caller. Called by the method
rooms that train on frozen features, inside Ray actors mostly.
"""

import contextlib
import hashlib
import json
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from upath import UPath

from engine.errors import RecipeError, StorageError
from engine.observe import get_logger
from engine.storage import create, is_local, make_directory, names, storage_errors

_log = get_logger("corpus")

Array = npt.NDArray[Any]
Compute = Callable[[list[str]], Sequence[Array]]
"""Distinct texts -> one array for each: (width,), or (tokens, width) where every token is kept."""

_GROUP_BYTES = 1 << 18
"""What one look-up reads at least: smaller costs more footer, larger more reading in a shuffled epoch."""
_PART_BYTES = 1 << 26
"""A part is written at this size at the latest, however few its rows."""
_FOOTERS = 256
_UNREADABLE = (OSError, ValueError, KeyError, IndexError, TypeError, StorageError, pa.ArrowException)
"""What reading a file that is cut, overwritten, of another kind or gone can raise."""


class FeatureCache:
    """Features of texts by content: computed the first time, read from then on, the same values either way.

    `encoder` is the fingerprint of the encoder's weights and tokenizer, `layer` the hidden state that is taken,
    `max_tokens` where texts are cut; each of them changes the features, so each has its own sub-folder of `folder`.
    New features reach the disk every `part_rows` rows and on `flush`, which leaving a `with` block calls too. At most
    `memory_mb` MiB of what was read are held. Raises `StorageError` where the folder cannot be made.
    """

    def __init__(
        self,
        folder: UPath,
        *,
        encoder: str,
        layer: int,
        pooling: Literal["mean", "first", "tokens"],
        dtype: Literal["float16", "float32"],
        max_tokens: int,
        part_rows: int = 8192,
        memory_mb: int = 256,
    ) -> None:
        description = {
            "encoder": encoder,
            "layer": layer,
            "pooling": pooling,
            "dtype": dtype,
            "max_tokens": max_tokens,
        }
        body = json.dumps(description, sort_keys=True).encode()
        self.folder = folder / hashlib.sha256(body).hexdigest()[:16]
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self._dimensions = 2 if pooling == "tokens" else 1
        self._width: int | None = None
        self._part_rows, self._memory = part_rows, memory_mb << 20
        self._seen: set[str] = set()
        self._parts: list[_Part] = []
        self._index = _Index()
        self._listed = False
        self._pending: dict[bytes, Array] = {}
        self._pending_bytes = 0
        self._footers: OrderedDict[int, pq.FileMetaData] = OrderedDict()
        self._groups: OrderedDict[tuple[int, int], pa.BinaryArray] = OrderedDict()
        self._held = 0
        make_directory(self.folder)
        create(self.folder / "description.json", body)

    def __enter__(self) -> "FeatureCache":
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()

    def features(self, texts: Sequence[str], compute: Compute) -> list[Array]:
        """One array of the cache's dtype per text, in their order: (width,), or (tokens, width) for pooling `tokens`.

        `compute` is given the distinct texts that are not known, in order of appearance, and is not called if there
        are none. Raises `RecipeError` for a feature that the dtype cannot hold, `ValueError` for one of another shape.
        """
        if not self._listed:
            self.refresh()
        keys = [_key(text) for text in texts]
        distinct = dict(zip(reversed(keys), reversed(texts), strict=True))
        found = self._known(list(distinct))
        missing = {key: distinct[key] for key in dict.fromkeys(keys) if key not in found}
        if missing:
            computed = compute(list(missing.values()))
            if len(computed) != len(missing):
                raise ValueError(f"{len(computed)} features were computed for {len(missing)} texts")
            rounded = [self._rounded(each) for each in computed]
            for key, array in zip(missing, rounded, strict=True):
                found[key] = array
                self._keep(key, array)
        return [found[key].copy() for key in keys]

    def flush(self) -> None:
        """Write what is new to a part of its own. Raises `StorageError`; it may be repeated then, nothing is lost."""
        if not self._pending:
            return
        fitting = _GROUP_BYTES * len(self._pending) // max(self._pending_bytes, 1)
        group_rows = min(max(1, fitting), len(self._pending))
        part = _Part(f"part-{uuid.uuid4().hex}.parquet", int(self._width or 0), group_rows)
        keys = np.array(list(self._pending), _KEY)
        table = pa.table(
            {
                "key": pa.array(list(self._pending), pa.binary(16)),
                "values": pa.array([array.tobytes() for array in self._pending.values()], pa.binary()),
            }
        ).replace_schema_metadata({"width": str(part.width), "seal": _seal(part, keys)})
        sink = pa.BufferOutputStream()
        # Checksums: a flipped bit would otherwise come back as a feature. Neither compression nor dictionary helps.
        pq.write_table(
            table,
            sink,
            row_group_size=group_rows,
            compression="none",
            use_dictionary=False,
            write_statistics=False,
            write_page_checksum=True,
        )
        create(self.folder / part.name, sink.getvalue().to_pybytes())
        self._enter(part, keys)
        self._pending.clear()
        self._pending_bytes = 0

    def refresh(self) -> None:
        """Take notice of the parts that other processes have written since. Raises `StorageError`."""
        self._listed = True
        for name in sorted(set(names(self.folder)) - self._seen):
            if not (name.startswith("part-") and name.endswith(".parquet")):
                continue
            try:
                self._enter(*self._inspect(name))
            except _UNREADABLE as error:
                self._seen.add(name)
                self._skipped(name, error)

    def _inspect(self, name: str) -> "tuple[_Part, Array]":
        """What a part holds: its width, and the keys of its rows, (rows,)."""
        with self._opened(name) as parquet:
            metadata = parquet.schema_arrow.metadata or {}
            part = _Part(name, int(metadata[b"width"]), parquet.metadata.row_group(0).num_rows)
            column = parquet.read(columns=["key"], use_threads=False)["key"]
        keys = np.array(column.to_pylist(), _KEY)
        if metadata[b"seal"] != _seal(part, keys).encode() or self._width not in (None, part.width):
            raise ValueError("it is no part of this cache")
        self._width = part.width
        return part, keys

    def _enter(self, part: "_Part", keys: Array) -> None:
        self._seen.add(part.name)
        self._index.add(keys, len(self._parts))
        self._parts.append(part)

    def _skipped(self, name: str, error: Exception) -> None:
        why = str(error).strip().partition("\n")[0][:200]
        _log.warning("a part of the feature cache is skipped", part=str(self.folder / name), why=why)

    def _known(self, keys: list[bytes]) -> dict[bytes, Array]:
        """Features of those keys that are kept, for reading only."""
        found = {key: self._pending[key] for key in keys if key in self._pending}
        unread = True
        while unread:  # a second time where a part has turned out unreadable, for another may hold the same texts
            unread = False
            wanted = [key for key in keys if key not in found]
            if not wanted:
                break
            parts, rows = self._index.find(np.array(wanted, _KEY))
            order = np.lexsort((rows, parts))
            order = order[parts[order] >= 0]
            starts = np.flatnonzero(np.diff(parts[order], prepend=-1))
            for run in np.split(order, starts[1:]) if len(order) else []:
                part = int(parts[run[0]])
                try:
                    arrays = self._read(part, rows[run])
                except _UNREADABLE as error:
                    self._index.remove(part)
                    self._skipped(self._parts[part].name, error)
                    unread = True
                else:
                    found.update(zip((wanted[at] for at in run), arrays, strict=True))
        return found

    def _read(self, part: int, rows: Array) -> list[Array]:
        """Features of some rows of a part, in ascending order; views into what is held."""
        about = self._parts[part]
        groups = rows // about.group_rows
        absent = [group for group in np.unique(groups).tolist() if (part, group) not in self._groups]
        fresh: dict[int, pa.BinaryArray] = {}
        if absent:
            with self._opened(about.name, part) as parquet:
                for group in absent:
                    table = parquet.read_row_group(group, columns=["values"], use_threads=False)
                    fresh[group] = table["values"].combine_chunks()
        found = []
        for row, group in zip(rows.tolist(), groups.tolist(), strict=True):
            values = fresh.get(group)
            if values is None:
                self._groups.move_to_end((part, group))
                values = self._groups[part, group]
            buffer = values[row - group * about.group_rows].as_buffer()
            shape = (buffer.size // (about.width * self._dtype.itemsize), about.width)
            if shape[0] * shape[1] * self._dtype.itemsize != buffer.size or (self._dimensions == 1 and shape[0] != 1):
                raise ValueError("it holds a feature of another shape")
            found.append(np.ndarray(shape[2 - self._dimensions :], self._dtype, buffer))
        for group, values in fresh.items():
            self._groups[part, group] = values
            self._held += values.nbytes
        while self._held > self._memory and self._groups:
            self._held -= self._groups.popitem(last=False)[1].nbytes
        return found

    @contextlib.contextmanager
    def _opened(self, name: str, part: int | None = None) -> Iterator[pq.ParquetFile]:
        """A part, open; with its number its footer is remembered."""
        path = self.folder / name
        footer = None if part is None else self._footers.get(part)
        with storage_errors(path), contextlib.ExitStack() as stack:
            # Row groups are read one by one, so reading ahead would fetch what is not wanted; keys are read all.
            ahead = "readahead" if part is None else "none"
            source = str(path) if is_local(path) else stack.enter_context(path.open("rb", cache_type=ahead))
            parquet = stack.enter_context(pq.ParquetFile(source, metadata=footer, page_checksum_verification=True))
            if part is not None:
                self._footers[part] = parquet.metadata
                self._footers.move_to_end(part)
                while len(self._footers) > _FOOTERS:
                    self._footers.popitem(last=False)
            yield parquet

    def _rounded(self, feature: Array) -> Array:
        """A copy in the cache's dtype, so that what is returned now is what will be read."""
        width = self._width or (feature.shape[-1] if feature.ndim else 0)
        if feature.ndim != self._dimensions or feature.shape[-1] != width or not width:
            raise ValueError(f"a feature of shape {feature.shape} in a cache of width {self._width}")
        with np.errstate(over="ignore"):
            rounded = feature.astype(self._dtype)
        if not np.isfinite(rounded).all():
            largest = float(np.abs(feature.astype(np.float64)).max())
            raise RecipeError(
                f"A feature of the encoder does not fit into {self._dtype.name}: its largest value is {largest:g}.",
                "Take another encoder, or one whose last layer is normalised.",
            )
        self._width = width
        return rounded

    def _keep(self, key: bytes, array: Array) -> None:
        self._pending[key] = array
        self._pending_bytes += array.nbytes
        if len(self._pending) >= self._part_rows or self._pending_bytes >= _PART_BYTES:
            self.flush()


def with_noise(features: Array, sd: float, rng: np.random.Generator) -> Array:
    """Features (N, width) with Gaussian noise of `sd` times each dimension's standard deviation over the N; float32.

    A dimension that never varies stays as it is.
    """
    exact = features.astype(np.float32)
    spread = exact.std(axis=0, keepdims=True)
    noisy: Array = exact + np.float32(sd) * spread * rng.standard_normal(exact.shape, np.float32)
    return noisy


def drop_tokens(token_features: Array, share: float, rng: np.random.Generator) -> Array:
    """Mean (width,) over tokens (tokens, width) of which a share in [0, 1], rounded, is left out at random; float32.

    One token is kept at least. Needs a cache with pooling `tokens`. Raises `ValueError` without tokens.
    """
    if token_features.ndim != 2 or not len(token_features):
        raise ValueError(f"no tokens in features of shape {token_features.shape}")
    tokens = len(token_features)
    kept = max(1, tokens - round(share * tokens))
    chosen = np.arange(tokens) if kept == tokens else rng.permutation(tokens)[:kept]
    mean: Array = token_features[chosen].astype(np.float32).mean(axis=0)
    return mean


_KEY = "S16"
"""A key in an array; NumPy compares 16 bytes, zeros at the end included."""


def _key(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


@dataclass(frozen=True)
class _Part:
    """A file of features: its name, width of a feature, and rows of each of its row groups but the last."""

    name: str
    width: int
    group_rows: int


def _seal(part: _Part, keys: Array) -> str:
    """A hash of what a part's footer says, which page checksums do not cover."""
    return hashlib.sha256(f"{part.width} {part.group_rows} ".encode() + keys.tobytes()).hexdigest()[:16]


@dataclass(frozen=True)
class _Run:
    """Keys in ascending order, each with its part and its row there; (n,) each."""

    keys: Array
    parts: Array
    rows: Array


class _Index:
    """Where each key is: a few sorted runs, merged when of like size, so that n keys cost n log n however they come."""

    def __init__(self) -> None:
        self._runs: list[_Run] = []

    def add(self, keys: Array, part: int) -> None:
        """Take in the keys of a part's rows, in order of the rows."""
        rows = np.arange(len(keys), dtype=np.int32)
        self._runs.append(_sorted(_Run(keys, np.full(len(keys), part, np.int32), rows)))
        while len(self._runs) > 1 and 2 * len(self._runs[-1].keys) >= len(self._runs[-2].keys):
            last, before = self._runs.pop(), self._runs.pop()
            self._runs.append(
                _sorted(
                    _Run(
                        np.concatenate([before.keys, last.keys]),
                        np.concatenate([before.parts, last.parts]),
                        np.concatenate([before.rows, last.rows]),
                    )
                )
            )

    def find(self, keys: Array) -> tuple[Array, Array]:
        """Part and row of each key, (n,) each; part -1 where it is unknown."""
        parts, rows = np.full(len(keys), -1, np.int32), np.zeros(len(keys), np.int32)
        for run in self._runs:
            if not len(run.keys):
                continue
            at: Array = np.minimum(np.searchsorted(run.keys, keys), len(run.keys) - 1)
            hit = run.keys[at] == keys
            parts[hit], rows[hit] = run.parts[at[hit]], run.rows[at[hit]]
        return parts, rows

    def remove(self, part: int) -> None:
        """Forget all rows of a part."""
        for at, run in enumerate(self._runs):
            kept = run.parts != part
            self._runs[at] = _Run(run.keys[kept], run.parts[kept], run.rows[kept])


def _sorted(run: _Run) -> _Run:
    # A stable sort finds the two sorted halves of a merge by itself.
    order = np.argsort(run.keys, kind="stable")
    return _Run(run.keys[order], run.parts[order], run.rows[order])
