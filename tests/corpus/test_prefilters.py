"""Prefilters and conditions against plain Python definitions of the same rules, their order, and how marks add up."""

from collections import Counter
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.config import build_recipe
from engine.corpus.conditions import apply_conditions, check_conditions
from engine.corpus.config import FilterConfig, SourceConfig
from engine.corpus.marks import DROP, ERROR, QUARANTINE, mark, marked_schema
from engine.corpus.prefilters import apply_filters, expressions, repetition_ratio
from engine.errors import RecipeError, SchemaError

TEXTS = st.lists(
    st.text(st.sampled_from("ab1 \u00e9\u4e2d\u0915\u093f#!\u2026\U0001f600\t\n\u00a0"), max_size=30), max_size=12
)


def marked(texts: list[str | None]) -> pa.Table:
    table = pa.table({"text": pa.array(texts, pa.string())})
    return table.append_column(DROP, nothing := pa.nulls(len(table), pa.string())).append_column(ERROR, nothing)


def drops(texts: list[str | None], **keys: Any) -> list[str | None]:
    found: list[str | None] = apply_filters(marked(texts), "text", FilterConfig(**keys))[DROP].to_pylist()
    return found


def symbols(text: str) -> int:
    import unicodedata

    return sum(not (unicodedata.category(c)[0] in "LMNZ" or c in "\t\n\f\r") for c in text)


def repetition(text: str) -> float:
    counts = Counter(line.strip() for line in text.split("\n"))
    every = sum(len(line) * count for line, count in counts.items())
    return sum(len(line) * (count - 1) for line, count in counts.items()) / every if every else 0.0


def test_everything_is_off_by_default() -> None:
    table = marked(["", "x", "!!!", None])
    assert apply_filters(table, "text", FilterConfig()) is table


@settings(max_examples=50, deadline=None)
@given(texts=TEXTS, low=st.integers(0, 10), high=st.integers(1, 20))
def test_length_is_counted_in_characters(texts: list[str], low: int, high: int) -> None:
    expected = ["too_short" if len(t) < low else "too_long" if len(t) > high else None for t in texts]
    assert drops(texts, min_chars=low, max_chars=high) == expected


@settings(max_examples=50, deadline=None)
@given(texts=TEXTS, ratio=st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0]))
def test_symbols_are_what_is_no_letter_mark_number_or_space(texts: list[str], ratio: float) -> None:
    assert drops(texts, max_symbol_ratio=ratio) == ["symbols" if symbols(t) > ratio * len(t) else None for t in texts]


@settings(max_examples=50, deadline=None)
@given(texts=TEXTS)
def test_repetition_is_the_share_of_characters_in_repeated_lines(texts: list[str]) -> None:
    column = pa.chunked_array([texts[:3], texts[3:]], pa.string())
    assert repetition_ratio(column).tolist() == [repetition(text) for text in texts]


def test_repetition_drops_above_its_limit_and_only_within_one_text() -> None:
    texts: list[str | None] = ["a\nb\nc", "a\n  a \nb\nb", "same", "same", "\n\n\n", "aaaa\naaaa\nbbbb\ncccc"]
    assert drops(texts, max_repetition_ratio=0.3) == [None, "repetition", None, None, None, None]
    assert drops(texts, max_repetition_ratio=0.25)[5] is None
    assert drops(texts, max_repetition_ratio=0.24)[5] == "repetition"


def test_the_first_reason_stays_and_marked_or_null_rows_are_left_alone() -> None:
    table = mark(marked(["x", "!!!!!!!!", None, "!"]), pa.array([True, False, False, False]), QUARANTINE, "poison")
    got = apply_filters(table, "text", FilterConfig(min_chars=3, max_symbol_ratio=0.1, languages=["en"]))
    assert got[DROP].to_pylist() == [QUARANTINE, "symbols", None, "too_short"]
    assert got[ERROR].to_pylist() == ["poison", None, None, None]
    assert got.schema == table.schema


