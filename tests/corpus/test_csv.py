"""CSV and TSV: what the csv module writes comes back, and every row that breaks a rule is quarantined, alone."""

import csv
import gzip
import io
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.config import build_recipe
from engine.corpus.config import SourceConfig
from engine.corpus.marks import DROP, ERROR, QUARANTINE, SOURCE_PART, SOURCE_ROW
from engine.corpus.readers import Reader, reader_for
from engine.corpus.sources import InputFile, list_files
from engine.errors import RecipeError, SchemaError, SourceError

CELLS = st.text(st.sampled_from('a,\t"\n\r\u00e9\u4e2d\U0001f600\u2028\u0085\0 ;\ufffd'), max_size=6)


def opened(root: Path, *required: str, **keys: Any) -> tuple[Reader, tuple[InputFile, ...], pa.Schema]:
    config = SourceConfig(paths=[str(root)], roots=[str(root)], **keys)
    files = list_files(config).files
    reader = reader_for(files[0].format, config, required)
    return reader, files, reader.schema(files)


def read(root: Path, *required: str, **keys: Any) -> pa.Table:
    reader, files, schema = opened(root, *required, **keys)
    table = reader.read([each for file in files for each in reader.slices(file, 1)], schema)
    table.validate(full=True)
    assert table.schema.names == [*schema.names, SOURCE_PART, SOURCE_ROW, DROP, ERROR]
    return table


def rows(table: pa.Table, *columns: str) -> list[tuple[Any, ...]]:
    return list(zip(*(table[each].to_pylist() for each in columns), strict=True))


