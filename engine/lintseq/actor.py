"""LintSeq as a stage of Ray Data: a shard of programs in, the same shard with its edit sequences out.

    dataset.map_batches(LintSeqActor, fn_constructor_kwargs={"options": ..., "seed": ...}, batch_size=None,
                        batch_format="pyarrow", compute=ActorPoolStrategy(...))

A row never disappears here: one that an earlier stage marked comes out as it went in, one that fails is marked, and
the sink drops both. A row's seeds depend on where it came from and on nothing else, so any number of workers writes
the same sequences. Left out: Ray itself, reading and writing. Called by `jobs.lintseq`.
"""

import hashlib
from typing import Any

import pyarrow as pa

from engine.errors import SchemaError
from engine.lintseq.linting import linter_for
from engine.lintseq.options import LintSeqOptions
from engine.lintseq.sampler import TimeLimit, prepare
from engine.lintseq.training import token_lengths

_ADDED = {
    "program": pa.string(),
    "edits": pa.list_(pa.string()),
    "seed": pa.int64(),
    "path": pa.int32(),
    "initial_errors": pa.int32(),
    "_drop": pa.string(),
    "_error": pa.string(),
}
_LONGEST_ERROR = 500


class LintSeqActor:
    """Samples `options.paths` edit sequences for each program of a table; `seed` is the recipe's."""

    def __init__(self, *, options: LintSeqOptions | None = None, seed: int = 0, tokenizer: Any = None) -> None:
        self._options = options or LintSeqOptions()
        self._seed = seed
        self._linter = linter_for(self._options)
        self._tokenizer = tokenizer

    def __call__(self, table: pa.Table) -> pa.Table:
        """One row per path and program, in order; a marked row once, with nulls for what it does not have.

        Needs the columns `program`, `source_part` and `source_row`; `_drop` and `_error` may be absent (nothing is
        marked then). Adds `edits`, `seed`, `path` and `initial_errors` (erroneous lines of the program as it stands),
        with a tokenizer also `tokens` (length of the training text, end included); passes every other column through.
        Under `initial_errors: repair`, `program` is what the edits write. Raises `SchemaError` for a missing or
        mistyped column. A row that fails is marked `quarantine` with its error, one that the options reject (or that
        repair leaves nothing of) `initial_errors`, one that takes too long `time_limit`.
        """
        _check_columns(table)
        read = [table[name].to_pylist() for name in ("program", "source_part", "source_row")]
        rows = zip(*read, _marks(table, "_drop"), _marks(table, "_error"), strict=True)
        added: dict[str, list[object]] = {name: [] for name in _ADDED}
        source: list[int] = []
        for at, (program, part, number, drop, error) in enumerate(rows):
            if drop is not None:
                results: list[_Result] = [(program, None, None, None, None, drop, error)]
            else:
                try:
                    results = self._sample(program, part, number)
                # One poisonous program must not end the job: whatever it raises is its quarantine note.
                except Exception as failure:  # noqa: BLE001
                    results = [(program, None, None, None, None, "quarantine", _one_line(failure))]
            source += [at] * len(results)
            for result in results:
                for name, value in zip(_ADDED, result, strict=True):
                    added[name].append(value)
        owned = {*_ADDED, *(("tokens",) if self._tokenizer is not None else ())} - {"program"}
        passed = table.drop_columns([name for name in table.column_names if name in owned])
        output = passed.take(pa.array(source, pa.int64()))
        for name, kind in _ADDED.items():
            column = pa.array(added[name], kind)
            if name == "program":
                output = output.set_column(output.column_names.index(name), name, column)
            else:
                output = output.append_column(name, column)
        return output.append_column("tokens", self._tokens(output)) if self._tokenizer is not None else output

    def _sample(self, program: str | None, part: str | None, number: int | None) -> "list[_Result]":
        """The output rows of one program."""
        if program is None or part is None or number is None:
            raise ValueError("program, source_part or source_row is null")
        options = self._options
        try:
            prepared = prepare(program, self._linter, options)
            errors = len({each.line for each in (prepared.found or prepared.initial)})
            if prepared.rejected or (options.initial_errors == "repair" and not prepared.workable and prepared.found):
                return [(program, None, None, None, errors, "initial_errors", None)]

            def seed_of(path: int, attempt: int) -> int:
                return path_seed(self._seed, part, number, path, attempt)

            sampled = list(prepared.paths(seed_of))
        except TimeLimit:
            return [(program, None, None, None, None, "time_limit", None)]
        written = prepared.program
        return [(written, edits, seed, path, errors, None, None) for path, (seed, edits) in enumerate(sampled)]

    def _tokens(self, output: pa.Table) -> pa.Array:
        """Tokens of each row's training text; null where a row is marked or has no instruction."""
        lengths: list[int | None] = [None] * output.num_rows
        instructions = output["instruction"] if "instruction" in output.column_names else pa.nulls(output.num_rows)
        there = [at for at, edits in enumerate(output["edits"]) if edits.is_valid and instructions[at].is_valid]
        texts = [instructions[at].as_py() for at in there], [output["edits"][at].as_py() for at in there]
        for at, length in zip(there, token_lengths(self._tokenizer, *texts), strict=True):
            lengths[at] = length
        return pa.array(lengths, pa.int32())


_Result = tuple[str | None, list[str] | None, int | None, int | None, int | None, str | None, str | None]


def path_seed(seed: int, source_part: str, source_row: int, path: int, attempt: int = 0) -> int:
    """The seed of one path of one row, in [0, 2**63): a hash of the recipe's seed and of where the row came from.

    `attempt` counts the draws of a path that repeated an earlier one.
    """
    key = f"{seed}:{source_row}:{path}{f'.{attempt}' if attempt else ''}:{source_part}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") >> 1


def _check_columns(table: pa.Table) -> None:
    """Raise `SchemaError` unless the columns that are needed are there and of the right type."""
    for name, is_right, wanted in (
        ("program", _is_text, "text"),
        ("source_part", _is_text, "text"),
        ("source_row", pa.types.is_integer, "whole numbers"),
    ):
        if name not in table.column_names:
            raise SchemaError(
                f"The input of LintSeq has no column {name!r}.", "Give it a dataset with the schema `instructions`."
            )
        kind = table.schema.field(name).type
        if not is_right(kind):
            raise SchemaError(
                f"The column {name!r} holds {kind}, not {wanted}.", "Give it a dataset with the schema `instructions`."
            )


def _is_text(kind: pa.DataType) -> bool:
    # A column of nulls alone has no type of its own; its rows are quarantined one by one.
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind))


def _marks(table: pa.Table, name: str) -> list[str | None]:
    """A column of marks; where it is absent, nothing is marked."""
    marks: list[str | None] = table[name].to_pylist() if name in table.column_names else [None] * table.num_rows
    return marks


def _one_line(failure: Exception) -> str:
    """What is kept of an error: one short line that any column can hold."""
    return " ".join(f"{type(failure).__name__}: {failure}".split())[:_LONGEST_ERROR].encode(errors="replace").decode()
