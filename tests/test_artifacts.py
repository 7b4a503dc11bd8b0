import errno
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

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


def _hugging_face(folder, weights=b"weights"):
    """A directory as `save_pretrained` leaves it, as far as publishing looks into it."""
    (folder / "1_Pooling").mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "bert"}')
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "1_Pooling" / "config.json").write_text("{}")
    return folder


def _publish_model(staging, output, **fields):
    origin = {"job": "sft", "recipe": {"seed": 1}, "recipe_fingerprint": "r", "inputs_fingerprint": "i", "seed": 1}
    return artifacts.publish_model(staging, output, **(origin | fields))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HEADRACE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


FILES = ["1_Pooling/config.json", "config.json", "model.safetensors", "tokenizer.json"]


@pytest.mark.parametrize("place", ["disk", "memory"])
def test_a_model_is_published_whole_and_read_back(tmp_path, cache, place):
    output = UPath(tmp_path / "runs" / "model") if place == "disk" else UPath(f"memory://models/{tmp_path.name}")
    metrics = {"loss": 0.5, "perplexity": float("inf")}
    made = _publish_model(
        _hugging_face(tmp_path / "staging"), output, metrics=metrics, counts={"steps": 3}, models={"base": "b"},
        parents=[artifacts.Parent(uri="d", fingerprint="f")],
    )  # fmt: skip
    model = artifacts.read_model(output, verify=True)
    assert model.manifest == made.manifest
    assert [file.name for file in model.manifest.files] == FILES
    assert (model.manifest.metrics, model.manifest.counts) == (metrics, {"steps": 3})
    assert artifacts.is_model(output)
    folder = model.local()
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    assert sorted(each.relative_to(folder).as_posix() for each in folder.rglob("*.json")) == sorted(
        [*(name for name in FILES if name.endswith("json")), "manifest.json"]
    )
    if place == "disk":
        assert not (tmp_path / "staging").exists()
        assert folder == tmp_path / "runs" / "model"
    else:
        assert cache in folder.parents
        output.fs.rm(output.path, recursive=True)
        assert model.local() == folder, "the copy is used again"


def test_neither_kind_of_artifact_is_read_as_the_other(tmp_path):
    model, dataset = UPath(tmp_path / "model"), UPath(tmp_path / "dataset")
    _publish_model(_hugging_face(tmp_path / "staging"), model)
    artifacts.publish(artifacts.open_staging(dataset), dataset, _manifest())
    assert (artifacts.is_model(model), artifacts.is_dataset(model)) == (True, False)
    assert (artifacts.is_model(dataset), artifacts.is_dataset(dataset)) == (False, True)
    with pytest.raises(ArtifactError, match="model is a model, not a dataset") as caught:
        artifacts.read_dataset(model)
    assert "\n" not in str(caught.value)
    with pytest.raises(ArtifactError, match="dataset is a dataset, not a model") as caught:
        artifacts.read_model(dataset)
    assert "\n" not in str(caught.value)
    with pytest.raises(ArtifactError, match="holds no manifest"):
        artifacts.read_model(UPath(tmp_path))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "training_args.bin", "optimizer.pt", "deep/er/x.pkl"])
def test_pickles_are_not_published(tmp_path, name):
    staging = _hugging_face(tmp_path / "staging")
    (staging / name).parent.mkdir(parents=True, exist_ok=True)
    (staging / name).write_bytes(b"x")
    with pytest.raises(ArtifactError, match=f"holds {name}, a pickle"):
        _publish_model(staging, UPath(tmp_path / "model"))
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_an_incomplete_model_is_not_published(tmp_path, missing):
    staging = _hugging_face(tmp_path / "staging")
    (staging / missing).unlink()
    with pytest.raises(ArtifactError, match=f"has no {missing.removeprefix('model.')}"):
        _publish_model(staging, UPath(tmp_path / "model"))
    (staging / missing).symlink_to("/etc/hostname")
    with pytest.raises(ArtifactError, match="symbolic link"):
        _publish_model(staging, UPath(tmp_path / "model"))


@pytest.mark.parametrize("place", ["disk", "memory"])
def test_a_model_takes_no_name_that_is_taken(tmp_path, place):
    output = UPath(tmp_path / "model") if place == "disk" else UPath(f"memory://taken/{tmp_path.name}")
    first = _publish_model(_hugging_face(tmp_path / "one"), output)
    second = _hugging_face(tmp_path / "two", b"others")
    if place == "memory":  # as a kill right after the manifest leaves it
        (output / "UNPUBLISHED").write_bytes(b"")
    with pytest.raises(ArtifactError, match="exists already"):
        _publish_model(second, output)
    assert artifacts.read_model(output, verify=True).fingerprint == first.fingerprint
    assert (second / "model.safetensors").exists()


