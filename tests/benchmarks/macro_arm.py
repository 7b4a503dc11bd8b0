"""One trial of `bench_macro` in a process of its own: `python -m tests.benchmarks.macro_arm HOME RULE RATE SEED STEPS`.

A small Llama from random weights says the alphabet: asked for a letter, it is to begin with that letter and go on
letter after letter, 60 of them, round and round. The score, the share of letters that follow rightly, comes once, at
the end. All of it is the loop of `headrace rlhf`, the transformers engine in one process; prints a line of JSON with
the reward of every step and the seconds it took.
"""

import json
import os
import string
import sys
import time
from pathlib import Path

import torch
from upath import UPath

from engine.config import build_recipe
from engine.finetune.checkpoints import Checkpoints, State
from engine.finetune.loop import agree
from engine.models import load_causal_lm, load_tokenizer, load_values, save_model
from engine.observe import MetricsWriter, read_metrics
from engine.rlhf.critic import ValueModel
from engine.rlhf.engines import TransformersRollout
from engine.rlhf.learner import PolicyLearner
from engine.rlhf.loop import Loop, Seats
from engine.rlhf.policy import Policy
from engine.rlhf.prompts import Prompt, Prompts
from engine.rlhf.rollouts import LocalRollouts
from engine.rlhf.weights import for_engines
from jobs import rlhf

LETTERS, LENGTH = string.ascii_lowercase[:12], 60


class Alphabet:
    """The scorer."""

    def scores(self, answers, watched):
        found = [_share(each.prompt, each.response.split()) for each in answers]
        return found, {"alphabet": found}


def _share(prompt, letters):
    wanted = LETTERS.index(prompt)
    right = 0
    for letter in letters[:LENGTH]:
        right += letter == LETTERS[wanted]
        wanted = (LETTERS.index(letter) + 1) % len(LETTERS) if letter in LETTERS else wanted
    return 10 * right / LENGTH


def make_model(folder, seed):
    """A Llama of random weights over the letters, with a tokenizer of words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = {word: at for at, word in enumerate(["<pad>", "<end>", *LETTERS])}
    inner = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<end>")
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=128, tie_word_embeddings=False, pad_token_id=0, eos_token_id=1, bos_token_id=None,
    )  # fmt: skip
    save_model(LlamaForCausalLM(config), tokenizer, folder)


def main(home, rule, rate, seed, steps):
    """The trial."""
    torch.set_num_threads(1)
    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")
    home = Path(home)
    home.mkdir(parents=True)
    torch.distributed.init_process_group("gloo", f"file://{home}/rendezvous", rank=0, world_size=1)
    model = str(home / "start")
    make_model(home / "start", seed)
    recipe = build_recipe(
        rlhf.RECIPE,
        {
            "name": "trial", "seed": seed, "runs": str(home), "model": model, "macro": {"rule": rule},
            "prompts": {"source": {"paths": ["none"]}, "window": 2},
            "rewards": [{"kind": "function", "name": "alphabet", "function": "none:none"}],
            "learning": {
                "steps": steps, "epochs": 2, "minibatches": 2, "kl": 0.0, "whiten_advantages": True,
                "measure_every": steps, "checkpoint_every": steps,
            },
            "critic": {"kind": "model", "learning_rate": rate},
            "rollout": {"prompts": 64, "max_tokens": LENGTH, "engine": "transformers", "at_once": 64},
            "optimiser": {"learning_rate": rate, "schedule": "constant", "warm_up": 0.0, "weight_decay": 0.0},
            "parallel": {"tokens_per_device": 4096},
        },
    )  # fmt: skip
    tokenizer = load_tokenizer(model)
    prompts = [Prompt(tokenizer(each)["input_ids"], each, None) for each in LETTERS]
    policy = Policy(load_causal_lm(model))
    torch.manual_seed(seed)
    learner = PolicyLearner(
        policy, ValueModel(load_values(model)), learning=recipe.learning, macro=recipe.macro,
        critic_options=recipe.critic, optimiser=recipe.optimiser, parallel=recipe.parallel, seed=seed,
    )  # fmt: skip
    seats = Seats(
        recipe=recipe, home=UPath(home), learner=learner, prompts=Prompts(prompts * 6, []), tokenizer=tokenizer,
        saves=lambda policy, critic, folder: None, for_engines=lambda weights: for_engines(policy, weights),
        rollouts=LocalRollouts(TransformersRollout(model, at_once=64, longest=64)), scorer=Alphabet(),
    )  # fmt: skip
    started = time.perf_counter()
    with MetricsWriter(UPath(home)) as metrics:
        Loop(seats, Checkpoints(UPath(home), 0, agree), State()).run(metrics)
    lines = [line for line in read_metrics(UPath(home)) if "seconds/step" in line]
    print(
        "FOUND "
        + json.dumps(
            {
                "rule": rule, "rate": rate, "seed": seed, "seconds": time.perf_counter() - started,
                "reward": [round(line["reward"], 3) for line in lines],
                "step_seconds": [round(line["seconds/step"], 3) for line in lines],
                "entropy": [round(line["entropy"], 3) for line in lines],
            }
        )
    )  # fmt: skip
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))
