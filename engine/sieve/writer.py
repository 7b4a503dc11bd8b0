"""A teacher that writes its verdict here: a causal LM in vLLM, with the endpoint teacher's prompt and parser.

The engine runs inside this process (a Ray actor, say): its own worker processes would be known to nobody and
outlive a kill. Greedy, so asking again gives the same; what has no verdict is a discard at the price of two answers.
Left out: where the process runs. Called by the budget ledger.
"""

import os
from collections.abc import Iterator, Sequence
from typing import Any

from engine.models import fingerprint, load_tokenizer, resolve
from engine.sieve.options import TeacherOptions
from engine.sieve.teacher import PROMPT, Snippet, Verdict, fill, hash_of, parse_verdict

_LONGEST = 4096
"""Tokens of prompt and answer together; snippets are short, and the cache of the longest must fit in memory."""
_CPU = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # The default pins every engine of a machine to the same cores.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}


class WriterTeacher:
    """Asks the model `options.model` whether snippets meet `criterion`, `options.at_once` at a time.

    Starting the engine takes 30 to 100 seconds, once. Raises `SourceError` for a model that cannot be had.
    """

    shared = True

    def __init__(self, options: TeacherOptions, criterion: str) -> None:
        self._criterion = criterion
        self._prompt = options.prompt or PROMPT
        self._most_out = options.max_tokens
        self.at_once = options.at_once
        folder = resolve(options.model)
        told = (fingerprint(folder), self._prompt, criterion, options.max_tokens)
        self.fingerprint = hash_of("vllm", *told)
        self._tokenizer: Any = load_tokenizer(options.model)
        self._engine, self._longest = _start(str(folder), options.at_once)

    def most_tokens(self, snippet: Snippet) -> tuple[int, int]:
        """The prompt's tokens exactly, and the longest answer."""
        return len(self._ids(snippet)), self._most_out

    def judge(self, snippets: Sequence[Snippet]) -> Iterator[tuple[int, Verdict]]:
        """As in `Teacher`; the answers of a call arrive together."""
        from vllm import SamplingParams

        ids = [self._ids(snippet) for snippet in snippets]
        fitting = [at for at, each in enumerate(ids) if len(each) + self._most_out <= self._longest]
        for at in set(range(len(ids))) - set(fitting):
            yield at, Verdict(None, "too long")
        if not fitting:
            return
        outputs = self._engine.generate(
            [{"prompt_token_ids": ids[at]} for at in fitting],
            SamplingParams(temperature=0.0, max_tokens=self._most_out),
            use_tqdm=False,
        )
        for at, output in zip(fitting, outputs, strict=True):
            answer = output.outputs[0]
            # The end of an answer that was cut off is not its conclusion.
            cut = answer.finish_reason == "length"
            passed = None if cut else parse_verdict(answer.text)
            reason = "" if passed is not None else "cut off" if cut else "nonsense"
            yield at, Verdict(passed, reason, len(ids[at]), len(answer.token_ids), answer.text)

    def _ids(self, snippet: Snippet) -> list[int]:
        text = fill(self._prompt, self._criterion, snippet.text)
        if not self._tokenizer.chat_template:
            ids: list[int] = self._tokenizer(text)["input_ids"]
            return ids
        turns = [{"role": "user", "content": text}]
        chat: list[int] = self._tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        return chat


def _start(folder: str, at_once: int) -> tuple[Any, int]:
    """A vLLM engine in this process, and the most tokens that a prompt and its answer may have together."""
    import torch
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True).get_text_config()
    longest = min(getattr(config, "max_position_embeddings", None) or _LONGEST, _LONGEST)
    keys: dict[str, Any] = {"max_model_len": longest, "max_num_seqs": at_once, "seed": 0, "disable_log_stats": True}
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    if not torch.cuda.is_available():
        # Read when vLLM is imported. Without a size for the cache it wants nearly all of the machine's memory.
        os.environ.update(_CPU)
        # The cache is cut into blocks, some of which it keeps to itself.
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        token_bytes = 2 * config.num_hidden_layers * heads * width * 4
        room = token_bytes * (1024 + max(longest, at_once * 1024))
        keys |= {"dtype": "float32", "enforce_eager": True, "kv_cache_memory_bytes": room}
    from vllm import LLM

    return LLM(model=folder, trust_remote_code=False, **keys), longest
