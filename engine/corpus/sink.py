"""The sink: turns one finished block into one committed part.

Marked rows are dropped here and only here, so a shard's completeness is known: rows read = kept + dropped +
quarantined. A part is written under an attempt name, hashed, then committed through the ledger; a shard with no
survivors commits a record without a part. Poison rows go to `quarantine/`, dropped ones to `dropped/` where asked for.

Left out: the manifest (`engine.artifacts`) and the decision that there is too much quarantine
(`engine.corpus.transform`). Called by `engine.corpus.stream` inside Ray Data tasks.
"""

import hashlib
import time
import uuid
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from upath import UPath

from engine.artifacts import Part, code_version
from engine.corpus.block import EMPTY, BlockInfo
from engine.corpus.ledger import Ledger, Record
from engine.corpus.marks import DROP, ERROR, QUARANTINE, SOURCE_PART, SOURCE_ROW
from engine.storage import create, make_directory, storage_errors

_GROUP_BYTES = 4 * 2**20
"""Uncompressed size of a written row group: small enough that a later job can cut a part into several shards."""


class Sink:
    """Writes and commits blocks; one instance is shipped to every worker."""

    def __init__(
        self,
        staging: UPath,
        run_dir: UPath,
        ledger: Ledger,
        *,
        keep_dropped: bool = False,
        statistics: Callable[[pa.Table], dict[str, Any]] | None = None,
    ) -> None:
        self.staging = staging
        self.run_dir = run_dir
        self.ledger = ledger
        self.keep_dropped = keep_dropped
        self.statistics = statistics

    def __call__(self, block: pa.Table) -> pa.Table:
        """Write one block, commit it, and return one row: `shard` and its `record` as JSON."""
        started = time.thread_time()
        info = BlockInfo.of(block)
        _check_complete(block, info)
        name = info.part
        reasons = block.column(DROP)
        survivors = block if reasons.null_count == len(block) else block.filter(pc.is_null(reasons))
        kept = strip_marks(survivors)
        counts = {
            item["values"]: item["counts"]
            for item in pc.value_counts(reasons.drop_null()).to_pylist()
            if item["values"] != EMPTY
        }
        quarantined = counts.pop(QUARANTINE, 0)
        part = self._write(self.staging, name, kept) if len(kept) else None
        if quarantined:
            rejects = block.filter(pc.fill_null(pc.equal(reasons, QUARANTINE), False))
            self._set_aside("quarantine", name, rejects)
        if self.keep_dropped and counts:
            mask = pc.and_(pc.is_valid(reasons), pc.invert(pc.is_in(reasons, pa.array([QUARANTINE, EMPTY]))))
            self._set_aside("dropped", name, block.filter(mask))
        record = self.ledger.commit(
            Record(
                shard=info.shard,
                source=info.source,
                fingerprint=info.fingerprint,
                claim=self.ledger.claim,
                code_version=code_version(),
                rows_in=info.rows_in,
                rows_out=len(kept),
                dropped=counts,
                quarantined=quarantined,
                bytes_in=info.bytes_in,
                bytes_out=kept.nbytes,
                statistics=self.statistics(survivors) if self.statistics else {},
                part=part,
                seconds={**info.seconds, "write": time.thread_time() - started},
            )
        )
        if part and record.part and record.part.file != part.file:
            (self.staging / part.file).unlink(missing_ok=True)
        return pa.table({"shard": [record.shard], "record": [record.model_dump_json()]})

    def _write(self, folder: UPath, name: str, table: pa.Table) -> Part:
        body = encode(table)
        file = f"{name}.{uuid.uuid4().hex[:8]}.parquet"
        with storage_errors(folder):
            # A new name each time, so a plain write cannot disturb another attempt; nobody reads it before the commit.
            (folder / file).write_bytes(body)
        digest = hashlib.sha256(body).hexdigest()
        return Part(name=name, file=file, rows=len(table), bytes=len(body), sha256=digest)

    def _set_aside(self, kind: str, name: str, table: pa.Table) -> None:
        folder = self.run_dir / kind
        make_directory(folder)
        # The rows' own columns of these names, if there are any, keep them.
        shown = {old: new for old, new in ((DROP, "reason"), (ERROR, "error")) if new not in table.column_names}
        renamed = table.rename_columns([shown.get(each, each) for each in table.column_names])
        create(folder / f"{name}.{self.ledger.run}.parquet", encode(renamed.replace_schema_metadata(None)))


def _check_complete(block: pa.Table, info: BlockInfo) -> None:
    """See that every row read has come through: a stage may turn one row into several, but never lose one."""
    if block.column(DROP)[0].as_py() == EMPTY:
        return
    rows = len(block.group_by([SOURCE_PART, SOURCE_ROW]).aggregate([]))
    assert rows == info.rows_in, f"{info.part}: {info.rows_in} rows were read, {rows} came out of the stages"


def encode(table: pa.Table) -> bytes:
    """A table as zstd Parquet bytes, in row groups of about 4 MiB; the same table gives the same bytes."""
    row_bytes = max(1, table.nbytes // max(1, len(table)))
    stream = pa.BufferOutputStream()
    # Dictionaries pay for short repeated values; for long text they are tried, then thrown away.
    pq.write_table(
        table,
        stream,
        compression="zstd",
        use_dictionary=[SOURCE_PART] if SOURCE_PART in table.column_names else False,
        row_group_size=max(64, _GROUP_BYTES // row_bytes),
    )
    body: bytes = stream.getvalue().to_pybytes()
    return body


def strip_marks(block: pa.Table) -> pa.Table:
    """The block as it is published: marks and block information gone."""
    return block.drop_columns([DROP, ERROR]).replace_schema_metadata(None)
