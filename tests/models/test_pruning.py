from itertools import pairwise

import gguf
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from upath import UPath

from engine.artifacts import publish_model, read_model
from engine.errors import ArtifactError, RecipeError, SourceError, StorageError
from engine.models import (
    convert_model,
    describe_model,
    fingerprint,
    kept_layers,
    load_causal_lm,
    load_tokenizer,
    prune_layers,
    prune_model,
    publish_healed,
    tokenizer_fingerprint,
)

SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 6, "num_attention_heads": 2, "vocab_size": 40,
         "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}  # fmt: skip
PATTERN = ["sliding_attention", "sliding_attention", "full_attention"] * 2
CONFIGS = {
    "llama": lambda: transformers.LlamaConfig(**SMALL),
    "qwen2": lambda: transformers.Qwen2Config(**SMALL, use_sliding_window=True, sliding_window=4, max_window_layers=3),
    "gemma3": lambda: transformers.Gemma3TextConfig(**SMALL, head_dim=8, sliding_window=4, layer_types=PATTERN),
    "gpt2": lambda: transformers.GPT2Config(n_embd=16, n_layer=6, n_head=2, vocab_size=40, n_positions=64,
                                            bos_token_id=1, eos_token_id=2),
}  # fmt: skip
IDS = torch.arange(3, 15)[None]


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Two threads wait for each other longer than so small a model takes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _made(config):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # norms and biases too, so that no layer is like another
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def _saved(folder, config):
    model = _made(config)
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text('{"words": []}')
    (folder / "LICENSE").write_text("free")
    return model, str(folder)


def _in_bf16(model):
    return {name: tensor.to(torch.bfloat16).float() for name, tensor in model.state_dict().items()}


def _logits(model, ids=IDS, **how):
    with torch.inference_mode():
        return model(ids, **how).logits


@given(st.integers(2, 400).flatmap(lambda total: st.tuples(st.just(total), st.integers(2, total))))
def test_kept_layers_are_the_first_the_last_and_evenly_spaced_between(numbers):
    total, keep = numbers
    kept = kept_layers(total, keep)
    assert len(kept) == keep == len(set(kept))
    assert kept == sorted(kept)
    assert (kept[0], kept[-1]) == (0, total - 1)
    gaps = {after - before for before, after in pairwise(kept)}
    assert max(gaps) - min(gaps) <= 1
    assert all(abs(at * (total - 1) / (keep - 1) - layer) <= 0.5 for at, layer in enumerate(kept))
    # Read from the other end they are the same but for halves, which are rounded up.
    mirrored = [total - 1 - layer for layer in reversed(kept)]
    assert all(0 <= layer - other <= 1 for layer, other in zip(kept, mirrored, strict=True))


def test_the_rule_by_example():
    assert kept_layers(30, 8) == [0, 4, 8, 12, 17, 21, 25, 29]
    assert kept_layers(6, 3) == [0, 3, 5]
    assert kept_layers(5, 5) == [0, 1, 2, 3, 4]


@given(st.integers(0, 50), st.integers(-3, 60))
def test_a_number_of_layers_that_cannot_be_is_refused(total, keep):
    if 2 <= keep <= total:
        return
    with pytest.raises(RecipeError, match=f"Of {total} layers {keep} cannot be kept"):
        kept_layers(total, keep)


@pytest.mark.parametrize("family", CONFIGS)
def test_with_all_layers_kept_nothing_changes(family):
    model = _made(CONFIGS[family]())
    before = _logits(model)
    assert prune_layers(model, 6) == list(range(6))
    assert torch.equal(_logits(model), before)


@pytest.mark.parametrize("family", CONFIGS)
def test_a_pruned_model_is_the_kept_layers_one_after_another(family, tmp_path):
    """The same as the whole model with its other layers made to pass on what they get; before and after saving."""
    whole, folder = _saved(tmp_path / "whole", CONFIGS[family]())
    prune_model(folder, str(tmp_path / "pruned"), 3)
    again = load_causal_lm(str(tmp_path / "pruned"))
    decoder = whole.get_decoder()
    layers = decoder.h if family == "gpt2" else decoder.layers
    for number in (1, 2, 4):
        layers[number].forward = lambda hidden, *rest, **how: hidden
    assert torch.allclose(_logits(again, use_cache=False), _logits(whole, use_cache=False), atol=1e-6)


