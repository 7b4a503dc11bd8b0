"""Every reader on real small files: slices, schemas, poison rows and damaged files; and two of them over S3."""

import ast
import gzip
import json
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.corpus.config import SourceConfig
from engine.corpus.marks import DROP, ERROR, QUARANTINE, SOURCE_PART, SOURCE_ROW
from engine.corpus.readers import Reader, reader_for
from engine.corpus.readers.parquet import _footer
from engine.corpus.sources import InputFile, list_files
from engine.errors import SchemaError, SourceError

TEXT = ("text",)
COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".zst": zstandard.ZstdCompressor(write_checksum=True).compress,
}


def opened(
    root: Path | str, required: tuple[str, ...] = TEXT, **keys: Any
) -> tuple[Reader, tuple[InputFile, ...], pa.Schema]:
    """The reader, the files and the schema of everything below a directory."""
    config = SourceConfig(paths=[str(root)], roots=[str(root)], **keys)
    files = list_files(config).files
    reader = reader_for(files[0].format, config, required)
    return reader, files, reader.schema(files)


def read(root: Path | str, required: tuple[str, ...] = TEXT, target: int = 2**30, **keys: Any) -> pa.Table:
    """All rows below a directory, the slices as a pickled reader in a worker would read them, each on its own."""
    reader, files, schema = opened(root, required, **keys)
    worker: Reader = pickle.loads(pickle.dumps(reader))  # noqa: S301
    slices = [each for file in files for each in reader.slices(file, target)]
    tables = [worker.read([each], schema) for each in slices]
    for table, each in zip(tables, slices, strict=True):
        assert table.schema.names == [*schema.names, SOURCE_PART, SOURCE_ROW, DROP, ERROR]
        assert table.num_rows == 0 or table[SOURCE_ROW][0].as_py() >= each.first_row
        table.validate(full=True)
    whole = worker.read(slices, schema)
    assert not tables or whole.equals(pa.concat_tables(tables))
    return whole


def rows(table: pa.Table, *columns: str) -> list[tuple[Any, ...]]:
    return list(zip(*(table[each].to_pylist() for each in columns), strict=True))


def lines(*items: Any) -> bytes:
    return b"".join((each if isinstance(each, bytes) else json.dumps(each).encode()) + b"\n" for each in items)


# --- all of them ---------------------------------------------------------------------------------------------------


def warc_record(
    number: int, body: bytes, *, kind: str = "response", mime: str = "text/html", status: int = 200
) -> bytes:
    http = f"HTTP/1.1 {status} OK\r\nContent-Type: {mime}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    head = (
        f"WARC/1.1\r\nWARC-Type: {kind}\r\nWARC-Record-ID: <urn:uuid:{number:032d}>\r\n"
        f"WARC-Date: 2024-05-06T07:08:09Z\r\nWARC-Target-URI: http://example.org/{number}\r\n"
        f"Content-Type: application/http; msgtype={kind}\r\nContent-Length: {len(http)}\r\n\r\n"
    )
    return head.encode() + http + b"\r\n\r\n"


def page(number: int) -> bytes:
    paragraph = "<p>This paragraph of the article speaks of many things at length, and so it is kept by extractors.</p>"
    title = f"<title>Page {number}</title>"
    return f"<html><head>{title}</head><body><article>{paragraph * 4}</article></body></html>".encode()


def corpus_of(format: str, folder: Path) -> tuple[str, ...]:
    """Some input files of a format, poison among them; returns the required columns."""
    folder.mkdir()
    if format == "parquet":
        for name, count in (("a", 23), ("b", 0), ("c", 7)):
            table = pa.table({"text": pa.array([f"{name}{n}" for n in range(count)], pa.string()), "n": range(count)})
            pq.write_table(table, folder / f"{name}.parquet", row_group_size=5)
    if format == "jsonl":
        for suffix, compress in COMPRESSIONS.items():
            body = lines(*({"text": "x" * n, "n": n} for n in range(20)), b"", b"{bad", {"text": "last"})
            (folder / f"a.jsonl{suffix}").write_bytes(compress(body[: -1 if suffix else None]))
        (folder / "empty.jsonl").write_bytes(b"")
    if format == "csv":
        body = b'n,text\r\n0,a\r\n\r\n1,"b\r\n""c"""\r\n2\r\n3,"x"y\r\n4,\xff\r\n5,last'
        for suffix, compress in COMPRESSIONS.items():
            (folder / f"a.csv{suffix}").write_bytes(compress(body))
            (folder / f"b.tsv{suffix}").write_bytes(compress(body.replace(b",", b"\t")))
        (folder / "empty.csv").write_bytes(b"")
    if format == "text":
        for number, data in enumerate((b"one\r\n", b"", "z\u00fcrich".encode(), b"\xff\xfe bad")):
            (folder / f"{number}.txt").write_bytes(data)
    if format == "html":
        for number, data in enumerate((page(1), b"", b"<html></html>")):
            (folder / f"{number}.html").write_bytes(data)
    if format == "python":
        (folder / "a.py").write_text('def f():\n    """Do."""\n    a = 1\n    b = 2\n    return a + b\n')
        (folder / "b.py").write_text("def f(:\n")
    if format == "warc":
        good = [warc_record(n, page(n)) for n in range(6)]
        for suffix, compress in COMPRESSIONS.items():
            pieces = [compress(each) for each in good]
            pieces.insert(3, b"no record at all\r\n\r\n")
            (folder / f"a.warc{suffix}").write_bytes(b"".join(pieces))
        (folder / "whole.warc.gz").write_bytes(gzip.compress(b"".join(good)))
    if format == "dialogues":
        first, second = "[Hi?, 'Yes, hi.', Who?, 12, unanswered]", "['What: colon', \"two\\nlines\"]"
        body = f"categories: [x]\nconversations:\n- {first}\n- {second}\n"
        (folder / "a.yml").write_text(body)
        for number, data in enumerate((b"", b"- x", b"conversations: 3", b"conversations: [3]", b"a: [", b"\xff")):
            (folder / f"bad-{number}.yml").write_bytes(data)
    return {"python": ("instruction", "program"), "dialogues": ("prompt", "response")}.get(format, TEXT)


