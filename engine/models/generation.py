"""Text from causal language models, many prompts at a time: in vLLM or in transformers, behind one interface.

    VllmGenerator           vLLM inside this process (a Ray actor, say): its own worker processes would be known to
                            nobody and outlive a kill
    TransformersGenerator   the model's own forward: for models that vLLM does not know, and for tests

Every prompt has a seed of its own, so what is drawn for it depends on no neighbour and comes again when it is asked for
again (to the last bit only in a batch of the same prompts, since sums are taken in another order otherwise). Both cut
what they write in the same way: before the first stop string, without the token that ends it.

Left out: what is asked and what becomes of the answer; an engine over several GPUs. Called inside actors by evaluation,
by the teacher of SIEVE that writes, and by `engine.value_network`, whose generators are kinds of these.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from engine.errors import SourceError
from engine.models.loading import load_causal_lm, load_tokenizer
from engine.models.references import resolve

if TYPE_CHECKING:
    import torch

PROCESS_BYTES = 1_200_000_000
"""Memory of a process that has imported torch and vLLM, before any model."""
LONGEST = 4096
"""Tokens of prompt and answer together, unless more is asked for: the cache of the longest must fit in memory."""
_CPU = {
    # The default pins every engine of a machine to the same cores.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}
_READ_AT_ONCE = 4096
"""Tokens of prompts that vLLM reads in one step on a CPU, unless a single one may be longer."""
_TAIL = 24
"""Tokens at the end of a text in which a stop string is looked for after each step."""
_UNKNOWN = "are not supported for now"
"""What vLLM says of architectures that it does not know."""


@dataclass(frozen=True)
class Sampling:
    """How text is drawn: greedily at temperature 0; `stop` are texts before which it ends."""

    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 256
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Generated:
    """What was written: its text, how many tokens that took, and whether it came to an end by itself."""

    text: str
    tokens: int
    finished: bool


class Generator(Protocol):
    """Continues prompts; `longest` is the most tokens that a prompt and its answer may have together."""

    longest: int

    def generate(self, prompts: Sequence[list[int]], sampling: Sampling, seeds: Sequence[int]) -> list[Generated]:
        """A continuation of each prompt of token ids, in order; one seed for each. An answer ends at the window."""


class VllmGenerator:
    """vLLM in this process; starting it takes 20 to 100 seconds. Raises `SourceError` for a model that cannot be had or
    that vLLM does not know.

    `at_once` sequences are worked on at a time; `arguments` go with every request to what was added to vLLM, `more` are
    as for `start_vllm`. On a CPU it works with `OMP_NUM_THREADS` threads, which Ray sets to an
    actor's whole cores: any other way of setting them reaches one thread of the process only, and vLLM then fails.
    """

    def __init__(
        self,
        reference: str,
        *,
        at_once: int = 32,
        longest: int = LONGEST,
        arguments: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> None:
        self.tokenizer = load_tokenizer(reference)
        folder = resolve(reference)
        self._ends = end_tokens(folder, self.tokenizer)
        self._arguments = dict(arguments) if arguments else None
        try:
            self.engine, self.longest = start_vllm(folder, at_once=at_once, longest=longest, **more)
        except ValueError as error:
            if _UNKNOWN not in str(error):
                raise
            raise SourceError(
                f"vLLM does not know the architecture of {reference}.", "Let the engine be transformers."
            ) from error

    def generate(self, prompts: Sequence[list[int]], sampling: Sampling, seeds: Sequence[int]) -> list[Generated]:
        """See `Generator`. Raises `ValueError` for a prompt that fills the window."""
        from vllm import SamplingParams

        _check_room(prompts, self.longest)
        # What earlier calls have left in the cache would have sums taken in another order.
        self.engine.reset_prefix_cache()
        asked = [
            SamplingParams(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                max_tokens=min(sampling.max_tokens, self.longest - len(prompt)),
                stop=list(sampling.stop),
                seed=seed if sampling.temperature else None,
                extra_args=self._arguments,
            )
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        inputs = [{"prompt_token_ids": prompt} for prompt in prompts]
        outputs = [output.outputs[0] for output in self.engine.generate(inputs, asked, use_tqdm=False)]
        return [
            _written(self.tokenizer, list(each.token_ids), sampling.stop, self._ends, each.finish_reason != "length")
            for each in outputs
        ]


class TransformersGenerator:
    """The model in transformers, in float32 unless `dtype` says otherwise; `model` is one that is loaded already.

    Raises `SourceError` as loading does.
    """

    def __init__(
        self,
        reference: str,
        *,
        at_once: int = 16,
        longest: int = LONGEST,
        dtype: str = "float32",
        device: str = "cpu",
        model: Any = None,
    ) -> None:
        from transformers import GenerationConfig

        self.tokenizer = load_tokenizer(reference)
        self.model: Any = load_causal_lm(reference, dtype).to(device) if model is None else model
        self._ends = _ends(self.model.generation_config, self.tokenizer)
        # What a model's own settings say of penalties would fill what a call leaves open.
        self.model.generation_config = GenerationConfig()
        self.longest = min(window(self.model.config), longest)
        self._at_once = at_once

    def generate(self, prompts: Sequence[list[int]], sampling: Sampling, seeds: Sequence[int]) -> list[Generated]:
        """See `Generator`. Raises `ValueError` for a prompt that fills the window."""
        _check_room(prompts, self.longest)
        found: list[Generated | None] = [None] * len(prompts)
        # Prompts of similar length share a batch, so that little of it is padding.
        order = sorted(range(len(prompts)), key=lambda at: (len(prompts[at]), at))
        for first in range(0, len(order), self._at_once):
            rows = order[first : first + self._at_once]
            written = self._batch([prompts[at] for at in rows], sampling, [seeds[at] for at in rows])
            for at, each in zip(rows, written, strict=True):
                found[at] = each
        return [each for each in found if each is not None]

    def _batch(self, prompts: list[list[int]], sampling: Sampling, seeds: list[int]) -> list[Generated]:
        import torch

        width = max(map(len, prompts))
        ends, pad, device = self._ends, self._pad, self.model.device
        ids_BT = torch.tensor([[pad] * (width - len(each)) + each for each in prompts], device=device)
        mask_BT = torch.tensor([[0] * (width - len(each)) + [1] * len(each) for each in prompts], device=device)
        most = [min(sampling.max_tokens, self.longest - len(each)) for each in prompts]
        draw = Draw(sampling, seeds) if sampling.temperature else None
        stop = Stop(self.tokenizer, sampling.stop, width, len(prompts))
        with torch.inference_mode():
            out_BL = self._continued(ids_BT, mask_BT, max(most), draw, stop)
        rows = []
        for row, ids in enumerate(out_BL.tolist()):
            ids = ids[: stop.ended[row] or most[row]]  # what follows is padding, or more than this row may have
            end = next((at for at, token in enumerate(ids) if token in ends), None)
            ids = ids if end is None else ids[: end + 1]
            rows.append(_written(self.tokenizer, ids, sampling.stop, ends, end is not None))
        return rows

    def _continued(
        self, ids_BT: "torch.Tensor", mask_BT: "torch.Tensor", most: int, draw: "Draw | None", stop: "Stop"
    ) -> "torch.Tensor":
        """What follows prompts that are padded on the left, (B, at most `most`); anything after a row's end."""
        from transformers import GenerationConfig

        settings = GenerationConfig(
            max_new_tokens=most, do_sample=False, eos_token_id=sorted(self._ends) or None, pad_token_id=self._pad
        )
        out_BT: torch.Tensor = self.model.generate(
            input_ids=ids_BT,
            attention_mask=mask_BT,
            generation_config=settings,
            logits_processor=[draw] if draw else [],
            stopping_criteria=[stop] if stop.stops else [],
        )
        return out_BT[:, ids_BT.shape[1] :]

    @property
    def _pad(self) -> int:
        own = self.tokenizer.pad_token_id
        return int(next(iter(self._ends), 0) if own is None else own)


