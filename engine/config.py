"""Recipes: typed, frozen, one YAML file each, unknown keys refused with the nearest key named.

A recipe class is a pydantic model derived from `Recipe`; its sections derive from `Section`. A field made with
`knob` says how the work is done and not what comes out (worker counts, deadlines): it is left out of the recipe's
fingerprint, so changing it never stops a resume.

Left out: what the keys mean (each job's recipe class says that) and anything heavy: importing this module imports
neither torch, ray nor vllm. Called by `jobs` and by the configuration sections of the rooms.
"""

import difflib
import hashlib
import json
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import PydanticUndefined
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from engine.errors import RecipeError, redact


class Section(BaseModel):
    """A frozen group of recipe keys; keys it does not know are refused."""

    # Defaults are validated too: an int default of a float key must not differ from the same value read back from YAML.
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True)


class Recipe(Section):
    """The keys that every job's recipe has."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run; its directory is RUNS/JOB/NAME."""
    seed: int = 0
    """Seed of everything random; the same seed gives the same output on any number of workers."""
    runs: str = Field("runs", json_schema_extra={"knob": True})
    """Directory (or URI) under which run directories are kept."""

    def fingerprint(self) -> str:
        """Hash of every key that can change the output (16 hex digits); knobs are left out."""
        payload = json.dumps(_without_knobs(self), sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(payload.encode()).hexdigest()[:16]


def knob(default: Any, **limits: Any) -> Any:
    """A field that changes how the work is done but never what comes out; not part of the fingerprint."""
    return Field(default, json_schema_extra={"knob": True}, **limits)


R = TypeVar("R", bound=Recipe)


def load_recipe(model: type[R], path: str | Path, overrides: Sequence[str] = ()) -> R:
    """Read a YAML recipe, apply `key.sub=value` overrides (values are YAML too), and validate it.

    Raises `RecipeError`, naming the file, the key and the nearest known key.
    """
    data = read_yaml(path)
    for override in overrides:
        _override(data, override)
    return build_recipe(model, data, where=str(path))


def build_recipe(model: type[R], data: Mapping[str, Any], *, where: str = "recipe") -> R:
    """Validate plain data as a recipe; `where` names its origin in errors."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        # An unknown key often makes another one missing: name it first.
        items = sorted(error.errors(), key=lambda item: item["type"] != "extra_forbidden")
        problems = [_sentence(model, item) for item in items]
        others = len(problems) - 1
        more = f" (and {others} more problem{'s' if others > 1 else ''})" if others else ""
        raise RecipeError(f"{where}: {problems[0]}{more}.", "`headrace JOB --help` lists every key.") from None


def set_key(data: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key in a recipe's plain data, making sections on the way; in a list a number is a place, from 0.
    Raises `RecipeError`."""
    parents = key.split(".")
    last = parents.pop()
    target: Any = data
    for at, parent in enumerate(parents):
        place = _place(target, parent, key)
        if isinstance(target, dict) and target.get(parent) is None:
            target[parent] = {}
        target = target[place]
        if not isinstance(target, dict | list):
            through = ".".join(parents[: at + 1])
            raise RecipeError(
                f"The key {key!r} goes through {through}, which holds no keys.", "Set that key as a whole."
            )
    target[_place(target, last, key)] = value


def _place(target: Any, name: str, key: str) -> Any:
    """The key or the index that a name stands for."""
    if isinstance(target, dict):
        return name
    if name.isdigit() and int(name) < len(target):
        return int(name)
    raise RecipeError(
        f"In the key {key!r}, {name} is no place in a list of {len(target)}.",
        "Count from 0, or set the list as a whole.",
    )


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML 1.2 mapping; duplicate keys are refused. Raises `RecipeError`."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError(f"There is no recipe {path}.", _similar_files(Path(path))) from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"The recipe {path} cannot be read: {error}.", "Give the path of a YAML file.") from None
    try:
        data = YAML(typ="safe", pure=True).load(text)
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" at line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "it is not YAML"
        raise RecipeError(f"{path} is not valid YAML{line}: {problem}.", "Correct that line.") from None
    if not isinstance(data, dict):
        raise RecipeError(f"{path} holds no `key: value` pairs.", "`headrace JOB --help` shows a recipe's keys.")
    return data


def write_yaml(data: Mapping[str, Any]) -> str:
    """Plain data as YAML text, keys in their order."""
    import io

    stream = io.StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.dump(dict(data), stream)
    return stream.getvalue()


class Key(NamedTuple):
    """One line of a recipe's help: dotted name, type, default and what it is for."""

    name: str
    type: str
    default: str
    help: str


def describe(model: type[Section], prefix: str = "", given: Section | None = None) -> Iterator[Key]:
    """Every key of a recipe class, sections flattened to dotted names, for `headrace JOB --help`; those in a list of
    sections have an N for the place. `given` is what a section is if a recipe leaves it out."""
    for name, field in model.model_fields.items():
        required = field.is_required() and given is None
        value = getattr(given, name) if given else field.get_default(call_default_factory=True)
        if (section := _section_of(field.annotation)) is not None:
            yield from describe(section, f"{prefix}{name}.", value if isinstance(value, section) else None)
            continue
        default = "required" if required else _show(value)
        yield Key(prefix + name, _type_name(field.annotation), default, " ".join((field.description or "").split()))
        if (each := _listed(field.annotation)) is not None:
            yield from describe(each, f"{prefix}{name}.N.")


def _without_knobs(section: BaseModel) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for name, field in type(section).model_fields.items():
        extra = field.json_schema_extra
        if isinstance(extra, dict) and extra.get("knob"):
            continue
        kept[name] = _plain(getattr(section, name))
    return kept


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return _without_knobs(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _override(data: dict[str, Any], override: str) -> None:
    key, sign, text = override.partition("=")
    if not sign or not key:
        raise RecipeError(f"{override!r} is not of the form key=value.", "Write for example seed=1.")
    try:
        value = YAML(typ="safe", pure=True).load(text)
    except YAMLError:
        raise RecipeError(f"The value in {override!r} is not valid YAML.", "Quote it.") from None
    set_key(data, key, value)


_PLAIN_WORDS = {
    "model_type": "should hold keys of its own",
    "dict_type": "should hold keys of its own",
    "list_type": "should be a list, for example [a, b]",
    "string_type": "should be text",
    "int_type": "should be a whole number",
    "int_parsing": "should be a whole number",
    "int_from_float": "should be a whole number",
    "float_type": "should be a number",
    "float_parsing": "should be a number",
    "bool_type": "should be true or false",
    "bool_parsing": "should be true or false",
}
"""Pydantic's kinds of mistake in the words of somebody who writes YAML."""


def _sentence(model: type[BaseModel], item: Any) -> str:
    location = [str(step) for step in item["loc"]]
    key = ".".join(location)
    if item["type"] == "extra_forbidden":
        known = _keys_at(model, location[:-1])
        for nearest in difflib.get_close_matches(location[-1], known, n=1, cutoff=0.0):
            return f"unknown key {key!r}; the nearest known key is {'.'.join([*location[:-1], nearest])!r}"
        return f"unknown key {key!r}"
    if item["type"] == "missing":
        return f"the key {key!r} is missing"
    message = _PLAIN_WORDS.get(item["type"], item["msg"].removeprefix("Value error, "))
    message = message[:1].lower() + message[1:]
    value = item["input"]
    if isinstance(value, str) and "://" in value:
        value = redact(value)
    shown = f" (it is {value!r})" if isinstance(value, str | int | float) else ""
    return f"{key!r}: {message}{shown}" if key else message


def _keys_at(model: type[BaseModel], location: Sequence[str]) -> list[str]:
    current: type[BaseModel] = model
    for step in location:
        field = current.model_fields.get(step)
        section = (_section_of(field.annotation) or _listed(field.annotation)) if field else None
        if section is None:  # a place in a list, say
            continue
        current = section
    return list(current.model_fields)


def _section_of(annotation: Any) -> type[Section] | None:
    candidates = typing.get_args(annotation) if _is_union(annotation) else (annotation,)
    for candidate in candidates:
        if isinstance(candidate, type) and issubclass(candidate, Section):
            return candidate
    return None


def _listed(annotation: Any) -> type[Section] | None:
    """The section that a list holds."""
    if typing.get_origin(annotation) is typing.Annotated:
        annotation = typing.get_args(annotation)[0]
    arguments = typing.get_args(annotation)
    return _section_of(arguments[0]) if typing.get_origin(annotation) in (list, tuple) and arguments else None


def _is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)


def _type_name(annotation: Any) -> str:
    if _is_union(annotation):
        return " or ".join(_type_name(each) for each in typing.get_args(annotation) if each is not type(None))
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return "|".join(str(arg) for arg in args)
    if origin in (list, tuple):
        return f"list of {_type_name(args[0])}"
    if origin is dict:
        return f"map of {_type_name(args[0])} to {_type_name(args[1])}"
    if origin is typing.Annotated:
        return _type_name(args[0])
    name: str = annotation.__name__
    return {"str": "text", "bool": "true|false"}.get(name, name)


def _show(value: Any) -> str:
    if value is None or value is PydanticUndefined:
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | tuple | dict) else str(value)


def _similar_files(path: Path) -> str:
    folder = path.parent if path.parent.is_dir() else Path("jobs/recipes")
    names = sorted(each.name for each in folder.glob("*.yaml")) if folder.is_dir() else []
    nearest = difflib.get_close_matches(path.name, names, n=1, cutoff=0.4)
    return f"Did you mean {folder / nearest[0]}?" if nearest else "Give the path of a YAML recipe."
