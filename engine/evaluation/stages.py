"""The stages of an evaluation as actors of Ray Data: a shard of questions in, the same rows with what was measured out.

    Generating   text, tokens, finished        answers of humaneval and prompts
    Checking     program, parses, same_as, passed, why, tests, tests_passed        humaneval
    Measuring    nats, nats_tokens             held-out texts
    Rewarding    reward                        answers to prompts

Each fills its columns where they have a meaning and leaves nulls elsewhere; no row is lost or added. Without a GPU one
actor carries a shard through all of them, one after the other, and holds the models side by side. A row that fails is
quarantined with its error. Left out: what is asked, and what the numbers add up to. Called by
`engine.evaluation.planning`, through `engine.corpus.run_transform`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from engine.corpus.marks import DROP, QUARANTINE, mark, unmarked
from engine.evaluation.checker import Checker
from engine.evaluation.humaneval import problems
from engine.evaluation.options import EngineOptions, RewardOptions, SamplingOptions
from engine.evaluation.perplexity import Perplexity
from engine.evaluation.programs import parses, same_as
from engine.evaluation.reward import RewardModel
from engine.evaluation.sandbox import SandboxOptions
from engine.evaluation.styles import STOPS, program_of
from engine.models import Generator, Sampling, TransformersGenerator, VllmGenerator

Row = Mapping[str, Any]
Values = Mapping[str, Any]


class MeasuringStage(ABC):
    """Adds `columns` (name -> Arrow type) to the rows of the tasks it is for, nulls to all others."""

    tasks: Sequence[str]
    reads: Sequence[str]
    columns: Mapping[str, pa.DataType]

    @abstractmethod
    def measure(self, rows: Sequence[Row]) -> Sequence[Values | Exception]:
        """The values of each row, or what went wrong with it."""

    def __call__(self, block: pa.Table) -> pa.Table:
        """The block with the columns appended."""
        live = unmarked(block).to_pylist() if DROP in block.column_names else [True] * len(block)
        # Looked for in every block: an earlier stage may have added what this one reads.
        read = block.select([name for name in ("task", *self.reads) if name in block.column_names]).to_pylist()
        mine = [at for at, row in enumerate(read) if live[at] and row["task"] in self.tasks]
        values = self.measure([read[at] for at in mine]) if mine else []
        columns: dict[str, list[Any]] = {name: [None] * len(block) for name in self.columns}
        errors: list[str | None] = [None] * len(block)
        for at, value in zip(mine, values, strict=True):
            if isinstance(value, Exception):
                errors[at] = " ".join(f"{type(value).__name__}: {value}".split())[:500]
                continue
            for name in self.columns:
                columns[name][at] = value[name]
        for name, kind in self.columns.items():
            block = block.append_column(name, pa.array(columns[name], kind))
        failed = pa.array([error is not None for error in errors])
        return mark(block, failed, QUARANTINE, pa.array(errors, pa.string()))


class Generating(MeasuringStage):
    """Answers questions with the model, all of a style at a time."""

    tasks = ("humaneval", "prompts")
    reads = ("style", "ids", "seed")
    columns = {"text": pa.string(), "tokens": pa.int32(), "finished": pa.bool_()}

    def __init__(self, *, model: str, options: EngineOptions, sampling: SamplingOptions) -> None:
        self._sampling = Sampling(sampling.temperature, sampling.top_p, sampling.max_tokens)
        self._generator = make_generator(model, options)

    def measure(self, rows: Sequence[Row]) -> list[Values | Exception]:
        """See `MeasuringStage`."""
        found: dict[int, Values] = {}
        for task, style in dict.fromkeys((row["task"], row["style"]) for row in rows):
            asked = [at for at, row in enumerate(rows) if (row["task"], row["style"]) == (task, style)]
            # A prompt that is continued has no margin at which the answer ends.
            sampling = replace(self._sampling, stop=STOPS[style] if task == "humaneval" else ())
            ids, seeds = [rows[at]["ids"] for at in asked], [rows[at]["seed"] for at in asked]
            for at, each in zip(asked, self._generator.generate(ids, sampling, seeds), strict=True):
                text = each.text.encode(errors="replace").decode()
                found[at] = {"text": text, "tokens": each.tokens, "finished": each.finished}
        return [found[at] for at in range(len(rows))]


class Checking(MeasuringStage):
    """Takes the program out of each answer and runs it against its tests, in the sandbox and nowhere else."""

    tasks = ("humaneval",)
    reads = ("style", "problem", "text")
    columns = {
        "program": pa.string(),
        "parses": pa.bool_(),
        "same_as": pa.string(),
        "passed": pa.bool_(),
        "why": pa.string(),
        "tests": pa.int32(),
        "tests_passed": pa.int32(),
    }

    def __init__(self, *, sandbox: SandboxOptions) -> None:
        self._problems = {problem.name: problem for problem in problems()}
        self._checker = Checker(sandbox)

    def measure(self, rows: Sequence[Row]) -> list[Values | Exception]:
        """See `MeasuringStage`."""
        with self._checker:  # its tester ends with the shard and starts anew with the next
            return [self._checked(row) for row in rows]

    def _checked(self, row: Row) -> Values:
        problem = self._problems[row["problem"]]
        program = program_of(row["style"], problem, row["text"])
        checked = self._checker.check(program, problem.task, graded=True)
        return {
            "program": program,
            "parses": parses(program),
            "same_as": same_as(program),
            "passed": checked.passed,
            "why": checked.why,
            "tests": checked.tests,
            "tests_passed": checked.tests_passed,
        }


class Measuring(MeasuringStage):
    """The nats of held-out texts."""

    tasks = ("heldout",)
    reads = ("ids", "loss")
    columns = {"nats": pa.float64(), "nats_tokens": pa.int32()}

    def __init__(self, *, model: str, gpus: float) -> None:
        self._perplexity = Perplexity(model, **_placed(gpus))

    def measure(self, rows: Sequence[Row]) -> list[Values | Exception]:
        """See `MeasuringStage`."""
        found = [self._perplexity.nats(row["ids"], row["loss"]) for row in rows]
        return [{"nats": nats, "nats_tokens": tokens} for nats, tokens in found]


class Rewarding(MeasuringStage):
    """The reward model's score of each answer."""

    tasks = ("prompts",)
    reads = ("prompt", "text")
    columns = {"reward": pa.float64()}

    def __init__(self, *, options: RewardOptions, gpus: float) -> None:
        device = _placed(gpus)["device"]
        self._model = RewardModel(options.model, window=options.window, device=device)

    def measure(self, rows: Sequence[Row]) -> list[Values | Exception]:
        """See `MeasuringStage`."""
        scores = self._model.scores([row["prompt"] for row in rows], [row["text"] for row in rows])
        return [{"reward": score} for score in scores]


def make_generator(model: str, options: EngineOptions) -> Generator:
    """The generator that the options ask for, loaded in this process. Raises `SourceError`."""
    if options.kind == "vllm":
        return VllmGenerator(model, at_once=options.at_once, longest=options.window)
    return TransformersGenerator(model, at_once=options.at_once, longest=options.window, **_placed(options.gpus))


def _placed(gpus: float) -> dict[str, str]:
    return {"dtype": "bfloat16", "device": "cuda"} if gpus else {"dtype": "float32", "device": "cpu"}
