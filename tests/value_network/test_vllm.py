"""vLLM with a base and a value network: the transformers reference's tokens, whatever shares the batch."""

import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import ray
import torch
from mixes import BETAS, greedy, make_pair, make_prompts, publish

from engine.errors import SourceError
from engine.models import Sampling
from engine.value_network.card import Card
from engine.value_network.generation import MixtureGenerator, ValueGenerator
from engine.value_network.reference import Mixture
from engine.value_network.serving import PROCESSOR, vllm_settings

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]
TOKENS = 12


@pytest.fixture(scope="module")
def pair(make_llama, tmp_path_factory):
    """A base, and a value network of other depth, width and heads."""
    return make_pair(make_llama, tmp_path_factory.mktemp("value"))


def _started(base, value, **keys):
    """In a process of its own: vLLM leaves much behind."""
    actor = ray.remote(num_cpus=0.5, runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}})(ValueGenerator)
    return actor.remote(str(base), str(value), **keys)


@pytest.fixture(scope="module")
def engine(cluster, pair):
    # Prompts longer than a step's tokens are read in pieces; ten of them share their beginning.
    chunked = {"enable_chunked_prefill": True, "max_num_batched_tokens": 64, "enable_prefix_caching": True}
    engine = _started(*pair, at_once=16, longest=512, **chunked)
    yield engine
    ray.kill(engine)


def _asked(engine, prompts, betas):
    return ray.get(engine.continued.remote(prompts, betas, TOKENS), timeout=300)


def test_requests_with_different_betas_share_a_batch(engine, pair):
    mixture, prompts = Mixture(*map(str, pair)), make_prompts(48)
    betas = [BETAS[at % len(BETAS)] for at in range(len(prompts))]
    found = _asked(engine, prompts, betas)
    wanted = [greedy(mixture, prompt, beta, TOKENS) for prompt, beta in zip(prompts, betas, strict=True)]
    assert found == wanted
    alone = [greedy(mixture, prompt, 0.0, TOKENS) for prompt in prompts]
    changed = [one != other for one, other, beta in zip(wanted, alone, betas, strict=True) if beta]
    assert sum(changed) > len(changed) / 2, "the value network has to matter for this to say anything"
    # Once more, with what the cache holds from requests of other betas.
    turned = betas[1:] + betas[:1]
    assert _asked(engine, prompts, turned) == [
        greedy(mixture, prompt, beta, TOKENS) for prompt, beta in zip(prompts, turned, strict=True)
    ]


def test_it_generates_what_the_reference_does(engine, pair):
    reference, prompts = MixtureGenerator(*map(str, pair), longest=512), [ids[:40] for ids in make_prompts(12)]

    def written(sampling, seeds, most=40):
        asked = [ids[:most] for ids in prompts[: len(seeds)]]
        return ray.get(engine.generate.remote(asked, sampling, seeds), timeout=300)

    plain = Sampling(max_tokens=TOKENS)
    whole = written(plain, range(12))
    assert whole == reference.generate(prompts, plain, range(12))
    stop = replace(plain, stop=(whole[0].text[-8:-5],))
    assert written(stop, range(12)) == reference.generate(prompts, stop, range(12)) != whole
    # A prompt that is read in pieces cannot have a seed on a CPU (vLLM): these all go into one step.
    drawing = Sampling(temperature=2.0, max_tokens=TOKENS)
    together = written(drawing, range(12), most=5)
    assert written(drawing, range(4), most=5) == together[:4]
    assert written(drawing, range(1, 13), most=5) != together


