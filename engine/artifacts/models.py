"""Published models: an ordinary Hugging Face directory (safetensors, tokenizer, chat template) and `manifest.json`.

Pickled weights are refused on the way in and on the way out: reading one runs whatever code is in it.

Left out: loading weights (`engine.models`) and training state, which lives under a run's `checkpoints/`. Called by
every job that trains or reads a model.
"""

import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import ConfigDict, field_validator
from upath import UPath

from engine.artifacts.cache import build_once, cache_folder
from engine.artifacts.manifests import (
    MANIFEST,
    STAGING_SUFFIX,
    UNPUBLISHED,
    Parent,
    Provenance,
    code_version,
    is_of,
    manifest_bytes,
    parse_manifest,
)
from engine.config import Section
from engine.errors import ArtifactError
from engine.storage import create, is_local, names, replace, storage_errors

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
_TAKEN = "Move it away, or choose another name=... or output=..."
_AGAIN = "Publish the model again."
_COMPLETE = "Save it with save_pretrained before it is published."


class ModelFile(Section):
    """One file: its path in the directory (`/` between folders), bytes and sha256."""

    name: str
    bytes: int
    sha256: str

    @field_validator("name")
    @classmethod
    def _inside(cls, name: str) -> str:
        path = PurePosixPath(name)
        if not path.parts or path.is_absolute() or ".." in path.parts or "\\" in name:
            raise ValueError(f"{name!r} names no file in the directory")
        if name.endswith(PICKLES):
            raise ValueError(f"{name!r} is a pickle")
        return name


class ModelManifest(Provenance):
    """Everything that is known of a published model."""

    model_config = ConfigDict(ser_json_inf_nan="strings")  # a loss may be infinite, and JSON has no word for it

    kind: Literal["model"] = "model"
    files: tuple[ModelFile, ...]
    counts: dict[str, int] = {}
    """What was counted in training: steps, examples, tokens."""
    metrics: dict[str, float] = {}
    """What was measured of the finished model."""

    @property
    def fingerprint(self) -> str:
        """Hash of the contents (16 hex digits): names and hashes of all files, not how they came about."""
        content = sorted((file.name, file.sha256) for file in self.files)
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


class Model:
    """A published model as a reader sees it: the files its manifest lists and nothing else."""

    def __init__(self, path: UPath, manifest: ModelManifest) -> None:
        self.path = path
        self.manifest = manifest
        self.fingerprint = manifest.fingerprint

    def local(self) -> Path:
        """A directory on this machine that holds the model: its own, else a checked copy in the models' cache.

        Raises `ArtifactError` if what is copied is not what was published, `StorageError`.
        """
        if is_local(self.path):
            return Path(str(self.path))
        with storage_errors(UPath(cache_folder())):
            return build_once(cache_folder() / "models" / f"published-{self.fingerprint}", self._copy)

    def _copy(self, folder: Path) -> None:
        for file in self.manifest.files:
            target = folder / file.name
            target.parent.mkdir(parents=True, exist_ok=True)
            with storage_errors(self.path):
                self.path.fs.get_file((self.path / file.name).path, str(target))
            if _sha256(target) != file.sha256:
                raise ArtifactError(f"{file.name} of {self.path} is not what was published.", _AGAIN)
        (folder / MANIFEST).write_bytes(_body(self.manifest))


def is_model(path: UPath) -> bool:
    """Whether a directory is a published model. Raises `ArtifactError` if it is one that is still being built."""
    body = manifest_bytes(path)
    return body is not None and is_of(body, "model", "files")


def read_model(path: UPath, *, verify: bool = False) -> Model:
    """Read a published model's manifest and compare its files with it: their sizes, with `verify` their contents too.

    Raises `ArtifactError` if the manifest is missing, damaged or a dataset's, or if a file is missing or differs.
    """
    body = manifest_bytes(path)
    if body is None:
        raise ArtifactError(f"{path} holds no {MANIFEST}.", "Give the directory of a published model.")
    if is_of(body, "dataset", "parts"):
        raise ArtifactError(f"{path} is a dataset, not a model.", "Give the directory of a published model.")
    manifest = parse_manifest(ModelManifest, body, path, "model")
    for file in manifest.files:
        with storage_errors(path):
            try:
                size = path.fs.size((path / file.name).path)
            except FileNotFoundError:
                raise ArtifactError(f"{path} lacks {file.name}.", _AGAIN) from None
            if size != file.bytes:
                raise ArtifactError(f"{file.name} of {path} has {size} bytes, not {file.bytes}.", _AGAIN)
            if verify and _sha256(path / file.name) != file.sha256:
                raise ArtifactError(f"{file.name} of {path} is not what was published.", _AGAIN)
    return Model(path, manifest)


