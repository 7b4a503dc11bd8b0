"""One worker of a tiny PPO, for test_ppo: learns as each of the cases says and writes what came of it as JSON.

python ppo_worker.py RANK WORLD FOLDER CASES
"""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForTokenClassification

from engine.errors import HeadraceError
from engine.finetune.lora import with_adapter
from engine.finetune.options import LoraOptions, OptimiserOptions, ParallelOptions
from engine.rlhf import Gae, Macros, Responses, Segmenter, credit, token_rewards
from engine.rlhf.critic import ValueHead, ValueModel
from engine.rlhf.learner import Credited, PolicyLearner, Sample
from engine.rlhf.options import CriticOptions, LearningOptions, MacroOptions
from engine.rlhf.policy import Policy, freeze
from engine.rlhf.weights import load_weights, save_weights

STEPS, SAMPLES = 3, 6
OPTIMISER = OptimiserOptions(learning_rate=1e-2, schedule="constant", warm_up=0.0, weight_decay=0.0)
CONFIG = {
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
    "max_position_embeddings": 64, "tie_word_embeddings": True,
}  # fmt: skip


def tiny(kind=LlamaForCausalLM, seed=0, **keys):
    torch.manual_seed(seed)
    return kind(LlamaConfig(**CONFIG, **keys))


def samples_of(step):
    rng = np.random.default_rng(step)
    return [
        Sample(rng.integers(1, 61, rng.integers(1, 6)).tolist(), rng.integers(1, 61, rng.integers(1, 9)).tolist())
        for _ in range(SAMPLES)
    ]


def written(samples):
    most = max(len(each.response) for each in samples)
    return np.arange(most) < np.array([len(each.response) for each in samples])[:, None]


def score(sample):
    """Low tokens are liked; one that says nothing is not."""
    return 1.0 - np.mean(sample.response) / 30 if sample.response else 0.0


def credited_of(samples, looked, macro):
    """As the loop does it, at its simplest."""
    mask = written(samples)
    rewards = token_rewards(np.array([score(each) for each in samples]), looked.logp, looked.reference, mask, beta=0.1)
    macros = Macros.of(Segmenter(macro.rule)(Responses(mask, np.arange(len(samples)))))
    advantages, returns = credit(rewards, looked.values, macros, Gae(macro.gamma, macro.lam, macro.value_weighting))
    return Credited(looked.logp, looked.reference, looked.values, advantages, returns, macros)


def learn(
    world, folder, *, macro=None, learning=None, critic="head", zero=0, lora=False, capacity=64, keep=None, resume=None,
    empty=False, scale=1.0,
):  # fmt: skip
    """What is looked at and told in each step; `keep` saves all after the first one, `resume` goes on from there.
    `empty`: two responses say nothing; `scale`: of the advantages. An error ends it, and is told."""
    macro = MacroOptions(**(macro or {}))
    learning = LearningOptions(**{"steps": STEPS, "epochs": 2, "minibatches": 2, **(learning or {})})

    def learner_of():
        lm = tiny()
        torch.manual_seed(1)
        frozen = freeze(lm, learning.layers)
        if lora:
            lm = with_adapter(lm, LoraOptions(rank=2), layers=range(frozen, 4))
        value = ValueHead(32, 16) if critic == "head" else ValueModel(tiny(LlamaForTokenClassification, num_labels=1))
        policy, value = Policy(lm, frozen=frozen), value if critic else None
        if resume:
            load_weights(policy, value, folder / resume)
        learner = PolicyLearner(
            policy, value, learning=learning, macro=macro,
            critic_options=CriticOptions(learning_rate=1e-2), optimiser=OPTIMISER,
            parallel=ParallelOptions(workers=world, zero=zero, tokens_per_device=capacity), seed=0,
        )  # fmt: skip
        if resume:
            learner.load(folder / resume)
        return learner

    learner, found = learner_of(), []
    for step in range(1 if resume else 0, STEPS):
        samples = samples_of(step)
        if empty:
            samples[1:3] = [Sample(each.prompt, []) for each in samples[1:3]]
        learner.prepare(samples, step)
        looked = learner.look()
        credited = credited_of(samples, looked, macro)
        try:
            told = learner.learn(replace(credited, advantages=credited.advantages * scale))
        except HeadraceError as error:
            return [str(error)]
        found.append({"logp": looked.logp.sum(), "reference": looked.reference.sum(), "values": looked.values.sum()})
        found[-1] |= told
        if keep and not step:
            (folder / keep).mkdir(exist_ok=True)
            learner.save(folder / keep)
            weights, values = learner.weights(set(learner.policy.trained())), learner.critic_weights()
            if weights is not None:
                save_weights(learner.policy, weights, values, folder / keep)
            torch.distributed.barrier()
    return found


def main():
    rank, world, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK="0")
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/rendezvous-{world}", rank=rank, world_size=world)
    found = {json.dumps(case): learn(world, folder, **case) for case in json.loads(sys.argv[4])}
    if rank == 0:
        (folder / f"found-{world}.json").write_text(json.dumps(found))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    os._exit(0)  # what is tested is done; threads of gloo now and then crash an interpreter that closes down


if __name__ == "__main__":
    main()
