"""Mixed logits: the specification's golden numbers, and what holds for any."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.models import LogitMix, Term
from engine.value_network import combine_logits
from engine.value_network.mixing import penalty, soft_embedding

BASE, VALUE = torch.tensor([2.0, 1.0, 0.0]), torch.tensor([0.0, 1.0, 0.5])


def _close(found, wanted):
    torch.testing.assert_close(found, torch.tensor(wanted), atol=1e-6, rtol=0)


def test_golden_1_the_mix():
    _close(combine_logits(BASE, VALUE).softmax(-1), [0.449816, 0.449816, 0.100368])


def test_golden_2_it_is_the_product_of_both():
    product = BASE.softmax(-1) * VALUE.softmax(-1)
    torch.testing.assert_close(combine_logits(BASE, VALUE).softmax(-1), product / product.sum())
    torch.testing.assert_close(combine_logits(BASE, VALUE + 7).softmax(-1), combine_logits(BASE, VALUE).softmax(-1))


def test_golden_4_a_value_network_that_is_the_base_doubles_it():
    _close(combine_logits(BASE, BASE).softmax(-1), [0.866813, 0.117310, 0.015876])
    loss = -combine_logits(BASE, BASE).log_softmax(-1)[1]
    _close(torch.stack([loss, -BASE.log_softmax(-1)[1]]), [2.142932, 1.407606])


def test_golden_5_emulated_fine_tuning_is_the_same_sum():
    large = torch.tensor([3.0, 1.0, 1.0])
    expert, other = torch.tensor([1.0, 3.0, 0.0]), torch.tensor([2.0, 1.0, 0.0])
    found = LogitMix([Term(1.0, 0, 1)], 3)(large, [expert, other])
    assert found.tolist() == combine_logits(large, torch.tensor([-1.0, 2.0, 0.0])).tolist() == [2.0, 3.0, 1.0]


@pytest.mark.parametrize(("beta", "first"), [(0, 0.665241), (0.5, 0.561702), (1, 0.449816)])
def test_golden_6_beta(beta, first):
    _close(combine_logits(BASE, VALUE, beta).softmax(-1)[0], first)


def test_golden_7_temperature_is_of_the_sum():
    _close((combine_logits(BASE, VALUE) / 0.7).softmax(-1), [0.472295, 0.472295, 0.055409])
    _close((BASE / 0.7 + VALUE).softmax(-1), [0.572695, 0.373076, 0.054229])


def test_golden_8_soft_embedding():
    embedding = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    _close(soft_embedding(BASE, embedding), [0.755272, 0.334759])


def test_golden_10_the_penalty_is_where_it_is_asked_for():
    value = torch.tensor([[1.0, -1.0], [2.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    found = penalty(value)
    _close(found.mean(), 0.5)
    _close(found[:2].mean(), 1.0)
    _close(penalty(value, "l2"), [1.0, 2**0.5, 0.0, 0.0])


@settings(deadline=None)
@given(
    st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
    st.lists(st.sampled_from([0.0, -0.0, 0.25, 2.0]), min_size=1, max_size=6),
)
def test_without_beta_the_base_is_given_back_bit_for_bit(dtype, betas):
    torch.manual_seed(len(betas))
    base = torch.randn(len(betas), 4, 9).to(dtype)
    value = torch.full_like(base, float("nan"))
    value[torch.tensor(betas) != 0] = 1.0
    found = combine_logits(base, value, torch.tensor(betas))
    assert found.dtype == dtype
    for row, beta in enumerate(betas):
        alone = combine_logits(base[row], value[row], beta)
        torch.testing.assert_close(found[row], alone)
        if beta == 0:
            assert found[row].equal(base[row])


def test_what_it_is_given_may_be_lists():
    assert combine_logits([2, 1, 0], [0, 1, 0.5], 2).tolist() == [2, 3, 1]


@pytest.mark.parametrize(
    ("base", "value", "beta", "says"),
    [
        ([1.0, 2.0], [1.0], 1.0, "shape"),
        ([1.0], [1.0], float("nan"), "no finite number"),
        ([[1.0], [2.0]], [[1.0], [2.0]], torch.tensor([1.0, float("inf")]), "no finite number"),
        ([[1.0], [2.0]], [[1.0], [2.0]], torch.tensor([1.0, 1.0, 1.0]), "one beta per row"),
        ([1.0, 2.0], [1.0, 2.0], torch.tensor([1.0, 1.0]), "one beta per row"),
    ],
)
def test_what_does_not_fit_is_refused(base, value, beta, says):
    with pytest.raises(ValueError, match=says):
        combine_logits(base, value, beta)
