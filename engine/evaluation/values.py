"""Plain Python values as JSON and back: what may pass between an untrusted program and whoever judges it.

None, booleans, numbers, text, bytes, lists, tuples, sets and dictionaries of them, each coming back as the very type it
was, the standard library's kinds of dictionary as plain ones, and never as a subclass whose comparison could lie. The
same file serves both sides: it imports the standard library only. Left out: the conversation
(`engine.evaluation.checker`).
"""

import json
import math
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable
from typing import Any

_TAG = "$"
_DICTS = (Counter, OrderedDict, defaultdict)
"""Dictionaries of the standard library, which equal plain ones and come back as such."""


class NotPlain(TypeError):
    """A value that is no plain one."""


def dumps(value: Any) -> str:
    """One line of JSON. Raises `NotPlain` for any other value, `RecursionError` for one nested too deeply."""
    return json.dumps(_pack(value), ensure_ascii=True, separators=(",", ":"))


def loads(text: str) -> Any:
    """The value. Raises `ValueError` for text that `dumps` would not have written."""
    return _unpack(json.loads(text))


def _pack(value: Any) -> Any:
    kind = type(value)
    if value is None or kind in (bool, str):
        return value
    if kind is int:
        return value if abs(value) < 1 << 53 else {_TAG: "int", "of": hex(value)}
    if kind is float:
        return value if math.isfinite(value) else {_TAG: "float", "of": repr(value)}
    if kind is list:
        return [_pack(each) for each in value]
    if kind in (tuple, set, frozenset):
        return {_TAG: kind.__name__, "of": [_pack(each) for each in value]}
    if kind is dict or isinstance(value, _DICTS):
        return {_TAG: "dict", "of": [[_pack(key), _pack(each)] for key, each in value.items()]}
    if kind is complex:
        return {_TAG: "complex", "of": [_pack(value.real), _pack(value.imag)]}
    if kind is bytes:
        return {_TAG: "bytes", "of": value.hex()}
    raise NotPlain(f"{kind.__name__} is no plain value")


def _unpack(packed: Any) -> Any:
    if isinstance(packed, list):
        return [_unpack(each) for each in packed]
    if not isinstance(packed, dict):
        return packed
    if set(packed) != {_TAG, "of"}:
        raise ValueError("it is no packed value")
    make, inside = _MAKERS.get(packed[_TAG]), packed["of"]
    if make is None:
        raise ValueError("it is of an unknown kind")
    try:
        return make(inside)
    except (TypeError, AttributeError, KeyError) as error:
        raise ValueError("it is no packed value") from error


_MAKERS: dict[str, Callable[[Any], Any]] = {
    "int": lambda text: int(text, 16),
    "float": lambda text: {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}[text],
    "tuple": lambda items: tuple(_unpack(each) for each in items),
    "set": lambda items: {_unpack(each) for each in items},
    "frozenset": lambda items: frozenset(_unpack(each) for each in items),
    "dict": lambda pairs: {_unpack(key): _unpack(each) for key, each in pairs},
    "complex": lambda parts: complex(_unpack(parts[0]), _unpack(parts[1])),
    "bytes": bytes.fromhex,
}