@pytest.mark.parametrize("family", CONFIGS)
def test_a_pruned_model_writes_with_its_cache_what_it_writes_without(family, tmp_path):
    _, folder = _saved(tmp_path / "whole", CONFIGS[family]())
    prune_model(folder, str(tmp_path / "pruned"), 4)
    model = load_causal_lm(str(tmp_path / "pruned"))
    asked = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS), "max_new_tokens": 10, "do_sample": False}
    asked |= {"min_new_tokens": 10, "pad_token_id": 0}
    assert torch.equal(model.generate(**asked, use_cache=True), model.generate(**asked, use_cache=False))


def test_lists_with_an_entry_per_layer_are_cut_alike(tmp_path):
    _, folder = _saved(tmp_path / "whole", CONFIGS["gemma3"]())
    model = prune_model(folder, str(tmp_path / "pruned"), 3)
    config = load_causal_lm(str(tmp_path / "pruned")).config
    assert config.layer_types == [PATTERN[0], PATTERN[3], PATTERN[5]]
    assert config.num_hidden_layers == 3
    assert model.manifest.recipe["made"] == f"pruned from {folder} (3 of 6 layers)"
    assert model.manifest.recipe["kept"] == [0, 3, 5]
    assert model.manifest.counts == {"layers_kept": 3, "layers_of": 6}
    assert model.manifest.parents[0].fingerprint == fingerprint(tmp_path / "whole")
    assert tokenizer_fingerprint(tmp_path / "pruned") == tokenizer_fingerprint(tmp_path / "whole")
    assert (tmp_path / "pruned" / "LICENSE").read_text() == "free"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["pruned", "whole"], "nothing half-made is left"


def test_the_stored_type_stays(tmp_path):
    _made(CONFIGS["llama"]()).to(torch.bfloat16).save_pretrained(tmp_path / "whole")
    prune_model(str(tmp_path / "whole"), str(tmp_path / "pruned"), 2)
    assert describe_model(tmp_path / "pruned").dtype == "BF16"


@pytest.mark.parametrize("family", ["a scale by number", "experts in every second layer"])
def test_a_layer_that_is_another_one_in_another_place_is_refused(tmp_path, family):
    """No weight and no list in the configuration holds it: attention scaled by a layer's number, kinds by counting."""
    config = CONFIGS["gpt2"]()
    config.scale_attn_by_inverse_layer_idx = True
    if family != "a scale by number":
        experts = {"num_experts": 4, "moe_intermediate_size": 8, "shared_expert_intermediate_size": 8}
        config = transformers.Qwen2MoeConfig(**SMALL, **experts, decoder_sparse_step=2)
    _, folder = _saved(tmp_path / "whole", config)
    with pytest.raises(SourceError, match=f"The layers of {folder} cannot change places"):
        prune_model(folder, str(tmp_path / "pruned"), 3)
    assert not (tmp_path / "pruned").exists()


@pytest.mark.parametrize("place", ["local", "store"])
def test_what_is_made_goes_to_a_store_too(tmp_path, monkeypatch, place):
    out = UPath(tmp_path / "out") if place == "local" else UPath(f"memory://derived-{tmp_path.name}/out")
    monkeypatch.setattr("engine.models.derived.writable", lambda _: out)
    monkeypatch.setenv("HEADRACE_CACHE", str(tmp_path / "cache"))
    _, folder = _saved(tmp_path / "whole", CONFIGS["llama"]())
    model = prune_model(folder, "out", 3)
    assert describe_model(model.local()).layers == 3
    assert prune_model(folder, "out", 3, reuse=True).fingerprint == model.fingerprint
    with pytest.raises(ArtifactError, match="exists already"):
        convert_model(folder, "out")


