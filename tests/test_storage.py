import os
import threading

import pytest
from upath import UPath

from engine.errors import SourceError, StorageError, redact
from engine.storage import create, locate, replace, writable


@pytest.mark.parametrize(
    "uri", ["http://example.org/x", "https://example.org/x", "ftp://h/x", "memory://x", "ssh://h/x"]
)
def test_only_allowed_schemes(uri):
    with pytest.raises(SourceError, match="not allowed"):
        locate(uri)


def test_credentials_in_a_uri_are_refused_and_not_repeated():
    with pytest.raises(SourceError) as caught:
        locate("s3://key:hunter2@bucket/x")
    assert "hunter2" not in str(caught.value)
    assert redact("https://u:p@h/x?sig=1") == "https://***@h/x"


def test_local_paths_stay_inside_their_roots(tmp_path):
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir()
    outside.mkdir()
    (outside / "secret").write_text("x")
    (inside / "link").symlink_to(outside / "secret")
    assert locate(str(inside / "a"), roots=[str(inside)]) == UPath(inside / "a")
    assert locate(f"file://{inside}/a", roots=[str(inside)]) == UPath(inside / "a")
    for path in (outside / "secret", inside / "link", inside / ".." / "out" / "secret"):
        with pytest.raises(SourceError, match="outside the roots"):
            locate(str(path), roots=[str(inside)])


def test_create_makes_a_file_exactly_once(tmp_path):
    path = UPath(tmp_path / "once")
    made = []
    threads = [threading.Thread(target=lambda n=n: made.append(create(path, b"%d" % n))) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(made) == [False] * 15 + [True]
    assert os.listdir(tmp_path) == ["once"]


def test_replace_leaves_no_temporary(tmp_path):
    path = UPath(tmp_path / "file")
    replace(path, b"one")
    replace(path, b"two")
    assert path.read_bytes() == b"two"
    assert os.listdir(tmp_path) == ["file"]


def test_a_place_that_cannot_be_written_is_one_sentence():
    with pytest.raises(StorageError, match="Choose another"):
        replace(UPath("/dev/null/x"), b"")


def test_a_store_without_conditional_puts_is_for_reading():
    with pytest.raises(SourceError, match="can be read but not written"):
        writable("hf://datasets/x/y")
