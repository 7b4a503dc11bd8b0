"""LintSeq as a stage of Ray Data: a shard of programs in, the same shard with its edit sequences out.

    dataset.map_batches(LintSeqActor, fn_constructor_kwargs={"options": ..., "seed": ...}, batch_size=None,
                        batch_format="pyarrow", compute=ActorPoolStrategy(...))

A row never disappears here: one that an earlier stage marked comes out as it went in, one that fails is marked, and
the sink drops both. A row's seeds depend on where it came from and on nothing else, so any number of workers writes
the same sequences. Left out: Ray itself, reading and writing. Called by `jobs.lintseq`.
"""

import hashlib

import pyarrow as pa

from engine.errors import SchemaError
from engine.lintseq.linting import linter_for
from engine.lintseq.options import LintSeqOptions
from engine.lintseq.sampler import prepare

_ADDED = {
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

    def __init__(self, *, options: LintSeqOptions | None = None, seed: int = 0) -> None:
        self._options = options or LintSeqOptions()
        self._seed = seed
        self._linter = linter_for(self._options)

    def __call__(self, table: pa.Table) -> pa.Table:
        """One row per path and program, in order; a marked row once, with nulls for what it does not have.

        Needs the columns `program`, `source_part` and `source_row`; `_drop` and `_error` may be absent (nothing is
        marked then). Adds `edits`, `seed`, `path` and `initial_errors` (erroneous lines of the program as it
        stands); passes every other column through. Raises `SchemaError` for a missing or mistyped column; a row that
        fails is marked `quarantine` with its error, a row that the options reject `initial_errors`.
        """
        _check_columns(table)
        added: dict[str, list[object]] = {name: [] for name in _ADDED}
        source: list[int] = []
        marks = [_column(table, name) for name in ("_drop", "_error")]
        for row in range(table.num_rows):
            drop, error = (None if mark is None else mark[row].as_py() for mark in marks)
            if drop is not None:
                results: list[tuple[object, ...]] = [(None, None, None, None, drop, error)]
            else:
                try:
                    results = self._sample(table, row)
                # One poisonous program must not end the job: whatever it raises is its quarantine note.
                except Exception as failure:  # noqa: BLE001
                    results = [(None, None, None, None, "quarantine", _one_line(failure))]
            source += [row] * len(results)
            for result in results:
                for name, value in zip(_ADDED, result, strict=True):
                    added[name].append(value)
        kept = table.drop_columns([name for name in _ADDED if name in table.column_names])
        output = kept.take(pa.array(source, pa.int64()))
        for name, kind in _ADDED.items():
            output = output.append_column(name, pa.array(added[name], kind))
        return output

    def _sample(self, table: pa.Table, row: int) -> list[tuple[object, ...]]:
        program, part, number = (table[name][row].as_py() for name in ("program", "source_part", "source_row"))
        if program is None or part is None or number is None:
            raise ValueError("program, source_part or source_row is null")
        prepared = prepare(program, self._linter, self._options)
        errors = len({each.line for each in prepared.initial})
        if self._options.initial_errors == "reject" and prepared.erroneous:
            return [(None, None, None, errors, "initial_errors", None)]
        seeds = [path_seed(self._seed, part, number, path) for path in range(self._options.paths)]
        return [(prepared.sample(seed), seed, path, errors, None, None) for path, seed in enumerate(seeds)]


def path_seed(seed: int, source_part: str, source_row: int, path: int) -> int:
    """The seed of one path of one row, in [0, 2**63): a hash of the recipe's seed and of where the row came from."""
    key = f"{seed}:{source_row}:{path}:{source_part}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") >> 1


def _check_columns(table: pa.Table) -> None:
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


def _column(table: pa.Table, name: str) -> pa.ChunkedArray | None:
    return table[name] if name in table.column_names else None


def _one_line(failure: Exception) -> str:
    return " ".join(f"{type(failure).__name__}: {failure}".split())[:_LONGEST_ERROR].encode(errors="replace").decode()
