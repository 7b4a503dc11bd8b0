"""What an RLHF job will need in memory, so that what cannot fit is refused before it starts.

A learner: the policy (`engine.finetune.forecast`), the frozen copy of what learns unless an adapter is switched off
instead, and a critic that is a model. An engine: weights and the cache of keys and values, as vLLM is told to take
them on a CPU. Left out: rewards, and what a GPU holds. Called by `engine.rlhf.job`.
"""

from dataclasses import dataclass
from typing import Any

from engine.finetune.forecast import Memory, forecast
from engine.models import resolve
from engine.models.generation import cache_bytes
from engine.rlhf.recipe import RlhfRecipe

_LIBRARIES = 1.0e9
"""Bytes that vLLM's process takes for itself."""


@dataclass(frozen=True)
class Needs:
    """Bytes of a learner and of an engine."""

    policy: Memory
    reference: int
    critic: int
    engine: int

    @property
    def learner(self) -> int:
        """All that a learner holds."""
        return self.policy.total + self.reference + self.critic

    def __str__(self) -> str:
        more = {"reference": self.reference, "critic": self.critic}
        told = "".join(f", {name} {size / 1e9:.2f} GB" for name, size in more.items() if size)
        return f"policy {self.policy}{told}"


def needs(recipe: RlhfRecipe) -> Needs:
    """By the shapes of the models alone."""
    window = recipe.prompts.window + recipe.rollout.max_tokens
    config, layers = _config(recipe.model), recipe.learning.layers
    policy = forecast(config, recipe.dtype, recipe.parallel, recipe.lora, window=window, scorer=False, layers=layers)
    width = 2 if recipe.dtype == "bfloat16" else 4
    critic = 0
    if recipe.learning.advantage == "gae" and recipe.critic.kind == "model":
        own = _config(recipe.critic.model or recipe.model)
        critic = forecast(own, recipe.dtype, recipe.parallel, None, window=window, scorer=True).total
    cache = cache_bytes(config, recipe.rollout.at_once, window)
    return Needs(
        policy,
        0 if recipe.lora else policy.trained * width,
        critic,
        int(policy.parameters * 4 + cache + _LIBRARIES),
    )


def _config(model: str) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(resolve(model), trust_remote_code=False, local_files_only=True)
