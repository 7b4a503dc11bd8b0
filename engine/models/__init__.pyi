from .derived import convert_model, free_place, prune_model, publish_healed
from .generation import Generated, Generator, Sampling, TransformersGenerator, VllmGenerator, start_vllm, vllm_keys
from .inventory import (
    Description,
    Listed,
    cached_models,
    describe_model,
    has_chat_template,
    packaged_models,
    published_models,
)
from .loading import check_scorer, load_causal_lm, load_encoder, load_scorer, load_tokenizer, load_values
from .logit_mix import LogitMix, Term
from .packaged import PACKAGED
from .pruning import kept_layers, prune_layers
from .quiet import save_model
from .references import fingerprint, portable, resolve, tokenizer_fingerprint

__all__ = [
    "PACKAGED",
    "Description",
    "Generated",
    "Generator",
    "Listed",
    "LogitMix",
    "Sampling",
    "Term",
    "TransformersGenerator",
    "VllmGenerator",
    "cached_models",
    "check_scorer",
    "convert_model",
    "describe_model",
    "fingerprint",
    "free_place",
    "has_chat_template",
    "kept_layers",
    "load_causal_lm",
    "load_encoder",
    "load_scorer",
    "load_tokenizer",
    "load_values",
    "packaged_models",
    "portable",
    "prune_layers",
    "prune_model",
    "publish_healed",
    "published_models",
    "resolve",
    "save_model",
    "start_vllm",
    "tokenizer_fingerprint",
    "vllm_keys",
]
