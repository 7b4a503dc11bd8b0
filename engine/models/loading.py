"""Weights and tokenizers in this process: safetensors only, no code that comes with a model, errors in one sentence.

Left out: where a model is (`engine.models.references`). Called by the method rooms, mostly inside Ray actors.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from engine.errors import HeadraceError, SourceError
from engine.models.quiet import quiet_loading
from engine.models.references import resolve

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_SAFE = {"trust_remote_code": False, "local_files_only": True}
_DTYPES = ("float32", "bfloat16", "float16")


def load_tokenizer(reference: str) -> "PreTrainedTokenizerBase":
    """The tokenizer of a model; a directory without weights will do. Raises `SourceError`."""
    from transformers import AutoTokenizer

    folder = resolve(reference, weights=False)
    with _named("tokenizer", reference):
        return AutoTokenizer.from_pretrained(folder, **_SAFE)


def load_causal_lm(reference: str, dtype: str = "float32") -> "PreTrainedModel":
    """A causal language model in evaluation mode; `dtype` is float32, bfloat16 or float16. Raises `SourceError`."""
    from transformers import AutoModelForCausalLM

    return _load(AutoModelForCausalLM, reference, dtype)


def load_encoder(reference: str, dtype: str = "float32") -> "PreTrainedModel":
    """An encoder that maps tokens to hidden states, in evaluation mode; of T5 and its like the encoder half.

    A head that the checkpoint brings along is left out. Raises `SourceError`.
    """
    from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding

    folder = resolve(reference)
    with _named("model", reference):
        config = AutoConfig.from_pretrained(folder, **_SAFE)
    # Before anything else: a T5 that was saved as an encoder does not say that its architecture is a pair.
    if type(config) in AutoModelForTextEncoding._model_mapping:
        return _load(AutoModelForTextEncoding, reference, dtype)
    model = _load(AutoModel, reference, dtype)
    return model.get_encoder() if config.is_encoder_decoder else model


def load_scorer(reference: str, dtype: str = "float32", *, new_head: bool = False) -> "PreTrainedModel":
    """A model that gives a text one number (`...ForSequenceClassification` of one output), in evaluation mode.

    `new_head` puts one on any causal LM or encoder, drawn from torch's seed. Raises `SourceError`.
    """
    from transformers import AutoModelForSequenceClassification

    if not new_head:
        check_scorer(reference)
    return _load(AutoModelForSequenceClassification, reference, dtype, new_head=new_head)


def check_scorer(reference: str) -> None:
    """Raise `SourceError` unless a model gives a text one number, by its configuration."""
    from transformers import AutoConfig

    with _named("model", reference):
        config = AutoConfig.from_pretrained(resolve(reference), **_SAFE)
    if config.num_labels != 1 or not str(config.architectures).endswith("SequenceClassification']"):
        raise SourceError(
            f"The model of {reference} gives a text no single score.",
            "Give one that `headrace reward-model` published.",
        )


def load_values(reference: str, dtype: str = "float32") -> "PreTrainedModel":
    """A model that gives every token one number (`...ForTokenClassification` of one output), in evaluation mode.

    Its head is that of a reward model where the reference is one, else drawn from torch's seed. Raises `SourceError`.
    """
    from transformers import AutoModelForTokenClassification

    return _load(AutoModelForTokenClassification, reference, dtype, new_head=True)


def _load(kind: Any, reference: str, dtype: str, *, new_head: bool = False) -> Any:
    import torch

    if dtype not in _DTYPES:
        raise ValueError(f"dtype {dtype!r} is none of {_DTYPES}")
    folder = resolve(reference)
    with _named("model", reference), quiet_loading():
        model, report = kind.from_pretrained(
            folder,
            dtype=getattr(torch, dtype),
            use_safetensors=True,
            output_loading_info=True,
            **({"num_labels": 1, "ignore_mismatched_sizes": True} if new_head else {}),
            **_SAFE,
        )
    # What a checkpoint lacks is drawn at random. A pooler is the one part that nobody here reads.
    body = f"{model.base_model_prefix}."
    missing = sorted(
        name for name in report["missing_keys"] if "pooler" not in name and (name.startswith(body) or not new_head)
    )
    if missing:
        raise SourceError(
            f"The model of {reference} lacks {len(missing)} of its weights, {missing[0]} among them.",
            f"Give one that was saved as {type(model).__name__}.",
        )
    return model.eval()


@contextmanager
def _named(what: str, reference: str) -> Iterator[None]:
    try:
        yield
    except HeadraceError:
        raise
    # A damaged file raises whatever its bytes lead to, Exception itself included.
    except Exception as error:
        why = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"[:200].rstrip(".")
        raise SourceError(
            f"The {what} of {reference} cannot be read ({why}).",
            "Give a Hugging Face directory with config.json, safetensors and tokenizer.json.",
        ) from error
