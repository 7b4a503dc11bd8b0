"""How fast a base with a value network writes: beside either model alone in the same engine, and beside transformers.

SmolLM2-135M with ten of its layers as value network, float32, two threads, greedy, 64 tokens after prompts of 64, in
one process after the other and three rounds each. Ideal: 1 / (seconds a token of the base alone + of the value network
alone), both in vLLM with the same settings. Peer: the two models in transformers with caches, a static batch of 8 (and
of 1). Logits are float32 everywhere; the value network is made here and its weights do not matter for speed.
"""

import statistics
import tempfile
import time
from pathlib import Path

import ray

from engine.cluster import session
from engine.models import load_causal_lm, load_tokenizer, prune_layers, save_model
from engine.value_network.card import Card, vocabulary_fingerprint
from engine.value_network.networks import use_value_head

MODEL, LAYERS = "pkg:smollm2-135m", 10
PROMPT, TOKENS, ROUNDS = 64, 64, 3
CONCURRENT = (1, 16)
THREADS = "2"


def main():
    """The three engines and the peer."""
    with tempfile.TemporaryDirectory() as folder:
        plain, value = make_value_network(Path(folder))
        with session(None):
            runs = {
                "base": _engine(MODEL, None),
                "value": _engine(str(plain), None),
                "both": _engine(MODEL, str(value)),
                "both_beta_0": _engine(MODEL, str(value), beta=0.0),
            }
            peer = ray.remote(num_cpus=1, runtime_env={"env_vars": {"OMP_NUM_THREADS": THREADS}})(_Transformers)
            loop = peer.remote(MODEL, str(value))
            runs["transformers"] = {size: [ray.get(loop.write.remote(size)) for _ in range(ROUNDS)] for size in (1, 8)}
            ray.kill(loop)
    rate = {name: {size: statistics.median(each) for size, each in sizes.items()} for name, sizes in runs.items()}
    ideal = {size: 1 / (1 / rate["base"][size] + 1 / rate["value"][size]) for size in CONCURRENT}
    return {
        "tokens_per_second": runs,
        "summary": {
            "median_tokens_per_second": {
                name: {size: round(each, 1) for size, each in sizes.items()} for name, sizes in rate.items()
            },
            "ideal": {size: round(each, 1) for size, each in ideal.items()},
            "share_of_ideal": {size: round(rate["both"][size] / ideal[size], 3) for size in CONCURRENT},
            "times_transformers_batch_8": round(rate["both"][16] / rate["transformers"][8], 2),
            "times_transformers_batch_1": round(rate["both"][1] / rate["transformers"][1], 2),
        },
    }


def make_value_network(folder):
    """The directories of a small model as it is, and of the same as a value network."""
    model, tokenizer = load_causal_lm(MODEL), load_tokenizer(MODEL)
    prune_layers(model, LAYERS)
    save_model(model, tokenizer, folder / "plain")
    save_model(use_value_head(model, zero=False), tokenizer, folder / "value")
    Card(connection="residual", vocabulary=vocabulary_fingerprint(tokenizer)).write(folder / "value")
    return folder / "plain", folder / "value"


class _Vllm:
    """An engine in an actor."""

    def __init__(self, base, value):
        from engine.models import resolve, start_vllm
        from engine.value_network.generation import ValueGenerator

        most = max(CONCURRENT)
        if value is None:
            self.engine, _ = start_vllm(resolve(base), at_once=most, longest=256)
        else:
            self.engine = ValueGenerator(base, value, at_once=most, longest=256).engine
        self.write(1, None)

    def write(self, size, beta):
        """Tokens per second of so many texts at a time."""
        from vllm import SamplingParams

        extra = None if beta is None else {"value_beta": beta}
        asked = SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True, extra_args=extra)
        prompts = [{"prompt_token_ids": _prompt(at)} for at in range(size)]
        started = time.perf_counter()
        found = self.engine.generate(prompts, asked, use_tqdm=False)
        seconds = time.perf_counter() - started
        return sum(len(each.outputs[0].token_ids) for each in found) / seconds


def _engine(base, value, beta=None):
    actor = ray.remote(num_cpus=1, runtime_env={"env_vars": {"OMP_NUM_THREADS": THREADS}})(_Vllm).remote(base, value)
    runs = {size: [ray.get(actor.write.remote(size, beta)) for _ in range(ROUNDS)] for size in CONCURRENT}
    ray.kill(actor)
    return runs


class _Transformers:
    """Two models, two caches, one loop."""

    def __init__(self, base, value):
        import torch

        torch.set_num_threads(int(THREADS))
        self.models = [load_causal_lm(base), load_causal_lm(value)]
        self.write(1)

    def write(self, size):
        """Tokens per second of so many texts in one batch."""
        import torch

        ids, caches = torch.tensor([_prompt(at) for at in range(size)]), [None, None]
        started = time.perf_counter()
        with torch.inference_mode():
            for _ in range(TOKENS):
                logits = 0
                for at, model in enumerate(self.models):
                    out = model(input_ids=ids, past_key_values=caches[at], use_cache=True, logits_to_keep=1)
                    caches[at] = out.past_key_values
                    logits = logits + out.logits[:, -1]
                ids = logits.argmax(-1, keepdim=True)
        return size * TOKENS / (time.perf_counter() - started)


def _prompt(at):
    return [(37 * at + 11 * place) % 40_000 + 100 for place in range(PROMPT)]
