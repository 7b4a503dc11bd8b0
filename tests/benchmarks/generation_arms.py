"""One arm of `bench_generation` in a process of its own: `python -m tests.benchmarks.generation_arms ENGINE BATCH`.

SmolLM2-135M in float32 writes 32 tokens for each of BATCH prompts at temperature 1, its end-of-sequence token ignored;
prints the seconds of each batch after the first.
"""

import json
import sys
import time

import torch

from engine.models import VllmGenerator, load_causal_lm, load_tokenizer

MODEL, NEW, WARM, TIMED = "pkg:smollm2-135m", 32, 1, 3


def vllm(prompts):
    """The evaluation's generator, with the seeds it gives each row."""
    from vllm import SamplingParams

    generator = VllmGenerator(MODEL, at_once=len(prompts), longest=512)
    inputs = [{"prompt_token_ids": each} for each in prompts]

    def write(number):
        asked = [
            SamplingParams(temperature=1.0, max_tokens=NEW, ignore_eos=True, seed=1000 * number + at)
            for at in range(len(prompts))
        ]
        written = generator.engine.generate(inputs, asked, use_tqdm=False)
        return sum(len(each.outputs[0].token_ids) for each in written)

    return write


def transformers(prompts):
    """`model.generate` on the whole batch, padded on the left."""
    tokenizer, model = load_tokenizer(MODEL), load_causal_lm(MODEL)
    longest = max(map(len, prompts))
    pad = tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (longest - len(each)) + each for each in prompts])
    mask = torch.tensor([[0] * (longest - len(each)) + [1] * len(each) for each in prompts])

    def write(number):
        torch.manual_seed(number)
        with torch.inference_mode():
            out = model.generate(
                input_ids=ids, attention_mask=mask, do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
                min_new_tokens=NEW, max_new_tokens=NEW, pad_token_id=pad,
            )  # fmt: skip
        return out[:, longest:].numel()

    return write


def main(engine, batch):
    """Time an engine on batches of chat prompts."""
    torch.set_num_threads(2) if engine == "transformers" else None
    tokenizer = load_tokenizer(MODEL)
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": f"Write one sentence about the number {at}."}],
            add_generation_prompt=True,
            return_dict=False,
        )
        for at in range(int(batch))
    ]
    write = {"vllm": vllm, "transformers": transformers}[engine](prompts)
    seconds = []
    for number in range(WARM + TIMED):
        started = time.perf_counter()
        tokens = write(number)
        seconds.append(time.perf_counter() - started)
        assert tokens == NEW * len(prompts)
    print("RESULT " + json.dumps(seconds[WARM:]))


if __name__ == "__main__":
    main(*sys.argv[1:])
