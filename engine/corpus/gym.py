"""Rows of reasoning-gym's task generators: `reasoning-gym:NAME,NAME/COUNT` stands for a file of rows for each task.

A generator makes entries from a seed, so a file is made once, in this machine's cache, and is the same everywhere:
`prompt`, `response` (the entry's answer, as text), `task` and `reference` (the entry as JSON, for its verifier).
Entries without one answer, and prompts that come a second time, are left out.

Left out: verifying answers (`engine.rlhf`). Called by `engine.corpus.sources`.
"""

import json
from importlib.metadata import version
from pathlib import Path

from engine.artifacts import build_once, cache_folder
from engine.errors import SourceError

GYM = "reasoning-gym:"
"""Begins a path that stands for tasks of reasoning-gym."""
_MORE = 4
"""So many times as many entries are drawn, at most, as rows are wanted."""


def gym_files(entry: str) -> list[Path]:
    """The files of a path, one for each task, made where they are missing. Raises `SourceError` for a path of another
    form, a task that is not there or cannot give so many rows, and where reasoning-gym is not installed."""
    named, _, counted = entry.removeprefix(GYM).partition("/")
    names = [name.strip() for name in named.split(",") if name.strip()]
    if not names or not counted.isdigit() or not int(counted):
        raise SourceError(
            f"{entry!r} is no path of reasoning-gym's tasks.", f"Write {GYM}NAME,NAME/COUNT, such as {GYM}gcd,lcm/100."
        )
    try:
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise SourceError(
            f"reasoning-gym cannot be imported ({error}).", "Run: pip install 'headrace[verifiers]'"
        ) from None
    for name in names:
        if name not in DATASETS:
            raise SourceError(f"reasoning-gym has no task {name!r}.", "Look them up in reasoning_gym.factory.DATASETS.")
    folder = cache_folder() / "reasoning-gym" / version("reasoning-gym")
    return [_file(folder / counted / name, name, int(counted)) for name in names]


def _file(place: Path, name: str, count: int) -> Path:
    def build(folder: Path) -> None:
        (folder / f"{name}.jsonl").write_text("".join(_rows(name, count)), encoding="utf-8")

    return build_once(place, build) / f"{name}.jsonl"


def _rows(name: str, count: int) -> list[str]:
    import reasoning_gym

    rows: dict[str, str] = {}
    try:
        for entry in reasoning_gym.create_dataset(name, size=_MORE * count, seed=0):
            if isinstance(entry["answer"], str) and entry["question"] not in rows:
                row = {"prompt": entry["question"], "response": entry["answer"], "task": name}
                row["reference"] = json.dumps(entry, default=str)
                rows[entry["question"]] = json.dumps(row) + "\n"
            if len(rows) == count:
                return list(rows.values())
    # Every generator has ways of its own to refuse what it is asked for.
    except Exception as error:  # noqa: BLE001
        raise SourceError(f"reasoning-gym's task {name} makes no entries ({error}).", "Leave it out.") from None
    raise SourceError(f"reasoning-gym's task {name} gives {len(rows)} rows, not {count}.", "Ask for fewer.")