def test_of_two_uploads_under_one_name_the_earlier_stops(tmp_path, monkeypatch):
    output = UPath(f"memory://raced/{tmp_path.name}")
    slow, quick = _hugging_face(tmp_path / "slow"), _hugging_face(tmp_path / "quick", b"newer")
    upload, uploads = type(output.fs).put_file, []

    def put_file(*arguments, **options):
        uploads.append(arguments)
        if len(uploads) == len(FILES):
            _publish_model(quick, output)
        return upload(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(type(output.fs), "put_file", put_file)
        with pytest.raises(ArtifactError, match="by another process"):
            _publish_model(slow, output)
    assert artifacts.is_model(output)


def test_what_was_left_of_a_killed_publication_is_published_by_the_next(tmp_path):
    staging, output = _hugging_face(tmp_path / "staging"), UPath(tmp_path / "model")
    (staging / "manifest.json").write_text("{}")
    (staging / ".manifest.json.0.tmp").write_text("half")
    _publish_model(staging, output)
    assert [file.name for file in artifacts.read_model(output).manifest.files] == FILES
    assert not list(output.glob(".*"))


def test_a_model_on_another_file_system_is_copied_beside_its_name_first(tmp_path, monkeypatch):
    staging, output = _hugging_face(tmp_path / "far" / "staging"), UPath(tmp_path / "near" / "model")
    rename = Path.rename

    def across(self, target):
        if self == staging:
            raise OSError(errno.EXDEV, "another file system")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", across)
    _publish_model(staging, output)
    assert artifacts.read_model(output, verify=True).manifest.job == "sft"
    assert [each.name for each in output.parent.iterdir()] == ["model"]
    assert not staging.exists()


@pytest.mark.parametrize("place", ["disk", "memory"])
def test_a_damaged_model_is_one_sentence(tmp_path, cache, place):
    output = UPath(tmp_path / "model") if place == "disk" else UPath(f"memory://damaged/{tmp_path.name}")
    model = _publish_model(_hugging_face(tmp_path / "staging"), output)
    weights = output / "model.safetensors"
    weights.write_bytes(b"WEIGHTS")
    assert artifacts.read_model(output).fingerprint == model.fingerprint, "contents are compared on request"
    with pytest.raises(ArtifactError, match="is not what was published"):
        artifacts.read_model(output, verify=True)
    if place == "memory":
        with pytest.raises(ArtifactError, match="is not what was published"):
            model.local()
        assert not [each for each in (cache / "models").iterdir() if each.is_dir()]
    weights.write_bytes(b"cut")
    with pytest.raises(ArtifactError, match="has 3 bytes, not 7"):
        artifacts.read_model(output)
    weights.unlink()
    with pytest.raises(ArtifactError, match=r"lacks model\.safetensors"):
        artifacts.read_model(output)


@pytest.mark.parametrize("name", ["../config.json", "/etc/passwd", "a/../../b", "a\\b", "pytorch_model.bin", ""])
def test_a_model_manifest_that_names_what_it_must_not_is_damaged(tmp_path, name):
    output = UPath(tmp_path / "model")
    _publish_model(_hugging_face(tmp_path / "staging"), output)
    body = json.loads((output / "manifest.json").read_text())
    body["files"][0]["name"] = name
    (output / "manifest.json").write_text(json.dumps(body))
    with pytest.raises(ArtifactError, match=r"damaged at files\.0\.name"):
        artifacts.read_model(output)


def test_a_models_fingerprint_is_of_its_files(tmp_path):
    models = [
        _publish_model(_hugging_face(tmp_path / f"staging{n}", body), UPath(tmp_path / f"model{n}"), seed=n)
        for n, body in enumerate([b"a", b"a", b"b"])
    ]
    assert models[0].fingerprint == models[1].fingerprint != models[2].fingerprint


def test_a_cached_directory_is_built_once_and_whole(tmp_path):
    folder, built = tmp_path / "models" / "one", []

    def build(place):
        built.append(place)
        (place / "half").write_text("")
        if len(built) == 1:
            raise KeyError("interrupted")
        (place / "whole").write_text("")

    with pytest.raises(KeyError):
        artifacts.build_once(folder, build)
    assert [each.name for each in folder.parent.iterdir()] == [".one.lock"]
    for abandoned in (".one.00000000", ".one.11111111"):
        (folder.parent / abandoned).mkdir()
    os.utime(folder.parent / ".one.00000000", (0, 0))
    for _ in range(2):
        assert artifacts.build_once(folder, build) == folder
    assert len(built) == 2
    assert sorted(each.name for each in folder.parent.iterdir()) == [".one.11111111", ".one.lock", "one"]
    assert sorted(each.name for each in folder.iterdir()) == ["half", "whole"]


def test_threads_that_want_the_same_directory_wait_for_the_first(tmp_path):
    built = []

    def build(place):
        built.append(place)
        time.sleep(0.2)

    with ThreadPoolExecutor(4) as pool:
        places = list(pool.map(lambda _: artifacts.build_once(tmp_path / "one", build), range(4)))
    assert places == [tmp_path / "one"] * 4
    assert len(built) == 1
