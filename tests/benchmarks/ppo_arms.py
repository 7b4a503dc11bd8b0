"""The peer's arm of `bench_ppo` in a process of its own: `python -m tests.benchmarks.ppo_arms RECIPE STEPS VALUES`.

TRL's PPOTrainer on the recipe's model, prompts, lengths, LoRA rank and reward model, as many optimiser steps as the
recipe has, float32, two threads. VALUES is `trained` (a value model as large as the policy, TRL's usual way) or
`frozen` (its last layer alone is trained: as near to a head on the reference's states as it comes). Prints the seconds
of every step and of its parts.
"""

import json
import sys
import tempfile
import time
from collections import defaultdict
from types import SimpleNamespace

import torch

from engine.config import build_recipe, read_yaml
from engine.evaluation import RewardModel
from engine.models import load_causal_lm, load_tokenizer, resolve
from engine.rlhf.prompts import gather
from jobs import rlhf


class Scorer(torch.nn.Module):
    """The reward model as TRL wants one: a backbone whose last hidden states are the scores already."""

    base_model_prefix = "backbone"

    def __init__(self, options, tokenizer):
        super().__init__()
        self._reward, self._tokenizer = RewardModel(options.model, window=options.window), tokenizer
        self._share = options.weight

    def backbone(self, input_ids, attention_mask, **_):
        pad = self._tokenizer.pad_token_id
        rows = [row[mask.bool()] for row, mask in zip(input_ids, attention_mask, strict=True)]
        texts = [self._tokenizer.decode(row[row != pad], skip_special_tokens=True) for row in rows]
        answers = [text.rpartition("assistant\n")[2] for text in texts]
        scores = torch.tensor(self._reward.scores([""] * len(answers), answers)) * self._share
        return SimpleNamespace(hidden_states=[scores[:, None, None].expand(-1, input_ids.shape[1], 1)])

    def score(self, states):
        return states


def main(path, steps, values):
    """Steps of the peer, timed."""
    from peft import LoraConfig
    from transformers import AutoModelForSequenceClassification, TrainerCallback
    from trl.experimental import ppo
    from trl.experimental.ppo import ppo_trainer

    torch.set_num_threads(2)
    recipe = build_recipe(rlhf.RECIPE, read_yaml(path))
    tokenizer = load_tokenizer(recipe.model)
    if tokenizer.pad_token_id == tokenizer.eos_token_id:
        tokenizer.pad_token = "<|endoftext|>"  # the peer finds a response's end by padding that is not the end's token
    tokenizer.padding_side = "left"
    rows = gather(recipe.prompts, tokenizer, recipe.seed).table.to_pylist()
    prompts = [{"input_ids": row["ids"]} for row in rows if not row["held_out"]]
    value = AutoModelForSequenceClassification.from_pretrained(resolve(recipe.model), num_labels=1, dtype=torch.float32)
    value.config.pad_token_id = tokenizer.pad_token_id
    if values == "frozen":
        getattr(value, value.base_model_prefix).requires_grad_(False)
    spent, timed = defaultdict(float), []

    def part(name, function):
        def wrapped(*arguments, **keys):
            started = time.perf_counter()
            found = function(*arguments, **keys)
            kind = name(*arguments) if callable(name) else name
            if kind:
                spent[kind] += time.perf_counter() - started
            return found

        return wrapped

    class Watch(TrainerCallback):
        started = None

        def on_train_begin(self, *_, **__):
            self.started = time.perf_counter()

        def on_step_end(self, *_, **__):
            now = time.perf_counter()
            whole = now - self.started
            timed.append({"step": whole, **spent, "learn": whole - sum(spent.values())})
            spent.clear()
            self.started = now

    ppo_trainer.batch_generation = part("generate", ppo_trainer.batch_generation)
    ppo_trainer.forward = part(lambda *_: None if torch.is_grad_enabled() else "look", ppo_trainer.forward)
    ppo_trainer.get_reward = part(
        lambda model, *_: "score" if isinstance(model, Scorer) else "look", ppo_trainer.get_reward
    )
    learning, batch = recipe.learning, recipe.rollout.prompts
    with tempfile.TemporaryDirectory() as folder:
        config = ppo.PPOConfig(
            output_dir=folder, per_device_train_batch_size=batch, gradient_accumulation_steps=1,
            num_ppo_epochs=learning.epochs, num_mini_batches=learning.minibatches, total_episodes=steps * batch,
            local_rollout_forward_batch_size=batch, response_length=recipe.rollout.max_tokens, stop_token="eos",
            temperature=recipe.rollout.temperature, kl_coef=learning.kl, learning_rate=recipe.optimiser.learning_rate,
            num_sample_generations=0, report_to=[], save_strategy="no", use_cpu=True, bf16=False, disable_tqdm=True,
            gradient_checkpointing=False, logging_strategy="no", seed=recipe.seed,
        )  # fmt: skip
        lora = LoraConfig(r=recipe.lora.rank, lora_alpha=recipe.lora.alpha, target_modules="all-linear")
        trainer = ppo.PPOTrainer(
            args=config, processing_class=tokenizer, model=load_causal_lm(recipe.model), ref_model=None,
            reward_model=Scorer(recipe.rewards[0], tokenizer), value_model=value, train_dataset=prompts,
            eval_dataset=prompts[:batch], peft_config=lora, callbacks=[Watch()],
        )  # fmt: skip
        trainer.train()
    trained = sum(each.numel() for each in trainer.model.parameters() if each.requires_grad)
    print("FOUND " + json.dumps({"steps": timed, "trained": trained}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
