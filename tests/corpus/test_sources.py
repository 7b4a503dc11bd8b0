"""Listing inputs: names, fingerprints, formats, datasets, roots and links, and what is refused."""

import os
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from upath import UPath

from engine.artifacts import Manifest, Part, open_staging, publish
from engine.corpus.config import SourceConfig
from engine.corpus.sources import InputFile, Listing, check_unchanged, list_files
from engine.errors import ArtifactError, SourceError


def source(root: Path, *paths: str, **keys: Any) -> SourceConfig:
    return SourceConfig(paths=[each if ":" in each else str(root / each) for each in paths], roots=[str(root)], **keys)


def write(path: Path, data: str | bytes = "x\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def names(listing: Listing) -> list[str]:
    return [file.name for file in listing.files]


def only(config: SourceConfig) -> InputFile:
    (file,) = list_files(config).files
    return file


def make_dataset(output: Path, parts: int = 2) -> Path:
    """A published dataset of parts with one row each, and one orphan that no manifest lists."""
    staging = open_staging(UPath(output))
    listed = []
    for number in range(parts):
        name, file = f"part-{number:06d}", f"part-{number:06d}.abcd.parquet"
        pq.write_table(pa.table({"text": [f"row {number}"]}), str(staging / file))
        listed.append(
            Part(name=name, file=file, rows=1, bytes=(staging / file).stat().st_size, sha256=f"{number:064d}")
        )
    manifest = Manifest(
        schema_name="documents", columns={"text": "string"}, rows=parts, parts=tuple(listed), parents=(), job="test",
        recipe={}, recipe_fingerprint="", inputs_fingerprint="", code_version="", seed=0,
    )  # fmt: skip
    publish(staging, UPath(output), manifest)
    pq.write_table(pa.table({"text": ["an orphan"]}), output / "part-000000.dead.parquet")
    return output


def test_a_walk_is_sorted_and_named_relative_to_its_directory(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.txt", "a/b/c.md", ".hidden.txt", ".git/x.txt", "a/_SUCCESS"):
        write(tmp_path / "data" / name)
    listing = list_files(source(tmp_path, "data"))
    assert names(listing) == ["a/b/c.md", "a/z.txt", "b.txt"]
    assert {file.format for file in listing.files} == {"text"}
    assert listing.skipped == {}
    assert only(source(tmp_path, "data/a/z.txt")).name == "z.txt"


def test_include_and_exclude_select_by_name_and_by_directory(tmp_path: Path) -> None:
    for name in ("keep/a.txt", "keep/b.log", "tests/c.txt", "deep/tests/d.txt", "keep/old/e.txt"):
        write(tmp_path / name)
    config = source(tmp_path, ".", include=["*.txt"], exclude=["tests", "keep/old"])
    assert names(list_files(config)) == ["keep/a.txt"]


@pytest.mark.parametrize(
    ("glob", "expected"),
    [
        ("data/*.txt", ["a.txt"]),
        ("data/*/*.txt", ["x/b.txt", "y/c.txt"]),
        ("data/**/*.txt", ["a.txt", "x/b.txt", "x/z/d.txt", "y/c.txt"]),
        ("data/[xy]", ["x/b.txt", "x/z/d.txt", "y/c.txt"]),
        ("data/?/b.txt", ["x/b.txt"]),
    ],
)
def test_globs_name_files_below_their_fixed_part(tmp_path: Path, glob: str, expected: list[str]) -> None:
    for name in ("a.txt", "x/b.txt", "y/c.txt", "x/z/d.txt"):
        write(tmp_path / "data" / name)
    assert names(list_files(source(tmp_path, glob))) == expected


def test_a_file_whose_name_looks_like_a_glob_is_that_file(tmp_path: Path) -> None:
    write(tmp_path / "a[1].txt")
    write(tmp_path / "a1.txt")
    assert only(source(tmp_path, "a[1].txt")).name == "a[1].txt"


def test_equal_names_are_told_apart_and_one_file_is_read_once(tmp_path: Path) -> None:
    for name in ("one/a.txt", "two/a.txt", "two/b.txt"):
        write(tmp_path / name)
    assert names(list_files(source(tmp_path, "one", "two"))) == ["1/a.txt", "2/a.txt", "2/b.txt"]
    assert names(list_files(source(tmp_path, "two", "two/a.txt", "two"))) == ["a.txt", "b.txt"]


def test_a_fingerprint_follows_the_content_of_small_and_large_files(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "one")
    config = source(tmp_path, "a.txt")
    before = only(config)
    os.utime(path, (1, 1))
    assert only(config) == before
    path.write_text("two")
    assert only(config).fingerprint != before.fingerprint

    large = bytearray(9 * 2**20)
    path.write_bytes(large)
    os.utime(path, (1, 1))
    before = only(config)
    assert before.size == len(large)
    assert only(config) == before
    os.utime(path, (2, 2))
    assert only(config).fingerprint != before.fingerprint
    os.utime(path, (1, 1))
    assert only(config) == before
    large[-1] = 1
    path.write_bytes(large)
    os.utime(path, (1, 1))
    assert only(config).fingerprint != before.fingerprint


def test_a_dataset_stands_for_the_parts_its_manifest_lists(tmp_path: Path) -> None:
    make_dataset(tmp_path / "runs" / "out")
    for path in ("runs/out", "runs/out/*.parquet"):
        listing = list_files(source(tmp_path, path))
        assert names(listing) == ["part-000000", "part-000001"]
        assert [file.fingerprint for file in listing.files] == [f"part:{0:064d}", f"part:{1:064d}"]
        assert {file.format for file in listing.files} == {"parquet"}
        assert all(Path(file.uri).stat().st_size == file.size for file in listing.files)
        assert [parent.uri for parent in listing.parents] == [str(tmp_path / "runs" / "out")]
    assert names(list_files(source(tmp_path, "runs/out/part-000001*"))) == ["part-000001"]
    listing = list_files(source(tmp_path, "runs", include=["*.parquet"]))
    assert names(listing) == ["out/part-000000", "out/part-000001"]
    with pytest.raises(SourceError, match="published dataset of Parquet"):
        list_files(source(tmp_path, "runs/out", format="jsonl"))


def test_an_unpublished_dataset_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.partial" / "part-0.parquet")
    write(tmp_path / "b" / "part-0.parquet")
    write(tmp_path / "b" / "UNPUBLISHED", "")
    for path in ("a.partial", "a.partial/*.parquet", "b", "b/*", "."):
        with pytest.raises(ArtifactError, match="not published yet"):
            list_files(source(tmp_path, path))


def test_links_out_of_the_roots_are_skipped_and_counted_or_refused(tmp_path: Path) -> None:
    outside = write(tmp_path / "outside" / "secret.txt")
    inside = write(tmp_path / "root" / "a.txt")
    (tmp_path / "root" / "out.txt").symlink_to(outside)
    (tmp_path / "root" / "in.txt").symlink_to(inside)
    (tmp_path / "root" / "broken.txt").symlink_to(tmp_path / "nothing")
    (tmp_path / "root" / "folder").symlink_to(tmp_path / "root", target_is_directory=True)
    os.mkfifo(tmp_path / "root" / "pipe.txt")
    root = tmp_path / "root"
    listing = list_files(source(root, "."))
    assert names(listing) == ["a.txt", "in.txt"]
    assert listing.skipped == {
        "link out of the roots": 1, "broken link": 1, "link to a directory": 1, "not a regular file": 1,
    }  # fmt: skip
    for path in ("out.txt", str(outside), "../outside", f"file://{outside}"):
        with pytest.raises(SourceError, match="outside the roots"):
            list_files(source(root, path))
    with pytest.raises(SourceError, match="neither a file nor a directory"):
        list_files(source(root, "pipe.txt"))


def test_the_standard_library_is_a_root_of_its_own(tmp_path: Path) -> None:
    listing = list_files(source(tmp_path, "stdlib:"))
    assert len(listing.files) > 300
    assert {file.format for file in listing.files} == {"python"}
    assert {"ast.py", "json/decoder.py"} <= set(names(listing))
    assert not any(part in file.name.split("/") for file in listing.files for part in ("test", "site-packages"))
    with pytest.raises(SourceError, match="holds Python files"):
        list_files(source(tmp_path, "stdlib:", format="text"))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("missing.txt", "There is nothing at .*missing.txt"),
        ("a.txt/b", "There is nothing at"),
        ("empty", "holds no input files"),
        ("*.nothing", "No file matches"),
        ("nowhere/*.txt", "No file matches"),
        ("http://example.org/a.txt", "scheme .* is not allowed"),
        ("ftp://example.org/a.txt", "scheme .* is not allowed"),
        ("s3://*/a.txt", "names no bucket"),
        ("s3://user:pw@bucket/a.txt", "carries credentials"),
    ],
)
def test_what_is_not_there_or_not_allowed_is_one_sentence(tmp_path: Path, path: str, message: str) -> None:
    write(tmp_path / "a.txt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match=message) as caught:
        list_files(source(tmp_path, path))
    assert caught.value.remedy
    assert "pw" not in str(caught.value)


def test_mixed_and_unknown_formats_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.txt")
    write(tmp_path / "b.jsonl.gz")
    with pytest.raises(SourceError, match=r"mix formats: jsonl \(b.jsonl.gz\) and text \(a.txt\)"):
        list_files(source(tmp_path, "."))
    assert names(list_files(source(tmp_path, ".", format="jsonl"))) == ["b.jsonl.gz"]
    write(tmp_path / "odd" / "c.dat")
    with pytest.raises(SourceError, match=r"c.dat does not tell its format"):
        list_files(source(tmp_path, "odd"))
    assert only(source(tmp_path, "odd/c.dat", format="text")).format == "text"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_one_sentence(tmp_path: Path) -> None:
    write(tmp_path / "a.txt").chmod(0)
    with pytest.raises(SourceError, match="may not be read"):
        list_files(source(tmp_path, "a.txt"))


def test_listing_imports_neither_ray_nor_torch() -> None:
    import subprocess

    code = "import sys, engine.corpus.sources; sys.exit(bool({'ray', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    code = "import sys, engine.corpus.config; sys.exit(bool({'ray', 'torch', 'pyarrow'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_file_that_changes_after_it_was_listed_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write(path, "one")
    (file,) = list_files(source(tmp_path, "a.txt")).files
    check_unchanged(file)
    write(path, "two")
    with pytest.raises(SourceError, match="has changed since this run began"):
        check_unchanged(file)
    path.unlink()
    with pytest.raises(SourceError, match="is no longer there"):
        check_unchanged(file)
