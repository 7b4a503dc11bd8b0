from .loading import load_causal_lm, load_encoder, load_tokenizer
from .packaged import PACKAGED
from .references import fingerprint, resolve, tokenizer_fingerprint

__all__ = [
    "PACKAGED",
    "fingerprint",
    "load_causal_lm",
    "load_encoder",
    "load_tokenizer",
    "resolve",
    "tokenizer_fingerprint",
]