def publish_model(
    staging: Path,
    output: UPath,
    *,
    job: str,
    recipe: dict[str, Any],
    recipe_fingerprint: str,
    inputs_fingerprint: str,
    seed: int,
    parents: Sequence[Parent] = (),
    models: Mapping[str, str] | None = None,
    counts: Mapping[str, int] | None = None,
    metrics: Mapping[str, float] | None = None,
) -> Model:
    """Publish a complete Hugging Face directory on this machine under its final name; the last step of a job.

    On a local disk the staging directory becomes the artifact (by one rename; a copy of it first if it lies on another
    file system). Elsewhere its files are uploaded, the manifest last, and the directory is left to the caller.
    Raises `ArtifactError` if the name is taken, if `config.json` or safetensors are missing, and for pickles.
    """
    with storage_errors(UPath(staging)):
        files = _files(staging)
    manifest = ModelManifest(
        files=files,
        parents=tuple(parents),
        job=job,
        recipe=recipe,
        recipe_fingerprint=recipe_fingerprint,
        inputs_fingerprint=inputs_fingerprint,
        code_version=code_version(),
        seed=seed,
        models=dict(models or {}),
        counts=dict(counts or {}),
        metrics=dict(metrics or {}),
    )
    with storage_errors(output):
        if is_local(output):
            _rename(staging, output, manifest)
        else:
            _upload(staging, output, manifest)
    return Model(output, manifest)


def _files(staging: Path) -> tuple[ModelFile, ...]:
    """The files of a directory by name, each on the disk for good; what a kill left of a manifest is removed."""
    for left_over in [staging / MANIFEST, *staging.glob(f".{MANIFEST}.*.tmp")]:
        left_over.unlink(missing_ok=True)
    found = []
    for path in sorted(staging.rglob("*")):
        name = path.relative_to(staging).as_posix()
        if path.is_symlink():
            raise ArtifactError(f"{name} of the model in {staging} is a symbolic link.", "Put the file itself there.")
        if path.is_dir():
            continue
        if name.endswith(PICKLES):
            raise ArtifactError(
                f"The model in {staging} holds {name}, a pickle.", "Save weights as safetensors, and nothing else."
            )
        with path.open("rb") as file:
            os.fsync(file.fileno())
        found.append(ModelFile(name=name, bytes=path.stat().st_size, sha256=_sha256(path)))
    if not any(file.name == "config.json" for file in found):
        raise ArtifactError(f"The model in {staging} has no config.json.", _COMPLETE)
    if not any(file.name.endswith(".safetensors") for file in found):
        raise ArtifactError(f"The model in {staging} has no safetensors.", _COMPLETE)
    return tuple(found)


def _rename(staging: Path, output: UPath, manifest: ModelManifest) -> None:
    final = Path(str(output))
    if final.exists():
        raise ArtifactError(f"{output} exists already.", _TAKEN)
    final.parent.mkdir(parents=True, exist_ok=True)
    replace(UPath(staging) / MANIFEST, _body(manifest))
    try:
        staging.rename(final)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise ArtifactError(f"{output} exists already.", _TAKEN) from None
        if error.errno != errno.EXDEV:
            raise
        near = final.with_name(f".{final.name}.{uuid.uuid4().hex[:8]}{STAGING_SUFFIX}")
        try:
            shutil.copytree(staging, near)
            near.rename(final)
        finally:
            shutil.rmtree(near, ignore_errors=True)
        shutil.rmtree(staging)


def _upload(staging: Path, output: UPath, manifest: ModelManifest) -> None:
    present = names(output)
    if MANIFEST in present or (present and UNPUBLISHED not in present):
        raise ArtifactError(f"{output} exists already.", _TAKEN)
    # Two uploads under one name would mix their files: the later one takes over, the earlier one notices and stops.
    marker, token = output / UNPUBLISHED, uuid.uuid4().hex.encode()
    replace(marker, token)
    for file in manifest.files:
        output.fs.put_file(str(staging / file.name), (output / file.name).path)
    try:
        mine = marker.read_bytes() == token
    except FileNotFoundError:
        mine = False
    if not mine or not create(output / MANIFEST, _body(manifest)):
        raise ArtifactError(f"{output} was published by another process meanwhile.", _TAKEN)
    marker.unlink()


def _body(manifest: ModelManifest) -> bytes:
    return manifest.model_dump_json(indent=1).encode()


def _sha256(path: Path | UPath) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
