"""One arm of `bench_sft_throughput` in a process of its own: `python -m tests.benchmarks.sft_arms ARM DATA`.

Trains SmolLM2-135M, all of it, in float32 on two threads, on the examples in DATA (ids and loss ranges), 8 a step, and
prints the tokens, seconds and CPU seconds of each step after the first, with what the step's parts took.
"""

import json
import os
import sys
import time
from collections import defaultdict
from contextlib import contextmanager

import torch

from engine.finetune import pack
from engine.finetune.attention import use_packed_attention
from engine.finetune.batches import make_row, next_token_loss
from engine.finetune.formats import Example
from engine.finetune.head import use_loss_head
from engine.finetune.learner import Learner
from engine.finetune.options import OptimiserOptions, ParallelOptions
from engine.models import load_causal_lm, load_tokenizer

MODEL = "pkg:smollm2-135m"
PER_STEP, MICRO, WINDOW, WARM = 8, 4, 512, 1
OPTIMISER = OptimiserOptions(learning_rate=1e-5, schedule="constant", warm_up=0.0, clip=1.0)


def ours(steps):
    """The learner under DeepSpeed, examples packed into rows of as many tokens as the peer's micro-batch may have."""
    torch.distributed.init_process_group("gloo", f"file:///tmp/sft-arm-{os.getpid()}", rank=0, world_size=1)
    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")
    learner = Learner(
        use_loss_head(use_packed_attention(load_causal_lm(MODEL))), OPTIMISER, ParallelOptions(), len(steps)
    )
    return [_timed(some, lambda some=some: learner.step(_rows(some), _weight(some), _loss)) for some in steps]


def bare(steps):
    """The same rows in a loop of torch alone: what DeepSpeed adds is the difference."""
    model = _model().train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    parts = defaultdict(float)

    @contextmanager
    def part(name):
        started = time.perf_counter()
        yield
        parts[name] += time.perf_counter() - started

    def step(some):
        for row in _rows(some):
            with part("forward"):
                loss = _loss(model, row) / _weight(some)
            with part("backward"):
                loss.backward()
        with part("clip"):
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        with part("optimiser"):
            optimiser.step()
            optimiser.zero_grad()

    found = []
    for some in steps:
        parts.clear()
        found.append(_timed(some, lambda some=some: step(some)) | {"parts": dict(parts)})
    return found


def trl(steps, *, packing=False):
    """TRL's SFTTrainer with everything that slows it down for memory's sake turned off."""
    import pyarrow as pa
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    tokenizer = load_tokenizer(MODEL)
    model = load_causal_lm(MODEL)
    marks = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *arguments, **keys):
            self.started = time.perf_counter(), time.process_time()

        def on_step_end(self, *arguments, **keys):
            marks.append((time.perf_counter() - self.started[0], time.process_time() - self.started[1]))

    rows = []
    for some in steps:
        for each in some:
            labels = [-100] * len(each.ids)
            for start, end in each.loss:
                labels[start:end] = each.ids[start:end]
            rows.append({"input_ids": each.ids, "labels": labels})
    config = SFTConfig(
        output_dir=f"/tmp/trl-{os.getpid()}", per_device_train_batch_size=MICRO,
        gradient_accumulation_steps=PER_STEP // MICRO, max_steps=len(steps), learning_rate=1e-5,
        lr_scheduler_type="constant", max_length=WINDOW, packing=packing, use_cpu=True, bf16=False,
        gradient_checkpointing=False, report_to=[], save_strategy="no",
        logging_strategy="no", shuffle_dataset=False, dataset_kwargs={"skip_prepare_dataset": True},
        dataloader_num_workers=0, disable_tqdm=True, train_sampling_strategy="sequential",
    )  # fmt: skip
    trainer = SFTTrainer(
        model=model,
        args=config,
        train_dataset=Dataset(pa.Table.from_pylist(rows), fingerprint="steps"),
        processing_class=tokenizer,
        callbacks=[Clock()],
    )
    trainer.train()
    return [
        {"tokens": sum(len(each.ids) for each in some), "seconds": wall, "cpu": cpu}
        for some, (wall, cpu) in zip(steps, marks, strict=True)
    ]


def _model():
    return use_loss_head(use_packed_attention(load_causal_lm(MODEL)))


def _rows(some):
    packed = pack([len(each.ids) for each in some], MICRO * WINDOW)
    return [make_row([some[at] for at in row]) for row in packed]


def _weight(some):
    return sum(each.loss_tokens for each in some)


def _loss(model, row):
    return next_token_loss(model, row)


def _timed(some, step):
    started, cpu = time.perf_counter(), time.process_time()
    step()
    seconds, used = time.perf_counter() - started, time.process_time() - cpu
    return {"tokens": sum(len(each.ids) for each in some), "seconds": seconds, "cpu": used}


def main(arm, path):
    """Run an arm and print what its steps took."""
    torch.set_num_threads(2)
    with open(path) as file:
        examples = [Example(ids, [tuple(each) for each in loss]) for ids, loss in json.load(file)]
    steps = [examples[at : at + PER_STEP] for at in range(0, len(examples), PER_STEP)]
    found = {"ours": ours, "bare": bare, "trl": trl}[arm](steps)
    print("RESULT " + json.dumps(found[WARM:]))


if __name__ == "__main__":
    main(*sys.argv[1:])
