"""The forecast counts what can be counted exactly."""

import pytest
from transformers import Gemma2Config, GPT2Config, LlamaConfig, LlamaForCausalLM

from engine.finetune.forecast import forecast
from engine.finetune.options import LoraOptions, ParallelOptions

CONFIG = LlamaConfig(
    vocab_size=1000, hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4,
    tie_word_embeddings=False,
)  # fmt: skip


def memory(config=CONFIG, *, dtype="float32", lora=None, scorer=False, layers=None, **parallel):
    return forecast(config, dtype, ParallelOptions(**parallel), lora, window=128, scorer=scorer, layers=layers)


def test_parameters_are_those_of_the_model():
    count = sum(each.numel() for each in LlamaForCausalLM(CONFIG).parameters())
    found = memory()
    assert (found.parameters, found.trained) == (count, count)
    assert (found.weights, found.gradients, found.optimiser) == (4 * count, 4 * count, 8 * count)


def test_zero_shares_and_bfloat16_keeps_a_copy():
    whole, shared = memory(workers=4), memory(workers=4, zero=3)
    assert shared.weights == whole.weights // 4
    assert shared.gradients == whole.gradients // 4
    half = memory(dtype="bfloat16")
    assert half.weights == whole.weights // 2
    assert half.optimiser == 12 * half.parameters


def test_an_adapter_trains_what_it_adds():
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(LlamaForCausalLM(CONFIG), LoraConfig(r=4, target_modules="all-linear"))
    assert memory(lora=LoraOptions(rank=4)).trained == model.get_nb_trainable_parameters()[0]


def test_the_last_layers_alone_take_less():
    whole, two, one = (memory(layers=layers) for layers in (None, 2, 1))
    assert two.trained == 2 * one.trained < whole.trained
    assert one.weights == whole.weights
    assert one.activations < two.activations < whole.activations
    assert memory(lora=LoraOptions(rank=4), layers=1).trained == memory(lora=LoraOptions(rank=4)).trained // 3


@pytest.mark.parametrize("config", [CONFIG, GPT2Config(n_layer=2, n_embd=32, n_head=2, vocab_size=100)])
def test_more_tokens_take_more_and_computing_anew_takes_less(config):
    less, more = (memory(config, tokens_per_device=tokens).activations for tokens in (2048, 4096))
    assert less < more < 2 * less, "the logits are those of a chunk, however many tokens there are"
    assert memory(config, recompute=True).activations < memory(config).activations
    assert memory(config, scorer=True).activations < memory(config).activations


def test_a_model_that_caps_its_logits_keeps_them_all():
    capped = Gemma2Config(
        vocab_size=1000, hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4
    )
    assert memory(capped).activations - memory().activations > 1500 * 1000 * 12
