"""What datasets and models have in common: the manifest's name and kind, the staging place, the code's version.

Left out: what a manifest says (`engine.artifacts.datasets`, `engine.artifacts.models`). Called by both.
"""

import hashlib
import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import pydantic
from upath import UPath

import engine
from engine.config import Section
from engine.errors import ArtifactError
from engine.storage import create, is_local, make_directory, names, storage_errors

MANIFEST = "manifest.json"
UNPUBLISHED = "UNPUBLISHED"
STAGING_SUFFIX = ".partial"

M = TypeVar("M", bound=pydantic.BaseModel)


class Parent(Section):
    """What an artifact was made from: where it was and what it held."""

    uri: str
    fingerprint: str


class Provenance(Section):
    """How an artifact came about: the part of a manifest that all kinds share."""

    kind: str
    parents: tuple[Parent, ...] = ()
    job: str
    recipe: dict[str, Any]
    recipe_fingerprint: str
    inputs_fingerprint: str
    code_version: str
    seed: int
    models: dict[str, str] = {}
    """Role -> fingerprint of each model that took part."""


def manifest_bytes(path: UPath) -> bytes | None:
    """The manifest of a published artifact, None where there is none.

    Raises `ArtifactError` if the artifact is still being built, `StorageError` if its place cannot be reached.
    """
    staging = path.name.endswith(STAGING_SUFFIX)
    with storage_errors(path):
        if not staging:
            try:
                return (path / MANIFEST).read_bytes()
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                pass
        if staging or (path / UNPUBLISHED).exists():
            raise ArtifactError(f"{path} is not published yet.", "Run its job again: it resumes and publishes.")
    return None


def is_of(body: bytes, kind: str, files: str) -> bool:
    """Whether a manifest is of a kind and has the key under which that kind lists its files."""
    try:
        content = json.loads(body)
    except ValueError:
        return False
    return isinstance(content, dict) and content.get("kind") == kind and files in content


def parse_manifest(model: type[M], body: bytes, path: UPath, what: str) -> M:
    """Validate a manifest; `what` names the artifact in errors. Raises `ArtifactError` if it is damaged."""
    try:
        return model.model_validate_json(body)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(step) for step in first["loc"]) or "its JSON"
        raise ArtifactError(
            f"The manifest of {path} is damaged at {where}: {first['msg']}.", f"Publish the {what} again."
        ) from None


def open_staging(output: UPath) -> UPath:
    """The place where an artifact is built before it has its name; safe to call again on resume.

    Raises `ArtifactError` if the name is taken: by a published artifact, or by files that are none of ours.
    """
    present = names(output)
    if (is_local(output) and output.exists()) or (present and UNPUBLISHED not in present):
        raise ArtifactError(f"{output} exists already.", "Move it away, or choose another name=... or output=...")
    if is_local(output):
        staging = output.parent / (output.name + STAGING_SUFFIX)
        make_directory(staging)
        return staging
    create(output / UNPUBLISHED, b"")
    return output


def discard_staging(output: UPath) -> None:
    """Remove what an unfinished run left in staging; used when the user asks for a fresh start."""
    staging = output.parent / (output.name + STAGING_SUFFIX)
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
