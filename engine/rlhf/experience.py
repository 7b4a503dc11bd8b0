"""A step's responses: what was drawn, by which version of the weights, and where it is kept.

    RUN/rollouts/step-00000012.parquet      what step 12 learns from, written before it does, with its scores
    RUN/held_out/step-00000020.parquet      answers to held-out prompts after 20 steps, with their scores

A row is named by (epoch, prompt, number): the ledger of what was consumed is these files, one for each step and each
whole. Left out: drawing (`engine.rlhf.rollouts`). Called by the loop and the report.

Shapes: B responses, T tokens of the longest.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from upath import UPath

from engine.rlhf.segmenters import Bools, Floats, Ints
from engine.storage import make_directory, replace

_FOLDERS = {False: "rollouts", True: "held_out"}
_SCORE = "score: "


@dataclass(frozen=True, slots=True)
class Response:
    """What was drawn for a prompt (by its number), the how-manieth time, in which epoch (-1: held out)."""

    epoch: int
    prompt: int
    number: int
    ids: list[int]
    logprobs: list[float]
    """Of each token, under what it was drawn from."""
    finished: bool
    """Whether it ended by itself."""
    text: str


@dataclass(frozen=True)
class Experience:
    """The responses of a step, the version of the weights that they come from, and, once there are, what they are
    worth: the sum ("reward") and each one's own."""

    step: int
    version: int
    responses: list[Response]
    scores: dict[str, list[float]] = field(default_factory=dict)

    def written(self) -> Bools:
        """Where tokens are, (B, T)."""
        lengths_B = np.array([len(each.ids) for each in self.responses], np.int64)
        return np.arange(lengths_B.max(initial=0)) < lengths_B[:, None]

    def logprobs(self) -> Floats:
        """What the engine says of each token, (B, T); 0 where there is none."""
        written_BT = self.written()
        found = np.zeros(written_BT.shape)
        found[written_BT] = [value for each in self.responses for value in each.logprobs]
        return found

    def groups(self) -> Ints:
        """A number for each response, (B,), the same for those to the same prompt."""
        keys = np.array([[each.epoch, each.prompt] for each in self.responses], np.int64)
        return np.asarray(np.unique(keys, axis=0, return_inverse=True)[1].reshape(-1), np.int64)

    def to_json(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)

    @classmethod
    def from_json(cls, said: Mapping[str, Any]) -> "Experience":
        """What `to_json` gave."""
        return cls(said["step"], said["version"], [Response(**each) for each in said["responses"]], said["scores"])


def write_step(home: UPath, experience: Experience, *, held_out: bool = False) -> None:
    """Keep a step's responses and their scores; whole or not at all."""
    rows = [{**asdict(each), "version": experience.version} for each in experience.responses]
    for name, values in experience.scores.items():
        rows = [{**row, f"{_SCORE}{name}": value} for row, value in zip(rows, values, strict=True)]
    body = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), body, compression="zstd")
    make_directory(home / _FOLDERS[held_out])
    replace(_path(home, experience.step, held_out), body.getvalue())


def read_step(home: UPath, step: int, *, held_out: bool = False) -> Experience | None:
    """The responses of a step; None where they were not drawn yet."""
    path = _path(home, step, held_out)
    if not path.exists():
        return None
    rows = pq.read_table(io.BytesIO(path.read_bytes())).to_pylist()
    names = [name for name in rows[0] if name.startswith(_SCORE)]
    return Experience(
        step,
        rows[0]["version"],
        [Response(**{name: row[name] for name in Response.__slots__}) for row in rows],
        {name.removeprefix(_SCORE): [row[name] for row in rows] for name in names},
    )


def text_offsets(tokenizer: Any, ids: Sequence[int], width: int) -> tuple[str, Ints]:
    """The text of some tokens and where in it each lies, (width, 2), in characters; tokens that make up a character
    together share it, and places without a token lie at the end."""
    text, offsets, start = "", np.zeros((width, 2), np.int64), 0
    # From the last token that ended a character: what comes before one tells whether a space in front of it counts.
    for at in range(len(ids)):
        before = max(start - 1, 0)
        known = tokenizer.decode(ids[before:start], clean_up_tokenization_spaces=False)
        piece = tokenizer.decode(ids[before : at + 1], clean_up_tokenization_spaces=False)[len(known) :]
        if piece.endswith("\ufffd") and at + 1 < len(ids):
            continue
        offsets[start : at + 1] = (len(text), len(text) + len(piece))
        text, start = text + piece, at + 1
    offsets[len(ids) :] = len(text)
    return text, offsets


def _path(home: UPath, step: int, held_out: bool) -> UPath:
    return home / _FOLDERS[held_out] / f"step-{step:08d}.parquet"