def test_language_keeps_what_is_wanted_and_sure() -> None:
    texts: list[str | None] = [
        "This is a plain English sentence about the weather.",
        "Ceci est une phrase fran\u00e7aise sur la pluie et le beau temps.",
        "12345",
    ]
    assert drops(texts, languages=["en", "fr"], min_language_score=0.5) == [None, None, "language"]
    assert drops(texts, languages=["fr"]) == ["language", None, "language"]
    with pytest.raises(RecipeError, match="no language 'english'"):
        drops(texts, languages=["english"])


def test_filters_are_arrow_expressions_where_they_can_be() -> None:
    config = FilterConfig(min_chars=2, max_chars=5, max_symbol_ratio=0.5, max_repetition_ratio=0.5)
    table = marked(["a", "abc", "abcdefg", "!!!"])
    found = expressions(pc.field("text"), config)
    assert {reason: table.filter(rule)["text"].to_pylist() for reason, rule in found.items()} == {
        "too_short": ["a"],
        "too_long": ["abcdefg"],
        "symbols": ["!!!"],
    }


def test_filters_keep_chunks_apart_and_empty_tables_empty() -> None:
    chunks = [marked(texts) for texts in (["a", "bb"], [], ["c", "dd"])]
    table = pa.concat_tables(chunks)
    everything = FilterConfig(min_chars=2, max_symbol_ratio=0.5, max_repetition_ratio=0.5, languages=["en"])
    assert apply_filters(table, "text", FilterConfig(min_chars=2))[DROP].to_pylist() == ["too_short", None] * 2
    empty = marked_schema(pa.schema([("text", pa.string())])).empty_table()
    assert apply_filters(empty, "text", everything).equals(empty)


def test_nulls_in_a_mask_count_as_false() -> None:
    table = marked(["a", "b", "c"])
    got = mark(table, pa.array([None, True, False]), "why")
    assert got[DROP].to_pylist() == [None, "why", None]
    assert got[ERROR].null_count == 3