def test_a_request_that_says_nothing_has_all_of_it(engine, pair):
    mixture, prompt = Mixture(*map(str, pair)), make_prompts(4)[1]
    assert _asked(engine, [prompt], [None]) == [greedy(mixture, prompt, 1.0, TOKENS)]
    for beta in (None, 0.5):
        mixture.forget()
        wanted = mixture.logits(torch.tensor([prompt]), None, 1.0 if beta is None else beta)[0].log_softmax(-1)
        found = ray.get(engine.logprobs.remote(prompt, beta), timeout=300)
        expected = wanted[:-1].gather(1, torch.tensor(prompt)[1:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(found), expected, atol=2e-4, rtol=0)


@pytest.mark.parametrize("beta", [-1, float("nan"), float("inf"), "1", True])
def test_a_beta_that_is_none_is_refused(engine, beta):
    with pytest.raises(ray.exceptions.RayTaskError, match="value_beta must be a number of at least 0"):
        _asked(engine, [[5, 6]], [beta])


def test_a_linear_probe_is_served_too(cluster, pair, tmp_path):
    base, _ = pair
    publish(base, tmp_path, "linear_probe", scale=20.0)
    engine = _started(base, tmp_path, at_once=8, longest=256)
    mixture, prompts = Mixture(str(base), str(tmp_path)), make_prompts(8)
    betas = [BETAS[at % len(BETAS)] for at in range(len(prompts))]
    wanted = [greedy(mixture, prompt, beta, TOKENS) for prompt, beta in zip(prompts, betas, strict=True)]
    assert _asked(engine, prompts, betas) == wanted
    assert wanted[2] != greedy(mixture, prompts[2], 0.0, TOKENS)
    ray.kill(engine)


def test_pairs_that_do_not_fit_are_refused(pair, tmp_path):
    base, value = map(str, pair)
    with pytest.raises(SourceError, match="is no value network"):
        vllm_settings(base, base)
    with pytest.raises(SourceError, match="says nothing by itself"):
        vllm_settings(value, value)
    cascade = publish(base, tmp_path / "cascade", "cascade")
    with pytest.raises(SourceError, match="waits for the base's logits"):
        vllm_settings(base, str(cascade))
    Card(connection="residual", vocabulary="another").write(cascade)
    with pytest.raises(SourceError, match="different tokenizers"):
        vllm_settings(base, str(cascade))


def test_both_runners_take_what_hears_of_betas():
    from vllm.exceptions import VLLMValidationError
    from vllm.v1.sample.logits_processor import LogitsProcessor, validate_logits_processors_parameters
    from vllm.v1.worker.gpu.sample.logits_processor import build_custom_logits_processors_params_validator

    from engine.value_network.betas import BetaProcessor

    assert issubclass(BetaProcessor, LogitsProcessor)
    wrong = SimpleNamespace(extra_args={"value_beta": -1})
    for check in (
        lambda params: validate_logits_processors_parameters([PROCESSOR], params),
        build_custom_logits_processors_params_validator([PROCESSOR]),
    ):
        check(SimpleNamespace(extra_args=None))
        with pytest.raises(VLLMValidationError, match="value_beta must be a number"):
            check(wrong)


class _Plain:
    """The base by itself in vLLM."""

    def __init__(self, base, **keys):
        from pathlib import Path

        from engine.models import start_vllm

        self.engine, _ = start_vllm(Path(base), **keys)

    def drawn(self, prompts, tokens):
        from vllm import SamplingParams

        asked = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, logprobs=5)
        outputs = self.engine.generate([{"prompt_token_ids": ids} for ids in prompts], asked, use_tqdm=False)
        return [_drawn(each.outputs[0]) for each in outputs]


class _Mixed(ValueGenerator):
    """The same of a pair."""

    def drawn(self, prompts, tokens, beta):
        from vllm import SamplingParams

        extra = {"value_beta": beta}
        asked = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, logprobs=5, extra_args=extra)
        outputs = self.engine.generate([{"prompt_token_ids": ids} for ids in prompts], asked, use_tqdm=False)
        return [_drawn(each.outputs[0]) for each in outputs]


def _drawn(output):
    return list(output.token_ids), [{token: each.logprob for token, each in place.items()} for place in output.logprobs]


def test_in_bfloat16_beta_0_is_the_base_bit_for_bit_and_the_mix_is_the_references(cluster, pair):
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    options = {"num_cpus": 0.5, "runtime_env": {"env_vars": {"OMP_NUM_THREADS": "1"}}}
    keys, prompts = {"at_once": 8, "longest": 256, "dtype": "bfloat16"}, make_prompts(8)
    mixed = ray.remote(**options)(_Mixed).remote(*map(str, pair), **keys)
    plain = ray.remote(**options)(_Plain).remote(str(pair[0]), **keys)
    asked = [mixed.drawn.remote(prompts, TOKENS, 0.0), plain.drawn.remote(prompts, TOKENS)]
    beta_0, base = ray.get(asked, timeout=300)
    assert beta_0 == base
    # Teacher-forced: bfloat16 leads greedy tokens apart, so each log-probability is compared, and with what rounding
    # does to the reference itself.
    exact, rounded = (Mixture(*map(str, pair), dtype=each) for each in ("float32", "bfloat16"))
    for prompt in prompts[:4]:
        wanted = exact.logits(torch.tensor([prompt]), None, 1.0)[0].log_softmax(-1)
        noisy = rounded.logits(torch.tensor([prompt]), None, 1.0)[0].float().log_softmax(-1)
        exact.forget(), rounded.forget()
        noise = (noisy - wanted)[:-1].gather(1, torch.tensor(prompt)[1:, None]).abs().max()
        found = torch.tensor(ray.get(mixed.logprobs.remote(prompt, 1.0), timeout=300))
        expected = wanted[:-1].gather(1, torch.tensor(prompt)[1:, None])[:, 0]
        assert (found - expected).abs().max() < 4 * noise
    ray.kill(mixed)
    ray.kill(plain)
