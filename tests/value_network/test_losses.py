"""The loss of mixed logits and its gradient, against autograd's own, and the specification's numbers."""

import pytest
import torch

from engine.finetune.batches import IGNORED
from engine.value_network import losses
from engine.value_network.losses import Goal, ValueHead, dense_loss
from engine.value_network.mixing import penalty


def test_golden_3_cross_entropy_and_penalty():
    value = torch.tensor([[0.0, 1.0, 0.5]], requires_grad=True)
    base, target = torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([1])
    bare = dense_loss(value, Goal(lambda at: base[at], target, 0.0, "l1"))
    torch.testing.assert_close(bare, torch.tensor(0.798916), atol=1e-6, rtol=0)
    (gradient,) = torch.autograd.grad(bare, value)
    torch.testing.assert_close(gradient, torch.tensor([[0.449816, -0.550184, 0.100368]]), atol=1e-6, rtol=0)
    whole = dense_loss(value, Goal(lambda at: base[at], target, 1.0, "l1"))
    torch.testing.assert_close(whole, torch.tensor(1.298916), atol=1e-6, rtol=0)
    (with_penalty,) = torch.autograd.grad(whole, value)
    torch.testing.assert_close(with_penalty - gradient, torch.tensor([[0.0, 1 / 3, 1 / 3]]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize("weight", [0.0, 0.7])
def test_chunk_by_chunk_it_is_what_autograd_makes_of_all(monkeypatch, norm, weight):
    monkeypatch.setattr(losses, "CHUNK", 3)
    torch.manual_seed(0)
    hidden, base = torch.randn(10, 4, requires_grad=True), torch.randn(10, 7)
    head = ValueHead(4, 7, bias=False)
    targets = torch.tensor([1, 2, IGNORED, 3, 4, 5, 6, 0, IGNORED, 2])
    value = hidden @ head.weight.T
    wanted = torch.nn.functional.cross_entropy(base + value, targets, reduction="sum", ignore_index=IGNORED)
    wanted = wanted + weight * penalty(value, norm).sum()
    goal = Goal(lambda at: base[at], targets, weight, norm)
    with head.learning(goal):
        found = head(hidden[None])
    torch.testing.assert_close(found, wanted)
    leaves = (hidden, head.weight)
    gradients = torch.autograd.grad(wanted, leaves, retain_graph=True)
    for ours, theirs in zip(torch.autograd.grad(found, leaves), gradients, strict=True):
        torch.testing.assert_close(ours, theirs)
    for ours, theirs in zip(torch.autograd.grad(dense_loss(value, goal), leaves), gradients, strict=True):
        torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(head(hidden), value)


def test_a_mean_square_of_zero_has_no_slope():
    value = torch.zeros(2, 3, requires_grad=True)
    goal = Goal(lambda at: torch.zeros(2, 3)[at], torch.tensor([0, 1]), 1.0, "l2")
    (gradient,) = torch.autograd.grad(dense_loss(value, goal), value)
    assert gradient.isfinite().all()