@pytest.mark.parametrize("format", ["parquet", "jsonl", "csv", "text", "html", "dialogues", "python", "warc"])
def test_slices_of_any_size_give_the_same_rows_under_the_same_numbers(tmp_path: Path, format: str) -> None:
    folder = tmp_path / "data"
    required = corpus_of(format, folder)
    whole = read(folder, required)
    assert whole.num_rows > 0
    places = rows(whole, SOURCE_PART, SOURCE_ROW)
    assert len(set(places)) == len(places)
    assert places == sorted(places)
    for target in (1, 17, 100, 150, 1000, 2500, 100_000):
        assert read(folder, required, target=target).equals(whole), target


@pytest.mark.parametrize("format", ["parquet", "jsonl", "csv", "text", "html", "dialogues", "python", "warc"])
def test_files_cut_the_same_way_each_time_cover_themselves(tmp_path: Path, format: str) -> None:
    required = corpus_of(format, tmp_path / "data")
    reader, files, _ = opened(tmp_path / "data", required)
    for file in files:
        slices = reader.slices(file, 100)
        assert slices == reader.slices(file, 100)
        assert [each.start for each in slices[1:]] == [each.stop for each in slices[:-1]]
        assert all(each.start < each.stop for each in slices)


def test_dialogues_are_pairs_of_statement_and_answer(tmp_path: Path) -> None:
    required = corpus_of("dialogues", tmp_path / "data")
    table = read(tmp_path / "data", required)
    good = [row for row in table.to_pylist() if row[DROP] is None]
    assert [(row["prompt"], row["response"], row[SOURCE_ROW]) for row in good] == [
        ("Hi?", "Yes, hi.", 0),
        ("Who?", "12", 1),
        ("What: colon", "two\nlines", 2),
    ]
    bad = [row[ERROR] for row in table.to_pylist() if row[DROP] is not None]
    assert len(bad) == 6
    assert all(error.startswith("no conversations can be read: ") for error in bad)


def test_a_format_without_the_required_columns_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(SchemaError, match="has no column 'instruction'; it has text"):
        opened(tmp_path, ("instruction", "program"))
    assert rows(read(tmp_path, ("prompt",), columns={"prompt": "text"}), "prompt") == [("x",)]
    with pytest.raises(SchemaError, match=r"'messages' of a.txt is string, where a list is needed"):
        opened(tmp_path, ("messages",), columns={"messages": "text"})


# --- Parquet -------------------------------------------------------------------------------------------------------


