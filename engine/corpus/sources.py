"""The list of input files: recipe paths resolved to files with a stable name, a size and a fingerprint each.

A directory with a manifest is a published dataset and stands for the parts its manifest lists, nothing else; any other
directory is walked. Local files must lie inside the recipe's `roots`, symbolic links resolved: a named path outside is
refused, a file met on a walk is skipped and counted. Links to directories are not followed (they could form circles).

Left out: contents (`engine.corpus.readers`). Called by the planner, in the driver only.
"""

import hashlib
import importlib.util
import os
import stat
import sysconfig
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from upath import UPath

from engine.artifacts import Parent, is_dataset, is_model, read_dataset
from engine.corpus.config import PACKAGE, STDLIB, SUFFIXES, SourceConfig
from engine.corpus.gym import GYM, gym_files
from engine.errors import SourceError, redact
from engine.storage import is_inside, is_local, locate, scheme_of

_EXCLUDED = (".*", "__pycache__", "site-packages", "dist-packages", "node_modules", "_SUCCESS", "_*metadata")
_EXCLUDED_OF_STDLIB = (*_EXCLUDED, "test", "tests", "idlelib", "turtledemo", "ensurepip")

_EXCLUDED_OF_PACKAGE = (".*", "__pycache__")

_WHOLE_HASH_BYTES = 8 * 2**20
_EDGE_BYTES = 2**20
_CONTENT_KEYS = ("ETag", "etag", "checksum", "md5Hash", "content_md5", "blob_id", "oid", "sha256")
_TIME_KEYS = ("LastModified", "last_modified", "lastModified", "updated", "mtime", "modified")

T = TypeVar("T")

_PART = "part:"
"""Begins the fingerprint of a published part, which its manifest gives; such a file never changes under its name."""


@dataclass(frozen=True, slots=True)
class InputFile:
    """One input file: where it is, its stable logical name (`source_part`), size in bytes, fingerprint and format."""

    uri: str
    name: str
    size: int
    fingerprint: str
    format: str


@dataclass(frozen=True, slots=True)
class Listing:
    """The inputs of a job, sorted by name, the number of files skipped by reason, and the datasets among them."""

    files: tuple[InputFile, ...]
    skipped: dict[str, int]
    parents: tuple[Parent, ...]


def list_files(config: SourceConfig) -> Listing:
    """Resolve `source.paths` to files with unique names.

    Raises `SourceError` for a path that is missing, empty, forbidden or outside the roots, and for formats that are
    mixed or unknown; `ArtifactError` for a dataset that is not published yet.
    """
    skipped: Counter[str] = Counter()
    parents: dict[str, Parent] = {}
    seen: set[str] = set()
    groups: list[list[InputFile]] = []
    for entry in dict.fromkeys(config.paths):
        found = [file for file in _Entry(config, skipped, parents).expand(entry) if file.uri not in seen]
        seen.update(file.uri for file in found)
        groups.append(found)
    files = sorted(_settle_format(_unique_names(groups)), key=lambda file: file.name)
    return Listing(tuple(files), dict(skipped), tuple(parents.values()))


@dataclass(frozen=True, slots=True)
class _Selection:
    """Which files below a directory are wanted; names are relative to it.

    Include and exclude globs without `/` are matched against one path component, others against the whole name, `*`
    crossing `/`. `pattern` is a shell glob by components; a directory that matches it takes all that is below.
    """

    include: Sequence[str]
    exclude: Sequence[str]
    pattern: tuple[str, ...] = ()

    def enters(self, folder: PurePosixPath) -> bool:
        if any(_fits(folder, each) for each in self.exclude):
            return False
        fixed = takewhile(lambda part: part != "**", self.pattern)
        return all(fnmatchcase(part, glob) for part, glob in zip(folder.parts, fixed, strict=False))

    def takes(self, name: PurePosixPath) -> bool:
        above = [each for each in (name, *name.parents) if each.name]
        if any(_fits(each, glob) for each in above for glob in self.exclude):
            return False
        return any(_fits(name, each) for each in self.include) and _globs(name.parts, self.pattern)


