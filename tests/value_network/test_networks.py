"""What value networks read, what they learn from, and that the base stays as it is."""

import pytest
import torch

from engine.finetune.batches import make_row
from engine.finetune.formats import Example
from engine.models import load_causal_lm, load_tokenizer, save_model
from engine.value_network.card import Card, vocabulary_fingerprint
from engine.value_network.losses import Goal
from engine.value_network.networks import FrozenBase, Probe, fit, load_probe, use_value_head, value_loss
from engine.value_network.reference import Mixture

KINDS = ["residual", "cascade", "cascade_plus", "linear_probe"]
EXAMPLES = [Example([5, 7, 11, 13, 17], [(2, 5)]), Example([19, 23, 29], [(1, 3)])]


def _network(kind, start, *, zero=False):
    torch.manual_seed(1)
    if kind == "linear_probe":
        probe = Probe(49152, 4)
        if zero:
            torch.nn.init.zeros_(probe.down.weight)
        return probe
    return use_value_head(load_causal_lm(str(start)), zero=zero)


def _loss(kind, network, base, examples, weight=0.0):
    row = make_row(examples)
    at = (row.targets_1T[0] != -100).nonzero()[:, 0]
    goal = Goal(base.logits(row, at), row.targets_1T[0][at], weight, "l1")
    return value_loss(network, kind, row, at, goal, base)


@pytest.fixture(scope="module")
def base(small):
    return FrozenBase(str(small), "float32", 49152)


@pytest.mark.parametrize("kind", KINDS)
def test_golden_12_only_the_value_network_learns(kind, base, start):
    network = _network(kind, start)
    _loss(kind, network, base, EXAMPLES, weight=1.0).backward()
    assert all(each.grad is None for each in base.lm.parameters())
    assert all(each.grad is not None and each.grad.isfinite().all() for each in network.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_examples_of_a_row_do_not_see_each_other(kind, base, start):
    network = _network(kind, start)
    together = _loss(kind, network, base, EXAMPLES)
    apart = sum(_loss(kind, network, base, [each]) for each in EXAMPLES)
    torch.testing.assert_close(together, apart)


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_of_zeros_starts_at_the_base(kind, base, start, small):
    row = make_row(EXAMPLES[:1])
    logits = load_causal_lm(str(small))(row.ids_1T).logits[0]
    wanted = torch.nn.functional.cross_entropy(logits, row.targets_1T[0], reduction="sum")
    torch.testing.assert_close(_loss(kind, _network(kind, start, zero=True), base, EXAMPLES[:1], weight=1.0), wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_golden_11_token_by_token_is_all_at_once(kind, start, small, tmp_path):
    network = _network(kind, start)
    if kind == "linear_probe":
        network.save(tmp_path)
    else:
        save_model(network, None, tmp_path)
    Card(connection=kind, vocabulary=vocabulary_fingerprint(load_tokenizer(str(small)))).write(tmp_path)
    mixture = Mixture(str(small), str(tmp_path))
    mixture.base.double(), mixture.value.double()
    ids = torch.tensor([[5, 7, 11, 13, 17, 19], [3, 2, 9, 4, 8, 6]])
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1]])
    beta = torch.tensor([0.0, 1.5])
    at_once = mixture.logits(ids, mask, beta)
    mixture.forget()
    parts = [mixture.logits(ids[:, :3], mask[:, :3], beta)]
    parts += [mixture.logits(ids[:, at : at + 1], mask[:, : at + 1], beta) for at in range(3, 6)]
    torch.testing.assert_close(torch.cat(parts, 1)[0], at_once[0], atol=1e-12, rtol=0)
    torch.testing.assert_close(torch.cat(parts, 1)[1, 2:], at_once[1, 2:], atol=1e-12, rtol=0)
    alone = mixture.base(ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)).logits
    assert at_once[0].equal(alone[0])
    mixture.forget()
    unpadded = mixture.logits(ids[1:, 2:], None, 1.5)
    torch.testing.assert_close(unpadded[0], at_once[1, 2:], atol=1e-12, rtol=0)


def test_golden_11_heads_side_by_side_are_the_sum(start, small):
    base, value = load_causal_lm(str(small), "float32").double(), load_causal_lm(str(start)).double()
    ids = torch.tensor([[5, 7, 11]])
    hidden = torch.cat([each.model(ids).last_hidden_state for each in (base, value)], -1)
    heads = torch.cat([each.lm_head.weight for each in (base, value)], -1)
    wanted = base(ids).logits + value(ids).logits
    torch.testing.assert_close(hidden @ heads.T, wanted, atol=1e-12, rtol=0)


def test_a_probe_comes_back_as_it_was(tmp_path):
    probe = Probe(50, 4)
    probe.save(tmp_path)
    logits = torch.randn(3, 50)
    assert load_probe(tmp_path)(logits).equal(probe(logits))


def test_a_probe_reads_a_base_that_pads_its_vocabulary_otherwise():
    probe, logits = Probe(50, 4), torch.randn(3, 60)
    assert probe(logits).equal(probe(logits[:, :50]))
    narrow = probe(fit(logits[:, :40], 50))
    assert narrow.isfinite().all()
    assert narrow.equal(probe(torch.nn.functional.pad(logits[:, :40], (0, 10))))


def test_vocabularies_padded_differently():
    logits = torch.ones(2, 5)
    assert fit(logits, 3).shape == (2, 3)
    assert fit(logits, 7).softmax(-1)[:, 5:].sum() == 0