def test_parquet_slices_are_runs_of_row_groups(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": [f"{n:0100d}" for n in range(100)]}), tmp_path / "a.parquet", row_group_size=10)
    reader, (file,), _ = opened(tmp_path)
    assert [(each.start, each.stop, each.first_row) for each in reader.slices(file, 2**30)] == [(0, 10, 0)]
    small = reader.slices(file, 1)
    assert [(each.start, each.stop, each.first_row) for each in small] == [(n, n + 1, 10 * n) for n in range(10)]
    pairs = reader.slices(file, 2 * small[0].size + 50)
    assert [each.stop - each.start for each in pairs] == [2] * 5


def test_parquet_text_comes_as_string_and_other_columns_pass_through(tmp_path: Path) -> None:
    table = pa.table(
        {
            "content": pa.array(["a", "b", "a"]).dictionary_encode(),
            "text": ["hidden", "by", "rename"],
            "_drop": ["x", None, None],
            "source_part": ["old", "old", "old"],
            "when": pa.array([1, 2, 3], pa.timestamp("us")),
            "tags": [["x"], [], None],
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    got = read(tmp_path, columns={"text": "content"})
    assert got.column_names == ["text", "when", "tags", SOURCE_PART, SOURCE_ROW, DROP, ERROR]
    assert got.schema.field("text").type == pa.string()
    assert got["text"].to_pylist() == ["a", "b", "a"]
    assert got["when"].equals(table["when"])
    assert got["tags"].equals(table["tags"])
    assert rows(got, SOURCE_PART, SOURCE_ROW, DROP) == [("a.parquet", n, None) for n in range(3)]


@pytest.mark.parametrize("type_", [pa.string(), pa.large_string(), pa.string_view()])
def test_parquet_takes_text_of_every_arrow_type(tmp_path: Path, type_: pa.DataType) -> None:
    pq.write_table(pa.table({"text": pa.array(["a", "\u00fc"], type_)}), tmp_path / "a.parquet")
    assert rows(read(tmp_path), "text", DROP) == [("a", None), ("\u00fc", None)]


def test_parquet_schemas_are_united_over_files(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"], "n": pa.array([1], pa.int32())}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"m": [0.5], "n": [2**40], "text": ["b"]}), tmp_path / "b.parquet")
    got = read(tmp_path)
    assert got.schema.field("n").type == pa.int64()
    assert rows(got, "text", "n", "m") == [("a", 1, None), ("b", 2**40, 0.5)]
    pq.write_table(pa.table({"text": ["c"], "n": ["three"]}), tmp_path / "c.parquet")
    with pytest.raises(SchemaError, match=r"column 'n' is int64 in a.parquet but string in c.parquet"):
        opened(tmp_path)


def test_parquet_without_the_column_or_of_the_wrong_type_is_one_sentence(tmp_path: Path) -> None:
    pq.write_table(pa.table({"content": ["a"], "n": [1]}), tmp_path / "a.parquet")
    with pytest.raises(SchemaError, match=r"a.parquet has no column 'text'; it has content, n\. .*columns: \{text"):
        opened(tmp_path)
    with pytest.raises(SchemaError, match="has no column 'body'"):
        opened(tmp_path, columns={"text": "body"})
    with pytest.raises(SchemaError, match=r"column 'text' of a.parquet is int64, where text is needed"):
        opened(tmp_path, columns={"text": "n"})


def test_poison_cells_of_parquet_are_quarantined(tmp_path: Path) -> None:
    raw = pa.array([b"good", b"\xff\xfe", None, b"x" * 2000, "\u00fc\ufffd".encode()], pa.binary())
    invalid = pa.Array.from_buffers(pa.string(), len(raw), raw.buffers())
    pq.write_table(pa.table({"text": invalid, "n": range(5)}), tmp_path / "a.parquet", row_group_size=2)
    got = read(tmp_path, max_row_mb=0.001)
    assert rows(got, DROP, ERROR) == [
        (None, None),
        (QUARANTINE, "the column 'text' is not valid UTF-8"),
        (QUARANTINE, "the column 'text' is null"),
        (QUARANTINE, "the column 'text' is longer than max_row_mb"),
        (None, None),
    ]
    assert got["text"].to_pylist()[:3] == ["good", "\ufffd\ufffd", None]
    assert got["n"].to_pylist() == list(range(5))


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "body"])
def test_a_damaged_parquet_file_is_named(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [f"{n}" * 50 for n in range(5000)]}), path, compression="zstd")
    whole = path.read_bytes()
    broken = {
        "truncated": whole[: len(whole) // 2],
        "empty": b"",
        "text": b"this is no Parquet at all",
        "body": whole[:100] + bytes(200) + whole[300:],
    }
    path.write_bytes(broken[damage])
    with pytest.raises(SourceError, match=r"a.parquet is not a whole Parquet file: .*source.exclude"):
        read(tmp_path)


def test_a_file_that_vanishes_after_planning_is_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "a.parquet")
    reader, (file,), schema = opened(tmp_path)
    slices = reader.slices(file, 100)
    (tmp_path / "a.parquet").unlink()
    with pytest.raises(SourceError, match=r"a.parquet is no longer there"):
        reader.read(slices, schema)


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    pq.write_table(
        pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"]), tmp_path / "a.parquet"
    )
    with pytest.raises(SchemaError, match="more than one column 'text'"):
        opened(tmp_path)


def test_parquet_required_lists_stay_lists(tmp_path: Path) -> None:
    table = pa.table({"messages": [[{"role": "user", "content": "hi"}]], "text": ["x"]})
    pq.write_table(table, tmp_path / "a.parquet")
    assert read(tmp_path, ("messages",))["messages"].equals(table["messages"])
    with pytest.raises(SchemaError, match="where a list is needed"):
        opened(tmp_path, ("messages",), columns={"messages": "text"})