class _Entry:
    """The expansion of one recipe path; what is skipped and which datasets are met goes to the shared counters."""

    def __init__(self, config: SourceConfig, skipped: Counter[str], parents: dict[str, Parent]) -> None:
        self.format = config.format
        self.include = config.include
        self.exclude = config.exclude
        self.roots: Sequence[str] = config.roots
        self.skipped = skipped
        self.parents = parents

    def expand(self, entry: str) -> list[InputFile]:
        if entry == STDLIB:
            return self._standard_library()
        if entry.startswith(PACKAGE):
            return self._package(entry)
        if entry.startswith(GYM):
            return [replace(self._file(UPath(path), path.name), format="jsonl") for path in gym_files(entry)]
        if not entry.strip():
            raise SourceError("An entry of source.paths is empty.", "Name a file, a directory, a glob or a URI.")
        local = scheme_of(entry) == "file"
        if any(sign in entry for sign in "*?[") and not (local and locate(entry).exists()):
            return self._glob(entry)
        path = locate(entry, roots=self.roots)
        kind = _kind(path)
        if kind == "file":
            return [self._file(path, path.name)]
        if kind == "missing":
            here = f" (relative paths start in {Path.cwd()})" if local and not entry.startswith("/") else ""
            raise SourceError(f"There is nothing at {_show(path)}.", f"Correct source.paths{here}.")
        if kind == "other":
            raise SourceError(f"{_show(path)} is neither a file nor a directory.", "Name a file or a directory.")
        if is_dataset(path):
            return self._dataset(path, "")
        if is_model(path):
            raise SourceError(f"{_show(path)} is a model, not a corpus.", "Give the directory of a published dataset.")
        found = self._below(path, _Selection(self._included(), self._excluded(_EXCLUDED)))
        if not found:
            raise SourceError(
                f"{_show(path)} holds no input files.",
                "Name a directory that holds some, or say which to take with source.format or source.include.",
            )
        return found

    def _standard_library(self) -> list[InputFile]:
        if self.format not in ("auto", "python"):
            raise SourceError(f"{STDLIB} holds Python files, not {self.format}.", "Set source.format to python.")
        top = UPath(Path(sysconfig.get_paths()["stdlib"]).resolve())
        self.roots = [str(top)]
        selection = _Selection(self.include or ["*.py"], self._excluded(_EXCLUDED_OF_STDLIB))
        return [replace(file, format="python") for file in self._below(top, selection)]

    def _package(self, entry: str) -> list[InputFile]:
        """The data files of an installed package, whose code is not imported."""
        name, _, below = entry.removeprefix(PACKAGE).partition("/")
        # Only a package at the top is looked for: finding one inside another would import the outer one.
        found = importlib.util.find_spec(name) if name.isidentifier() else None
        if found is None or not found.submodule_search_locations:
            raise SourceError(f"There is no installed package {name!r}.", "Install it: pip install --no-deps NAME.")
        package = Path(found.submodule_search_locations[0]).resolve()
        top = (package / below).resolve()
        if not top.is_dir() or not top.is_relative_to(package):
            raise SourceError(f"The package {name} has no directory {below!r}.", f"Look into {package}.")
        self.roots = [str(top)]
        files = self._below(UPath(top), _Selection(self._included(), self._excluded(_EXCLUDED_OF_PACKAGE)))
        if not files:
            raise SourceError(
                f"{entry} holds no input files.", "Say which to take with source.format or source.include."
            )
        return files

    def _included(self) -> Sequence[str]:
        if self.include is not None:
            return self.include
        return [f"*{suffix}" for suffix in SUFFIXES.get(self.format, ("",))]

    def _excluded(self, default: Sequence[str]) -> Sequence[str]:
        return default if self.exclude is None else self.exclude

    def _glob(self, entry: str) -> list[InputFile]:
        # One matcher for local and remote: fsspec and pathlib differ on `**`, and fsspec follows links.
        parts = entry.split("/")
        fixed = list(takewhile(lambda part: not any(sign in part for sign in "*?["), parts))
        if scheme_of(entry) not in ("file", "hf") and len(fixed) < 3:
            raise SourceError(f"{redact(entry)} names no bucket.", "Put wildcards after the bucket's name.")
        base = locate("/".join(fixed) or ("/" if entry.startswith("/") else "."), roots=self.roots)
        pattern = tuple(part for part in parts[len(fixed) :] if part)
        selection = _Selection(self.include or ["*"], self._excluded(_EXCLUDED), pattern)
        found = self._below(base, selection) if _kind(base) == "directory" else []
        if not found:
            raise SourceError(f"No file matches {redact(entry)}.", "Correct it; `**` stands for any directories.")
        return found

    def _below(self, top: UPath, selection: _Selection) -> list[InputFile]:
        """The files below a directory, datasets among them replaced by the parts they list."""
        walk = self._walk_local if is_local(top) else self._walk_remote
        folders: dict[PurePosixPath, list[tuple[PurePosixPath, UPath, Mapping[str, Any] | None]]] = {}
        for each in walk(top, selection):
            folders.setdefault(each[0].parent, []).append(each)
        found: list[InputFile] = []
        for folder, entries in folders.items():
            here = top if not folder.name else top / folder.as_posix()
            # Parts that no manifest lists are no rows of the dataset: reading them would repeat rows.
            if any(name.suffix == ".parquet" for name, _, _ in entries) and is_dataset(here):
                parts = self._dataset(here, f"{folder.as_posix()}/" if folder.name else "")
                found += [part for part in parts if selection.takes(folder / PurePosixPath(part.uri).name)]
                continue
            for name, path, info in entries:
                if selection.takes(name) and not self._unfit(path):
                    found.append(self._file(path, name.as_posix(), info))
        return found

    def _walk_local(self, top: UPath, selection: _Selection) -> Iterator[tuple[PurePosixPath, UPath, None]]:
        def refuse(error: OSError) -> None:
            raise SourceError(f"{error.filename} may not be listed.", "Grant read permission, or exclude it.") from None

        for folder, directories, names in os.walk(str(top), onerror=refuse):
            here = PurePosixPath(Path(folder).relative_to(str(top)).as_posix())
            directories[:] = sorted(each for each in directories if selection.enters(here / each))
            links = sum(Path(folder, each).is_symlink() for each in directories)
            if links:
                self.skipped["link to a directory"] += links
            for each in sorted(names):
                yield here / each, UPath(Path(folder, each)), None

    def _unfit(self, path: UPath) -> bool:
        """Whether a file met on a walk must not be read; counts why."""
        if not is_local(path):
            return False
        reason = ""
        if not path.exists():
            reason = "broken link"
        elif path.is_symlink() and not is_inside(Path(str(path)).resolve(), self.roots):
            reason = "link out of the roots"
        elif not path.is_file():
            reason = "not a regular file"
        if reason:
            self.skipped[reason] += 1
        return bool(reason)

    def _walk_remote(
        self, top: UPath, selection: _Selection
    ) -> Iterator[tuple[PurePosixPath, UPath, Mapping[str, Any]]]:
        prefix = top.path.rstrip("/") + "/"
        for key, info in sorted(_ask(top, lambda: top.fs.find(prefix, detail=True)).items()):
            if key.startswith(prefix) and key != prefix and not key.endswith("/"):
                yield PurePosixPath(key.removeprefix(prefix)), UPath(f"{scheme_of(str(top))}://{key}"), info

    def _dataset(self, path: UPath, prefix: str) -> list[InputFile]:
        if self.format not in ("auto", "parquet"):
            raise SourceError(
                f"{_show(path)} is a published dataset of Parquet parts, not {self.format}.",
                "Leave source.format unset, or name another directory.",
            )
        dataset = read_dataset(path)
        self.parents[str(path)] = Parent(uri=str(path), fingerprint=dataset.fingerprint)
        return [
            InputFile(str(path / part.file), prefix + part.name, part.bytes, _PART + part.sha256, "parquet")
            for part in dataset.parts
        ]

    def _file(self, path: UPath, name: str, info: Mapping[str, Any] | None = None) -> InputFile:
        size, fingerprint = _local_fingerprint(path) if is_local(path) else _remote_fingerprint(path, info)
        return InputFile(str(path), name, size, fingerprint, self.format)


