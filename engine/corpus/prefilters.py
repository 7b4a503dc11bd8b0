"""Cheap filters on a text column, computed by Arrow over whole columns; a row that fails is marked with its reason.

    too_short, too_long   fewer than `min_chars`, more than `max_chars` characters (Unicode code points)
    symbols               symbols / characters > `max_symbol_ratio`; a symbol is what is neither letter, mark, number
                          nor white space in Unicode
    repetition            characters in repeated lines / characters in lines > `max_repetition_ratio`; lines are
                          trimmed, empty ones ignored, and the first of several equal lines is not a repeated one
                          (MassiveText's "duplicate line character fraction": Rae et al. 2021, Gopher, appendix A.1.1)
    language              not one of `languages`, or identified with less than `min_language_score`

They run in this order, which is the order of their cost, each on the rows that none before has marked. A text that is
null passes: the readers mark those.

Left out: duplicates (`engine.corpus.duplicates`). Called inside the read, by `engine.corpus.stream`.
"""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.acero as acero
import pyarrow.compute as pc

from engine.corpus.config import FilterConfig
from engine.corpus.marks import mark, unmarked

_SYMBOL = r"[^\pL\pM\pN\pZ\s]"


def apply_filters(table: pa.Table, column: str, config: FilterConfig) -> pa.Table:
    """Mark the rows of a table with marks whose text fails a filter that is on."""
    for reason, fails in expressions(pc.field(column), config).items():
        table = _mark_survivors(table, column, reason, lambda texts, rule=fails: _evaluate(rule, column, texts))
    if config.max_repetition_ratio is not None:
        limit = config.max_repetition_ratio
        table = _mark_survivors(table, column, "repetition", lambda texts: repetition_ratio(texts) > limit)
    if config.languages is not None:
        table = _mark_survivors(table, column, "language", lambda texts: _foreign(texts, config))
    return table


def expressions(text: pc.Expression, config: FilterConfig) -> dict[str, pc.Expression]:
    """The filters that are Arrow expressions, by reason: true where a row is to be dropped.

    They can be pushed into any Arrow scan; `repetition` and `language` have no such form.
    """
    characters = pc.utf8_length(text)
    found: dict[str, pc.Expression] = {}
    if config.min_chars is not None:
        found["too_short"] = characters < config.min_chars
    if config.max_chars is not None:
        found["too_long"] = characters > config.max_chars
    if config.max_symbol_ratio is not None:
        symbols = pc.count_substring_regex(text, pattern=_SYMBOL).cast(pa.float64())
        found["symbols"] = symbols > characters.cast(pa.float64()) * config.max_symbol_ratio
    return found


def repetition_ratio(texts: pa.ChunkedArray) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Share of each text's characters that stand in repeated lines; one float per text, 0 for one without lines."""
    chunks = [_repetition(chunk) for chunk in texts.chunks]
    return np.concatenate(chunks) if chunks else np.zeros(0)


def _repetition(texts: pa.Array) -> np.ndarray[Any, np.dtype[np.float64]]:
    lists = pc.split_pattern(texts, "\n")
    owner = pc.list_parent_indices(lists).to_numpy()
    lines = pc.utf8_trim_whitespace(pc.list_flatten(lists))
    length = pc.utf8_length(lines).to_numpy()
    line = pc.dictionary_encode(lines).indices.to_numpy().astype(np.int64)
    _, first = np.unique(owner.astype(np.int64) * (len(lines) + 1) + line, return_index=True)
    every = np.bincount(owner, length, minlength=len(texts))
    fresh = np.bincount(owner[first], length[first], minlength=len(texts))
    ratio = np.zeros(len(texts))
    np.divide(every - fresh, every, out=ratio, where=every > 0)
    return ratio


def _foreign(texts: pa.ChunkedArray, config: FilterConfig) -> list[bool]:
    # Loads a model: only where it is asked for.
    from engine.corpus.language import check_languages, identify

    wanted = set(config.languages or ())
    check_languages(sorted(wanted))
    found = identify(text or "" for text in texts.to_pylist())
    return [each.code not in wanted or each.score < config.min_language_score for each in found]


def _evaluate(rule: pc.Expression, column: str, texts: pa.ChunkedArray) -> Any:
    source = acero.Declaration("table_source", acero.TableSourceNodeOptions(pa.table({column: texts})))
    project = acero.Declaration("project", acero.ProjectNodeOptions([rule], ["fails"]), inputs=[source])
    return project.to_table(use_threads=False)["fails"]


def _mark_survivors(table: pa.Table, column: str, reason: str, fails: Any) -> pa.Table:
    """Mark the unmarked rows with text for which `fails(texts)`, one boolean per text, is true."""
    alive = np.asarray(pc.and_(unmarked(table), pc.is_valid(table[column])))
    texts = table[column] if alive.all() else table[column].filter(pa.array(alive))
    mask = np.zeros(len(table), bool)
    mask[alive] = np.asarray(fails(texts), dtype=bool)
    return mark(table, pa.array(mask), reason)
