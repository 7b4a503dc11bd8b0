from .credit import Gae, Macros, credit, grpo, macro_gae, rloo, token_rewards, value_weights, whitened
from .job import run_rlhf
from .losses import kl_estimate, policy_loss, value_loss
from .reference import reference_lengths, reference_options
from .segmenters import Responses, Segmenter, segment

__all__ = [
    "Gae",
    "Macros",
    "Responses",
    "Segmenter",
    "credit",
    "grpo",
    "kl_estimate",
    "macro_gae",
    "policy_loss",
    "reference_lengths",
    "reference_options",
    "rloo",
    "run_rlhf",
    "segment",
    "token_rewards",
    "value_loss",
    "value_weights",
    "whitened",
]