def test_footers_are_read_once_for_schema_and_slices(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "a.parquet")
    before = _footer.cache_info().hits
    reader, (file,), _ = opened(tmp_path)
    reader.slices(file, 1)
    assert _footer.cache_info().hits == before + 1


# --- JSON lines ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", COMPRESSIONS)
def test_poison_lines_are_quarantined_under_their_line_numbers(tmp_path: Path, suffix: str) -> None:
    body = lines(
        {"text": "zero", "n": 0},
        b"{broken",
        b'{"text": "\xff"}',
        [1, 2],
        b"",
        {"n": 5},
        {"text": 6, "n": 6},
        {"text": "seven", "n": "seven"},
        {"text": "x" * 5000, "n": 8},
        {"text": "nine", "n": 9},
        b'{"text": "\\ud800"}',
    )
    (tmp_path / f"a.jsonl{suffix}").write_bytes(COMPRESSIONS[suffix](b"\xef\xbb\xbf" + body.replace(b"\n", b"\r\n")))
    for target in (1, 50, 2**30):
        got = read(tmp_path, target=target, max_row_mb=0.003)
        kept = got.filter(pa.compute.is_null(got[DROP]))
        assert rows(kept, SOURCE_ROW, "text", "n") == [(0, "zero", "0"), (7, "seven", '"seven"'), (9, "nine", "9")]
        bad = got.filter(pa.compute.equal(got[DROP], QUARANTINE))
        assert bad[SOURCE_ROW].to_pylist() == [1, 2, 3, 5, 6, 8, 10]
        errors = bad[ERROR].to_pylist()
        assert "no JSON" in errors[0]
        assert "no JSON" in errors[1]
        assert errors[2:6] == [
            "the line holds no JSON object",
            "the field 'text' is missing",
            "the field 'text' is not text",
            "the line is longer than max_row_mb",
        ]


def test_values_that_do_not_fit_their_column_are_quarantined(tmp_path: Path) -> None:
    good = [{"text": "a" * 1000, "n": n, "meta": {"k": "v"}} for n in range(1200)]
    late = [
        {"text": "b", "n": "x"},
        {"text": "c", "n": 1, "meta": 3},
        {"text": "d", "n": 2**70},
        {"text": "e", "new": 1},
    ]
    (tmp_path / "a.jsonl").write_bytes(lines(*good, *late))
    got = read(tmp_path).slice(len(good))
    assert got["text"].to_pylist() == ["b", "c", "d", "e"]
    assert got[ERROR].to_pylist()[:2] == [
        "the field 'n' is no int64",
        "the field 'meta' is no struct<k: string>",
    ]
    assert got[DROP].to_pylist() == [QUARANTINE, QUARANTINE, QUARANTINE, None]
    assert "new" not in got.column_names


def test_columns_without_one_type_are_read_as_json_text(tmp_path: Path) -> None:
    items = [{"text": "a", "mixed": 1, "void": None, "object": {}}, {"text": "b", "mixed": "x", "list": []}]
    (tmp_path / "a.jsonl").write_bytes(lines(*items))
    (tmp_path / "b.jsonl").write_bytes(lines({"text": "c", "mixed": 2.5, "object": {"deep": [1]}}))
    got = read(tmp_path)
    assert got["mixed"].to_pylist() == ["1", '"x"', "2.5"]
    assert got["list"].to_pylist() == [None, "[]", None]
    assert got["void"].to_pylist() == [None, None, None]
    pq.write_table(got, tmp_path / "out.parquet")
    (tmp_path / "c.jsonl").write_bytes(lines({"text": "c", "mixed": 1}))
    assert read(tmp_path, include=["c.jsonl"]).schema.field("mixed").type == pa.int64()


def test_jsonl_schema_errors_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines({"content": "a", "n": 1}))
    with pytest.raises(SchemaError, match=r"a.jsonl has no column 'text'; it has content, n"):
        opened(tmp_path)
    with pytest.raises(SchemaError, match=r"'text' of a.jsonl is int64, where text is needed"):
        opened(tmp_path, columns={"text": "n"})
    assert rows(read(tmp_path, columns={"text": "content"}), "text", "n") == [("a", 1)]
    (tmp_path / "b.jsonl").write_bytes(lines({"content": "b", "n": "two"}))
    with pytest.raises(SchemaError, match=r"'n' is int64 in a.jsonl but string in b.jsonl"):
        opened(tmp_path, columns={"text": "content"})


