"""What travels with a block besides its rows: which shard it is and where its time went.

It rides in the Arrow schema metadata, which Ray Data keeps with a block that is neither split nor merged. A stage that
builds a new table hands it on with `BlockInfo.of(old).attach(new)`; if it is ever lost, the sink fails loudly.

Left out: marks, which belong to rows (`engine.corpus.marks`). Called by the stages of `engine.corpus.stream` and the
sink.
"""

import json
from dataclasses import asdict, dataclass, field

import pyarrow as pa

_KEY = b"headrace"

EMPTY = "_empty"
"""The mark of the one row that stands for a shard without rows, since Ray Data forgets empty blocks."""


@dataclass(frozen=True, slots=True)
class BlockInfo:
    """Shard number, where it comes from (in words, and hashed), what was read, and CPU seconds by stage.

    `bytes_in` counts Arrow buffers, uncompressed.
    """

    shard: int
    source: str
    fingerprint: str
    rows_in: int
    bytes_in: int
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def part(self) -> str:
        """Logical name of the part this block becomes."""
        return part_name(self.shard)

    @staticmethod
    def of(block: pa.Table) -> "BlockInfo":
        """The information a block carries."""
        metadata = block.schema.metadata or {}
        assert _KEY in metadata, "a stage lost the block's identity"
        return BlockInfo(**json.loads(metadata[_KEY]))

    def attach(self, block: pa.Table, **seconds: float) -> pa.Table:
        """The same rows carrying this information, with the CPU seconds of one more stage."""
        body = asdict(self)
        body["seconds"] = {**self.seconds, **{name: self.seconds.get(name, 0) + s for name, s in seconds.items()}}
        return block.replace_schema_metadata({_KEY: json.dumps(body).encode()})


def part_name(shard: int) -> str:
    """Logical name of a shard's part."""
    return f"part-{shard:06d}"