def test_what_cannot_be_pruned_is_one_sentence(tmp_path):
    torch.manual_seed(0)
    tiny = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    transformers.BertModel(transformers.BertConfig(vocab_size=9, **tiny)).save_pretrained(tmp_path / "bert")
    transformers.T5EncoderModel(
        transformers.T5Config(vocab_size=9, d_model=16, d_ff=32, d_kv=8, num_layers=2, num_heads=2)
    ).save_pretrained(tmp_path / "t5")
    for kind in ("bert", "t5"):
        with pytest.raises(SourceError, match=f"is no decoder: its kind is '{kind}'"):
            prune_model(str(tmp_path / kind), str(tmp_path / "out"), 2)
    _, folder = _saved(tmp_path / "whole", CONFIGS["llama"]())
    for number in (7, 1, 0, -2):
        with pytest.raises(RecipeError, match=f"Of 6 layers {number} cannot be kept"):
            prune_model(folder, str(tmp_path / "out"), number)
    (tmp_path / "taken").mkdir()
    for make in (lambda: prune_model(folder, str(tmp_path / "taken"), 3),
                 lambda: convert_model(folder, str(tmp_path / "taken"))):  # fmt: skip
        with pytest.raises(ArtifactError, match="exists already"):
            make()
    (tmp_path / "whole" / "config.json").write_text('{"model_type": "own"}')
    with pytest.raises(SourceError, match="cannot be read"):
        prune_model(folder, str(tmp_path / "out"), 2)
    assert not (tmp_path / "out").exists()


def test_an_equal_call_may_be_taken_as_it_is(tmp_path):
    _, folder = _saved(tmp_path / "whole", CONFIGS["llama"]())
    out = str(tmp_path / "out")
    first = prune_model(folder, out, 3, reuse=True)
    assert prune_model(folder, out, 3, reuse=True).fingerprint == first.fingerprint
    with pytest.raises(ArtifactError, match="exists already"):
        prune_model(folder, out, 4, reuse=True)


def test_a_healed_model_is_named_as_pruned_and_healed(tmp_path):
    _, folder = _saved(tmp_path / "whole", CONFIGS["llama"]())
    pruned = prune_model(folder, str(tmp_path / "pruned"), 3)
    load_causal_lm(str(tmp_path / "pruned")).save_pretrained(tmp_path / "trained")
    origin = {"job": "sft", "recipe": {}, "recipe_fingerprint": "r", "inputs_fingerprint": "i", "seed": 0}
    publish_model(tmp_path / "trained", UPath(tmp_path / "run"), **origin, counts={"steps": 5}, metrics={"loss": 1.0})
    model = publish_healed(pruned, UPath(tmp_path / "run"), {"name": "x"}, str(tmp_path / "healed"))
    assert model.manifest.recipe["made"] == f"pruned from {folder} (3 of 6 layers), then healed"
    assert model.manifest.recipe["heal"] == {"name": "x"}
    assert model.manifest.counts == {"layers_kept": 3, "layers_of": 6, "steps": 5}
    assert model.manifest.metrics == {"loss": 1.0}
    assert len(model.manifest.parents) == 2
    assert torch.equal(_logits(load_causal_lm(str(tmp_path / "healed"))), _logits(load_causal_lm(str(pruned.path))))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", None])
def test_a_converted_model_has_the_weights_in_the_type_asked_for(tmp_path, dtype):
    whole, folder = _saved(tmp_path / "whole", CONFIGS["llama"]())
    model = convert_model(folder, str(tmp_path / "out"), dtype)
    read_model(model.path, verify=True)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    wanted = getattr(torch, dtype or "float32")
    assert again.dtype == wanted
    assert all(torch.equal(tensor, whole.state_dict()[name].to(wanted)) for name, tensor in again.state_dict().items())
    assert model.manifest.recipe["made"] == f"converted from {folder}"
    assert tokenizer_fingerprint(tmp_path / "out") == tokenizer_fingerprint(tmp_path / "whole")


def test_weights_in_several_files_and_whole_numbers_come_through(tmp_path):
    whole, folder = _saved(tmp_path / "whole", CONFIGS["llama"]())
    (tmp_path / "whole" / "model.safetensors").unlink()
    whole.save_pretrained(tmp_path / "whole", max_shard_size="8KB")
    (first, *rest) = sorted((tmp_path / "whole").glob("*.safetensors"))
    assert rest
    convert_model(folder, str(tmp_path / "out"), "bfloat16")
    stored = load_causal_lm(str(tmp_path / "out"), "bfloat16").state_dict()
    assert all(torch.equal(tensor, stored[name].float()) for name, tensor in _in_bf16(whole).items())
    save_file({"counted": torch.arange(3)}, first)
    convert_model(folder, str(tmp_path / "counted"), "bfloat16")
    assert load_file(tmp_path / "counted" / first.name)["counted"].dtype == torch.int64
    first.unlink()
    with pytest.raises(SourceError, match="lacks model-00001-of"):
        convert_model(folder, str(tmp_path / "none"))


