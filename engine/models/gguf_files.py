"""GGUF files as ordinary Hugging Face directories: de-quantised, with a tokenizer that begins texts as the file says.

Two traps are closed: a model loaded from GGUF stays packed and can be neither saved nor trained, and its tokenizer may
forget the beginning-of-sequence token, without which some models write garbage.

Left out: where the files come from (`engine.models.packaged`, `engine.models.derived`). Called by both.
"""

import re
from pathlib import Path

from engine.errors import SourceError
from engine.models.quiet import quiet_loading, save_model

GGUF_NEEDS = "Install what GGUF files need: pip install gguf accelerate"


def convert_gguf(gguf: Path, folder: Path, *, dtype: str = "bfloat16", starts_with_bos: bool | None = None) -> None:
    """Write a GGUF file into `folder` as safetensors with tokenizer; `starts_with_bos` None asks the file.

    Raises `SourceError` if it lacks some of the weights, `ImportError` without the packages that this needs, and for a
    damaged file whatever its bytes lead to.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    where = {"gguf_file": gguf.name, "trust_remote_code": False, "local_files_only": True}
    if starts_with_bos is None:
        starts_with_bos = _says_bos(gguf)
    with quiet_loading():
        model, report = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            dtype=getattr(torch, dtype),
            quantization_config=GgufConfig(dequantize=True),
            output_loading_info=True,
            **where,
        )
        # What a file lacks is drawn at random.
        for name in sorted(report["missing_keys"]):
            raise SourceError(
                f"{gguf.name} lacks {name}, among {len(report['missing_keys'])} weights.", "Get it again."
            )
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **where)
        if starts_with_bos and tokenizer("a")["input_ids"][:1] != [tokenizer.bos_token_id]:
            from tokenizers.processors import TemplateProcessing

            bos = tokenizer.bos_token
            tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
                single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.bos_token_id)]
            )
    save_model(model, tokenizer, folder)


def errno_of(error: Exception) -> int | None:
    """The operating system's number of an error, of safetensors' own ones too, which have it in their text alone."""
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else None


def first_line(error: Exception) -> str:
    """What an error says, cut to what fits into a sentence."""
    return str(error).strip().partition("\n")[0][:200].rstrip(".") or type(error).__name__


def _says_bos(gguf: Path) -> bool:
    from gguf import GGUFReader

    field = GGUFReader(gguf).get_field("tokenizer.ggml.add_bos_token")
    return bool(field and field.contents())
