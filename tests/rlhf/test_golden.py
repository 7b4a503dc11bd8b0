"""The golden tests of the macro-action specification, by their numbers; T22 and T23 are with rewards and pass@k."""

import numpy as np
import pytest
import torch

from engine.evaluation import pass_at_k
from engine.rlhf import (
    Gae,
    Macros,
    credit,
    macro_gae,
    policy_loss,
    reference_lengths,
    reference_options,
    segment,
    token_rewards,
    value_loss,
)
from engine.rlhf.credit import macro_rewards, macro_values
from engine.rlhf.segmenters import starts_of
from engine.rlhf.text_rules import phrases

V, R = [0.1, 0.2, 0.3, 0.4], [-0.01, 0.02, -0.03, 1.0]
TWOS = [2, 2]
NLL = [2, 1.5, 1, 1.8, 1.2, 0.9, 1.1]


def fixed(n, count):
    return segment(f"fixed:{n}", [0] * count)


def near(values, abs=1e-6):
    return pytest.approx(values, abs=abs)


def test_t1_one_token_per_macro_is_token_gae():
    advantages, returns = macro_gae(R, V, [1, 1, 1, 1])
    assert advantages == near([0.7816, 0.728, 0.64, 0.6])
    assert returns == near([0.8816, 0.928, 0.94, 1])


def test_t2_the_references_one_token_macros_have_a_phantom():
    lengths = reference_lengths(fixed(1, 4))
    assert lengths == [1, 1, 1, 0, 1]
    assert macro_gae(R, V, lengths)[0] == near([0.737829, 0.681925, 0.5915, 0.97, 0.6])


def test_t3_one_macro_is_the_bandit():
    assert macro_gae(R, V, [4])[0] == near([0.73])
    assert macro_gae(R, V, [4], reward_aggregation="mean")[0] == near([-0.005])
    lengths = reference_lengths(segment("whole", [0] * 4))
    assert lengths == [3, 1]
    assert macro_gae(R, V, lengths, reward_aggregation="mean")[0] == near([0.763333, 0.6])


def test_t4_two_macros_of_two():
    macros = macros_of([TWOS])
    rewards_BT, values_BT = np.array([R]), np.array([V])
    assert macro_values(values_BT, macros)[0] == near([0.15, 0.35])
    assert macro_rewards(rewards_BT, macros, Gae())[0] == near([0.01, 0.97])
    advantages_BT, returns_BT = credit(rewards_BT, values_BT, macros, Gae())
    assert advantages_BT[0] == near([0.799, 0.799, 0.62, 0.62])
    assert returns_BT[0] == near([0.949, 0.949, 0.97, 0.97])


def test_t5_lambda_one_is_reward_to_go_and_zero_the_td_error():
    assert macro_gae(R, V, TWOS, lam=1)[0] == near([0.83, 0.62])
    assert macro_gae(R, V, TWOS, lam=0)[0] == near([0.21, 0.62])


@pytest.mark.parametrize(
    ("weighting", "value", "advantages"),
    [
        ("equal", 2.333333, [0.799, 0.62]),
        ("unit", 4, [0.7515, 0.57]),
        ("first_heavy", 1.818182, [0.814833, 0.636667]),
        ("last_heavy", 2.909091, [0.783167, 0.603333]),
    ],
)
def test_t6_and_t7_value_weightings(weighting, value, advantages):
    assert macro_values(np.array([[1.0, 2, 4]]), macros_of([[3]]), weighting)[0] == near([value])
    assert macro_gae(R, V, TWOS, value_weighting=weighting)[0] == near(advantages)


def test_t8_a_partition():
    assert fixed(5, 12) == [5, 5, 2]
    assert reference_lengths(fixed(5, 12)) == [5, 5, 1, 1]
    assert reference_lengths(fixed(5, 10)) == [5, 4, 1]
    assert reference_lengths(fixed(5, 11)) == [5, 5, 0, 1]


def test_t9_what_an_empty_macro_does():
    values, rewards = [0.1 * at for at in range(11)], [0.0] * 10 + [1.0]
    assert macro_gae(rewards, values, fixed(5, 11))[0] == near([0.785, 0.3, 0])
    assert macro_gae(rewards, values, reference_lengths(fixed(5, 11)))[0] == near([0.7375, 0.25, 1, 0])


def test_t10_padding_changes_nothing():
    padding = [0.0] * 3
    macro_BT = np.array([[0, 1, 2, 3, -1, -1, -1]])
    advantages_BT, _ = credit(np.array([R + padding]), np.array([V + [9.0] * 3]), Macros.of(macro_BT), Gae())
    assert advantages_BT[0] == near([0.7816, 0.728, 0.64, 0.6, 0, 0, 0])


