"""A teacher that writes its verdict here: a causal LM in vLLM, with the endpoint teacher's prompt and parser.

The engine runs inside this process (a Ray actor, say): its own worker processes would be known to nobody and
outlive a kill. Greedy, so asking again gives the same; what has no verdict is a discard at the price of two answers.
Left out: where the process runs. Called by the budget ledger.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from engine.models import fingerprint, load_tokenizer, resolve, start_vllm
from engine.sieve.options import TeacherOptions
from engine.sieve.teacher import PROMPT, Snippet, Verdict, fill, hash_of, parse_verdict


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
        self._engine, self._longest = start_vllm(folder, at_once=options.at_once)

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
