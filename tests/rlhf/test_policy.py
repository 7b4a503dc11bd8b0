"""The policy in parts is the policy: trunk, upper layers, reference and packed rows against plain forward passes."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from engine.errors import RecipeError
from engine.finetune.lora import with_adapter
from engine.finetune.options import LoraOptions
from engine.rlhf.policy import Policy, PolicyRow, check_split, freeze, without_dropout

EXAMPLES = [([5, 6, 7], [8, 9, 10, 11]), ([1], [2]), ([3, 4], [12, 13, 14])]


def tiny():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
        max_position_embeddings=64, tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def packed(examples=EXAMPLES):
    ids, positions, predicting = [], [], []
    for prompt, response in examples:
        predicting += range(len(ids) + len(prompt) - 1, len(ids) + len(prompt) + len(response) - 1)
        positions += range(len(prompt) + len(response))
        ids += prompt + response
    lengths = tuple(len(prompt) + len(response) for prompt, response in examples)
    at = torch.tensor(predicting, dtype=torch.long)
    ids_T = torch.tensor(ids)
    return PolicyRow(ids_T[None], torch.tensor(positions)[None], lengths, at, ids_T[at + 1])


def plainly(lm, temperature=1.0):
    """Each example by itself, through transformers alone."""
    found = []
    for prompt, response in EXAMPLES:
        ids = torch.tensor([prompt + response])
        logp = (lm(ids).logits[0] / temperature).log_softmax(-1)
        found.append(logp[len(prompt) - 1 : -1].gather(1, ids[0, len(prompt) :, None])[:, 0])
    return torch.cat(found)


@pytest.mark.parametrize("layers", [None, 4, 2, 1])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_parts_are_the_whole(layers, temperature):
    plain = plainly(tiny(), temperature).detach()
    lm = tiny()
    policy = Policy(lm, frozen=freeze(lm, layers), temperature=temperature)
    check_split(policy)
    row = packed()
    with_hidden = row.with_hidden(policy(row, "trunk")) if policy.frozen else row
    for each in (row, with_hidden):
        assert torch.allclose(policy(each), plain, atol=1e-5)
        assert torch.allclose(policy(each, "reference"), plain, atol=1e-5)
    assert policy.features().shape == (row.ids_1T.shape[1], 32)


@pytest.mark.parametrize("layers", [None, 4])
def test_the_reference_stays_where_all_of_the_model_learns(layers):
    lm = tiny()
    policy, row = Policy(lm, frozen=freeze(lm, layers)), packed()
    before = policy(row, "reference")
    states = policy.features().clone()
    with torch.no_grad():
        for each in policy.parameters():
            if each.requires_grad:
                each += 0.1 * torch.randn_like(each)
    assert not torch.allclose(policy(row), before, atol=1e-2)
    assert torch.allclose(policy(row, "reference"), before, atol=1e-6)
    assert torch.allclose(policy.features(), states, atol=1e-6)


@pytest.mark.parametrize("lora", [False, True])
def test_only_the_upper_layers_learn_and_the_reference_stays(lora):
    lm = tiny()
    frozen = freeze(lm, 2)
    if lora:
        lm = with_adapter(lm, LoraOptions(rank=2), layers=range(frozen, 4))
    policy = Policy(lm, frozen=frozen)
    row = packed()
    row = row.with_hidden(policy(row, "trunk"))
    before = policy(row).detach()
    names = set(policy.trained())
    assert names
    assert all("layers.2." in name or "layers.3." in name for name in names)
    optimiser = torch.optim.SGD([each for each in policy.parameters() if each.requires_grad], 0.5)
    for _ in range(3):
        (-policy(row).mean()).backward()
        gradients = {name for name, each in policy.lm.named_parameters() if each.grad is not None}
        assert gradients == names
        optimiser.step()
        optimiser.zero_grad()
    assert (policy(row).mean() - before.mean()).item() > 0.01
    assert torch.allclose(policy(row, "reference"), before, atol=1e-5)


def test_gradients_are_those_of_the_whole_model():
    lm = tiny()
    freeze(lm, 2)
    plainly(lm).sum().backward()
    wanted = {name: each.grad.clone() for name, each in lm.named_parameters() if each.grad is not None}
    other = tiny()
    policy = Policy(other, frozen=freeze(other, 2))
    row = packed()
    policy(row.with_hidden(policy(row, "trunk"))).sum().backward()
    found = {name: each.grad for name, each in other.named_parameters() if each.grad is not None}
    assert found.keys() == wanted.keys()
    assert all(torch.allclose(found[name], wanted[name], atol=1e-4) for name in wanted)


def test_a_row_of_nothing_gives_nothing_and_still_has_a_gradient():
    policy = Policy(tiny())
    nothing = PolicyRow(torch.zeros((1, 1), dtype=torch.long), torch.zeros((1, 1), dtype=torch.long), (1,),
                        torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long))  # fmt: skip
    found = policy(nothing).sum()
    found.backward()
    assert found.item() == 0
    assert not any(each.grad is not None and each.grad.any() for each in policy.parameters())


def test_models_that_cannot_be_taken_apart_are_refused():
    config = GPT2Config(vocab_size=11, n_positions=16, n_embd=8, n_layer=2, n_head=2)
    with pytest.raises(RecipeError, match="cannot be told apart"):
        freeze(GPT2LMHeadModel(config), 1)
    with pytest.raises(RecipeError, match="is 9, and the model has 4"):
        freeze(tiny(), 9)
    assert freeze(GPT2LMHeadModel(config), None) == 0


def test_dropout_is_gone_wherever_a_model_keeps_it():
    config = GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=20, attn_pdrop=0.3, resid_pdrop=0.3)
    model = without_dropout(GPT2LMHeadModel(config)).train()
    ids = torch.tensor([[1, 2, 3]])
    assert model(ids).logits.equal(model(ids).logits)
    llama = tiny()
    for layer in llama.model.layers:
        layer.self_attn.attention_dropout = 0.4
    without_dropout(llama).train()
    assert llama(ids).logits.equal(llama(ids).logits)
