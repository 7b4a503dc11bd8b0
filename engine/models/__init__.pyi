from .loading import load_causal_lm, load_encoder, load_tokenizer
from .logit_mix import LogitMix, Term
from .packaged import PACKAGED
from .quiet import save_model
from .references import fingerprint, resolve, tokenizer_fingerprint

__all__ = [
    "PACKAGED",
    "LogitMix",
    "Term",
    "fingerprint",
    "load_causal_lm",
    "load_encoder",
    "load_tokenizer",
    "resolve",
    "save_model",
    "tokenizer_fingerprint",
]
