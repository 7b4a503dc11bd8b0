import hashlib
import os
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from upath import UPath

from engine.artifacts import publish_model
from engine.errors import ArtifactError, SourceError
from engine.models import fingerprint, references, resolve, tokenizer_fingerprint


def _directory(folder):
    """What looks like a model from outside."""
    folder.mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).write_text("{}")
    return folder


def _one_sentence(error):
    assert "\n" not in str(error.value)
    assert len(error.value.problem) < 400
    return str(error.value)


def test_importing_the_room_imports_nothing_heavy():
    code = "import sys, engine.models as m; m.resolve; print(' '.join(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "ray", "vllm", "transformers", "pyarrow", "huggingface_hub"} & set(loaded)


def test_a_directory_is_itself(tmp_path, monkeypatch):
    folder = _directory(tmp_path / "model")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for reference in (str(folder), "model", "./model", "~/model", folder.as_uri()):
        assert resolve(reference) == folder


def test_a_directory_wins_over_a_hub_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("the hub was asked"))
    folder = _directory(tmp_path / "org" / "name")
    assert resolve("org/name") == folder


@pytest.mark.parametrize("reference", ["/nowhere", "./nowhere", "~nobody/x", "two words", "a/b/c", "", "-x y"])
def test_what_names_nothing_is_one_sentence(tmp_path, monkeypatch, reference):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError, match="There is no model at") as error:
        resolve(reference)
    assert "pkg:smollm2-135m" in _one_sentence(error)


def test_a_directory_without_a_model_is_one_sentence(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    with pytest.raises(SourceError, match=r"no config\.json") as error:
        resolve(str(folder))
    _one_sentence(error)
    assert resolve(str(folder), weights=False) == folder
    (folder / "config.json").write_text("{}")
    with pytest.raises(SourceError, match="no safetensors") as error:
        resolve(str(folder))
    _one_sentence(error)
    (folder / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(SourceError, match="are pickles") as error:
        resolve(str(folder))
    assert "save_pretrained" in _one_sentence(error)


@pytest.mark.parametrize(("reference", "revision"), [("org/name", None), ("org/name@v1.0", "v1.0"), ("gpt2", None)])
def test_a_hub_model_is_fetched_without_pickles_or_code(tmp_path, monkeypatch, reference, revision):
    folder = _directory(tmp_path / "snapshot")
    asked = []
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda name, **how: asked.append((name, how)) or str(folder)
    )
    monkeypatch.chdir(tmp_path)
    assert resolve(reference) == folder
    ((name, how),) = asked
    assert (name, how["revision"]) == (reference.partition("@")[0], revision)
    offered = ["model.safetensors", "config.json", "merges.txt", "pytorch_model.bin", "modeling_x.py", "chat.jinja",
               "onnx/model.json", "consolidated.safetensors", "training_args.bin", "spiece.model", "x.gguf",
               "model.safetensors.index.json"]  # fmt: skip
    taken = huggingface_hub.utils.filter_repo_objects(
        offered, allow_patterns=how["allow_patterns"], ignore_patterns=how["ignore_patterns"]
    )
    assert set(taken) == {"model.safetensors", "config.json", "merges.txt", "chat.jinja", "spiece.model",
                          "model.safetensors.index.json"}  # fmt: skip


@pytest.mark.parametrize(
    ("raised", "says"),
    [
        (LocalEntryNotFoundError("x\ny"), "neither on this machine nor can the Hugging Face hub be reached"),
        (ValueError("no such revision\nmore"), r"cannot be had from the Hugging Face hub \(no such revision\)"),
        (OSError(28, "No space left on device"), "No space left"),
        (RuntimeError("connection reset"), "connection reset"),
    ],
)
def test_a_hub_that_fails_is_one_sentence(tmp_path, monkeypatch, raised, says):
    def refuse(*_, **__):
        raise raised

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(SourceError, match=says) as error:
        resolve("org/name")
    assert "pkg:minilm" in _one_sentence(error)


def test_half_a_snapshot_is_one_sentence(tmp_path, monkeypatch):
    """Without a connection the hub's library gives what there is of a snapshot, whole or not."""
    folder = _directory(tmp_path / "snapshot")
    (folder / "model.safetensors").unlink()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(folder))
    with pytest.raises(SourceError, match="no weights in org/name"):
        resolve("org/name")


def test_a_published_model_is_fetched_from_its_store(tmp_path, monkeypatch):
    store = UPath(f"memory://published/{tmp_path.name}")
    monkeypatch.setenv("HEADRACE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(references, "locate", lambda uri: store if uri.startswith("s3://") else UPath(uri))
    with pytest.raises(ArtifactError, match=r"holds no manifest\.json"):
        resolve("s3://bucket/model")
    origin = {"job": "sft", "recipe": {}, "recipe_fingerprint": "r", "inputs_fingerprint": "i", "seed": 1}
    publish_model(_directory(tmp_path / "made"), store, **origin)
    folder = resolve("s3://bucket/model")
    assert folder.is_relative_to(tmp_path / "cache")
    assert fingerprint(folder) == fingerprint(tmp_path / "made")


def test_a_scheme_that_is_not_allowed_is_refused():
    with pytest.raises(SourceError, match="is not allowed"):
        resolve("https://example.org/model")


@pytest.mark.parametrize(
    ("name", "weights_or_settings", "vocabulary"),
    [
        ("model.safetensors", True, False),
        ("config.json", True, False),
        ("chat_template.jinja", True, False),
        ("tokenizer_config.json", True, False),
        ("tokenizer.json", True, True),
        ("README.md", False, False),
        ("manifest.json", False, False),
        ("optimizer.pt", False, False),
    ],
)
def test_fingerprints_change_with_what_they_are_of(tmp_path, name, weights_or_settings, vocabulary):
    folder = _directory(tmp_path / "model")
    before = fingerprint(folder), tokenizer_fingerprint(folder)
    (folder / name).write_text("[]")  # as long as what was there
    os.utime(folder / name, ns=(1, 1))
    assert (fingerprint(folder) != before[0], tokenizer_fingerprint(folder) != before[1]) == (
        weights_or_settings,
        vocabulary,
    )


def test_a_fingerprint_is_of_names_and_contents_not_of_the_place(tmp_path):
    one, two = _directory(tmp_path / "one"), _directory(tmp_path / "two")
    assert fingerprint(one) == fingerprint(two)
    (two / "model.safetensors").rename(two / "other.safetensors")
    assert fingerprint(one) != fingerprint(two)


def test_files_that_have_not_changed_are_read_once(tmp_path, monkeypatch):
    folder = _directory(tmp_path / "model")
    read = []
    digest = hashlib.file_digest
    monkeypatch.setattr(
        hashlib, "file_digest", lambda file, kind: read.append(Path(file.name).name) or digest(file, kind)
    )
    for _ in range(3):
        fingerprint(folder)
        tokenizer_fingerprint(folder)
    assert len(read) == 5
    (folder / "tokenizer.json").write_text("[1]")
    fingerprint(folder)
    assert read[5:] == ["tokenizer.json"]
