"""Model references: what a recipe's `model:` may name, and the directory each stands for on this machine.

    some/dir, /dir, ~/dir     a Hugging Face directory on this machine (safetensors, config, tokenizer)
    s3://..., gs://...        a model that a job has published there (`engine.artifacts`)
    org/name, org/name@rev    a model on the Hugging Face hub, at a revision
    pkg:NAME                  a model that installs as a Python package (`engine.models.packaged`)

Whatever it names becomes an ordinary local directory of safetensors: nothing else is ever loaded, neither pickles nor
code that comes with a model. A directory that exists wins over a hub name. Left out: loading (`engine.models.loading`).
Called by it, and by jobs that put a model's fingerprint in what they publish.
"""

import hashlib
import os
import re
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from engine.artifacts import cache_folder, read_model
from engine.errors import SourceError
from engine.models.packaged import PACKAGED, unpack
from engine.storage import is_local, locate

_PUBLISHED = re.compile(r"(?:^|/)runs/(?P<job>[a-z-]+)/(?P<name>[^/]+)/(?:model|student)/?$")
"""Where jobs publish models."""
_KINDS = (
    "Give a directory with config.json and safetensors, the name of a model on the Hugging Face hub, or one of: "
    + ", ".join(f"pkg:{name}" for name in PACKAGED)
    + "."
)
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?(@[\w./-]+)?")
_WANTED = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.txt", "*.model", "*.jinja"]
_UNWANTED = ["*/*", "consolidated*"]
"""Of a hub model weights and tokenizer are fetched, never pickles or code, nor the same weights in another layout."""
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
_VOCABULARY = (
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
)
_SETTINGS = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
)


def resolve(reference: str, *, weights: bool = True) -> Path:
    """The local directory of a model, fetched or unpacked into the cache the first time.

    Raises `SourceError` for a reference that names nothing and, if `weights` are needed, for a directory without
    `config.json` and safetensors; `ArtifactError` for a URI at which no model is published.
    """
    folder = _find(reference)
    if weights:
        _require_weights(folder, reference)
    return folder


def portable(reference: str) -> str:
    """The same reference for a process that works in another directory: a local directory by its absolute path."""
    folder = Path(os.path.expanduser(reference))
    return str(folder.resolve()) if reference and "://" not in reference and folder.is_dir() else reference


def fingerprint(folder: Path) -> str:
    """Hash (16 hex digits) of what decides a model's answers: weights, configuration, tokenizer and chat template.

    Files are read again only when their size or time has changed.
    """
    return _hash([*sorted(folder.glob("*.safetensors")), *_present(folder, _SETTINGS), *_present(folder, _VOCABULARY)])


def tokenizer_fingerprint(folder: Path) -> str:
    """Hash (16 hex digits) of the files that say which text a token id stands for: equal where ids may be shared."""
    return _hash(_present(folder, _VOCABULARY))


def _find(reference: str) -> Path:
    if reference.startswith("pkg:"):
        return unpack(reference.removeprefix("pkg:"), cache_folder())
    if "://" in reference:
        place = locate(reference)
        if not is_local(place):
            return read_model(place).local()
        reference = str(place)
    folder = Path(os.path.expanduser(reference))
    if reference and os.path.isdir(folder):
        return folder.resolve()
    if reference.lower().endswith(".gguf") and folder.is_file():
        raise SourceError(
            f"{reference} is a GGUF file, which is converted before it is used.",
            f"Run: headrace models convert {reference} OUTPUT",
        )
    if reference.startswith((".", "/", "~")) or not _HUB_NAME.fullmatch(reference):
        raise SourceError(f"There is no model at {reference or 'an empty name'}.", _remedy(reference))
    return _from_hub(reference)


def _remedy(reference: str) -> str:
    """What to do about a model that is not there: make it, if it is what a job of ours publishes."""
    made = _PUBLISHED.search(reference)
    if made is None:
        return _KINDS
    # The recipes of value networks are called `value_`.
    recipe = f"jobs/recipes/{made['job'].removesuffix('-network')}_{made['name']}.yaml"
    shown = recipe if os.path.isfile(recipe) else f"RECIPE.yaml name={made['name']}"
    return f"Make it first: headrace {made['job']} {shown}"


def _require_weights(folder: Path, reference: str) -> None:
    if not (folder / "config.json").is_file():
        raise SourceError(f"There is no model in {reference}: it has no config.json.", _KINDS)
    if any(folder.glob("*.safetensors")):
        return
    if any(any(folder.glob(pattern)) for pattern in _PICKLES):
        raise SourceError(
            f"The weights of {reference} are pickles, which can run any code and are never loaded.",
            "If you trust where they come from, load them elsewhere and save them with save_pretrained.",
        )
    raise SourceError(f"There are no weights in {reference}: it has no safetensors.", _KINDS)


def _present(folder: Path, wanted: Iterable[str]) -> list[Path]:
    return [folder / name for name in wanted if (folder / name).is_file()]


def _hash(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        status = file.stat()
        digest.update(file.name.encode() + b"\0" + _sha256(file, status.st_size, status.st_mtime_ns))
    return digest.hexdigest()[:16]


@lru_cache(maxsize=1024)
def _sha256(file: Path, size: int, mtime_ns: int) -> bytes:
    """Hash of a file's contents, remembered for as long as its size and time stay."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


def _from_hub(reference: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    name, _, revision = reference.partition("@")
    try:
        return Path(
            snapshot_download(name, revision=revision or None, allow_patterns=_WANTED, ignore_patterns=_UNWANTED)
        )
    except LocalEntryNotFoundError as error:
        raise SourceError(
            f"The model {name} is neither on this machine nor can the Hugging Face hub be reached.", _KINDS
        ) from error
    # Besides the hub's own errors come those of whichever HTTP library it uses.
    except Exception as error:
        why = str(error).strip().partition("\n")[0][:200].rstrip(".")
        raise SourceError(f"The model {name} cannot be had from the Hugging Face hub ({why}).", _KINDS) from error
