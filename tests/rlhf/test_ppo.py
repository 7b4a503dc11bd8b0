"""PPO under DeepSpeed is PPO: a plain single process, two workers, any packing, ZeRO and LoRA come to the same."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

WORKER = Path(__file__).with_name("ppo_worker.py")
sys.path.insert(0, str(WORKER.parent))
from ppo_worker import OPTIMISER, STEPS, ValueHead, samples_of, score, tiny  # noqa: E402

SHARED = [
    {},
    {"learning": {"layers": 2}},
    {"learning": {"layers": 2}, "lora": True},
    {"macro": {"rule": "fixed:3", "ratio": "joint", "value_loss": "macro"}, "critic": "model"},
    {"learning": {"kl_loss": 0.1}, "critic": None},
]
CASES = {
    1: [*SHARED, {"capacity": 16}, {"zero": 2}, {"zero": 3}, {"macro": {"rule": "token"}}, {"keep": "plain"},
        {"keep": "three", "zero": 3}, {"resume": "plain", "zero": 3}, {"resume": "three"}, {"empty": True},
        {"scale": 1e39}],
    2: [*SHARED, {"zero": 2, "capacity": 16}, {"zero": 3}, {"zero": 3, "learning": {"layers": 2}},
        {"resume": "plain", "zero": 2}, {"resume": "three", "zero": 3}, {"empty": True}],
}  # fmt: skip
RESUMED = [(world, case) for world, cases in CASES.items() for case in cases if "resume" in case]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder, found = tmp_path_factory.mktemp("ppo"), {}
    environment = {**os.environ, "PYTHONPATH": str(WORKER.parents[2])}
    for world, cases in CASES.items():
        commands = [[sys.executable, WORKER, str(rank), str(world), folder, json.dumps(cases)] for rank in range(world)]
        workers = [
            subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            for command in commands
        ]
        try:
            said = [each.communicate(timeout=300)[1] for each in workers]
        finally:
            for each in workers:
                each.kill()
        assert not any(each.returncode for each in workers), [each.returncode for each in workers] + said
        found[world] = json.loads((folder / f"found-{world}.json").read_text())
    return found


def same(ours, theirs, rel=2e-3):
    for one, other in zip(ours, theirs, strict=True):
        for name in one.keys() & other.keys():
            assert one[name] == pytest.approx(other[name], rel=rel, abs=2e-4), name


@pytest.mark.parametrize("case", SHARED, ids=str)
def test_two_workers_are_one(found, case):
    name = json.dumps(case)
    same(found[2][name], found[1][name])


@pytest.mark.parametrize(
    ("world", "case"), [(1, {"capacity": 16}), (1, {"zero": 2}), (1, {"zero": 3}), (2, {"zero": 2, "capacity": 16}),
                        (2, {"zero": 3})], ids=str)  # fmt: skip
def test_neither_packing_nor_zero_changes_anything(found, world, case):
    same(found[world][json.dumps(case)], found[1]["{}"])


def test_a_frozen_trunk_under_zero_3(found):
    same(
        found[2][json.dumps({"zero": 3, "learning": {"layers": 2}})], found[1][json.dumps({"learning": {"layers": 2}})]
    )


@pytest.mark.parametrize(("world", "case"), RESUMED, ids=str)
def test_any_workers_and_zero_stage_go_on_from_what_others_saved(found, world, case):
    same(found[world][json.dumps(case)], found[1]["{}"][1:])


def test_a_response_that_says_nothing_is_nothing_to_learn_from(found):
    empty = json.dumps({"empty": True})
    same(found[2][empty], found[1][empty])
    assert all(np.isfinite(value) for step in found[1][empty] for value in step.values())


def test_a_loss_that_is_no_number_is_told(found):
    (said,) = found[1][json.dumps({"scale": 1e39})]
    assert said.startswith("The loss of step 1 is"), said
    assert "the last checkpoint stays" in said


def test_one_token_per_macro_is_plain_ppo(found):
    same(found[1][json.dumps({"macro": {"rule": "token"}})], plain_ppo(), rel=1e-3)


def test_it_learns(found):
    for case in SHARED:
        steps = found[1][json.dumps(case)]
        assert all(np.isfinite(value) for step in steps for value in step.values())
        assert steps[0]["logp"] == pytest.approx(steps[0]["reference"], rel=1e-5), "nothing has moved yet"
        assert abs(steps[-1]["logp"] - steps[-1]["reference"]) > 0.1


def plain_ppo(clip=0.2, beta=0.1, lam=0.95):
    """Token-level PPO with a value head on the reference's states, in plain torch, one response at a time."""
    policy, reference = tiny(), tiny()
    torch.manual_seed(1)
    critic = ValueHead(32, 16)
    adam = {"lr": OPTIMISER.learning_rate, "betas": OPTIMISER.betas, "weight_decay": 0.0}
    actor_optimiser = torch.optim.AdamW(policy.parameters(), **adam)
    critic_optimiser = torch.optim.AdamW(critic.parameters(), **adam)

    def logp(model, sample):
        ids = torch.tensor([[*sample.prompt, *sample.response]])
        out = model(ids, output_hidden_states=True)
        at = slice(len(sample.prompt) - 1, -1)
        chosen = out.logits[0, at].log_softmax(-1).gather(1, ids[0, len(sample.prompt) :, None])[:, 0]
        return chosen, out.hidden_states[-1][0, at].detach()

    found = []
    for step in range(STEPS):
        samples, taught = samples_of(step), []
        for sample in samples:
            with torch.no_grad():
                old, _ = logp(policy, sample)
                before, states = logp(reference, sample)
                values = critic(None, states)
            rewards = -beta * (old - before)
            rewards[-1] += score(sample)
            advantages, last = torch.zeros(len(old)), 0.0
            for t in reversed(range(len(old))):
                after = values[t + 1] if t + 1 < len(old) else 0.0
                last = rewards[t] + after - values[t] + lam * last
                advantages[t] = last
            taught.append((sample, old, before, states, values, advantages, advantages + values))
        told = {"policy_loss": [], "value_loss": []}
        order = np.random.default_rng([0, step]).permutation(len(samples))
        for _ in range(2):
            for part in np.array_split(order, 2):
                count = sum(len(taught[at][1]) for at in part)
                policy_loss = value_loss = 0.0
                for at in part:
                    sample, old, _, states, values, advantages, returns = taught[at]
                    ratio = (logp(policy, sample)[0] - old).exp()
                    terms = torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)
                    policy_loss = policy_loss - terms.sum() / count
                    new = critic(None, states)
                    near = values + (new - values).clamp(-clip, clip)
                    error = torch.maximum((new - returns) ** 2, (near - returns) ** 2)
                    value_loss = value_loss + 0.5 * error.sum() / count
                for loss, optimiser, model in (
                    (policy_loss, actor_optimiser, policy),
                    (value_loss, critic_optimiser, critic),
                ):
                    optimiser.zero_grad()
                    loss.backward()
                    torch.nn.utils.clip_grad_norm_(model.parameters(), OPTIMISER.clip)
                    optimiser.step()
                told["policy_loss"].append(policy_loss.item())
                told["value_loss"].append(value_loss.item())
        found.append({name: float(np.mean(values)) for name, values in told.items()})
        found[-1] |= {
            "logp": sum(each[1].sum().item() for each in taught),
            "reference": sum(each[2].sum().item() for each in taught),
            "values": sum(each[4].sum().item() for each in taught),
        }
    return found