@pytest.mark.parametrize(
    ("count", "clean", "reference"),
    [(20, [3, 10, 2, 5], [3, 10, 2, 4, 1]), (16, [3, 10, 2, 1], [3, 10, 2, 0, 1])],
)
def test_t11_a_random_order(count, clean, reference):
    starts = np.append(np.flatnonzero(starts_of(np.array([[3, 10, 2]]), count)[0]), count)
    assert np.diff(starts).tolist() == clean
    assert reference_lengths(clean) == reference


def test_t12_perplexity():
    logprobs = [-each for each in NLL]
    assert segment("perplexity", NLL, logprobs=logprobs) == [3, 4]
    assert segment("perplexity_step", NLL, logprobs=logprobs) == [3, 3, 1]


def test_t13_a_parse_tree():
    tree = [[1, 2], [1, [1, 1, 1]], 1]
    assert phrases(tree, 5) == [3, 5]
    assert phrases(tree, 4) == [4, 4]


@pytest.mark.parametrize(
    ("log_ratios", "token", "joint"), [([0.15, 0.15], -1.161834, -1.2), ([0.3, -0.3], -0.970409, -1.0)]
)
def test_t14_clipping(log_ratios, token, joint):
    logp, old, advantage = torch.tensor(log_ratios), torch.zeros(2), torch.ones(2)
    assert policy_loss(logp, old, advantage)[0].item() / 2 == near(token)
    assert policy_loss(logp, old, advantage, macro_N=torch.tensor([0, 0]))[0].item() == near(joint)


def test_t15_gradients_at_ratio_one():
    advantage = torch.tensor([0.799, 0.799, 0.62, 0.62])
    logp = torch.zeros(4, requires_grad=True)
    (policy_loss(logp, torch.zeros(4), advantage)[0] / 4).backward()
    assert logp.grad.tolist() == near([-0.19975, -0.19975, -0.155, -0.155])
    joint = torch.zeros(4, requires_grad=True)
    (policy_loss(joint, torch.zeros(4), advantage, macro_N=torch.tensor([0, 0, 1, 1]))[0] / 2).backward()
    assert joint.grad.tolist() == near((2 * logp.grad).tolist())


def test_t16_and_t17_kl_in_the_reward():
    written = np.ones((1, 4), bool)
    logp, reference = np.array([[-1, -2, -0.5, -1.5]]), np.array([[-1.2, -1.9, -0.9, -1.5]])
    rewards_BT = token_rewards(np.array([3.1]), logp, reference, written, beta=0.05, clip=2.5)
    assert rewards_BT[0] == near([-0.01, 0.005, -0.02, 2.5])
    macros = macros_of([TWOS])
    summed = macro_rewards(rewards_BT, macros, Gae())[0]
    assert summed == near([-0.005, 2.48])
    assert summed.sum() == near(2.475) == rewards_BT.sum()
    assert macro_rewards(rewards_BT, macros, Gae(reward_aggregation="mean"))[0] == near([-0.0025, 1.24])
    theirs = macros_of([reference_lengths(TWOS)])
    assert macro_rewards(rewards_BT, theirs, reference_options(Gae()))[0] == near([-0.0025, -0.02, 2.5])


def test_t18_value_loss():
    value, old, returns = torch.tensor([0.1, 0.5, 0.3]), torch.full((3,), 0.2), torch.full((3,), 0.8)
    assert value_loss(value, old, returns).item() / 3 == near(0.15)


def test_t19_per_token_or_per_macro():
    token = value_loss(torch.tensor(V), torch.tensor(V), torch.tensor([0.949, 0.949, 0.97, 0.97]))
    assert token.item() / 4 == near(0.25695)
    value = torch.tensor([0.15, 0.35])
    assert value_loss(value, value, torch.tensor([0.949, 0.97])).item() / 2 == near(0.2557)


def test_t20_discounts():
    assert macro_gae(R, V, TWOS, gamma=0.9)[0] == near([0.7051, 0.62])
    assert macro_gae(R, V, TWOS, gamma=0.9, discount="smdp")[0] == near([0.54164, 0.52])


@pytest.mark.parametrize(("n", "weight"), [(1, 0.006232), (5, 0.377354), (10, 0.630249)])
def test_t21_the_horizon(n, weight):
    rewards = [0.0] * 99 + [1.0]
    assert macro_gae(rewards, [0.0] * 100, fixed(n, 100))[0][0] == near(weight)


@pytest.mark.parametrize(("n", "c", "k", "value"), [(5, 2, 1, 0.4), (10, 3, 5, 0.916667)])
def test_t23_unbiased_pass_at_k(n, c, k, value):
    assert pass_at_k(n, c, k) == near(value)


def macros_of(lengths):
    """Macros of rows given by their lengths, without padding."""
    rows = [np.repeat(np.arange(len(each)), each) for each in lengths]
    return Macros(np.array(rows), np.array(lengths))
