"""The shard ledger: which shards are done, written so that each is done exactly once.

A record is one small JSON file, created exclusively when its part is safely written: whoever comes second finds it and
drops its own copy. Two guards surround the records:

    identity    what the run was started from (inputs and recipe); a resume from anything else is refused
    claims      one numbered file per start of the driver; a live claim keeps a second run out, and a worker that
                outlived its driver finds a higher number than its own and stops (`Superseded`)

A claim is live while its process lives (same machine) or its heartbeat is fresh (another machine), so a rerun after
SIGKILL starts at once. Memory and files are proportional to shards, never to rows.

Left out: the rows themselves (`engine.corpus.sink`) and the manifest (`engine.artifacts`). Called by
`engine.corpus.transform` on the driver and by the sink in the workers.
"""

import json
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import psutil
from upath import UPath

from engine.artifacts import Part
from engine.config import Section
from engine.errors import ResumeRefused, RunBusy, Superseded
from engine.storage import create, make_directory, names, replace

HEARTBEAT_SECONDS = 10.0
"""How often a driver renews its claim."""
CLAIM_SECONDS = 60.0
"""Age at which the claim of another machine counts as dead: several missed heartbeats, not one slow disk."""


class Record(Section):
    """What became of one shard. Rows: `rows_in` read = kept + dropped + quarantined; `rows_out` written."""

    shard: int
    claim: int
    rows_in: int
    rows_out: int
    dropped: dict[str, int]
    quarantined: int
    bytes_in: int
    bytes_out: int
    seconds: dict[str, float]
    statistics: dict[str, Any]
    part: Part | None


class Identity(Section):
    """What a run was started from; a resume must match it."""

    job: str
    recipe_fingerprint: str
    inputs_fingerprint: str
    shards: int


class Ledger:
    """The ledger of one run directory. Cheap to make and to pickle; nothing is read until asked for."""

    def __init__(self, run_dir: UPath, claim: int = 0) -> None:
        self.root = run_dir / "ledger"
        self.claim = claim

    def identify(self, identity: Identity, recipe: Mapping[str, Any], inputs: Mapping[str, str]) -> None:
        """Set down what this run is made from, or check it against what was set down before.

        `recipe` is the resolved recipe, `inputs` maps input names to fingerprints; both serve to name the difference.
        Raises `ResumeRefused`, saying which recipe key or input file changed.
        """
        make_directory(self.root)
        make_directory(self.root / "shards")
        make_directory(self.root / "claims")
        details = {"identity": identity.model_dump(), "recipe": recipe, "inputs": inputs}
        if create(self.root / "identity.json", json.dumps(details, ensure_ascii=False).encode()):
            return
        before = json.loads((self.root / "identity.json").read_bytes())
        if before["identity"] == details["identity"]:
            return
        if before["identity"]["recipe_fingerprint"] != identity.recipe_fingerprint:
            changed = sorted(_different_keys(before["recipe"], json.loads(json.dumps(recipe))))
            what = f"the recipe changed at {', '.join(changed)}" if changed else "the recipe changed"
        else:
            changed = sorted(
                name for name in before["inputs"].keys() | inputs if before["inputs"].get(name) != inputs.get(name)
            )
            shown = ", ".join(changed[:3]) + (f" and {len(changed) - 3} more" if len(changed) > 3 else "")
            what = f"the input changed ({shown})" if changed else "the input is cut differently"
        raise ResumeRefused(
            f"{self.root.parent} cannot be resumed: {what} since it was started.",
            "Undo the change, choose another name=..., or add --fresh to set the old run aside and start over.",
        )

    @contextmanager
    def claimed(self) -> Iterator["Ledger"]:
        """Own the run while the block runs. Raises `RunBusy` if another live driver owns it."""
        number, owner = self._newest_claim()
        if owner is not None and _is_alive(owner):
            raise RunBusy(
                f"{self.root.parent} is in use by process {owner['pid']} on {owner['host']}.",
                "Wait for it or stop it; to run beside it, choose another name=...",
            )
        mine = {"host": socket.gethostname(), "pid": os.getpid(), "started": psutil.Process().create_time()}
        path = self.root / "claims" / f"{number + 1:06d}.json"
        if not create(path, _stamped(mine)):
            raise RunBusy(f"{self.root.parent} was taken by another run just now.", "Wait for it or stop it.")
        over = threading.Event()

        def beat() -> None:
            while not over.wait(HEARTBEAT_SECONDS):
                replace(path, _stamped(mine))

        thread = threading.Thread(target=beat, name="ledger-heartbeat", daemon=True)
        thread.start()
        try:
            yield Ledger(self.root.parent, number + 1)
        finally:
            over.set()
            thread.join(HEARTBEAT_SECONDS)
            replace(path, _stamped({**mine, "released": True}))

    def records(self) -> dict[int, Record]:
        """All committed records by shard number."""
        found = sorted(name for name in names(self.root / "shards") if _is_record(name))
        with ThreadPoolExecutor(8) as pool:
            bodies = pool.map(lambda name: (self.root / "shards" / name).read_bytes(), found)
            records = [Record.model_validate_json(body) for body in bodies]
        return {record.shard: record for record in records}

    def committed(self, shard: int) -> Record | None:
        """The record of one shard, if there is one."""
        try:
            return Record.model_validate_json((self._path(shard)).read_bytes())
        except FileNotFoundError:
            return None

    def commit(self, record: Record) -> Record:
        """Commit a shard exactly once; returns the record that stands, this one or an earlier one.

        Raises `Superseded` if a newer run has claimed the ledger.
        """
        number, _ = self._newest_claim(read=False)
        if number != self.claim:
            raise Superseded(f"Run {self.claim} of {self.root.parent} was taken over by run {number}.")
        if create(self._path(record.shard), record.model_dump_json().encode()):
            return record
        standing = self.committed(record.shard)
        assert standing is not None, "a record that blocks a commit can be read"
        return standing

    def _path(self, shard: int) -> UPath:
        return self.root / "shards" / f"{shard:06d}.json"

    def _newest_claim(self, read: bool = True) -> tuple[int, dict[str, Any] | None]:
        folder = self.root / "claims"
        numbers = [int(name[:-5]) for name in names(folder) if _is_record(name)]
        if not numbers:
            return 0, None
        newest = max(numbers)
        return newest, json.loads((folder / f"{newest:06d}.json").read_bytes()) if read else None


def _is_record(name: str) -> bool:
    # What starts with a dot is a temporary file of a write under way.
    return name.endswith(".json") and not name.startswith(".")


def _stamped(owner: Mapping[str, Any]) -> bytes:
    return json.dumps({**owner, "beat": time.time()}).encode()


def _is_alive(owner: Mapping[str, Any]) -> bool:
    if owner.get("released"):
        return False
    if owner["host"] != socket.gethostname():
        return bool(time.time() - owner["beat"] < CLAIM_SECONDS)
    try:
        process = psutil.Process(owner["pid"])
        # A process number is reused in time; the start time tells the two apart.
        return bool(abs(process.create_time() - owner["started"]) < 1 and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _different_keys(before: Any, after: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(before, dict) and isinstance(after, dict):
        for key in before.keys() | after.keys():
            yield from _different_keys(before.get(key), after.get(key), f"{prefix}.{key}" if prefix else key)
    elif before != after:
        yield prefix
