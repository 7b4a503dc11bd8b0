"""The shard plan: how a listing of inputs is cut into units of work, the same way every time.

A shard is a row-group range of one input file or, where files are small, a run of whole files. One shard is one block
of the stream, one ledger record and one output part. The plan is a pure function of the inputs and the recipe, so a
resumed run finds the same shards under the same numbers; its fingerprint says whether that still holds.

Left out: what the bytes of a slice mean (`engine.corpus.readers`) and what is already done (`engine.corpus.ledger`).
Called by `engine.corpus.transform`.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa

from engine.artifacts import Parent
from engine.corpus.config import SourceConfig
from engine.corpus.readers import Reader, Slice, reader_for
from engine.corpus.sources import InputFile, list_files
from engine.errors import SourceError, redact

_MAX_SLICES = 2048
"""Most small files in one shard: bounds the size of a read task when files are nearly empty."""

_SCAN_THREADS = 8
"""Files looked at side by side while planning; decompression and remote reads release the interpreter lock."""


@dataclass(frozen=True, slots=True)
class Shard:
    """One unit of work: consecutive slices, about `shard_mb` of uncompressed input."""

    index: int
    slices: tuple[Slice, ...]

    @property
    def size(self) -> int:
        """Estimated uncompressed bytes."""
        return sum(each.size for each in self.slices)

    def fingerprint(self) -> str:
        """Hash of the files' fingerprints and of what is read of them (16 hex digits)."""
        content = [(each.file.name, each.file.fingerprint, each.start, each.stop) for each in self.slices]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    def describe(self) -> str:
        """Where its rows come from, for messages."""
        first = self.slices[0]
        more = f" and {len(self.slices) - 1} more files" if len(self.slices) > 1 else f" [{first.start}:{first.stop}]"
        return f"{first.file.name}{more}"


@dataclass(frozen=True, slots=True)
class Plan:
    """All shards of a job, the reader that reads them and the schema of the rows it yields."""

    shards: tuple[Shard, ...]
    files: tuple[InputFile, ...]
    skipped: dict[str, int]
    parents: tuple[Parent, ...]
    reader: Reader
    schema: pa.Schema

    @property
    def size(self) -> int:
        """Estimated uncompressed bytes of the whole input."""
        return sum(shard.size for shard in self.shards)

    def fingerprint(self) -> str:
        """Hash of every input file and of how they are cut (16 hex digits)."""
        digest = hashlib.sha256()
        for shard in self.shards:
            for each in shard.slices:
                digest.update(json.dumps([shard.index, each.file.name, each.start, each.stop]).encode())
        for file in self.files:
            digest.update(json.dumps([file.name, file.fingerprint]).encode())
        return digest.hexdigest()[:16]


def make_plan(config: SourceConfig, required: Sequence[str]) -> Plan:
    """List the inputs, settle their common schema and cut them into shards.

    `required` names the columns the job needs. Raises `SourceError` where there is nothing to read, `SchemaError`
    where a column is missing or of the wrong type.
    """
    listing = list_files(config)
    where = ", ".join(redact(path) for path in config.paths)
    if listing.parents and not listing.files:
        raise SourceError(
            f"{where} was published without a single row.", "Its job's report.html says what became of them."
        )
    if not listing.files:
        raise SourceError(f"{where} holds no input files.", "Check `source.paths` and its globs.")
    reader = reader_for(listing.files[0].format, config, required)
    schema = reader.schema(listing.files)
    target = int(config.target_mb(listing.files[0].format) * 1_000_000)
    with ThreadPoolExecutor(_SCAN_THREADS) as pool:
        slices = [each for found in pool.map(lambda file: reader.slices(file, target), listing.files) for each in found]
    if not slices:
        raise SourceError(f"{where} holds no rows.", "Give at least one input that is not empty.")
    shards = tuple(Shard(index, group) for index, group in enumerate(_group(slices, target)))
    return Plan(shards, listing.files, listing.skipped, listing.parents, reader, schema)


def _group(slices: Iterable[Slice], target: int) -> Iterator[tuple[Slice, ...]]:
    group: list[Slice] = []
    size = 0
    for each in slices:
        if group and (size + each.size > target or len(group) == _MAX_SLICES):
            yield tuple(group)
            group, size = [], 0
        group.append(each)
        size += each.size
    if group:
        yield tuple(group)
