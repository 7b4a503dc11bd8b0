"""Where things are kept: URIs with an allow-list, roots that hold local paths in, and atomic writes.

A location is a `upath.UPath` (a `pathlib`-like view of any fsspec file system). Two writes are offered beside the
plain ones: `create` makes a file exactly once, whoever else tries; `replace` swaps a whole file. Neither ever shows a
reader a half-written file, and both survive SIGKILL.

Left out: formats and manifests (`engine.artifacts`), globbing of inputs (`engine.corpus`). Called by every room that
touches files.
"""

import errno
import os
import re
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from upath import UPath

from engine.errors import SourceError, StorageError

SCHEMES = ("file", "s3", "gs", "az", "hf")
_PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "az": "adlfs", "hf": "huggingface_hub"}


def locate(uri: str, *, roots: Sequence[str] | None = None) -> UPath:
    """The location a URI or local path names; local paths come back absolute with symbolic links resolved.

    `roots`, where given, are the local directories an input may come from. Raises `SourceError` for a scheme that is
    not allowed, for credentials inside the URI, for a missing file-system package, and for a local path outside
    every root.
    """
    scheme = scheme_of(uri)
    if scheme not in SCHEMES:
        allowed = ", ".join(SCHEMES)
        raise SourceError(f"The scheme of {redact(uri)!r} is not allowed.", f"Use a local path or one of: {allowed}.")
    if scheme == "file":
        path = Path(re.sub(r"^file:(//(localhost)?(?=/))?", "", uri)).expanduser().resolve()
        if roots is not None and not is_inside(path, roots):
            raise SourceError(
                f"{path} lies outside the roots that the recipe names ({', '.join(roots) or 'none'}).",
                "Add its directory to `roots` if you mean to read it.",
            )
        return UPath(path)
    if "@" in urlsplit(uri).netloc:
        raise SourceError(
            f"{redact(uri)} carries credentials.", "Leave them out and give them through the environment instead."
        )
    try:
        return UPath(uri)
    except ImportError:
        raise SourceError(
            f"Reading {scheme}:// needs the package {_PACKAGES[scheme]}.", "Install it: pip install 'headrace[cloud]'."
        ) from None


def scheme_of(uri: str) -> str:
    """`file` for a local path, else the URI's scheme in lower case."""
    match = re.match(r"^([A-Za-z][A-Za-z0-9+.-]+):", uri)
    return match.group(1).lower() if match else "file"


def is_local(path: UPath) -> bool:
    """Whether a location is on this machine's file system."""
    return path.protocol in ("", "file", "local")


def is_inside(path: Path, roots: Sequence[str]) -> bool:
    """Whether a resolved local path lies in (or is) one of the roots."""
    return any(path.is_relative_to(Path(root).expanduser().resolve()) for root in roots)


def redact(uri: str) -> str:
    """A URI fit for a log: user names, passwords and query strings taken out."""
    return re.sub(r"//[^/@]*@", "//***@", uri).partition("?")[0]


def create(path: UPath, data: bytes) -> bool:
    """Write a file only if there is none of that name; whole or not at all. True if this call made it.

    On a local disk a finished temporary file is linked to the name (the link fails if the name is taken); elsewhere
    it is a conditional put.
    """
    with storage_errors(path):
        if not is_local(path):
            try:
                path.fs.pipe_file(path.path, data, mode="create")
            except FileExistsError:
                return False
            return True
        temporary = _write_temporary(path, data)
        try:
            os.link(temporary, str(path))
        except FileExistsError:
            return False
        finally:
            os.unlink(temporary)
        return True


def replace(path: UPath, data: bytes) -> None:
    """Write a file, replacing one of that name as a whole: a reader sees the old bytes or the new ones."""
    with storage_errors(path):
        if is_local(path):
            os.replace(_write_temporary(path, data), str(path))
        else:
            path.fs.pipe_file(path.path, data)


def make_directory(path: UPath) -> None:
    """Make a directory and its parents; nothing to do on object stores. Raises `StorageError`."""
    with storage_errors(path):
        if is_local(path):
            path.mkdir(parents=True, exist_ok=True)


def names(folder: UPath) -> list[str]:
    """Names of what a directory holds now; none if there is no such directory."""
    # Object-store file systems remember listings; another process may have added to this one since.
    folder.fs.invalidate_cache(folder.path)
    try:
        return [each.name for each in folder.iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        return []


@contextmanager
def storage_errors(path: UPath) -> Iterator[None]:
    """Turn a full disk, a read-only or forbidden directory into a `StorageError` with the remedy."""
    try:
        yield
    except OSError as error:
        what = {
            errno.ENOSPC: ("the disk is full", "Free some space and run the same command again: it resumes."),
            errno.EDQUOT: ("the disk quota is used up", "Free some space and run the same command again: it resumes."),
            errno.EROFS: ("the file system is read-only", "Choose a writable `runs` directory."),
            errno.EACCES: ("permission is denied", "Choose a writable `runs` directory."),
            errno.EPERM: ("permission is denied", "Choose a writable `runs` directory."),
            errno.EEXIST: ("there is a file of that name", "Choose another `runs` directory."),
            errno.ENOTDIR: ("a part of the path is a file", "Choose another `runs` directory."),
        }.get(error.errno or 0)
        if what is None:
            raise
        raise StorageError(f"Cannot write {redact(str(path))}: {what[0]}.", what[1]) from error


def _write_temporary(path: UPath, data: bytes) -> str:
    temporary = f"{path.parent}/.{path.name}.{uuid.uuid4().hex[:12]}.tmp"
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise
    return temporary
