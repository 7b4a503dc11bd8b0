"""Weights to a vLLM engine against a plain copy in memory, and drawing beside learning against one after the other.

Sync: all of SmolLM2-135M in float32, from the learner's tensors to an engine in another process, verified by a probe;
its parts are timed apart. A copy of the same tensors within this process is the limit. With an adapter of rank 16 on
ten layers, sent whole or as halves, too. Drawing beside learning: the laptop recipe, five steps each. Needs
`headrace reward-model jobs/recipes/reward-model_laptop.yaml` to have run (or BENCH_REWARD, a model).
"""

import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import torch

from engine.cluster import session
from engine.finetune.lora import with_adapter
from engine.finetune.options import LoraOptions
from engine.models import load_causal_lm, load_tokenizer
from engine.rlhf.adapters import Bases
from engine.rlhf.engines import TransformersRollout, make_engine
from engine.rlhf.fleet import ActorRollouts
from engine.rlhf.policy import Policy, freeze
from engine.rlhf.rollouts import EngineActor, Probe
from engine.rlhf.transport import ObjectStore
from engine.rlhf.weights import for_engines
from tests.benchmarks.bench_ppo import medians, ours

MODEL, ROUNDS = "pkg:smollm2-135m", 5


def main():
    """Syncs, then the two recipes."""
    syncs = _syncs()
    with tempfile.TemporaryDirectory() as folder:
        apart = ours(Path(folder), "apart", {})
        beside = ours(Path(folder), "beside", {"rollout.asynchronous": True})
    parts = {"apart": medians(apart), "beside": medians(beside)}
    copy = statistics.median(syncs["copy"])
    whole = statistics.median(each["all"] for each in syncs["whole"])
    return {
        "syncs": syncs,
        "steps": {"apart": apart, "beside": beside},
        "summary": {
            "gigabytes": round(syncs["bytes"]["whole"] / 1e9, 3),
            "sync_seconds_per_gb": round(whole / syncs["bytes"]["whole"] * 1e9, 2),
            "copy_seconds_per_gb": round(copy / syncs["bytes"]["whole"] * 1e9, 2),
            "sync_to_copy": round(whole / copy, 2),
            "parts": {
                kind: {name: round(statistics.median(each[name] for each in syncs[kind]), 3) for name in syncs[kind][0]}
                for kind in ("whole", "merged", "adapter")
            },
            "megabytes": {kind: round(size / 1e6, 1) for kind, size in syncs["bytes"].items()},
            "median_seconds": parts,
            "beside_to_apart": round(parts["beside"]["step"] / parts["apart"]["step"], 2),
        },
    }


def _syncs():
    import ray

    lm = load_causal_lm(MODEL)
    weights = {name: each for name, each in lm.state_dict().items() if name != "lm_head.weight"}
    ids = load_tokenizer(MODEL)("The quick brown fox jumps over the lazy dog.")["input_ids"]
    found = {"copy": [_seconds(lambda: {name: each.clone() for name, each in weights.items()}) for _ in range(ROUNDS)]}
    frozen = freeze(lm, 10)
    policy = Policy(with_adapter(lm, LoraOptions(rank=16), layers=range(frozen, 30)), frozen=frozen)
    kinds = {
        "whole": weights,
        "merged": for_engines(policy, policy.lm.state_dict()),
        "adapter": for_engines(policy, policy.lm.state_dict(), halves=True),
    }
    expected = Probe(ids, TransformersRollout(MODEL, at_once=8, longest=128).logprobs(ids), 0.02)
    make = partial(make_engine, "vllm", MODEL, at_once=64, longest=128)
    with session(None):
        for kind, tensors in kinds.items():
            actor = ray.remote(num_cpus=0.5, runtime_env={"env_vars": {"OMP_NUM_THREADS": "2"}})(EngineActor)
            handle = actor.remote(make, partial(Bases, MODEL, "float32") if kind == "adapter" else None)
            rollouts = ActorRollouts([handle], 300.0)
            rollouts.sync(0, tensors, expected)  # once to warm up
            found[kind] = [_sync(rollouts, handle, tensors, expected, number) for number in range(ROUNDS)]
            ray.kill(handle)
    found["bytes"] = {kind: sum(each.numel() * 4 for each in tensors.values()) for kind, tensors in kinds.items()}
    return found


def _sync(rollouts, handle, tensors, probe, number):
    """One sync as a training does it, and its parts each by itself."""
    import ray

    whole = _seconds(lambda: rollouts.sync(number + 1, tensors, probe))
    transport, packed = ObjectStore(), []
    pack = _seconds(lambda: packed.append(transport.pack(number, tensors)))
    take = _seconds(lambda: ray.get(transport.deliver(packed[0], handle)))
    look = _seconds(lambda: ray.get(handle.logprobs.remote(probe.ids)))
    return {"all": whole, "pack": pack, "take": take, "probe": look}


def _seconds(work):
    torch.set_num_threads(2)
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