def _unique_names(groups: Sequence[Sequence[InputFile]]) -> list[InputFile]:
    """Names as they are; where two paths give the same name, every name gets its path's number (from 1) in front."""
    names = Counter(file.name for files in groups for file in files)
    numbered = any(count > 1 for count in names.values())
    return [
        replace(file, name=f"{number}/{file.name}") if numbered else file
        for number, files in enumerate(groups, start=1)
        for file in files
    ]


def _settle_format(files: Sequence[InputFile]) -> list[InputFile]:
    """Give `auto` files the format of their suffix. Raises `SourceError` where it is unknown or they differ."""
    settled = [replace(file, format=_format_of(file)) if file.format == "auto" else file for file in files]
    examples = {file.format: file.name for file in reversed(settled)}
    if len(examples) > 1:
        kinds = " and ".join(f"{format} ({name})" for format, name in sorted(examples.items()))
        raise SourceError(
            f"The inputs mix formats: {kinds}.", "Set source.format, or narrow source.paths or source.include."
        )
    return settled


def _format_of(file: InputFile) -> str:
    name = PurePosixPath(file.uri).name.lower()
    for format, suffixes in SUFFIXES.items():
        if name.endswith(suffixes):
            return format
    raise SourceError(
        f"The suffix of {file.name} does not tell its format.",
        "Set source.format, or leave it out with source.exclude.",
    )