def test_jsonl_lists_of_messages(tmp_path: Path) -> None:
    def message(**more: Any) -> dict[str, Any]:
        return {"messages": [{"role": "user", "content": "hi", **more}]}

    (tmp_path / "a.jsonl").write_bytes(lines(message(tools=None), message(tools=None)))
    got = read(tmp_path, ("messages",))
    assert got["messages"].to_pylist() == [message(tools=None)["messages"]] * 2
    pq.write_table(got, tmp_path / "out.parquet")
    (tmp_path / "a.jsonl").write_bytes(lines(message()) * 20_000 + lines({"messages": "no list"}))
    assert (
        read(tmp_path, ("messages",), include=["*.jsonl"])[ERROR].to_pylist()[-1]
        == "the field 'messages' is not a list"
    )
    for item, what in (({"messages": "x"}, "string"), (message(content=[1]), "of several types")):
        (tmp_path / "a.jsonl").write_bytes(lines(item, message(content="x") if what != "string" else item))
        with pytest.raises(SchemaError, match=rf"'messages' of a\.jsonl is {what}, where a list is needed"):
            opened(tmp_path, ("messages",), include=["*.jsonl"])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    body=st.lists(st.sampled_from([b"", b" ", b"{}", b'{"text":"a"}', b'{"text":"\xc3\xa9"}', b"\xff", b"x" * 70])),
    target=st.integers(1, 200),
    end=st.sampled_from([b"", b"\n"]),
)
def test_any_file_cut_anywhere_gives_each_line_its_number(
    tmp_path: Path, body: list[bytes], target: int, end: bytes
) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(body) + end)
    got = read(tmp_path, target=target, max_row_mb=0.00005)
    assert got[SOURCE_ROW].to_pylist() == [number for number, line in enumerate(body) if line.strip()]
    assert got["text"].to_pylist() == [
        json.loads(line)["text"] if b"text" in line else None for line in body if line.strip()
    ]
    assert [drop is None for drop in got[DROP].to_pylist()] == [b"text" in line for line in body if line.strip()]


