"""Runs on an object store: everything that is exactly once on a disk is so there, by conditional puts."""

import json
import logging
import threading
import uuid

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from fsspec import get_filesystem_class
from moto.server import ThreadedMotoServer
from upath import UPath

from engine import artifacts, doctor
from engine.cluster.access import use_token
from engine.config import build_recipe
from engine.corpus import transform
from engine.corpus.ledger import Ledger
from engine.errors import ArtifactError, ResumeRefused, StorageError
from engine.observe import read_metrics
from engine.runs import Invocation
from engine.storage import create, locate, names, replace
from jobs import corpus

BUCKET = "headrace-test"


@pytest.fixture(scope="module")
def store():
    """The environment under which s3:// is a store of this process."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    environment = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        # One that an earlier test made without credentials would be found again.
        get_filesystem_class("s3").clear_instance_cache()
        UPath(f"s3://{BUCKET}").fs.mkdir(BUCKET)
        yield environment
    server.stop()


@pytest.fixture(scope="module")
def cluster(head, store):
    """The shared head, its workers with the store's environment."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN"):
            patch.delenv(name, raising=False)
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN_PATH", str(head.token))
        assert use_token()
        ray.init(head.address, runtime_env={"env_vars": store}, log_to_driver=False, logging_level=logging.WARNING)
        yield head
        ray.shutdown()


@pytest.fixture
def place(store):
    return locate(f"s3://{BUCKET}/{uuid.uuid4().hex[:8]}")


def _corpus(place, name="x", *, call=(), **keys):
    source = {"paths": [f"{place}/in/*.jsonl"], "shard_mb": 0.0015}
    recipe = {"name": name, "runs": f"{place}/runs", "source": source, "filters": {"exact_duplicates": True}, **keys}
    return corpus.run(build_recipe(corpus.RECIPE, recipe), Invocation("headrace x", **dict(call)))


def _fill(place):
    for n in range(3):
        rows = [{"text": f"file {n} row {row} is rather long"} for row in range(25)] + [{"text": "the same in all"}]
        (place / "in" / f"{n}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "no JSON\n")


def test_an_object_is_created_once_and_replaced_whole(place):
    path = place / "once"
    assert create(path, b"first")
    assert not create(path, b"second")
    assert path.read_bytes() == b"first"
    replace(path, b"third")
    assert path.read_bytes() == b"third"
    made = []
    threads = [threading.Thread(target=lambda n=n: made.append(create(place / "race", b"%d" % n))) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(made) == [False] * 7 + [True]


def test_listings_are_never_stale(place):
    assert names(place / "folder") == []
    create(place / "folder" / "a", b"")
    assert names(place / "folder") == ["a"]
    assert not (place / "folder" / "b").exists()
    other = UPath(str(place), skip_instance_cache=True)
    assert other.fs is not place.fs
    create(other / "folder" / "b", b"")
    assert sorted(names(place / "folder")) == ["a", "b"]
    assert (place / "folder" / "b").exists()


def test_what_the_store_refuses_is_one_sentence(store, monkeypatch):
    nowhere = UPath("s3://no-such-bucket/runs")
    for write in (lambda: create(nowhere / "x", b""), lambda: replace(nowhere / "x", b"")):
        with pytest.raises(StorageError, match="s3://no-such-bucket/runs/x") as caught:
            write()
        assert "\n" not in str(caught.value)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    lost = UPath("s3://headrace-test/runs", skip_instance_cache=True)
    with pytest.raises(StorageError, match="credentials"):
        Ledger(lost)


def test_doctor_tells_a_store_that_overwrites(place, monkeypatch):
    (check,) = doctor._storage(str(place))
    assert check.ok
    monkeypatch.setattr(doctor, "create", lambda path, data: replace(path, data) is None)
    (check,) = doctor._storage(str(place))
    assert not check.ok
    assert "conditional puts" in check.remedy
    assert names(place) == []


def test_a_corpus_goes_from_bucket_to_bucket(cluster, place, tmp_path):
    _fill(place)
    outcome = _corpus(place, keep_dropped=True)
    run = place / "runs" / "corpus" / "x"
    assert str(outcome.output) == f"{run}/dataset"
    dataset = artifacts.read_dataset(run / "dataset")
    assert dataset.rows == 76
    assert dataset.manifest.counts == {"read": 81, "quarantined": 3, "dropped: duplicate": 2}
    assert len(dataset.parts) == 3
    listed = {part.file for part in dataset.parts} | {"manifest.json"}
    assert set(names(run / "dataset")) == listed
    assert [name.partition(".")[0] for name in sorted(names(run / "quarantine"))] == [
        "part-000000", "part-000001", "part-000002",
    ]  # fmt: skip
    assert len(names(run / "dropped")) == 2
    assert [line["step"] for line in read_metrics(run)] == [1, 2, 3]
    assert "recipe.yaml" in names(run)
    assert outcome.report.read_text().startswith("<!doctype html>")
    # The same call again finds it; another recipe of that name is refused, and cannot be set aside here.
    assert _corpus(place, keep_dropped=True).reused
    with pytest.raises(ResumeRefused, match="another recipe"):
        _corpus(place)
    with pytest.raises(StorageError, match="object stores do not rename"):
        _corpus(place, call={"fresh": True})
    # The parts are those of a run on a disk, byte for byte, and a job on the dataset reads what it lists.
    here = tmp_path / "in"
    here.mkdir()
    for path in (place / "in").iterdir():
        (here / path.name).write_bytes(path.read_bytes())
    recipe = {"name": "x", "runs": str(tmp_path / "runs"), "filters": {"exact_duplicates": True}}
    recipe["source"] = {"paths": [str(here)], "roots": [str(here)], "shard_mb": 0.0015}
    local = corpus.run(build_recipe(corpus.RECIPE, recipe), Invocation("x"))
    assert artifacts.read_dataset(local.output).fingerprint == dataset.fingerprint
    (run / "dataset" / "part-000000.orphan.parquet").write_bytes(b"harmless")
    second = _corpus(place, "second", source={"paths": [str(run / "dataset")]})
    assert artifacts.read_dataset(second.output).rows == 76


@pytest.mark.parametrize("moment", ["before the manifest", "after the manifest"])
def test_a_kill_while_publishing_on_a_store(cluster, place, monkeypatch, moment):
    _fill(place)

    class Stop(BaseException):
        """Stands in for a kill."""

    def stop(*arguments, **keys):
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(transform, "make_manifest" if moment == "before the manifest" else "codec_ceiling", stop)
        with pytest.raises(Stop):
            _corpus(place)
    output = place / "runs" / "corpus" / "x" / "dataset"
    if moment == "before the manifest":
        with pytest.raises(ArtifactError, match="not published yet"):
            artifacts.read_dataset(output)
        (output / "part-000000.orphan.parquet").write_bytes(b"from a worker that was killed")
    monkeypatch.setattr(transform, "stream", stop)
    outcome = _corpus(place)
    assert outcome.reused == (moment == "after the manifest")
    dataset = artifacts.read_dataset(output)
    assert set(names(output)) == {part.file for part in dataset.parts} | {"manifest.json"}
    table = pa.concat_tables([pq.read_table((output / part.file).open("rb")) for part in dataset.parts])
    assert len(table) == dataset.rows == 76


def test_other_files_under_the_output_are_never_touched(cluster, place):
    _fill(place)
    (place / "mine" / "precious.parquet").write_bytes(b"x")
    with pytest.raises(ArtifactError, match="exists already"):
        _corpus(place, output=f"{place}/mine")
    assert names(place / "mine") == ["precious.parquet"]
