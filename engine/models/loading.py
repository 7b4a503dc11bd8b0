"""Weights and tokenizers in this process: safetensors only, no code that comes with a model, errors in one sentence.

Left out: where a model is (`engine.models.references`). Called by the method rooms, mostly inside Ray actors.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.errors import SourceError
from engine.models.references import resolve

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_SAFE = {"trust_remote_code": False, "local_files_only": True}


def load_tokenizer(reference: str) -> "PreTrainedTokenizerBase":
    """The tokenizer of a model. Raises `SourceError`."""
    from transformers import AutoTokenizer

    with _named("tokenizer", reference):
        return AutoTokenizer.from_pretrained(resolve(reference), **_SAFE)


def load_causal_lm(reference: str, dtype: str = "float32") -> "PreTrainedModel":
    """A causal language model, in evaluation mode. Raises `SourceError`."""
    from transformers import AutoModelForCausalLM

    return _load(AutoModelForCausalLM, reference, dtype)


def load_encoder(reference: str, dtype: str = "float32") -> "PreTrainedModel":
    """An encoder that maps tokens to hidden states, in evaluation mode; of T5 and its like the encoder half.

    Raises `SourceError`.
    """
    from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding

    with _named("model", reference):
        config = AutoConfig.from_pretrained(resolve(reference), **_SAFE)
    return _load(AutoModelForTextEncoding if config.is_encoder_decoder else AutoModel, reference, dtype)


def _load(kind: Any, reference: str, dtype: str) -> "PreTrainedModel":
    import torch

    with _named("model", reference):
        folder = resolve(reference)
        return kind.from_pretrained(folder, dtype=getattr(torch, dtype), use_safetensors=True, **_SAFE).eval()


@contextmanager
def _named(what: str, reference: str | Path) -> Iterator[None]:
    try:
        yield
    except SourceError:
        raise
    # A damaged file raises whatever its bytes lead to, Exception itself included.
    except Exception as error:
        why = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"[:200].rstrip(".")
        raise SourceError(
            f"The {what} of {reference} cannot be read ({why}).",
            "Give a Hugging Face directory with config.json, safetensors and tokenizer.json.",
        ) from error