def test_numbers_that_a_type_cannot_hold_are_refused(tmp_path):
    _, folder = _saved(tmp_path / "whole", CONFIGS["llama"]())
    save_file({"a": torch.tensor([1e6])}, tmp_path / "whole" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SourceError, match="too large for float16"):
        convert_model(folder, str(tmp_path / "out"), "float16")
    (tmp_path / "whole" / "config.json").write_text('{"quantization_config": {"quant_method": "fp8"}}')
    with pytest.raises(SourceError, match="quantised, and packed"):
        convert_model(folder, str(tmp_path / "out"), "float16")


@pytest.mark.parametrize("body", [b"", b"GGUF", b"not a model at all" * 100], ids=["empty", "cut", "other"])
def test_a_damaged_gguf_file_is_one_sentence(tmp_path, body):
    (tmp_path / "x.gguf").write_bytes(body)
    with pytest.raises(SourceError, match=r"x\.gguf cannot be converted") as error:
        convert_model(str(tmp_path / "x.gguf"), str(tmp_path / "out"))
    assert "\n" not in str(error.value)
    with pytest.raises(SourceError, match="headrace models convert"):
        prune_model(str(tmp_path / "x.gguf"), str(tmp_path / "out"), 2)
    with pytest.raises(SourceError, match="There is no file"):
        convert_model(str(tmp_path / "y.gguf"), str(tmp_path / "out"))
    assert sorted(each.name for each in tmp_path.iterdir()) == ["x.gguf"]


def _write_gguf(path, whole, leave_out=""):
    file = gguf.GGUFWriter(path, "llama")
    file.add_block_count(2)
    file.add_context_length(64)
    file.add_embedding_length(16)
    file.add_feed_forward_length(32)
    file.add_head_count(2)
    file.add_head_count_kv(2)
    file.add_layer_norm_rms_eps(1e-6)
    file.add_vocab_size(40)
    file.add_tokenizer_model("gpt2")
    file.add_token_list(["<pad>", "<s>", "</s>", *map(chr, range(97, 97 + 26)), *map(str, range(10)), "ab"])
    file.add_token_types([3, 3, 3] + [1] * 37)
    file.add_token_merges(["a b"])
    file.add_bos_token_id(1)
    file.add_eos_token_id(2)
    file.add_add_bos_token(True)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    for name, tensor in whole.state_dict().items():
        if name.endswith(("q_proj.weight", "k_proj.weight")):  # GGUF has rotary halves interleaved
            tensor = tensor.reshape(2, 2, 4, 16).swapaxes(1, 2).reshape(16, 16)
        if name != leave_out:
            file.add_tensor(names.get_name(name, (".weight",)), tensor.numpy())
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()


def test_a_gguf_file_becomes_an_ordinary_directory_that_begins_texts_as_it_says(tmp_path):
    whole = _made(transformers.LlamaConfig(**{**SMALL, "num_hidden_layers": 2}))
    _write_gguf(tmp_path / "x.gguf", whole)
    model = convert_model(str(tmp_path / "x.gguf"), str(tmp_path / "out"), "float32")
    assert torch.allclose(_logits(load_causal_lm(str(tmp_path / "out"))), _logits(whole), atol=1e-5)
    assert load_tokenizer(str(tmp_path / "out"))("abc")["input_ids"] == [1, 39, 5]
    assert {file.name for file in model.manifest.files} >= {"config.json", "model.safetensors", "tokenizer.json"}


def test_what_a_gguf_file_lacks_is_not_drawn_at_random(tmp_path):
    whole = _made(transformers.LlamaConfig(**{**SMALL, "num_hidden_layers": 2}))
    _write_gguf(tmp_path / "x.gguf", whole, leave_out="model.layers.1.mlp.up_proj.weight")
    with pytest.raises(SourceError, match=r"x\.gguf lacks model\.layers\.1\.mlp\.up_proj\.weight"):
        convert_model(str(tmp_path / "x.gguf"), str(tmp_path / "out"))


def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch):
    _, folder = _saved(tmp_path / "whole", CONFIGS["llama"]())

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("shutil.copyfile", full)
        with pytest.raises(StorageError, match=r"out cannot be written \(No space left on device\)"):
            convert_model(folder, str(tmp_path / "out"))
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10})())
        for make in (convert_model, lambda *places: prune_model(*places, 3)):
            with pytest.raises(StorageError, match="0 MB are free there"):
                make(folder, str(tmp_path / "out"))
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        convert_model(folder, str(tmp_path / "file" / "out"))
