"""The shard ledger: which shards are done, written so that each is done exactly once.

A record is one small JSON file, created exclusively when its part is safely written: whoever comes second finds it and
drops its own copy. Two guards surround the records:

    identity    what the run was started from (inputs and recipe); a resume from anything else is refused
    claims      one numbered file per start of the driver; a live claim keeps a second run out, and a worker that
                outlived its driver finds a higher number than its own and stops (`Superseded`)

Every name carries the run's id, drawn when the run begins: where a run is set aside and begun anew in the same place,
what a worker of the old one still writes is never taken for the new one's.

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
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import psutil
from upath import UPath

from engine.artifacts import Part
from engine.config import Section
from engine.errors import ArtifactError, HeadraceError, Outdated, RunBusy, Superseded
from engine.storage import create, make_directory, names, replace, storage_errors

HEARTBEAT_SECONDS = 10.0
"""How often a driver renews its claim."""
CLAIM_SECONDS = 60.0
"""Age at which the claim of another machine counts as dead: several missed heartbeats, not one slow disk."""


_IDENTITY = "identity.json"


class Record(Section):
    """What became of one shard. Rows: `rows_in` read = kept + dropped + quarantined; `rows_out` written."""

    shard: int
    source: str
    """Input files and the range read of them, in words."""
    fingerprint: str
    """Hash of those files' fingerprints and ranges."""
    claim: int
    code_version: str
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
    """The ledger of one run directory. Cheap to make and to pickle: it holds the run's id (empty before `identify`)."""

    def __init__(self, run_dir: UPath, claim: int = 0) -> None:
        self.root = run_dir / "ledger"
        self.claim = claim
        before = self._details()
        self.run = str(before["run"]) if before else ""

    def identify(self, identity: Identity, recipe: Mapping[str, Any], inputs: Mapping[str, str]) -> None:
        """Set down what this run is made from, or check it against what was set down before.

        `recipe` is the resolved recipe, `inputs` maps input names to fingerprints; both serve to name the difference.
        Raises `ResumeRefused`, saying which recipe key or input file changed.
        """
        make_directory(self.root)
        make_directory(self.root / "shards")
        make_directory(self.root / "claims")
        details = {"identity": identity.model_dump(), "recipe": recipe, "inputs": inputs, "run": uuid.uuid4().hex[:8]}
        create(self.root / _IDENTITY, json.dumps(details, ensure_ascii=False).encode())
        self.run = self.check_identity(identity, recipe, inputs)

    def check_identity(self, identity: Identity, recipe: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
        """Raise `ResumeRefused` if the run was started from something else; returns its id, "" where there is none."""
        before = self._details()
        if before is None:
            return ""
        if before["identity"] == identity.model_dump():
            return str(before["run"])
        changed = self.changed(identity, recipe, inputs)
        if before["identity"]["recipe_fingerprint"] != identity.recipe_fingerprint:
            what = f"the recipe changed at {changed}" if changed else "the recipe changed"
        else:
            what = f"the input changed ({changed})" if changed else "the input is cut differently"
        raise Outdated(
            f"{self.root.parent} cannot be resumed: {what} since it was started.",
            "Undo the change, choose another name=..., or add --fresh to set the old run aside and start over.",
        )

    def changed(self, identity: Identity, recipe: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
        """Which keys of the recipe, or else which inputs, are not what was set down; empty where nothing was."""
        before = self._details()
        if before is None:
            return ""
        if before["identity"]["recipe_fingerprint"] != identity.recipe_fingerprint:
            return ", ".join(sorted(_different_keys(before["recipe"], json.loads(json.dumps(recipe)))))
        names = sorted(
            name for name in before["inputs"].keys() | inputs if before["inputs"].get(name) != inputs.get(name)
        )
        return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")

    def check_free(self) -> int:
        """Raise `RunBusy` if a live driver owns the run; returns the number of the newest claim, 0 if there is none."""
        newest = self._newest_claim()
        if newest:
            with self._damage_named(self._path("claims", newest)) as path:
                owner = json.loads(path.read_bytes())
            if _is_alive(owner):
                raise RunBusy(
                    f"{self.root.parent} is in use by process {owner['pid']} on {owner['host']}.",
                    "Wait for it or stop it; to run beside it, choose another name=...",
                )
        return newest

    @contextmanager
    def claimed(self) -> Iterator["Ledger"]:
        """Own the run while the block runs. Raises `RunBusy` if another live driver owns it."""
        number = self.check_free() + 1
        mine = {"host": socket.gethostname(), "pid": os.getpid(), "started": psutil.Process().create_time()}
        path = self._path("claims", number)
        if not create(path, _stamped(mine)):
            raise RunBusy(f"{self.root.parent} was taken by another run just now.", "Wait for it or stop it.")
        over = threading.Event()

        def beat() -> None:
            while not over.wait(HEARTBEAT_SECONDS):
                # A full disk must not end the heart; the work itself will say that it is full.
                with suppress(HeadraceError, OSError):
                    replace(path, _stamped(mine))

        thread = threading.Thread(target=beat, name="ledger-heartbeat", daemon=True)
        thread.start()
        try:
            yield Ledger(self.root.parent, number)
        finally:
            over.set()
            thread.join(HEARTBEAT_SECONDS)
            # Not released is no harm once this process is gone; what went wrong before must not be hidden by this.
            with suppress(HeadraceError, OSError):
                replace(path, _stamped({**mine, "released": True}))

    def records(self) -> dict[int, Record]:
        """All committed records by shard number."""
        with ThreadPoolExecutor(8) as pool:
            records = list(pool.map(self._read, self._numbers("shards")))
        return {record.shard: record for record in records}

    def commit(self, record: Record) -> Record:
        """Commit a shard exactly once; returns the record that stands, this one or an earlier one.

        Raises `Superseded` if a newer run has claimed the ledger.
        """
        if self._newest_claim() != self.claim:
            raise Superseded(f"A worker of {self.root.parent} outlived its run; a newer run goes on.")
        if create(self._path("shards", record.shard), record.model_dump_json().encode()):
            return record
        return self._read(record.shard)

    def _read(self, shard: int) -> Record:
        with self._damage_named(self._path("shards", shard)) as path:
            return Record.model_validate_json(path.read_bytes())

    def _details(self) -> dict[str, Any] | None:
        with storage_errors(self.root), self._damage_named(self.root / _IDENTITY) as path:
            try:
                details: dict[str, Any] = json.loads(path.read_bytes())
            except (FileNotFoundError, NotADirectoryError):
                return None
            return details

    @contextmanager
    def _damage_named(self, path: UPath) -> Iterator[UPath]:
        """Turn a file that does not parse into an `ArtifactError`: it was written whole, so others have been at it."""
        try:
            yield path
        except ValueError:
            raise ArtifactError(f"{path} is damaged.", f"Move {self.root.parent} away and start over.") from None

    def _newest_claim(self) -> int:
        return max(self._numbers("claims"), default=0)

    def _numbers(self, folder: str) -> list[int]:
        """The numbers of this run's files in a folder, in order."""
        end = f".{self.run}.json"
        # What starts with a dot is a temporary file of a write under way.
        found = [name for name in names(self.root / folder) if name.endswith(end) and not name.startswith(".")]
        return sorted(int(name.removesuffix(end)) for name in found)

    def _path(self, folder: str, number: int) -> UPath:
        return self.root / folder / f"{number:06d}.{self.run}.json"


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
