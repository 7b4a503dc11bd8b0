from .card import Card, check_same_vocabulary, read_card, vocabulary_fingerprint
from .mixing import combine_logits
from .recipe import ValueRecipe
from .serving import vllm_settings
from .training import value_config, value_task

__all__ = [
    "Card",
    "ValueRecipe",
    "check_same_vocabulary",
    "combine_logits",
    "read_card",
    "value_config",
    "value_task",
    "vllm_settings",
    "vocabulary_fingerprint",
]
