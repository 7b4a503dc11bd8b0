"""Packed rows: what shares a row is computed as if it stood alone, and targets lie where loss does."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from engine.finetune.attention import is_packed, keeps_apart, use_packed_attention
from engine.finetune.batches import IGNORED, make_row, next_token_loss, next_token_losses
from engine.finetune.formats import Example
from engine.finetune.head import CHUNK, LossHead, loss_head, use_loss_head

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def tiny(kind):
    torch.manual_seed(0)
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(vocab_size=50, max_position_embeddings=64, **SIZES)).eval()
    if kind == "qwen":
        return Qwen2ForCausalLM(
            Qwen2Config(vocab_size=50, max_position_embeddings=64, num_key_value_heads=2, **SIZES)
        ).eval()
    return GPT2LMHeadModel(GPT2Config(vocab_size=50, n_positions=64, n_embd=32, n_layer=2, n_head=4)).eval()


EXAMPLES = [
    Example([5, 6, 7, 8, 9], [(2, 5)]),
    Example([11, 12, 13], [(0, 3)]),
    Example([21, 22, 23, 24], [(1, 2), (3, 4)]),
]


def test_targets_are_the_next_tokens_that_have_loss():
    row = make_row(EXAMPLES)
    assert row.ids_1T.tolist() == [[5, 6, 7, 8, 9, 11, 12, 13, 21, 22, 23, 24]]
    assert row.positions_1T.tolist() == [[0, 1, 2, 3, 4, 0, 1, 2, 0, 1, 2, 3]]
    none = IGNORED
    assert row.targets_1T.tolist() == [[none, 7, 8, 9, none, 12, 13, none, 22, none, 24, none]]
    assert [each.loss_tokens for each in EXAMPLES] == [3, 2, 2]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", ["llama", "qwen", "gpt2"])
def test_nothing_of_one_example_reaches_another(kind, packed):
    model = use_packed_attention(tiny(kind)) if packed else tiny(kind)
    assert is_packed(model) == packed
    with torch.inference_mode():
        together = next_token_losses(model, make_row(EXAMPLES))
        alone = torch.cat([next_token_losses(model, make_row([each])) for each in EXAMPLES])
        other = next_token_losses(model, make_row([Example([40, 41, 42, 43, 44], [(2, 5)]), *EXAMPLES[1:]]))
    assert torch.allclose(together, alone, atol=1e-5)
    assert torch.allclose(together[3:], other[3:], atol=1e-6)


def test_a_model_that_looks_at_a_window_keeps_its_own_attention():
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    config = Gemma3TextConfig(vocab_size=50, head_dim=8, sliding_window=4, max_position_embeddings=64, **SIZES)
    model = use_packed_attention(Gemma3ForCausalLM(config).eval())
    assert not is_packed(model)
    with torch.inference_mode():
        together = next_token_losses(model, make_row(EXAMPLES))
        alone = torch.cat([next_token_losses(model, make_row([each])) for each in EXAMPLES])
    assert torch.allclose(together, alone, atol=1e-5)


def test_losses_are_those_of_the_whole_model():
    model = tiny("llama")
    row = make_row(EXAMPLES[:1])
    with torch.inference_mode():
        wanted = model(input_ids=row.ids_1T, labels=torch.tensor([[IGNORED, IGNORED, 7, 8, 9]])).loss
        assert torch.allclose(next_token_losses(model, row).mean(), wanted, atol=1e-6)


def test_a_row_of_nothing_has_no_loss_and_no_gradient():
    model = tiny("llama").train()
    loss = next_token_losses(model, make_row([])).sum()
    loss.backward()
    assert loss.item() == 0
    assert all(each.grad is None or not each.grad.any() for each in model.parameters())


LONG = [Example(list(range(1, 45)), [(0, 44)]) for _ in range(CHUNK // 43 + 2)]
"""More tokens with loss than the head takes at a time."""


@pytest.mark.parametrize("examples", [EXAMPLES, LONG, []], ids=["few", "many", "none"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_head_that_gives_the_loss_gives_the_same_loss_and_gradients(kind, examples):
    plain, model = tiny(kind), use_loss_head(tiny(kind))
    row = make_row(examples)
    wanted, found = next_token_losses(plain, row).sum(), next_token_loss(model, row)
    assert loss_head(model) is not None
    assert loss_head(plain) is None
    assert torch.allclose(found, wanted, rtol=1e-5)
    (wanted / 7).backward()
    (found / 7).backward()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(ours.grad, theirs.grad, atol=1e-5)
    assert next_token_losses(model, row).tolist() == next_token_losses(plain, row).tolist(), "it still gives logits"
    assert model.state_dict().keys() == plain.state_dict().keys()


def test_a_model_that_changes_its_logits_keeps_its_head():
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    config = Gemma2Config(vocab_size=50, head_dim=8, max_position_embeddings=64, **SIZES)
    model = use_loss_head(Gemma2ForCausalLM(config).eval())
    assert not isinstance(model.get_output_embeddings(), LossHead)
    row = make_row(EXAMPLES)
    assert next_token_loss(model, row).item() == next_token_losses(model, row).sum().item()


def test_a_loss_that_fails_leaves_the_head_as_it_was():
    model = use_loss_head(tiny("llama"))
    head = loss_head(model)
    with pytest.raises(RuntimeError), head.learning(torch.tensor([1, 2])):
        head(torch.zeros(1, 3, 32))
    assert head(torch.zeros(1, 3, 32)).shape == (1, 3, 50)


def test_what_carries_a_state_along_or_knows_no_positions_shares_no_rows():
    from transformers import (
        BloomConfig,
        BloomForCausalLM,
        Gemma3ForCausalLM,
        Gemma3TextConfig,
        MambaConfig,
        MambaForCausalLM,
    )

    gemma = Gemma3TextConfig(vocab_size=50, head_dim=8, sliding_window=4, max_position_embeddings=64, **SIZES)
    assert keeps_apart(Gemma3ForCausalLM(gemma))
    assert keeps_apart(tiny("gpt2"))
    assert keeps_apart(use_packed_attention(tiny("llama")))
    assert not keeps_apart(MambaForCausalLM(MambaConfig(vocab_size=50, hidden_size=32, num_hidden_layers=1)))
    bloom = BloomForCausalLM(BloomConfig(vocab_size=50, hidden_size=32, n_layer=1, n_head=4)).eval()
    use_packed_attention(bloom)
    with torch.inference_mode():
        together = next_token_losses(bloom, make_row(EXAMPLES))
        alone = torch.cat([next_token_losses(bloom, make_row([each])) for each in EXAMPLES])
    assert keeps_apart(bloom) == torch.allclose(together, alone, atol=1e-4)
