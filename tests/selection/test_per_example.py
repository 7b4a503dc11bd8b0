"""Gradients of examples that share a row against those of examples by themselves."""

import numpy as np
import pytest
import torch

from engine.finetune.batches import make_row, next_token_losses
from engine.finetune.formats import Example
from engine.finetune.lora import with_adapter
from engine.finetune.options import LoraOptions
from engine.models import load_causal_lm
from engine.selection.margins import example_margins
from engine.selection.per_example import ExampleGradients, NotDivided

LENGTHS = (5, 17, 9, 2)


def margins(model, row):
    return example_margins(next_token_losses(model, row), row)


@pytest.fixture
def model(small):
    """With an adapter whose both halves have gradients, attending example by example."""
    from engine.finetune.attention import use_packed_attention

    made = with_adapter(use_packed_attention(load_causal_lm(str(small))), LoraOptions(rank=2, layers=2))
    torch.manual_seed(1)
    for name, each in made.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(each, std=0.1)
    return made.eval()


@pytest.fixture
def examples():
    rng = np.random.default_rng(0)
    return [Example(rng.integers(0, 1000, length).tolist(), [(1, length)]) for length in LENGTHS]


def test_a_row_gives_each_example_its_own_gradient(model, examples):
    found = ExampleGradients(model)
    values, gradients = found(make_row(examples), margins)
    assert gradients.shape == (len(LENGTHS), sum(each.numel() for each in found.parameters))
    for example, value, gradient in zip(examples, values, gradients, strict=True):
        alone = margins(model, make_row([example]))
        assert value.item() == pytest.approx(alone.item(), abs=1e-5)
        expected = torch.autograd.grad(alone.sum(), found.parameters)
        flat = torch.cat([each.flatten() for each in expected])
        assert flat.norm() > 1e-3
        assert torch.allclose(gradient, flat, atol=1e-5 * float(flat.abs().max()) + 1e-7)


def test_what_is_no_linear_layer_needs_a_row_for_each(model, examples):
    model.get_input_embeddings().weight.requires_grad_(True)
    found = ExampleGradients(model)
    with pytest.raises(NotDivided):
        found(make_row(examples), margins)
    _, gradients = found(make_row(examples[:1]), margins)
    alone = torch.autograd.grad(margins(model, make_row(examples[:1])).sum(), found.parameters)
    assert torch.allclose(gradients[0], torch.cat([each.flatten() for each in alone]), atol=1e-6)