def test_a_file_of_poison_alone_still_gives_its_rows(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\xff\n{\n")
    got = read(tmp_path)
    assert got.column_names[0] == "text"
    assert got[DROP].to_pylist() == [QUARANTINE] * 2
    (tmp_path / "a.jsonl").write_bytes(b"\n\n")
    assert read(tmp_path).num_rows == 0


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("damage", ["truncated", "garbage after", "flipped"])
def test_a_damaged_compressed_stream_never_loses_rows_in_silence(tmp_path: Path, suffix: str, damage: str) -> None:
    body = lines(*({"text": f"row {n} " * 20} for n in range(3000)))
    packed = COMPRESSIONS[suffix](body)
    middle = len(packed) // 2
    broken = {
        "truncated": packed[:-9],
        "garbage after": packed + b"garbage",
        "flipped": packed[:middle] + bytes([packed[middle] ^ 0xFF]) + packed[middle + 1 :],
    }
    (tmp_path / f"a.jsonl{suffix}").write_bytes(broken[damage])
    with pytest.raises(SourceError, match="is not a whole JSON lines file"):
        read(tmp_path)
    (tmp_path / f"a.jsonl{suffix}").write_bytes(packed + packed)
    assert read(tmp_path).num_rows == 6000


def test_a_jsonl_file_that_shrank_after_planning_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines(*({"text": str(n)} for n in range(100))))
    reader, (file,), schema = opened(tmp_path)
    slices = reader.slices(file, 2**30)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(SourceError, match="has become shorter"):
        reader.read(slices, schema)


MEMORY = """
import resource, sys
from engine.corpus.config import SourceConfig
from engine.corpus.readers import reader_for
from engine.corpus.sources import list_files
config = SourceConfig(paths=[sys.argv[1]], roots=["/"], max_row_mb=2)
(file,) = list_files(config).files
reader = reader_for("jsonl", config, ("text",))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
schema = reader.schema([file])
table = reader.read(reader.slices(file, 2**30), schema)
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(table["_drop"].to_pylist(), schema.names, grown // 1024)
"""


@pytest.mark.parametrize("place", ["first", "last"])
def test_a_line_of_50_mb_is_one_poison_row_and_never_in_memory(tmp_path: Path, place: str) -> None:
    import subprocess

    short, long = lines({"text": "ok", "n": 1}), b'{"text": "' + b"x" * 50_000_000 + b'"}\n'
    path = tmp_path / "a.jsonl"
    path.write_bytes(long + short if place == "first" else short + long[:-1])
    command = [sys.executable, "-c", MEMORY, str(path)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    expected = "['quarantine', None]" if place == "first" else "[None, 'quarantine']"
    assert " ".join(output[:4]) == f"{expected} ['text', 'n']"
    assert int(output[4]) < 45, f"grew by {output[4]} MB"


# --- documents -----------------------------------------------------------------------------------------------------


def test_text_files_are_decoded_strictly(tmp_path: Path) -> None:
    contents = {"a": b"caf\xc3\xa9\r\n", "b": b"caf\xe9", "c": b"\xef\xbb\xbfbom", "d": b"", "e": b"y" * 2000}
    for name, data in contents.items():
        (tmp_path / f"{name}.txt").write_bytes(data)
    got = read(tmp_path, max_row_mb=0.001)
    assert got["text"].to_pylist() == ["caf\u00e9\r\n", None, "bom", "", None]
    assert got[ERROR].to_pylist() == [
        None, "not valid utf-8 at byte 3", None, None, "the file is longer than max_row_mb",
    ]  # fmt: skip
    assert got[SOURCE_PART].to_pylist() == [f"{name}.txt" for name in contents]
    assert read(tmp_path, include=["b.txt"], encoding="latin-1")["text"].to_pylist() == ["caf\u00e9"]


def test_html_keeps_the_article_and_drops_empty_pages(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_bytes(page(1).replace(b"<body>", b"<body><nav>Home | About</nav>"))
    (tmp_path / "b.html").write_bytes(b"\x00\xff\xfe\x80" * 50)
    (tmp_path / "c.html").write_bytes(page(3).replace(b"many things", b"caf\xe9s"))
    got = read(tmp_path)
    assert got["title"].to_pylist()[0] == "Page 1"
    assert got["text"].to_pylist()[0].startswith("This paragraph of the article")
    assert "About" not in got["text"].to_pylist()[0]
    assert "caf\u00e9s" in got["text"].to_pylist()[2]
    assert got[DROP].to_pylist() == [None, "no_text", None]


PYTHON = '''
import os

@decorated(
    1)
def top(a,
  b):  # comment
    """Say what.

    And more.
    """

    x = f"""
left
    {a}
"""
    return x

class A:
    if True:
        async def method(self):
            \'\'\'Method.\'\'\'
# far left comment
            text = """
  inside
            deep"""
            other = "abc\\
        def"
            total = (1 +
      2)
            return text
    def one(self): "one line"; return 1
    def only(self):
        """Nothing but this.

        No body.
        """
    def nested(self):
        """Holds another."""
        def inner():
            """Not taken by itself."""
            return 1
        return inner
    def undocumented(self):
        a = 1
        b = 2
        return a + b

try:
    pass
except Exception:
    def handler():
        """H."""
        a = 1
        return a
'''


def test_python_functions_become_instructions(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(PYTHON)
    got = read(tmp_path, ("instruction", "program"))
    assert rows(got, "qualname", "instruction", SOURCE_ROW) == [
        ("top", "Say what.\n\nAnd more.", 6),
        ("A.method", "Method.", 21),
        ("A.nested", "Holds another.", 38),
        ("handler", "H.", 52),
    ]
    top, method, nested, _ = got["program"].to_pylist()
    assert top == '@decorated(\n    1)\ndef top(a,\n  b):  # comment\n    x = f"""\nleft\n    {a}\n"""\n    return x\n'
    assert method == (
        'async def method(self):\n# far left comment\n    text = """\n  inside\n            deep"""\n'
        '    other = "abc\\\n        def"\n    total = (1 +\n2)\n    return text\n'
    )
    assert nested.startswith("def nested(self):\n    def inner():\n")
    everything = read(tmp_path, ("instruction", "program"), require_docstring=False, min_lines=1)
    assert set(everything["qualname"].to_pylist()) == {*got["qualname"].to_pylist(), "A.undocumented"}
    short = read(tmp_path, ("instruction", "program"), max_lines=3)
    assert short["qualname"].to_pylist() == ["handler"]


def test_python_files_that_do_not_parse_are_one_poison_row_each(tmp_path: Path) -> None:
    function = '\ndef f():\n    """%s"""\n    a = 1\n    return a\n'
    contents = {
        "a": b"def broken(:\n",
        "b": (function % "nul \x00").encode(),
        "c": ("# coding: latin-1" + function % "caf\u00e9").encode("latin-1"),
        "d": (function % "caf\u00e9").encode("latin-1"),
        "e": b"# coding: nonsense\n",
        "f": (function % r"\ud800").encode(),
        "g": b"x = " + b"(" * 5000,
        "h": b"",
        "i": (function % "windows").replace("\n", "\r\n").encode("utf-8-sig"),
        "j": (function % r"\d").encode(),
    }
    for name, data in contents.items():
        (tmp_path / f"{name}.py").write_bytes(data)
    got = read(tmp_path, ("instruction", "program"))
    found = {
        part[0]: (row, drop, text) for part, row, drop, text in rows(got, SOURCE_PART, SOURCE_ROW, DROP, "instruction")
    }
    assert found == {
        "a": (0, QUARANTINE, None),
        "b": (0, QUARANTINE, None),
        "c": (2, None, "caf\u00e9"),
        "d": (0, QUARANTINE, None),
        "e": (0, QUARANTINE, None),
        "f": (2, QUARANTINE, None),
        "g": (0, QUARANTINE, None),
        "i": (2, None, "windows"),
        "j": (2, None, "\\d"),
    }


def test_functions_of_the_standard_library_keep_their_meaning_at_the_left_margin() -> None:
    config = SourceConfig(paths=["stdlib:"], include=["argparse.py", "inspect.py", "textwrap.py", "decimal.py"])
    files = list_files(config).files
    reader = reader_for("python", config, ("instruction", "program"))
    got = reader.read([each for file in files for each in reader.slices(file, 1)], reader.schema(files))
    originals = {
        (file.name, node.lineno): node
        for file in files
        for node in ast.walk(ast.parse(Path(file.uri).read_bytes()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert got.num_rows > 60
    for part, line, program in rows(got, SOURCE_PART, SOURCE_ROW, "program"):
        original = originals[part, line]
        original.body = original.body[1:]
        (function,) = ast.parse(program).body
        assert ast.dump(function) == ast.dump(original)


# --- WARC ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", COMPRESSIONS)
def test_warc_keeps_html_responses_only(tmp_path: Path, suffix: str) -> None:
    records = [
        warc_record(0, b"", kind="warcinfo"),
        warc_record(1, page(1)),
        warc_record(2, page(2), kind="request"),
        warc_record(3, b"\x89PNG", mime="image/png"),
        warc_record(4, page(4), status=404),
        warc_record(5, b"<html></html>", mime="text/html; charset=utf-8"),
        warc_record(6, page(6).replace(b"many", "stra\u00dfe".encode("latin-1")), mime="text/html; charset=latin-1"),
    ]
    packed = b"".join(COMPRESSIONS[suffix](each) for each in records)
    (tmp_path / f"a.warc{suffix}").write_bytes(packed)
    got = read(tmp_path)
    assert rows(got, SOURCE_ROW, "title", "url", DROP) == [
        (1, "Page 1", "http://example.org/1", None),
        (5, "", "http://example.org/5", "no_text"),
        (6, "Page 6", "http://example.org/6", None),
    ]
    assert "stra\u00dfe" in got["text"].to_pylist()[2]
    assert set(got["date"].to_pylist()) == {"2024-05-06T07:08:09Z"}


def test_xhtml_with_a_declared_encoding_is_read(tmp_path: Path) -> None:
    body = b'<?xml version="1.0" encoding="UTF-8"?>' + page(1).replace(b"many", "stra\u00dfe".encode())
    record = warc_record(1, body, mime="Application/XHTML+xml; charset=utf-8").replace(b"http://e", b"<http://e")
    (tmp_path / "a.warc").write_bytes(record.replace(b"org/1\r\n", b"org/1>\r\n"))
    got = read(tmp_path)
    assert rows(got, "url", "title", DROP) == [("http://example.org/1", "Page 1", None)]
    assert "stra\u00dfe" in got["text"][0].as_py()


def test_warc_written_by_its_library_with_encoded_bodies(tmp_path: Path) -> None:
    from fastwarc import GzipWriter, WarcRecord, WarcRecordType

    with open(tmp_path / "a.warc.gz", "wb") as file:
        writer = GzipWriter(file)
        for number, body in enumerate((gzip.compress(page(0)), b"no gzip")):
            record = WarcRecord()
            record.init_headers(WarcRecordType.response)
            record.headers.set("WARC-Target-URI", f"http://example.org/{number}")
            head = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Encoding: gzip\r\n\r\n"
            record.set_bytes_content(head + body)
            record.is_http = True
            record.write(writer)
        writer.close()
    got = read(tmp_path)
    assert got[DROP].to_pylist() == [None, QUARANTINE]
    assert got["title"].to_pylist() == ["Page 0", None]
    assert got["url"].to_pylist()[1] == "http://example.org/1"
    assert "cannot be decoded" in got[ERROR].to_pylist()[1]


WARC_DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "no length": lambda record: record.replace(b"\r\nContent-Length: ", b"\r\nX-Length: ", 1),
    "wrong length": lambda record: record.replace(b"\r\nContent-Length: ", b"\r\nContent-Length: 9", 1),
    "short length": lambda record: record.replace(b"\r\nContent-Length: ", b"\r\nContent-Length: 99\r\nX: ", 1),
    "garbage": lambda record: b"garbage\r\n" * 20,
}


@pytest.mark.parametrize("suffix", COMPRESSIONS)
@pytest.mark.parametrize("damage", WARC_DAMAGE)
@pytest.mark.parametrize("target", [1, 2**30])
def test_warc_reads_on_after_a_damaged_record(tmp_path: Path, suffix: str, damage: str, target: int) -> None:
    records = [warc_record(n, page(n)) for n in range(4)]
    records[1] = WARC_DAMAGE[damage](records[1])
    (tmp_path / f"a.warc{suffix}").write_bytes(b"".join(COMPRESSIONS[suffix](each) for each in records))
    got = read(tmp_path, target=target)
    kept = got.filter(pa.compute.is_null(got[DROP]))
    # A length that is too short gives the beginning of the page: only what follows it can be seen to be wrong.
    assert [url[-1] for url in kept["url"].to_pylist()] == ["0", *(["1"] if damage == "short length" else []), "2", "3"]
    assert got[DROP].to_pylist().count(QUARANTINE) == 1


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_warc_reads_on_after_flipped_bytes(tmp_path: Path, suffix: str) -> None:
    pieces = [COMPRESSIONS[suffix](warc_record(n, page(n))) for n in range(4)]
    middle = len(pieces[1]) // 2
    pieces[1] = (
        pieces[1][:middle] + bytes(each ^ 0x5A for each in pieces[1][middle : middle + 8]) + pieces[1][middle + 8 :]
    )
    (tmp_path / f"a.warc{suffix}").write_bytes(b"".join(pieces))
    got = read(tmp_path)
    kept = got.filter(pa.compute.is_null(got[DROP]))
    assert [url[-1] for url in kept["url"].to_pylist()] == ["0", "2", "3"]
    assert QUARANTINE in got[DROP].to_pylist()


@pytest.mark.parametrize("suffix", COMPRESSIONS)
@pytest.mark.parametrize("cut", [2, 30, 200])
def test_a_truncated_warc_ends_in_a_poison_row(tmp_path: Path, suffix: str, cut: int) -> None:
    first, second = (COMPRESSIONS[suffix](warc_record(n, page(n))) for n in range(2))
    end = len(second) - 4 - cut if not suffix else len(second) - cut
    (tmp_path / f"a.warc{suffix}").write_bytes(first + second[:end])
    for target in (1, 2**30):
        got = read(tmp_path, target=target)
        assert got["title"].to_pylist()[0] == "Page 0"
        assert got[DROP].to_pylist()[-1] == QUARANTINE


def test_a_long_page_is_poison_but_a_long_picture_is_nothing(tmp_path: Path) -> None:
    picture, long = warc_record(0, b"p" * 300_000, mime="image/png"), warc_record(1, b"h" * 300_000)
    (tmp_path / "a.warc").write_bytes(picture + long + warc_record(2, page(2)))
    got = read(tmp_path, max_row_mb=0.1)
    assert rows(got, SOURCE_ROW, ERROR) == [(1, "the page is longer than max_row_mb"), (2, None)]


def test_what_is_no_warc_is_named_and_an_empty_one_has_no_rows(tmp_path: Path) -> None:
    (tmp_path / "a.warc").write_bytes(b"")
    assert read(tmp_path).num_rows == 0
    for name, data in (
        ("b.warc", b"no warc at all" * 99),
        ("c.warc.gz", gzip.compress(b"no warc")),
        ("d.warc.gz", b"\x1f\x8b\x08"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(SourceError, match=rf"{name} is not a WARC file"):
            read(tmp_path, include=[name])


# --- S3 ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An empty bucket of an in-process S3 server."""
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem().mkdir("corpus")
    yield "s3://corpus"
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


def test_parquet_and_jsonl_are_read_from_s3(bucket: str, tmp_path: Path) -> None:
    from upath import UPath

    table = pa.table({"text": [f"row {n}" for n in range(100)]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=10)
    body = lines(*({"text": f"line {n}"} for n in range(100)))
    files = {
        "p/x/a.parquet": (tmp_path / "a.parquet").read_bytes(),
        "p2/b.parquet": b"another prefix",
        "j/b.jsonl": body,
        "j/c.jsonl.gz": gzip.compress(body),
        "bad/a.parquet": b"PAR1 nothing PAR1",
    }
    for name, data in files.items():
        (UPath(bucket) / name).write_bytes(data)
    for target in (1, 2**30):
        got = read(f"{bucket}/p", target=target)
        assert got["text"].to_pylist() == table["text"].to_pylist()
        assert set(got[SOURCE_PART].to_pylist()) == {"x/a.parquet"}
    for target in (300, 2**30):
        got = read(f"{bucket}/j", target=target)
        assert got["text"].to_pylist() == [f"line {n}" for n in range(100)] * 2
        assert got[SOURCE_ROW].to_pylist() == [*range(100)] * 2
    assert read(f"{bucket}/*/b.jsonl").num_rows == 100
    _, (before,), _ = opened(f"{bucket}/j/b.jsonl")
    (UPath(bucket) / "j/b.jsonl").write_bytes(body.replace(b"line 7", b"line 8"))
    _, (after,), _ = opened(f"{bucket}/j/b.jsonl")
    assert (after.uri, after.size) == (before.uri, before.size)
    assert after.fingerprint != before.fingerprint
    with pytest.raises(SourceError, match=r"bad/a.parquet is not a whole Parquet file"):
        opened(f"{bucket}/bad")
    for missing in (f"{bucket}/nothing", f"{bucket}/nothing/*.jsonl", "s3://nowhere/x"):
        with pytest.raises(SourceError, match=r"nothing at|No file matches|cannot be looked up"):
            opened(missing)
