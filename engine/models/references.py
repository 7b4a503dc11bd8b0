"""Model references: the three things a recipe's `model:` may name, and the directory each stands for here.

    some/dir, /dir, ~/dir     a Hugging Face directory on this machine (safetensors, config, tokenizer)
    org/name, org/name@rev    a model on the Hugging Face hub, at a revision
    pkg:NAME                  a model that installs as a Python package (`engine.models.packaged`)

Whatever it names becomes an ordinary local directory of safetensors: nothing else is ever loaded, neither pickles nor
code that comes with a model. A directory that exists wins over a hub name. Left out: loading (`engine.models.loading`).
Called by it, and by jobs that put a model's fingerprint in what they publish.
"""

import hashlib
import os
import re
from functools import cache
from pathlib import Path

from engine.errors import SourceError
from engine.models.packaged import PACKAGED, unpack

_KINDS = (
    "Give a directory with config.json and safetensors, the name of a model on the Hugging Face hub, or one of: "
    + ", ".join(f"pkg:{name}" for name in PACKAGED)
    + "."
)
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?(@[\w./-]+)?")
_WANTED = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.txt", "*.model", "*.jinja"]
"""Files of a hub model that are fetched: weights and tokenizer, never pickles or code."""
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.txt", "vocab.json", "merges.txt")


def resolve(reference: str) -> Path:
    """The local directory of a model, fetched or unpacked into the cache the first time.

    Raises `SourceError` for a reference that names nothing, and for a directory without what a model needs.
    """
    if reference.startswith("pkg:"):
        return unpack(reference.removeprefix("pkg:"), cache_folder())
    folder = Path(os.path.expanduser(reference))
    if os.path.isdir(folder):
        return folder.resolve()
    if reference.startswith((".", "/", "~")) or not _HUB_NAME.fullmatch(reference):
        raise SourceError(f"There is no model at {reference}.", _KINDS)
    return _from_hub(reference)


def cache_folder() -> Path:
    """Where fetched and unpacked models are kept: `$HEADRACE_CACHE`, else `~/.cache/headrace`."""
    return Path(os.environ.get("HEADRACE_CACHE") or "~/.cache/headrace").expanduser()


@cache
def fingerprint(folder: Path) -> str:
    """Hash (16 hex digits) of what decides a model's answers: weights, configuration and tokenizer."""
    files = [*folder.glob("*.safetensors"), *folder.glob("*.gguf"), folder / "config.json", *_tokenizer_files(folder)]
    return _hash(sorted(each for each in set(files) if each.is_file()))


@cache
def tokenizer_fingerprint(folder: Path) -> str:
    """Hash (16 hex digits) of the files a tokenizer is made from."""
    return _hash(_tokenizer_files(folder))


def _tokenizer_files(folder: Path) -> list[Path]:
    return [folder / name for name in _TOKENIZER_FILES if (folder / name).is_file()]


def _hash(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:16]


def _from_hub(reference: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    name, _, revision = reference.partition("@")
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=_WANTED))
    except LocalEntryNotFoundError as error:
        raise SourceError(
            f"The model {name} is neither on this machine nor can the Hugging Face hub be reached.", _KINDS
        ) from error
    except (HfHubHTTPError, OSError, ValueError) as error:
        why = str(error).strip().partition("\n")[0][:200].rstrip(".")
        raise SourceError(f"The model {name} cannot be had from the Hugging Face hub ({why}).", _KINDS) from error
