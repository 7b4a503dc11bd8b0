"""A base with a value network in vLLM, inside this process (a Ray actor, say): what it continues and what it expects.

Left out: HTTP and streaming (`serve_apps`). Called inside actors; `engine.value_network.reference` gives the same.
"""

from collections.abc import Sequence
from typing import Any

from engine.models.generation import LONGEST, start_vllm
from engine.value_network.card import BETA
from engine.value_network.serving import vllm_settings


class ValueGenerator:
    """Starting it takes 20 to 100 seconds; `more` are keys of vLLM's own. Raises `SourceError` for a pair that does not
    fit."""

    def __init__(self, base: str, value: str, *, at_once: int = 32, longest: int = LONGEST, **more: Any) -> None:
        folder, settings = vllm_settings(base, value)
        self.engine, self.longest = start_vllm(folder, at_once=at_once, longest=longest, **settings, **more)

    def continued(self, prompts: Sequence[list[int]], betas: Sequence[float | None], tokens: int) -> list[list[int]]:
        """The likeliest so many tokens after each prompt, whatever they end; a beta for each, None for the default."""
        from vllm import SamplingParams

        asked = [
            SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, extra_args=_arguments(beta))
            for beta in betas
        ]
        outputs = self.engine.generate([{"prompt_token_ids": ids} for ids in prompts], asked, use_tqdm=False)
        return [list(each.outputs[0].token_ids) for each in outputs]

    def logprobs(self, ids: list[int], beta: float | None = None) -> list[float]:
        """Log-probability of each token of a text but the first, in nats."""
        from vllm import SamplingParams

        asked = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0, extra_args=_arguments(beta))
        (output,) = self.engine.generate([{"prompt_token_ids": ids}], asked, use_tqdm=False)
        return [float(each[token].logprob) for each, token in zip(output.prompt_logprobs[1:], ids[1:], strict=True)]


def _arguments(beta: float | None) -> dict[str, Any] | None:
    return None if beta is None else {BETA: beta}
