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

from fsspec import get_filesystem_class
from upath import UPath

from engine.errors import HeadraceError, SourceError, StorageError, redact

SCHEMES = ("file", "s3", "gs", "az", "hf")
_PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "az": "adlfs", "hf": "huggingface_hub"}


def locate(uri: str, *, roots: Sequence[str] | None = None) -> UPath:
    """The location a URI or local path names; local paths come back absolute with symbolic links resolved.

    `roots`, where given, are the local directories an input may come from. Raises `SourceError` for a scheme that is
    not allowed, for credentials inside the URI, for a missing file-system package, and for a local path outside
    every root.
    """
    if "\0" in uri:
        raise SourceError(f"{uri!r} holds a null character.", "Leave it out.")
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
        get_filesystem_class(scheme)  # UPath itself looks for the package when the first file is touched
        # A remembered listing would hide what other processes have written since.
        return UPath(uri, use_listings_cache=False)
    except ImportError:
        raise SourceError(
            f"{scheme}:// needs the package {_PACKAGES[scheme]}.", "Install it: pip install 'headrace[cloud]'."
        ) from None


def writable(uri: str) -> UPath:
    """As `locate`, for a place to write to. Raises `SourceError` for a store that cannot create a file exactly once."""
    if scheme_of(uri) == "hf":
        raise SourceError(
            f"{redact(uri)} can be read but not written.", "Choose a local directory, s3://, gs:// or az://."
        )
    return locate(uri)


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


def create(path: UPath, data: bytes) -> bool:
    """Write a file only if there is none of that name; whole or not at all. True if this call made it.

    On a local disk a finished temporary file is linked to the name (the link fails if the name is taken); elsewhere
    it is a conditional put.
    """
    with storage_errors(path):
        if not is_local(path):
            return _put_once(path, data)
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
    """Names of what a directory holds now; none if there is no such directory. Raises `StorageError`."""
    with storage_errors(folder):
        try:
            return [each.name for each in folder.iterdir()]
        except (FileNotFoundError, NotADirectoryError):
            return []


@contextmanager
def storage_errors(path: UPath) -> Iterator[None]:
    """Turn what the file system or an object store says, a full disk for example, into a `StorageError`."""
    try:
        yield
    except HeadraceError:
        raise
    except Exception as error:
        if not is_local(path):  # each file-system library raises classes of its own
            raise _remote_error(path, error) from error
        if not isinstance(error, OSError) or error.errno is None:
            raise
        what, remedy = _WRITE_ERRORS.get(error.errno, (os.strerror(error.errno).lower(), _ELSEWHERE))
        raise StorageError(f"Cannot write {path}: {what}.", remedy) from error


_FREE = "Free some space and run the same command again: it resumes."
_ELSEWHERE = "Choose another place: runs=... (or output=...)."
_WRITE_ERRORS = {
    errno.ENOSPC: ("the disk is full", _FREE),
    errno.EDQUOT: ("the disk quota is used up", _FREE),
    errno.EROFS: ("the file system is read-only", _ELSEWHERE),
    errno.EACCES: ("permission is denied", _ELSEWHERE),
    errno.EPERM: ("permission is denied", _ELSEWHERE),
    errno.EEXIST: ("there is a file of that name", _ELSEWHERE),
    errno.ENOTDIR: ("a part of the path is a file", _ELSEWHERE),
}


def _put_once(path: UPath, data: bytes) -> bool:
    try:
        path.fs.pipe_file(path.path, data, mode="create")
    except FileExistsError:
        return False
    except OSError:
        # Stores differ in how they say that another put was quicker; what counts is that there is an object now.
        if path.fs.exists(path.path):
            return False
        raise
    return True


def _remote_error(path: UPath, error: Exception) -> StorageError:
    reason = redact((str(error).strip() or type(error).__name__).partition("\n")[0].rstrip("."))[:200]
    return StorageError(
        f"Cannot reach {redact(str(path))}: {reason}.",
        "Check the bucket, the credentials in the environment and the network.",
    )


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
