import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from engine.errors import SourceError
from engine.models import load_causal_lm, load_encoder, load_tokenizer

SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
IDS = torch.tensor([[1, 2, 3]])


@pytest.fixture(scope="module")
def tokenizer():
    words = Tokenizer(models.WordLevel({"<unk>": 0, "the": 1, "mill": 2, "stream": 3}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")


@pytest.fixture
def llama(tmp_path, tokenizer):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SMALL, num_key_value_heads=2, vocab_size=10, tie_word_embeddings=False)
    model = transformers.LlamaForCausalLM(config).eval()
    model.save_pretrained(tmp_path / "llama")
    tokenizer.save_pretrained(tmp_path / "llama")
    return model, str(tmp_path / "llama")


def _refused(load, reference, says):
    with pytest.raises(SourceError, match=says) as error:
        load(reference)
    assert "\n" not in str(error.value)
    assert error.value.remedy


def test_a_causal_model_comes_back_as_it_was_saved(llama, capfd):
    saved, folder = llama
    model = load_causal_lm(folder)
    assert not model.training
    with torch.inference_mode():
        assert torch.equal(model(IDS).logits, saved(IDS).logits)
    assert load_causal_lm(folder, "bfloat16").dtype == torch.bfloat16
    assert "%" not in capfd.readouterr().err, "no progress bars"
    with pytest.raises(ValueError, match="dtype"):
        load_causal_lm(folder, "int8")


def test_progress_bars_are_left_as_they_were(llama):
    from transformers.utils import logging

    for enable in (logging.disable_progress_bar, logging.enable_progress_bar):
        enable()
        before = logging.is_progress_bar_enabled()
        load_causal_lm(llama[1])
        assert logging.is_progress_bar_enabled() == before


def test_a_tokenizer_needs_no_weights(tmp_path, tokenizer):
    tokenizer.save_pretrained(tmp_path / "words")
    assert load_tokenizer(str(tmp_path / "words"))("the mill")["input_ids"] == [1, 2]
    (tmp_path / "words" / "tokenizer.json").write_text('{"version":')
    _refused(load_tokenizer, str(tmp_path / "words"), "The tokenizer of .* cannot be read")


def test_a_causal_checkpoint_serves_as_encoder(llama, capfd):
    saved, folder = llama
    capfd.readouterr()
    encoder = load_encoder(folder)
    assert not capfd.readouterr().err, "the head that is left out is no news"
    with torch.inference_mode():
        assert torch.equal(encoder(IDS).last_hidden_state, saved.model(IDS).last_hidden_state)


@pytest.mark.parametrize("damage", ["cut", "header", "empty", "config"])
def test_a_damaged_model_is_one_sentence(llama, tmp_path, damage):
    _, folder = llama
    weights = tmp_path / "llama" / "model.safetensors"
    body = weights.read_bytes()
    if damage == "config":
        (tmp_path / "llama" / "config.json").write_text('{"model_type": "no such model"}')
    else:
        weights.write_bytes({"cut": body[:-100], "header": b"\xff" * 8 + body[8:], "empty": b""}[damage])
    for load in (load_causal_lm, load_encoder):
        _refused(load, folder, "The model of .* cannot be read")


def test_weights_that_are_missing_are_not_drawn_at_random(llama, tmp_path):
    saved, _ = llama
    saved.model.save_pretrained(tmp_path / "headless")
    _refused(load_causal_lm, str(tmp_path / "headless"), r"lacks 1 of its weights, lm_head\.weight among them")
    load_encoder(str(tmp_path / "headless"))


def test_pickles_are_never_loaded(llama, tmp_path):
    saved, folder = llama
    (tmp_path / "llama" / "model.safetensors").unlink()
    torch.save(saved.state_dict(), tmp_path / "llama" / "pytorch_model.bin")
    for load in (load_causal_lm, load_encoder):
        _refused(load, folder, "are pickles")


def test_code_that_comes_with_a_model_is_never_run(llama, tmp_path):
    _, folder = llama
    (tmp_path / "llama" / "config.json").write_text(
        '{"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}}'
    )
    (tmp_path / "llama" / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    _refused(load_causal_lm, folder, "cannot be read")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", ["whole", "encoder only"])
def test_of_t5_the_encoder_is_loaded(tmp_path, kind):
    torch.manual_seed(0)
    config = transformers.T5Config(vocab_size=10, d_model=16, d_ff=32, d_kv=8, num_layers=2, num_heads=2)
    made = transformers.T5ForConditionalGeneration if kind == "whole" else transformers.T5EncoderModel
    saved = made(config).eval()
    saved.save_pretrained(tmp_path / "t5")
    encoder = load_encoder(str(tmp_path / "t5"))
    with torch.inference_mode():
        assert torch.equal(encoder(IDS).last_hidden_state, saved.encoder(IDS).last_hidden_state)
    assert not any("decoder" in name for name, _ in encoder.named_parameters())
    assert encoder.config.hidden_size == 16


def test_of_other_pairs_of_encoder_and_decoder_the_encoder_is_loaded(tmp_path):
    torch.manual_seed(0)
    half = {"layers": 1, "ffn_dim": 32, "attention_heads": 2}
    halves = {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in half.items()}
    saved = transformers.BartModel(transformers.BartConfig(vocab_size=10, d_model=16, **halves)).eval()
    saved.save_pretrained(tmp_path / "bart")
    encoder = load_encoder(str(tmp_path / "bart"))
    with torch.inference_mode():
        assert torch.equal(encoder(IDS).last_hidden_state, saved.encoder(IDS).last_hidden_state)
