"""Published artifacts: a directory whose manifest names every part, and the rule that nothing else exists.

A dataset is a directory of zstd Parquet parts and `manifest.json`. It is built in a staging place that readers refuse
and takes its final name as the last step: by renaming the directory on a local disk, by a conditional put of the
manifest on object stores, where no rename is atomic. A part has a logical name (`part-00012`, the same in every run)
and a file name (which also carries the attempt that wrote it).

Left out: how parts are made (`engine.corpus`). Called by every job that reads or publishes.
"""

import hashlib
import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any, Literal

import pydantic
from pydantic import Field
from upath import UPath

import engine
from engine.config import Section
from engine.errors import ArtifactError
from engine.storage import create, is_local, make_directory, names, replace, storage_errors

MANIFEST = "manifest.json"
_UNPUBLISHED = "UNPUBLISHED"
_STAGING_SUFFIX = ".partial"
_LEFT_OVER = (".parquet", ".tmp")

SCHEMAS: dict[str, tuple[str, ...]] = {
    "documents": ("text",),
    "instructions": ("instruction", "program"),
    "edit_sequences": ("instruction", "program", "edits", "seed", "path"),
    "demonstrations": ("messages",),
    "preferences": ("prompt", "chosen", "rejected"),
    "prompts": ("prompt",),
}
"""Schema name -> the columns it requires; extra columns pass through every job untouched."""


class Part(Section):
    """One output file: logical name, file name in the directory, rows, bytes on disk and sha256."""

    name: str
    file: str = Field(pattern=r"^[^/\\]+$")
    rows: int
    bytes: int
    sha256: str


class Parent(Section):
    """What an artifact was made from: where it was and what it held."""

    uri: str
    fingerprint: str


class Manifest(Section):
    """Everything that is known of a published dataset."""

    kind: Literal["dataset"] = "dataset"
    schema_name: str
    schema_version: int = 1
    columns: dict[str, str]
    rows: int
    parts: tuple[Part, ...]
    parents: tuple[Parent, ...]
    job: str
    recipe: dict[str, Any]
    recipe_fingerprint: str
    inputs_fingerprint: str
    code_version: str
    seed: int
    models: dict[str, str] = {}
    counts: dict[str, int] = {}
    """Rows read, dropped by reason, quarantined; files skipped by reason."""
    statistics: dict[str, Any] = {}
    """What the job counted over its output, for reports."""

    @property
    def fingerprint(self) -> str:
        """Hash of the contents (16 hex digits): schema and parts in order, not how they came about."""
        content = [
            self.schema_name,
            self.schema_version,
            self.columns,
            [(p.name, p.rows, p.sha256) for p in self.parts],
        ]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


class Dataset:
    """A published dataset as a reader sees it: the parts its manifest lists and nothing else."""

    def __init__(self, path: UPath, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self.parts = manifest.parts
        self.schema_name = manifest.schema_name
        self.rows = manifest.rows
        self.fingerprint = manifest.fingerprint


def is_dataset(path: UPath) -> bool:
    """Whether a directory is a published dataset. Raises `ArtifactError` if it is one that is still being built."""
    staging = path.name.endswith(_STAGING_SUFFIX)
    with storage_errors(path):
        if not staging and (path / MANIFEST).exists():
            return True
        if staging or (path / _UNPUBLISHED).exists():
            raise ArtifactError(f"{path} is not published yet.", "Run its job again: it resumes and publishes.")
    return False


def read_dataset(path: UPath) -> Dataset:
    """Read a published dataset's manifest. Raises `ArtifactError` if it is missing or damaged."""
    if not is_dataset(path):
        raise ArtifactError(f"{path} holds no {MANIFEST}.", "Give the directory of a published dataset.")
    try:
        manifest = Manifest.model_validate_json((path / MANIFEST).read_bytes())
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(step) for step in first["loc"]) or "its JSON"
        raise ArtifactError(
            f"The manifest of {path} is damaged at {where}: {first['msg']}.", "Publish the dataset again."
        ) from None
    return Dataset(path, manifest)


def open_staging(output: UPath) -> UPath:
    """The place where an artifact is built before it has its name; safe to call again on resume.

    Raises `ArtifactError` if the name is taken: by a published artifact, or by files that are none of ours.
    """
    present = names(output)
    if (is_local(output) and output.exists()) or (present and _UNPUBLISHED not in present):
        raise ArtifactError(f"{output} exists already.", "Move it away, or choose another name=... or output=...")
    if is_local(output):
        staging = output.parent / (output.name + _STAGING_SUFFIX)
        make_directory(staging)
        return staging
    create(output / _UNPUBLISHED, b"")
    return output


def publish(staging: UPath, output: UPath, manifest: Manifest) -> Dataset:
    """Give the artifact its name; the last step of a job. What no record names (left by a kill) is removed first.

    Raises `ArtifactError` if something of that name is published already.
    """
    body = manifest.model_dump_json(indent=1).encode()
    with storage_errors(output):
        listed = {part.file for part in manifest.parts}
        for orphan in [name for name in names(staging) if name.endswith(_LEFT_OVER) and name not in listed]:
            (staging / orphan).unlink(missing_ok=True)
        if is_local(output):
            if output.exists():
                raise ArtifactError(f"{output} exists already.", "Remove it or choose another name.")
            replace(staging / MANIFEST, body)
            Path(str(staging)).rename(str(output))
        else:
            if not create(output / MANIFEST, body):
                raise ArtifactError(f"{output} is published already.", "Choose another name.")
            (output / _UNPUBLISHED).unlink()
    return Dataset(output, manifest)


def discard_staging(output: UPath) -> None:
    """Remove what an unfinished run left in staging; used when the user asks for a fresh start."""
    staging = output.parent / (output.name + _STAGING_SUFFIX)
    if is_local(output) and staging.exists():
        shutil.rmtree(str(staging))


@cache
def code_version() -> str:
    """Version of the package and a hash of its source (12 hex digits), the same in a checkout and on a cluster."""
    root = Path(engine.__file__).parent
    digest = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        digest.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes())
    return f"{engine.__version__}+{digest.hexdigest()[:12]}"
