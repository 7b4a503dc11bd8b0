"""Published datasets: a directory of zstd Parquet parts and `manifest.json`.

A part has a logical name (`part-00012`, the same in every run) and a file name (which also carries the attempt that
wrote it). Parts that the manifest does not list are left by a kill and do not exist for a reader.

Left out: how parts are made (`engine.corpus`). Called by every job that reads or publishes a dataset.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from upath import UPath

from engine.artifacts.manifests import MANIFEST, UNPUBLISHED, Provenance, is_of, manifest_bytes, parse_manifest
from engine.config import Section
from engine.errors import ArtifactError
from engine.storage import create, is_local, names, replace, storage_errors

_LEFT_OVER = (".parquet", ".tmp")

SCHEMAS: dict[str, tuple[str, ...]] = {
    "documents": ("text",),
    "instructions": ("instruction", "program"),
    "edit_sequences": ("instruction", "program", "edits", "seed", "path"),
    "demonstrations": ("messages",),
    "responses": ("prompt", "response"),
    "labels": ("text", "label"),
    "preferences": ("prompt", "chosen", "rejected"),
    "prompts": ("prompt",),
    "tokens": ("ids", "loss"),
    "chosen_tasks": ("task", "chosen"),
    "questions": ("id",),
    "samples": ("id",),
}
"""Schema name -> the columns it requires; extra columns pass through every job untouched."""


class Part(Section):
    """One output file: logical name, file name in the directory, rows, bytes on disk and sha256."""

    name: str
    file: str = Field(pattern=r"^[^/\\]+$")
    rows: int
    bytes: int
    sha256: str


class Manifest(Provenance):
    """Everything that is known of a published dataset."""

    kind: Literal["dataset"] = "dataset"
    schema_name: str
    schema_version: int = 1
    columns: dict[str, str]
    rows: int
    parts: tuple[Part, ...]
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
    body = manifest_bytes(path)
    return body is not None and not is_of(body, "model", "files")


def read_dataset(path: UPath) -> Dataset:
    """Read a published dataset's manifest. Raises `ArtifactError` if it is missing, damaged or a model's."""
    body = manifest_bytes(path)
    if body is None:
        raise ArtifactError(f"{path} holds no {MANIFEST}.", "Give the directory of a published dataset.")
    if is_of(body, "model", "files"):
        raise ArtifactError(f"{path} is a model, not a dataset.", "Give the directory of a published dataset.")
    return Dataset(path, parse_manifest(Manifest, body, path, "dataset"))


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
            (output / UNPUBLISHED).unlink()
    return Dataset(output, manifest)