@pytest.mark.parametrize(
    ("section", "data", "message"),
    [
        (FilterConfig, {"max_symbol_ratio": 2}, "less than or equal to 1"),
        (FilterConfig, {"languages": []}, "at least 1 item"),
        (FilterConfig, {"min_char": 1}, "nearest known key is 'min_chars'"),
        (FilterConfig, {"where": {"n": ">=many"}}, "no number follows >= in '>=many'"),
        (FilterConfig, {"where": {"n": "<"}}, "no number follows <"),
        (FilterConfig, {"where": {"n": ">nan"}}, "no number follows >"),
        (FilterConfig, {"where": {"n": []}}, "n has an empty list"),
        (FilterConfig, {"where": {"n": None}}, "where.n"),
        (FilterConfig, {"where": ["n"]}, "should hold keys of its own"),
        (SourceConfig, {"paths": []}, "at least 1 item"),
        (SourceConfig, {"paths": ["x"], "encoding": "utf-9"}, "no such encoding"),
        (SourceConfig, {"paths": ["x"], "min_lines": 9, "max_lines": 3}, "min_lines is larger than max_lines"),
        (SourceConfig, {"paths": ["x"], "shard_mb": 0}, "greater than 0"),
    ],
)
def test_wrong_values_in_a_recipe_are_one_sentence(section: Any, data: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        build_recipe(section, data)


# Conditions on other columns.


def kept(values: pa.Array, wanted: Any) -> list[Any]:
    """The cells that meet a condition, as a recipe gives it."""
    where = build_recipe(FilterConfig, {"where": {"c": wanted}}).where
    table = pa.table({"c": values})
    table = table.append_column(DROP, nothing := pa.nulls(len(table), pa.string())).append_column(ERROR, nothing)
    check_conditions(where, table.schema)
    got = apply_conditions(table, where)
    assert got.schema == table.schema
    assert set(got[DROP].to_pylist()) <= {None, "where"}
    return [cell for cell, drop in zip(table["c"].to_pylist(), got[DROP].to_pylist(), strict=True) if drop is None]


WORDS = ["a", "b", "ab", "", ">1", None, "a "]
TEXT_TYPES = [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]


@pytest.mark.parametrize("type_", TEXT_TYPES)
def test_where_a_value_or_one_of_a_list(type_: pa.DataType) -> None:
    words = pa.array(WORDS, pa.string()).cast(type_)
    assert kept(words, "a") == ["a"]
    assert kept(words, ["a", "ab", "z"]) == ["a", "ab"]
    assert kept(words, "") == [""]
    assert kept(words, [">1"]) == [">1"]
    assert kept(words, "z") == []


def test_where_values_are_compared_as_text() -> None:
    assert kept(pa.array([1, 2, None, 12]), 1) == [1]
    assert kept(pa.array([1, 2, 12]), ["2", 12]) == [2, 12]
    assert kept(pa.array([0.5, 1.0, 2.0]), [0.5, "2"]) == [0.5, 2.0]
    assert kept(pa.array([True, False, None]), True) == [True]
    assert kept(pa.array(["true", "1"]), True) == ["true"]
    assert kept(pa.nulls(2), "x") == []
    assert kept(pa.array([], pa.string()), "x") == []


@settings(max_examples=100, deadline=None)
@given(
    sign=st.sampled_from([">=", "<=", ">", "<"]),
    limit=st.integers(-3, 3) | st.floats(-3, 3),
    numbers=st.lists(
        st.none() | st.integers(-4, 4) | st.floats(-4, 4) | st.floats(allow_nan=False, allow_infinity=False)
    ),
)
def test_where_a_number_is_compared(sign: str, limit: float, numbers: list[float | None]) -> None:
    compare = {">=": float.__ge__, "<=": float.__le__, ">": float.__gt__, "<": float.__lt__}[sign]
    expected = [each for each in numbers if each is not None and compare(float(each), float(limit))]
    wanted = f"{sign} {limit!r}"
    # As numbers; as text, as Python spells them; and in a column of any of these types.
    assert kept(pa.array(numbers, pa.float64()), wanted) == [float(each) for each in expected]
    words = [None if each is None else repr(each) for each in numbers]
    for type_ in TEXT_TYPES:
        assert kept(pa.array(words, pa.string()).cast(type_), wanted) == [repr(each) for each in expected]


def test_where_cells_that_are_no_number_meet_no_comparison() -> None:
    words = pa.array(["", "x", "1x", "nan", "inf", "1_0", "0x1", "1e", ".", "-", None, "\u0661"])
    assert kept(words, ">=-1e300") == []
    assert kept(words, "<1e300") == []
    assert kept(pa.array(["1e999", "9" * 400, "-1e999", "1e-999"]), ">1e300") == ["1e999", "9" * 400]
    assert kept(pa.array([" 1 ", "+2", "3.", ".4e1", "-5E-2", "1e5"]), ">0") == [" 1 ", "+2", "3.", ".4e1", "1e5"]
    assert kept(pa.array([True, False]), ">=0") == []
    assert kept(pa.array([2**63 - 1, -5, None]), ">0") == [2**63 - 1]
    assert kept(pa.array([float("nan"), 1.0]), "<2") == [1.0]


def test_where_all_conditions_must_be_met_and_marks_stay() -> None:
    table = marked(["a", "b", "c", "d"]).append_column("n", pa.array([1, 2, 3, None]))
    table = mark(table, pa.array([True, False, False, False]), QUARANTINE, "poison")
    got = apply_conditions(table, {"n": ">=2", "text": ["a", "b", "d"]})
    assert got[DROP].to_pylist() == [QUARANTINE, None, "where", "where"]
    assert got[ERROR].to_pylist() == ["poison", None, None, None]
    assert apply_conditions(table, {}) is table


def test_where_alone_does_not_look_at_the_text() -> None:
    assert apply_filters(marked(["a"]), "not there", FilterConfig(where={"text": "a"}))[DROP].to_pylist() == [None]


def test_where_on_a_column_that_is_not_there_or_of_another_kind() -> None:
    schema = pa.schema([("text", pa.string()), ("tags", pa.list_(pa.string())), ("n", pa.int8())])
    check_conditions({"n": ">1", "text": "x"}, schema)
    with pytest.raises(SchemaError, match=r"the column 'm', which the input does not have; it has text, tags, n\."):
        check_conditions({"n": ">1", "m": "x"}, schema)
    with pytest.raises(SchemaError, match=r"'tags', which is list<.*>, where text or numbers are needed"):
        check_conditions({"tags": "x"}, schema)
