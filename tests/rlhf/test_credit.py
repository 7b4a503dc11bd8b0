"""Credit: the token rule is plain token-level PPO bit for bit, batches equal rows, padding and order change nothing."""

import numpy as np
import pytest
import torch

from engine.errors import HeadraceError
from engine.rlhf import Gae, Macros, Responses, Segmenter, credit, grpo, macro_gae, rloo, token_rewards, whitened
from engine.rlhf.losses import kl_estimate, policy_loss, value_loss

GAES = [
    Gae(0.97, 0.9, weighting, aggregation, discount)
    for weighting in ("equal", "unit", "first_heavy", "last_heavy")
    for aggregation in ("sum", "mean")
    for discount in ("macro", "smdp")
]


def rows(seed, count=6, most=17):
    """Padded responses with a score, log-probabilities under policy and reference, and values."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, most + 1, count)
    written = np.arange(most) < lengths[:, None]
    logp, reference = rng.normal(-2, 1, (2, count, most))
    return written, rng.normal(0, 2, count), logp, reference, rng.normal(0, 1, (count, most))


def plain_token_ppo(score, logp, reference, values, gamma, lam, beta):
    """Token-level PPO's advantages and returns for one response, written without any of ours."""
    count = len(logp)
    rewards = [-beta * (logp[t] - reference[t]) for t in range(count)]
    rewards[-1] += score
    advantages, last = [0.0] * count, 0.0
    for t in range(count - 1, -1, -1):
        after = values[t + 1] if t + 1 < count else 0.0
        delta = rewards[t] + gamma * after - values[t]
        last = delta + gamma * lam * last
        advantages[t] = last
    return advantages, [advantage + value for advantage, value in zip(advantages, values, strict=True)]


@pytest.mark.parametrize("seed", range(5))
def test_one_token_per_macro_is_token_level_ppo_bit_for_bit(seed):
    written, scores, logp, reference, values = rows(seed)
    macros = Macros.of(Segmenter("token")(Responses(written, np.arange(len(written)))))
    rewards = token_rewards(scores, logp, reference, written, beta=0.05)
    advantages, returns = credit(rewards, values, macros, Gae(0.99, 0.95))
    for row, mask in enumerate(written):
        count = mask.sum()
        plain = plain_token_ppo(
            scores[row], logp[row, :count], reference[row, :count], values[row, :count], 0.99, 0.95, 0.05
        )
        assert advantages[row, :count].tolist() == plain[0]
        assert returns[row, :count].tolist() == plain[1]


@pytest.mark.parametrize("options", GAES, ids=lambda each: f"{each.value_weighting}-{each.discount}")
@pytest.mark.parametrize("rule", ["token", "fixed:5", "random", "whole"])
def test_a_batch_is_its_rows_whatever_the_padding(rule, options):
    written, scores, logp, reference, values = rows(3)
    rewards = token_rewards(scores, logp, reference, written, beta=0.1, clip=2.5)
    macro_BT = Segmenter(rule)(Responses(written, np.arange(len(written))))
    advantages, returns = credit(rewards, values, Macros.of(macro_BT), options)
    for row, mask in enumerate(written):
        count, lengths = mask.sum(), np.bincount(macro_BT[row][mask])
        keys = {name: getattr(options, name) for name in options.__dataclass_fields__}
        alone = macro_gae(rewards[row, :count], values[row, :count], lengths, **keys)
        assert np.repeat(alone[0], lengths).tolist() == advantages[row, :count].tolist()
        assert np.repeat(alone[1], lengths).tolist() == returns[row, :count].tolist()
    assert not advantages[~written].any()


def test_one_macro_is_the_bandit():
    written, scores, logp, reference, values = rows(1)
    rewards = token_rewards(scores, logp, reference, written, beta=0.1)
    macros = Macros.of(Segmenter("whole")(Responses(written, np.arange(len(written)))))
    advantages, returns = credit(rewards, values, macros, Gae())
    mean = np.array([row[mask].mean() for row, mask in zip(values, written, strict=True)])
    assert advantages.max(1, where=written, initial=-99) == pytest.approx(rewards.sum(1) - mean)
    assert returns.max(1, where=written, initial=-99) == pytest.approx(rewards.sum(1))


def test_tool_output_earns_nothing_and_the_score_lies_on_the_last_written_token():
    written = np.array([[True, True, False, True, False], [False] * 5])
    rewards = token_rewards(np.array([1.0, 5.0]), np.ones((2, 5)), np.zeros((2, 5)), written, beta=0.5)
    assert rewards.tolist() == [[-0.5, -0.5, 0, 0.5, 0], [0] * 5]


def test_advantages_within_a_group():
    returns, group = np.array([1.0, 2, 3, 10, 7, 7]), np.array([4, 4, 4, 9, 2, 2])
    assert rloo(returns, group).tolist() == [-1.5, 0, 1.5, 0, 0, 0]
    assert grpo(returns, group).tolist() == [-1, 0, 1, 0, 0, 0]
    assert grpo(returns * 2, group, scaled=False).tolist() == [-2, 0, 2, 0, 0, 0]


def test_whitening():
    written, _, _, _, values = rows(2)
    found = whitened(values, written)
    assert found[written].mean() == pytest.approx(0, abs=1e-12)
    assert found[written].std(ddof=1) == pytest.approx(1, abs=1e-6)
    assert not found[~written].any()


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(HeadraceError, match="3 rewards, 3 values and macros of 4 tokens"):
        macro_gae([0, 0, 0], [0, 0, 0], [2, 2])
    with pytest.raises(HeadraceError, match="value weighting 'none'"):
        macro_gae([0], [0], [1], value_weighting="none")


def test_losses_of_nothing_are_zero():
    none = torch.zeros(0)
    for macro in (None, torch.zeros(0, dtype=torch.long)):
        loss, clipped = policy_loss(none, none, none, macro_N=macro)
        assert (loss.item(), clipped.item()) == (0, 0)
    assert value_loss(none, none, none).item() == 0


def test_importance_weights_multiply_terms():
    logp, advantage = torch.zeros(4), torch.tensor([1.0, 1, 2, 2])
    weight = torch.tensor([0.5, 0.5, 1, 1])
    assert policy_loss(logp, logp, advantage, weight_N=weight)[0].item() == -5
    macro = torch.tensor([0, 0, 1, 1])
    assert policy_loss(logp, logp, advantage, macro_N=macro, weight_N=weight)[0].item() == -2.5


def test_the_estimate_of_kl_is_unbiased():
    torch.manual_seed(0)
    ours, theirs = torch.randn(2, 50).log_softmax(-1)
    drawn = torch.multinomial(ours.exp(), 200_000, replacement=True)
    exact = (ours.exp() * (ours - theirs)).sum()
    found = kl_estimate(ours[drawn], theirs[drawn])
    assert found.min() >= 0
    assert found.mean().item() == pytest.approx(exact.item(), rel=0.05)


def test_a_ratio_beyond_all_numbers_has_a_gradient_that_is_one():
    logp = torch.full((3,), -1.0, requires_grad=True)
    old, advantage, macro = torch.full((3,), -200.0), torch.ones(3), torch.zeros(3, dtype=torch.long)
    loss, clipped = policy_loss(logp, old, advantage, macro_N=macro)
    (gradient,) = torch.autograd.grad(loss, logp)
    assert loss.item() == pytest.approx(-1.2)
    assert clipped.item() == 1
    assert gradient.isfinite().all()
    worse = policy_loss(logp, old, -advantage, macro_N=macro)[0]
    assert torch.autograd.grad(worse, logp)[0].isfinite().all()