class Draw:
    """Draws each row by the Gumbel trick from a generator of its own: the greatest logit is then the token drawn."""

    def __init__(self, sampling: Sampling, seeds: Sequence[int]) -> None:
        import torch

        self._temperature, self._top_p = sampling.temperature, sampling.top_p
        self._generators = [torch.Generator().manual_seed(seed % (1 << 63)) for seed in seeds]

    def __call__(self, ids_BT: "torch.Tensor", logits_BV: "torch.Tensor") -> "torch.Tensor":
        import torch

        logp_BV = (logits_BV.float() / self._temperature).log_softmax(-1)
        if self._top_p < 1:
            sorted_BV, order_BV = logp_BV.sort(-1, descending=True)
            # What stands before a token decides whether it belongs to the nucleus: the first always does.
            outside_BV = sorted_BV.exp().cumsum(-1) - sorted_BV.exp() >= self._top_p
            logp_BV = logp_BV.masked_fill(outside_BV.gather(1, order_BV.argsort(-1)), float("-inf"))
        uniform_BV = torch.stack([torch.rand(logp_BV.shape[1], generator=each) for each in self._generators])
        noise_BV = -torch.log(-torch.log(uniform_BV.clamp(1e-20, 1 - 1e-7)))
        return logp_BV + noise_BV.to(logp_BV.device)


