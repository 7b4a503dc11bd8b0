from .bridge import bridge_models
from .card import Card, check_same_vocabulary, read_card, vocabulary_fingerprint
from .generate_recipe import GenerateRecipe
from .keeping import cache_facts
from .mixing import combine_logits
from .recipe import BridgeTexts, ValueRecipe
from .responses import prepare_responses
from .responses_report import narrate_responses, response_facts, response_statistics
from .serving import vllm_settings
from .training import value_config, value_task

__all__ = [
    "BridgeTexts",
    "Card",
    "GenerateRecipe",
    "ValueRecipe",
    "bridge_models",
    "cache_facts",
    "check_same_vocabulary",
    "combine_logits",
    "narrate_responses",
    "prepare_responses",
    "read_card",
    "response_facts",
    "response_statistics",
    "value_config",
    "value_task",
    "vllm_settings",
    "vocabulary_fingerprint",
]
