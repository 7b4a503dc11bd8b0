"""From a step's responses and scores to what is learnt from them: the recipe's macros, rewards and advantages.

Left out: the mathematics (`engine.rlhf.segmenters`, `engine.rlhf.credit`). Called by the loop.

Shapes: B responses of a step, T tokens of the longest.
"""

from typing import Any

import numpy as np

from engine.evaluation.questions import seed_of
from engine.rlhf.credit import Gae, Macros, credit, grpo, rloo, token_rewards, whitened
from engine.rlhf.experience import Experience, text_offsets
from engine.rlhf.learner import Credited, Looked
from engine.rlhf.recipe import RlhfRecipe
from engine.rlhf.reference import reference_macros, reference_options
from engine.rlhf.segmenters import Bools, Floats, Ints, Responses, Segmenter

_TEXTUAL = ("sentence", "syntax", "parse")


class Assessor:
    """Credits a step's tokens as the recipe says; every worker comes to the same."""

    def __init__(self, recipe: RlhfRecipe, tokenizer: Any) -> None:
        self._recipe, self._tokenizer = recipe, tokenizer
        self._segmenter = Segmenter(recipe.macro.rule)

    def __call__(
        self, experience: Experience, looked: Looked, scores_B: Floats, beta: float
    ) -> tuple[Credited, dict[str, float]]:
        """Every token's advantage and return, and what there is to be told of the step; `beta` weighs the KL."""
        learning, macro = self._recipe.learning, self._recipe.macro
        written_BT = experience.written()
        rewards_BT = token_rewards(
            scores_B, looked.logp, looked.reference, written_BT, beta=beta, clip=learning.reward_clip
        )
        if learning.whiten_rewards and written_BT.any():
            rewards_BT = rewards_BT / (rewards_BT[written_BT].std() + 1e-8)
        macros = self._macros(experience, looked, written_BT)
        told = _told(experience, looked, scores_B, macros) | {"kl_coefficient": beta}
        if learning.advantage == "gae":
            options = Gae(macro.gamma, macro.lam, macro.value_weighting, macro.reward_aggregation, macro.discount)
            options = reference_options(options) if macro.strict_reference_compat else options
            advantages_BT, returns_BT = credit(rewards_BT, looked.values, macros, options)
            told["explained_variance"] = _explained(returns_BT[written_BT], looked.values[written_BT])
        else:
            better = rloo if learning.advantage == "rloo" else grpo
            returns_B = rewards_BT.sum(1)
            advantages_BT = np.where(written_BT, better(returns_B, experience.groups())[:, None], 0.0)
            returns_BT = np.where(written_BT, returns_B[:, None], 0.0)
        if learning.whiten_advantages:
            advantages_BT = whitened(advantages_BT, written_BT)
        weights_BT = None
        if self._recipe.rollout.asynchronous:
            # Of the weights that are learnt to those that drew: truncated importance sampling.
            ratio_BT = np.exp(np.clip(looked.logp - experience.logprobs(), -20, 20))
            weights_BT = np.minimum(ratio_BT, self._recipe.rollout.importance_cap)
            told["importance_weight"] = _mean(weights_BT[written_BT])
        credited = Credited(looked.logp, looked.reference, looked.values, advantages_BT, returns_BT, macros, weights_BT)
        return credited, told

    def _macros(self, experience: Experience, looked: Looked, written_BT: Bools) -> Macros:
        responses = experience.responses
        seeds_B: Ints = np.array([seed_of("macros", each.epoch, each.prompt, each.number) for each in responses])
        texts = offsets = None
        if self._recipe.macro.rule in _TEXTUAL:
            # The token that ends a response is no part of its text, and of the macro before it.
            said = [each.ids[: len(each.ids) - each.finished] for each in responses]
            told = [text_offsets(self._tokenizer, ids, written_BT.shape[1]) for ids in said]
            texts, offsets = [text for text, _ in told], [each for _, each in told]
        # Perplexity is the reference's: its log-probabilities are there, and stay as they are while the policy learns.
        macro_BT = self._segmenter(Responses(written_BT, seeds_B, texts, offsets, looked.reference))
        return reference_macros(macro_BT) if self._recipe.macro.strict_reference_compat else Macros.of(macro_BT)


def _told(experience: Experience, looked: Looked, scores_B: Floats, macros: Macros) -> dict[str, float]:
    written_BT = experience.written()
    return {
        "reward": _mean(scores_B),
        "kl": _mean((looked.logp - looked.reference).sum(1)),
        "entropy": -_mean(looked.logp[written_BT]),
        "length": _mean(written_BT.sum(1)),
        "finished": _mean(np.array([each.finished for each in experience.responses])),
        "mismatch": _mean(np.abs(looked.logp - experience.logprobs())[written_BT]),
        "macro_length": _mean(macros.length_BK[macros.length_BK > 0]),
    }


def _mean(values: Any) -> float:
    return float(np.mean(values)) if len(values) else 0.0


def _explained(returns: Floats, values: Floats) -> float:
    """The share of the returns' variance that the critic foresees; 0 for one that always says the same."""
    variance = returns.var() if len(returns) else 0.0
    return float(1 - (returns - values).var() / variance) if variance > 1e-12 else 0.0
