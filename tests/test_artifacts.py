import json

import pytest
from upath import UPath

from engine import artifacts
from engine.errors import ArtifactError


def _manifest(parts=()):
    return artifacts.Manifest(
        schema_name="documents",
        columns={"text": "string"},
        rows=sum(part.rows for part in parts),
        parts=tuple(parts),
        parents=(),
        job="corpus",
        recipe={},
        recipe_fingerprint="r",
        inputs_fingerprint="i",
        code_version="0",
        seed=0,
    )


def _part(staging, name, body=b"x"):
    (staging / f"{name}.1.parquet").write_bytes(body)
    return artifacts.Part(name=name, file=f"{name}.1.parquet", rows=1, bytes=len(body), sha256=body.hex())


def test_publishing_takes_only_what_the_manifest_lists(tmp_path):
    output = UPath(tmp_path / "dataset")
    staging = artifacts.open_staging(output)
    part = _part(staging, "part-000000")
    _part(staging, "orphan")
    with pytest.raises(ArtifactError, match="not published yet"):
        artifacts.read_dataset(staging)
    artifacts.publish(staging, output, _manifest([part]))
    dataset = artifacts.read_dataset(output)
    assert [each.name for each in dataset.parts] == ["part-000000"]
    assert sorted(each.name for each in output.iterdir()) == ["manifest.json", "part-000000.1.parquet"]
    assert not staging.exists()


def test_a_name_is_published_once(tmp_path):
    output = UPath(tmp_path / "dataset")
    artifacts.publish(artifacts.open_staging(output), output, _manifest())
    with pytest.raises(ArtifactError, match="exists already"):
        artifacts.publish(artifacts.open_staging(output), output, _manifest())


def test_object_stores_publish_by_the_manifest():
    output = UPath("memory://bucket/dataset")
    staging = artifacts.open_staging(output)
    part = _part(staging, "part-000000")
    with pytest.raises(ArtifactError, match="not published yet"):
        artifacts.read_dataset(output)
    artifacts.publish(staging, output, _manifest([part]))
    assert artifacts.read_dataset(output).rows == 1
    with pytest.raises(ArtifactError, match="exists already"):
        artifacts.open_staging(output)
    with pytest.raises(ArtifactError, match="published already"):
        artifacts.publish(staging, output, _manifest([part]))


@pytest.mark.parametrize("place", ["disk", "memory"])
def test_a_place_that_holds_other_files_is_refused_before_any_work(tmp_path, place):
    output = UPath(tmp_path / "mine") if place == "disk" else UPath("memory://mine/data")
    output.mkdir(parents=True)
    (output / "precious.parquet").write_bytes(b"x")
    with pytest.raises(ArtifactError, match="exists already"):
        artifacts.open_staging(output)
    assert [each.name for each in output.iterdir()] == ["precious.parquet"]


def test_what_a_kill_before_the_rename_leaves_is_no_dataset_yet(tmp_path):
    output = UPath(tmp_path / "dataset")
    staging = artifacts.open_staging(output)
    (staging / "manifest.json").write_text(_manifest().model_dump_json())
    (staging / ".manifest.json.0.tmp").write_text("half")
    with pytest.raises(ArtifactError, match="not published yet"):
        artifacts.is_dataset(staging)
    artifacts.publish(artifacts.open_staging(output), output, _manifest())
    assert [each.name for each in output.iterdir()] == ["manifest.json"]


def test_a_damaged_manifest_is_one_sentence(tmp_path):
    output = UPath(tmp_path / "dataset")
    artifacts.publish(artifacts.open_staging(output), output, _manifest())
    body = json.loads((output / "manifest.json").read_text())
    for damage in ("{", json.dumps({**body, "rows": "many"})):
        (output / "manifest.json").write_text(damage)
        with pytest.raises(ArtifactError, match="damaged") as caught:
            artifacts.read_dataset(output)
        assert "\n" not in str(caught.value)


def test_fingerprint_is_of_the_contents(tmp_path):
    output = UPath(tmp_path / "a")
    staging = artifacts.open_staging(output)
    one = _manifest([_part(staging, "p", b"x")])
    assert one.fingerprint == one.model_copy(update={"seed": 5, "job": "other"}).fingerprint
    assert one.fingerprint != _manifest([_part(staging, "p", b"y")]).fingerprint