def poison(table: pa.Table) -> dict[int, str]:
    """Row number -> what is wrong with it."""
    assert set(table[DROP].to_pylist()) <= {None, QUARANTINE}
    return {row: error for row, error in rows(table, SOURCE_ROW, ERROR) if error is not None}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    body=st.lists(st.lists(CELLS, min_size=3, max_size=3), max_size=8),
    # With other line ends the writer of Python 3.11 leaves cells with the one it does not use without quotes.
    style=st.sampled_from([("\r\n", csv.QUOTE_MINIMAL), *((end, csv.QUOTE_ALL) for end in ("\r\n", "\n", "\r"))]),
    suffix=st.sampled_from([".csv", ".tsv"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "gb18030"]),
)
def test_what_the_csv_module_writes_comes_back(
    tmp_path: Path, body: list[list[str]], style: tuple[str, Any], suffix: str, encoding: str
) -> None:
    for old in tmp_path.iterdir():
        old.unlink()
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter="," if suffix == ".csv" else "\t", lineterminator=style[0], quoting=style[1])
    writer.writerows([["x", "text", "z"], *body])
    (tmp_path / f"a{suffix}").write_bytes(text.getvalue().encode(encoding))
    got = read(tmp_path, "text", encoding="utf-8" if encoding == "utf-8-sig" else encoding)
    assert [list(row) for row in rows(got, "x", "text", "z")] == body
    assert got[SOURCE_ROW].to_pylist() == list(range(len(body)))
    assert poison(got) == {}


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=8) | st.lists(st.sampled_from([b'"', b",", b"\n", b"\r", b"a", b"\xff"])).map(b"".join))
def test_no_bytes_break_the_reader(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.csv").write_bytes(b"text,n\n" + data)
    for limit in (0.000010, 1):
        got = read(tmp_path, "text", max_row_mb=limit)
        assert got[SOURCE_ROW].to_pylist() == list(range(len(got)))
        assert all(text is not None for text, drop in rows(got, "text", DROP) if drop is None)


def test_line_breaks_and_quotes_inside_a_cell_are_text(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b'text,n\n"one\r\ntwo\rthree\n""four"", five",1\n\n  \n6" wide,2')
    got = read(tmp_path, "text")
    assert got["text"].to_pylist() == ['one\r\ntwo\rthree\n"four", five', "  ", '6" wide']
    assert poison(got) == {1: "line 7 has 1 cells, where the header has 2"}
    assert got["n"].to_pylist() == ["1", None, "2"]


def test_ragged_rows_are_quarantined_with_what_they_have(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,n\na,1\nb\nc,3,three\nd,4\n")
    got = read(tmp_path, "text")
    assert rows(got, "text", "n", DROP) == [
        ("a", "1", None),
        ("b", None, QUARANTINE),
        ("c", "3", QUARANTINE),
        ("d", "4", None),
    ]
    assert poison(got) == {
        1: "line 3 has 1 cells, where the header has 2",
        2: "line 4 has 3 cells, where the header has 2",
    }


def test_a_broken_quote_takes_no_other_row_with_it(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('text,n\n"a"b,0\n"never closed,1\nc,2\n"d",3\n"to the end,4\ne,5\n')
    got = read(tmp_path, "text")
    assert [row for row, drop in zip(rows(got, "text", "n"), got[DROP].to_pylist(), strict=True) if not drop] == [
        ("c", "2"),
        ("d", "3"),
        ("e", "5"),
    ]
    errors = poison(got)
    assert errors.keys() == {0, 1, 4}
    assert errors[0].startswith("line 2 begins a row that is no CSV: ',' expected after '\"'")
    assert errors[4] == "line 6 begins a row that is no CSV: unexpected end of data"


def test_a_row_that_is_too_long_is_passed_over_as_a_whole(tmp_path: Path) -> None:
    long = '"' + 'line, with a ""word""\n' * 40 + '"'
    (tmp_path / "a.csv").write_text(f"text,n\na,0\n{long},1\nb,2\n{'x' * 5000},3\n\u00e9{'y' * 499},4\nc,5\n")
    got = read(tmp_path, "text", max_row_mb=0.0005)
    assert [text for text, drop in rows(got, "text", DROP) if not drop] == ["a", "b", "c"]
    assert poison(got) == {
        1: "the row is longer than max_row_mb (line 3 to 43)",
        3: "the row is longer than max_row_mb (line 45)",
        4: "the row is longer than max_row_mb (line 46)",
    }
    assert poison(read(tmp_path, "text", max_row_mb=1)) == {}


def test_a_cell_may_be_longer_than_the_csv_modules_own_limit(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"text\n{'x' * 200_000}\n")
    assert read(tmp_path, "text")["text"].to_pylist() == ["x" * 200_000]


def test_bytes_outside_the_encoding_cost_their_row_only(tmp_path: Path) -> None:
    body = "text,n\na,0\n\u00e9 it\u2019s,1\nb,\ufffd\n".encode().replace(b"\xe2\x80\x99", b"\xd5")
    (tmp_path / "a.csv").write_bytes(body)
    got = read(tmp_path, "text")
    assert rows(got, "text", DROP) == [("a", None), ("\u00e9 it\ufffds", QUARANTINE), ("b", None)]
    assert poison(got) == {1: "line 3 is not valid utf-8 (see source.encoding)"}
    (tmp_path / "a.csv").write_bytes("text\nit\u2019s\n".encode("mac_roman"))
    assert read(tmp_path, "text", encoding="mac_roman")["text"].to_pylist() == ["it\u2019s"]
    (tmp_path / "a.csv").write_bytes(b"text\nx\n")
    with pytest.raises(SourceError, match=r"a.csv is not utf-16: .* Set source.encoding"):
        read(tmp_path, "text", encoding="utf-16")
    with pytest.raises(RecipeError, match="no such encoding"):
        build_recipe(SourceConfig, {"paths": ["x"], "encoding": "base64"})


def test_columns_are_renamed_and_files_united(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbfbody,n\na,1\n")
    (tmp_path / "b.tsv").write_text("m\tbody\ttext\tsource_part\n2\tb\thidden\told\n")
    (tmp_path / "c.csv").write_text("")
    (tmp_path / "d.csv").write_text("\n\n")
    (tmp_path / "e.csv").write_text("body\n")
    got = read(tmp_path, "text", columns={"text": "body"})
    assert rows(got, "text", "n", "m", SOURCE_PART) == [("a", "1", None, "a.csv"), ("b", None, "2", "b.tsv")]
    assert poison(got) == {}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("body,n\na,1\n", r"a.csv has no column 'text'; it has body, n"),
        ("text,n,n\n", "more than one column 'n'"),
        ('"text"x,n\n', r"The header of .*a.csv cannot be read: line 1 begins a row that is no CSV"),
    ],
)
def test_a_header_that_does_not_serve_is_one_sentence(tmp_path: Path, body: str, message: str) -> None:
    (tmp_path / "a.csv").write_text(body)
    with pytest.raises((SchemaError, SourceError), match=message):
        opened(tmp_path, "text")


def test_required_columns_that_are_no_text(tmp_path: Path) -> None:
    cells = ["7", " -1 ", "+12", "", "1.0", "x", "1_0", "9" * 30, str(2**63 - 1), "9" * 5000]
    (tmp_path / "a.csv").write_text("seed,text\n" + "".join(f"{cell},t\n" for cell in cells) + "8\n")
    got = read(tmp_path, "text", "seed")
    assert got.schema.field("seed").type == pa.int64()
    assert got["seed"].to_pylist() == [7, -1, 12, None, None, None, None, None, 2**63 - 1, None, 8]
    errors = poison(got)
    assert errors.keys() == {3, 4, 5, 6, 7, 9, 10}
    assert errors[3] == "line 5: the column 'seed' is not a whole number"
    assert errors[10] == "line 12 has 1 cells, where the header has 2"
    with pytest.raises(SchemaError, match="where a list is needed"):
        opened(tmp_path, "messages", columns={"messages": "text"})


@pytest.mark.parametrize("compress", [gzip.compress, zstandard.ZstdCompressor(write_checksum=True).compress])
def test_a_damaged_compressed_file_is_named_while_planning(tmp_path: Path, compress: Any) -> None:
    name = "a.csv.gz" if compress is gzip.compress else "a.csv.zst"
    body = b"text\n" + b"".join(b"row %d\n" % n for n in range(20_000))
    (tmp_path / name).write_bytes(compress(body))
    reader, (file,), schema = opened(tmp_path, "text")
    (piece,) = reader.slices(file, 1)
    assert piece.size == len(body)
    assert len(reader.read([piece], schema)) == 20_000
    (tmp_path / name).write_bytes(compress(body)[:-9])
    with pytest.raises(SourceError, match="is not a whole CSV file"):
        reader.slices(opened(tmp_path, "text")[1][0], 1)


def test_time_is_linear_also_where_every_quote_is_broken(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,n\n" + '"a ""b"",1\n' * 20_000)
    started = time.monotonic()
    got = read(tmp_path, "text")
    assert len(got) >= 20_000
    assert time.monotonic() - started < 20
