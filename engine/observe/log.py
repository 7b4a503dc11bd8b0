"""One structured logger: readable lines on stderr, JSON lines in the run directory, and no secrets in either.

Every value on its way out is turned into plain data and masked, exception texts included: by the name of its key
(`api_key`, `password`, ...) and by what stands in any string (bearer and provider keys, `password=...`,
user:password@ in a URL). Masking rather hides too much than too little.

Left out: routing the standard library's logging (Ray and vLLM keep their own) and rotation. A log line that cannot be
written never stops the work. Called by every room and by `jobs.cli`, which configures it.
"""

import contextlib
import dataclasses
import json
import re
import sys
import time
from collections.abc import Mapping
from typing import Any, cast

import structlog
from structlog.dev import ConsoleRenderer, plain_traceback
from structlog.typing import EventDict, FilteringBoundLogger, WrappedLogger
from upath import UPath

from engine.storage import is_local, make_directory

_MASK = "***"
_SECRET_WORDS = (
    r"api[_-]?keys?|access[_-]?keys?|private[_-]?keys?|secrets?|passwords?|passwd|passphrase|authorization|"
    r"credentials?|cookies?|signature"
)
# `token` only as a name's last word: `hf_token` is a secret, `token_ids` and `tokens_per_second` are not.
_SECRET_KEY = re.compile(rf"{_SECRET_WORDS}|(^|[_-])(tokens?|auth|pwd|sig)$", re.IGNORECASE)
_COUNT_KEY = re.compile(r"(^|[_-])tokens?$", re.IGNORECASE)
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")

# Each pattern starts at a fixed word, so none of them is quadratic in the length of a long line.
_SECRET_TEXT = [
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL), _MASK),
    (re.compile(r"(?<=://)[^/\s\"'<>]+@"), f"{_MASK}@"),
    (re.compile(r"\b(bearer)\s+[^\s\"',;]+", re.IGNORECASE), rf"\1 {_MASK}"),
    (
        re.compile(
            rf"((?:(?:{_SECRET_WORDS})[a-z_-]{{0,20}}|token|pwd|\bsig)[\"']?[ \t]{{0,4}}[=:][ \t]{{0,4}}[\"']?)"
            rf"(?:(?:basic|digest|token)\s+)?(?:[^\s\"',;&)}}\]]+)",
            re.IGNORECASE,
        ),
        rf"\1{_MASK}",
    ),
    (re.compile(r"\bsk-[\w-]{6,}"), _MASK),
    (re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{12,}"), _MASK),
    (re.compile(r"\b(?:hf_|gh[pousr]_|github_pat_|glpat-|xox[abprs]-|AIza)[\w-]{12,}"), _MASK),
    (re.compile(r"\beyJ[\w-]{8,}\.[\w-]+\.[\w-]*"), _MASK),
]
# A document's text may stand in an error: it must not move the cursor of whoever reads the log.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclasses.dataclass
class _Settings:
    """Where log lines go; read at each line, so loggers made before `configure_logging` follow it."""

    file: str | None = None
    verbose: bool = False


_settings = _Settings()


def configure_logging(run_dir: UPath | None = None, verbose: bool = False) -> None:
    """Send the log to stderr and, for a local run directory, to its `log.jsonl`; `verbose` adds the debug lines.

    May be called again: the latest call holds. Raises `StorageError` where the run directory cannot be made.
    """
    file = None
    if run_dir is not None and is_local(run_dir):
        make_directory(run_dir)
        file = str(run_dir / "log.jsonl")
    _settings.file, _settings.verbose = file, verbose


def get_logger(room: str) -> FilteringBoundLogger:
    """The logger of a room (`corpus`, `lintseq`, ...): `.info("shards planned", shards=12)` and so on.

    It works, masked, before and without `configure_logging`, for example inside a Ray worker.
    """
    # Not structlog's global configuration: an application may set that, and the masks must hold all the same.
    logger = structlog.wrap_logger(
        None,
        processors=[
            _drop_quiet,
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.StackInfoRenderer(),
            structlog.processors.format_exc_info,
            mask_secrets,
            _write,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(0),
        room=room,
    )
    return cast(FilteringBoundLogger, logger)


def mask_secrets(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """The structlog processor that turns an event into plain data without secrets."""
    return {key: _plain(value, key) for key, value in event.items()}


def mask_text(text: str) -> str:
    """A text with everything that looks like a secret replaced by `***` and control characters made visible."""
    for pattern, mask in _SECRET_TEXT:
        text = pattern.sub(mask, text)
    return _CONTROL.sub("\ufffd", text)


def _plain(value: Any, key: str = "") -> Any:
    number = isinstance(value, bool | int | float)
    name = _CAMEL.sub("_", key)
    if value is not None and _SECRET_KEY.search(name) and not (number and _COUNT_KEY.search(name)):
        return _MASK
    if value is None or number:
        return value
    if isinstance(value, str):
        return mask_text(value)
    if isinstance(value, Mapping):
        return {mask_text(str(inner)): _plain(item, str(inner)) for inner, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    return mask_text(str(value))


def _drop_quiet(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    if method == "debug" and not _settings.verbose:
        raise structlog.DropEvent
    return event


def _write(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    with contextlib.suppress(OSError, ValueError):  # a full disk, a closed stderr
        if _settings.file is not None:
            line = json.dumps(event, ensure_ascii=False) + "\n"
            with open(_settings.file, "a", encoding="utf-8", errors="replace") as file:
                file.write(line)
    with contextlib.suppress(OSError, ValueError):
        # sys.stderr is looked up now: a live progress bar puts its own stream there and moves below the line.
        render = ConsoleRenderer(
            colors=sys.stderr.isatty(), pad_event_to=32, sort_keys=False, exception_formatter=plain_traceback
        )
        shown = {**event, "timestamp": time.strftime("%H:%M:%S"), "logger": event.get("room")}
        shown.pop("room", None)
        sys.stderr.write(f"{render(logger, method, shown)}\n")
        sys.stderr.flush()
    raise structlog.DropEvent