def _kind(path: UPath) -> str:
    if is_local(path):
        try:
            mode = path.stat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            return "missing"
        except PermissionError:
            raise SourceError(f"{path} may not be read.", "Grant read permission.") from None
        except OSError as error:
            raise SourceError(f"{path} cannot be looked up: {error.strerror}.", "Correct source.paths.") from None
        return "directory" if stat.S_ISDIR(mode) else "file" if stat.S_ISREG(mode) else "other"

    def look() -> str:
        path.fs.invalidate_cache()
        return "directory" if path.fs.isdir(path.path) else "file" if path.fs.exists(path.path) else "missing"

    return _ask(path, look)


def _ask(path: UPath, question: Callable[[], T]) -> T:
    try:
        return question()
    except Exception as error:  # each file-system library raises classes of its own
        reason = str(error).strip().partition("\n")[0].rstrip(".")[:200]
        raise SourceError(
            f"{_show(path)} cannot be looked up: {redact(reason)}.",
            "Check its name, the credentials in the environment and the network.",
        ) from error


def check_unchanged(file: InputFile) -> None:
    """Raise `SourceError` if a file is no longer the one that was listed; called when its rows are read."""
    path = locate(file.uri)
    try:
        if file.fingerprint.startswith(_PART):
            now = int(path.stat().st_size), file.fingerprint
        else:
            now = _local_fingerprint(path) if is_local(path) else _remote_fingerprint(path, None)
    except FileNotFoundError:
        raise SourceError(f"{_show(path)} is no longer there.", "Put it back, or start a new run.") from None
    if now != (file.size, file.fingerprint):
        raise SourceError(
            f"{_show(path)} has changed since this run began.", "Put the old one back, or start over with --fresh."
        )


def _local_fingerprint(path: UPath) -> tuple[int, str]:
    """Size and hash: of the whole content, or for a large file of size, time of change, first and last MiB."""
    try:
        with open(str(path), "rb") as file:
            status = os.fstat(file.fileno())
            if status.st_size <= _WHOLE_HASH_BYTES:
                return status.st_size, hashlib.file_digest(file, "sha256").hexdigest()
            digest = hashlib.sha256(f"{status.st_size} {status.st_mtime_ns}".encode())
            digest.update(file.read(_EDGE_BYTES))
            file.seek(-_EDGE_BYTES, os.SEEK_END)
            digest.update(file.read(_EDGE_BYTES))
            return status.st_size, digest.hexdigest()
    except PermissionError:
        raise SourceError(f"{path} may not be read.", "Grant read permission, or exclude it.") from None


def _remote_fingerprint(path: UPath, info: Mapping[str, Any] | None) -> tuple[int, str]:
    """Size and hash of the size and whatever the store says of the content: etag or checksum, else time of change."""
    known: Mapping[str, Any] = _ask(path, lambda: path.fs.info(path.path)) if info is None else info
    size = int(known.get("size") or 0)
    told = [str(known[key]) for key in _CONTENT_KEYS if known.get(key)]
    told = told or [str(known[key]) for key in _TIME_KEYS if known.get(key)]
    return size, hashlib.sha256(" ".join([str(size), *told]).encode()).hexdigest()


def _fits(name: PurePosixPath, glob: str) -> bool:
    return fnmatchcase(name.as_posix() if "/" in glob else name.name, glob)


def _globs(name: Sequence[str], pattern: Sequence[str]) -> bool:
    if not pattern:
        return True
    if pattern[0] == "**":
        return any(_globs(name[skip:], pattern[1:]) for skip in range(len(name)))
    return bool(name) and fnmatchcase(name[0], pattern[0]) and _globs(name[1:], pattern[1:])


def _show(path: UPath) -> str:
    return redact(str(path))