class Stop:
    """Ends a row once a stop string stands at its end; `ended` is the length at which each one did, 0 for none."""

    def __init__(self, tokenizer: Any, stops: tuple[str, ...], width: int, rows: int) -> None:
        self._tokenizer, self.stops, self._width = tokenizer, stops, width
        self.ended = [0] * rows

    def __call__(self, ids_BT: "torch.Tensor", scores: Any, **_: Any) -> "torch.Tensor":
        import torch

        length = ids_BT.shape[1] - self._width
        tails = self._tokenizer.batch_decode(ids_BT[:, self._width :][:, -_TAIL:])
        for row, tail in enumerate(tails):
            if not self.ended[row] and any(stop in tail for stop in self.stops):
                self.ended[row] = length
        return torch.tensor([bool(each) for each in self.ended], device=ids_BT.device)


def start_vllm(
    folder: Path, *, at_once: int, longest: int = LONGEST, beside: Sequence[Path] = (), **more: Any
) -> tuple[Any, int]:
    """A vLLM engine in this process, and the most tokens that a prompt and its answer may have together; arguments as
    for `vllm_keys`."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    keys = vllm_keys(folder, at_once=at_once, longest=longest, beside=beside, **more)
    from vllm import LLM

    return LLM(**keys), keys["max_model_len"]


def vllm_keys(
    folder: Path, *, at_once: int, longest: int = LONGEST, beside: Sequence[Path] = (), **more: Any
) -> dict[str, Any]:
    """What vLLM is started with; `beside` are models that share its cache, `more` are keys of vLLM's own.

    To be called before vLLM is imported. On a CPU it computes in float32 and takes memory for the longest text, or
    `at_once` of 1,024 tokens, and no more.
    """
    import torch
    from transformers import AutoConfig

    configs = [
        AutoConfig.from_pretrained(each, trust_remote_code=False, local_files_only=True) for each in (folder, *beside)
    ]
    longest = min(longest, *map(window, configs))
    keys: dict[str, Any] = {
        "model": str(folder),
        "trust_remote_code": False,
        "max_model_len": longest,
        "max_num_seqs": at_once,
        "seed": 0,
        "disable_log_stats": True,
    }
    if not torch.cuda.is_available():
        # Read when vLLM is imported. Without a size for the cache it wants nearly all of the machine's memory.
        os.environ.update(_CPU)
        keys |= {
            "dtype": "float32",
            "enforce_eager": True,
            "kv_cache_memory_bytes": sum(cache_bytes(config, at_once, longest) for config in configs),
            # A prompt read in two steps would draw once too often: a seeded generator on a CPU cannot take that back.
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": max(longest, _READ_AT_ONCE),
        }
    return {**keys, **more}


def cache_bytes(config: Any, at_once: int, longest: int) -> int:
    """Bytes of the key-value cache that `start_vllm` asks for on a CPU, given a model's configuration."""
    config = config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    # The cache is cut into blocks, some of which it keeps to itself.
    tokens = 1024 + max(longest, at_once * min(longest, 1024))
    return int(2 * config.num_hidden_layers * heads * width * 4 * tokens)


def window(config: Any) -> int:
    """Tokens that a model has positions for, by its configuration; `LONGEST` where that does not say."""
    return int(getattr(config.get_text_config(), "max_position_embeddings", None) or LONGEST)


def end_tokens(folder: Path, tokenizer: Any) -> frozenset[int]:
    """Ids that end a text of the model in a directory."""
    return _ends(_generation_config(folder), tokenizer)


def _generation_config(folder: Path) -> Any:
    """A model's own settings for generation; what they say of the end of a text, its configuration may say instead."""
    from transformers import AutoConfig, GenerationConfig

    if (folder / "generation_config.json").is_file():
        return GenerationConfig.from_pretrained(folder, local_files_only=True)
    return AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True).get_text_config()


def _ends(settings: Any, tokenizer: Any) -> frozenset[int]:
    """Ids that end a text: those of the model's settings, and the tokenizer's own."""
    named = settings.eos_token_id
    ids = named if isinstance(named, list) else [named]
    return frozenset(each for each in (*ids, tokenizer.eos_token_id) if each is not None)


def _check_room(prompts: Sequence[list[int]], longest: int) -> None:
    for prompt in prompts:
        if not 0 < len(prompt) < longest:
            raise ValueError(f"a prompt of {len(prompt)} tokens leaves no room in a window of {longest}")


def _written(tokenizer: Any, ids: list[int], stops: Sequence[str], ends: frozenset[int], finished: bool) -> Generated:
    """The text of what was written, special tokens in it kept, cut before the first stop string."""
    tokens = len(ids)
    if ids and ids[-1] in ends:
        ids = ids[:-1]
    text: str = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    cuts = [at for at in (text.find(stop) for stop in stops) if at >= 0]
    return Generated(text[: min(cuts)] if cuts else text, tokens, finished or bool(cuts))
