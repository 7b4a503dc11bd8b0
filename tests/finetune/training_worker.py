"""One worker of a tiny training, for test_learner: trains as each of the cases says and prints the losses as JSON.

python training_worker.py RANK WORLD FOLDER RUN CASES
"""

import faulthandler
import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from engine.finetune import DataOrder, pack, share
from engine.finetune.attention import use_packed_attention
from engine.finetune.batches import make_row, next_token_loss
from engine.finetune.formats import Example
from engine.finetune.head import use_loss_head
from engine.finetune.learner import Learner, learning_rate
from engine.finetune.options import OptimiserOptions, ParallelOptions

STEPS, PER_STEP, WINDOW = 20, 8, 64
OPTIONS = OptimiserOptions(learning_rate=1e-2, weight_decay=0.1)


def tiny(seed=0):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=WINDOW,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def examples():
    rng = np.random.default_rng(0)
    return [Example(rng.integers(0, 97, n).tolist(), [(2, int(n))]) for n in rng.integers(5, 40, 64)]


def step_of(number):
    """The examples of a step."""
    chosen, _ = DataOrder(64, 0).take(number * PER_STEP, PER_STEP)
    every = examples()
    return [every[at] for at in chosen]


def row_loss(model, row):
    return next_token_loss(model, row)


def plainly():
    """The same with torch alone."""
    model, losses = tiny(), []
    groups = [
        {"params": [each for each in model.parameters() if each.ndim > 1], "weight_decay": OPTIONS.weight_decay},
        {"params": [each for each in model.parameters() if each.ndim <= 1], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, lr=OPTIONS.learning_rate, betas=OPTIONS.betas)
    for number in range(STEPS):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(OPTIONS, number, STEPS)
        some = step_of(number)
        loss = sum(row_loss(model, make_row([each])) for each in some) / sum(each.loss_tokens for each in some)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), OPTIONS.clip)
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
    return losses


def train(rank, world, folder, zero, packed=True, resume=False, bf16=False, after=None):
    """Losses of a training, which is broken off and taken up in the middle if `resume` says so; or those of its second
    half alone, going on from what another training, `after`, has left."""

    def learner_of(model):
        model = use_loss_head(use_packed_attention(model.bfloat16() if bf16 else model))
        return Learner(model, OPTIONS, ParallelOptions(zero=zero, workers=world), STEPS, bf16=bf16)

    def taken_up(folder):
        model = tiny(seed=1)
        model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
        model.tie_weights()
        learner = learner_of(model)
        learner.load(folder)
        return learner

    half, losses = STEPS // 2, []
    learner = taken_up(folder.parent / after) if after else learner_of(tiny())
    for number in range(half if after else 0, STEPS):
        if resume and number == half:
            folder.mkdir(exist_ok=True)
            learner.save(folder)
            weights = learner.weights()
            if weights is not None:
                save_file({name: each.clone() for name, each in weights.items()}, folder / "model.safetensors")
            torch.distributed.barrier()
            learner = taken_up(folder)
        some = step_of(number)
        rows = pack([len(each.ids) for each in some], WINDOW) if packed else [[at] for at in range(len(some))]
        mine = [make_row([some[at] for at in row]) for row in share(rows, world)[rank]]
        losses.append(learner.step(mine, sum(each.loss_tokens for each in some), row_loss).loss)
    return losses


def main():
    rank, world, folder, run = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
    faulthandler.enable()
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK="0")
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/rendezvous-{run}", rank=rank, world_size=world)
    found = {}
    for case in json.loads(sys.argv[5]):
        name = json.dumps(case)
        found[f"{run} {name}"] = train(rank, world, folder / f"{run}-{len(found)}", **case)
    if rank == 0:
        (folder / f"losses-{run}.json").write_text(json.dumps(found))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    os._exit(0)  # what is tested is done; threads of gloo now and then crash an interpreter that closes down


if __name__ == "__main__":
    main()
