"""What models there are to be named, and what each is, without loading a weight.

Numbers come from `config.json` and from the headers of safetensors files, which list every tensor's shape and type.

Left out: models on the hub that nobody has fetched, and printing (`jobs.models`). Called by it, and by
`engine.models.derived`.
"""

import json
import math
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from upath import UPath

from engine.artifacts import MANIFEST, cache_folder, is_model, read_model
from engine.errors import HeadraceError, SourceError
from engine.models.packaged import PACKAGED, converted, installed
from engine.models.references import fingerprint, resolve
from engine.storage import locate, storage_errors

_LONGEST_HEADER = 100_000_000
"""Bytes; safetensors itself refuses longer ones."""
_INDEX = "model.safetensors.index.json"
_LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
_WIDTH = ("hidden_size", "n_embd", "d_model", "dim")


@dataclass(frozen=True)
class Description:
    """What a model is: numbers of its configuration (0 where it does not say) and of its weights on disk."""

    parameters: int
    layers: int
    width: int
    vocabulary: int
    dtype: str
    """Of most parameters, in safetensors' words: F32, BF16, F16."""
    bytes: int


@dataclass(frozen=True)
class Listed:
    """One model that can be named; `what` is None where it is not on this machine yet, or cannot be read."""

    reference: str
    """What to call it by; in the cache the name of its directory there."""
    about: str
    """Package: version and licence; cache: where it is from; published: how it came about."""
    what: Description | None
    remedy: str = ""
    """Package: the command that installs it, if it is not; else what is wrong with it."""
    fingerprint: str = ""


def weight_files(folder: UPath | Path) -> list[str]:
    """Names of a model's safetensors files, the index's if there is one. Raises `SourceError` if one is missing."""
    found = sorted(each.name for each in folder.iterdir() if each.name.endswith(".safetensors"))
    if not (folder / _INDEX).is_file():
        return ["model.safetensors"] if "model.safetensors" in found else found
    wanted = set(_json(folder / _INDEX).get("weight_map", {}).values())
    if any(not isinstance(name, str) or Path(name).name != name for name in wanted):
        raise SourceError(f"{folder / _INDEX} names files outside of its directory.", "Get the model again.")
    for name in sorted(wanted.difference(found)):
        raise SourceError(f"{folder} lacks {name}.", "Get the model again.")
    return sorted(wanted)


def describe_model(folder: UPath | Path) -> Description:
    """Read a model's configuration and the headers of its weights. Raises `SourceError` where one is damaged."""
    config = _json(folder / "config.json")
    decoder = config.get("text_config")
    if isinstance(decoder, dict):
        config = {**config, **decoder}
    per_dtype: Counter[str] = Counter()
    size = 0
    for name in weight_files(folder):
        for dtype, shape in _header(folder / name):
            per_dtype[dtype] += math.prod(shape)
        size += (folder / name).stat().st_size
    return Description(
        parameters=per_dtype.total(),
        layers=_first(config, _LAYERS),
        width=_first(config, _WIDTH),
        vocabulary=_first(config, ("vocab_size",)),
        dtype=max(per_dtype, key=lambda dtype: per_dtype[dtype], default=""),
        bytes=size,
    )


def has_chat_template(folder: Path) -> bool:
    """Whether a model says how a conversation is written. Raises `SourceError` for damaged settings."""
    if (folder / "chat_template.jinja").is_file() or (folder / "chat_template.json").is_file():
        return True
    settings = folder / "tokenizer_config.json"
    return settings.is_file() and bool(_json(settings).get("chat_template"))


def packaged_models() -> list[Listed]:
    """Every model that installs as a package, whether it is installed or not."""
    rows = []
    for name, package in PACKAGED.items():
        version = installed(package)
        state = version or "not installed"
        remedy = "" if version else package.install
        what = None
        if version and not package.file.endswith(".gguf"):
            what, remedy = _described(f"pkg:{name}")
        elif version and converted(name, version, cache_folder()).is_dir():
            what, remedy = _described(str(converted(name, version, cache_folder())))
        elif version:
            state += ", converted when it is first used"
        rows.append(Listed(f"pkg:{name}", f"{state}; {package.licence}", what, remedy))
    return rows


def cached_models() -> list[Listed]:
    """Every model in the cache of this machine: converted from a package, or copied from where it was published."""
    rows = []
    here = cache_folder() / "models"
    for folder in sorted(here.iterdir()) if here.is_dir() else ():
        if folder.name.startswith(".") or not folder.is_dir():
            continue
        what, problem = _described(str(folder))
        about = "copied" if folder.name.startswith("published-") else "converted"
        rows.append(Listed(folder.name, about, what, problem, fingerprint(folder) if what else ""))
    return rows


def published_models(runs: str) -> list[Listed]:
    """Every published model under a directory or URI, and how it came about.

    Raises `SourceError` for a scheme that is not allowed, `StorageError` for a store that cannot be reached.
    """
    rows = []
    root = locate(runs)
    for inside in _directories(root):
        folder, reference = root / inside, f"{runs.rstrip('/')}/{inside}"
        try:
            if not is_model(folder):
                continue
            manifest = read_model(folder).manifest
            made = manifest.recipe.get("made") or f"{manifest.job} of {_base(manifest)}"
            rows.append(Listed(reference, str(made), describe_model(folder)))
        except HeadraceError as error:
            rows.append(Listed(reference, "damaged", None, str(error)))
    return rows


def _base(manifest: Any) -> str:
    """The model that a recipe of a job started from; of a sieve that is its student's."""
    student = manifest.recipe.get("student")
    section = student if isinstance(student, dict) else manifest.recipe
    return str(section.get("model") or "an unknown model")


def _directories(root: UPath) -> list[str]:
    """Paths of directories under a root with a manifest; what is hidden or still being built is left out."""
    with storage_errors(root):
        found = [path.removeprefix(root.path).lstrip("/") for path in root.fs.find(root.path)]
    folders = sorted(path.removesuffix(f"/{MANIFEST}") for path in found if path.endswith(f"/{MANIFEST}"))
    hidden = re.compile(r"(^|/)\.|\.partial(/|$)")
    return [folder for folder in folders if not hidden.search(folder)]


def _described(reference: str) -> tuple[Description | None, str]:
    try:
        return describe_model(resolve(reference)), ""
    except HeadraceError as error:
        return None, str(error)


def _header(file: UPath | Path) -> list[tuple[str, list[int]]]:
    """Type and shape of every tensor in a safetensors file."""
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 0 < length < _LONGEST_HEADER:
                raise ValueError(f"its header would have {length:,} bytes")
            header = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        return [(str(each["dtype"]), [int(size) for size in each["shape"]]) for each in header.values()]
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise SourceError(f"{file} is no whole safetensors file ({error}).", "Get the model again.") from error


def _json(file: UPath | Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise SourceError(f"{file} cannot be read ({error}).", "Get the model again.") from error
    if not isinstance(content, dict):
        raise SourceError(f"{file} holds no keys and values.", "Get the model again.")
    return content


def _first(config: dict[str, Any], keys: tuple[str, ...]) -> int:
    return next((config[key] for key in keys if isinstance(config.get(key), int)), 0)
