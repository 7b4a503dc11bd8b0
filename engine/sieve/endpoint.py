"""A teacher behind an OpenAI-compatible endpoint: chat completions, a short reasoning, and PASS or FAIL at the end.

What becomes of a question, by class of failure:

    answered                         the verdict; `nonsense` where there is none in it, `cut off` at the longest answer
    408, 409, 425, 429, 5xx,         tried again after a growing wait, or the one the endpoint asks for; `unreachable`
    no connection                    when patience runs out
    no answer in time                `timeout`, at its worst price, since the endpoint may have done the work
    an answer that breaks off        `no answer`, at its worst price as well
    another 4xx                      `refused`: this text is too long, or not to the endpoint's liking
    key, model or address unknown,   raised at once as a `HeadraceError`: every further question would fail too
    quota used up
    many unanswered in a row         raised as well: the endpoint is down

The key is read from the environment where the object is made, and again where it is unpickled; it is in no repr,
pickle, log or error, and cut out of what the endpoint says. Left out: budget and cache (`engine.sieve.budget`).
Called by it.
"""

import email.utils
import json
import math
import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TYPE_CHECKING, Any

from engine.errors import HeadraceError, RecipeError, redact
from engine.retries import Infrastructure, Patience
from engine.sieve.options import URL, TeacherOptions
from engine.sieve.teacher import PROMPT, TRANSIENT, Snippet, Verdict, fill, hash_of, parse_verdict

if TYPE_CHECKING:
    import openai

_BUSY = (408, 409, 425, 429)
_TEMPLATE_TOKENS = 64
"""Room in the bound for what a chat template puts around a prompt."""
_FEWEST_IN_A_ROW = 10
"""Questions in a row without an answer at which the endpoint counts as down; more where more are in flight."""


def check_key(options: TeacherOptions) -> None:
    """Raise `RecipeError` where the endpoint is known to want a key and none is set."""
    if options.kind == "endpoint" and options.url == URL and not os.environ.get(options.key_env, "").strip():
        raise RecipeError(
            f"{options.key_env} is not set, and {options.url} answers nobody without a key.",
            f"Export {options.key_env}, or give teacher.url of an endpoint that needs none.",
        )


class EndpointTeacher:
    """Asks `options.model` at `options.url` whether snippets meet `criterion`, `options.at_once` at a time.

    Close it, or use it as a context. Raises `HeadraceError` for a key that cannot be sent.
    """

    shared = True

    def __init__(self, options: TeacherOptions, criterion: str, *, patience: Patience | None = None) -> None:
        self._options = options
        self._criterion = criterion
        self._prompt = options.prompt or PROMPT
        self._patience = patience or Patience()
        self._key = os.environ.get(options.key_env, "").strip()
        if not self._key.isascii() or not self._key.isprintable():
            raise HeadraceError(f"The key in {options.key_env} holds characters no key has.", "Set it again.")
        self._where = redact(options.url)
        self._client: openai.OpenAI | None = None
        self._in_a_row = 0
        self._parameters: dict[str, Any] = {"max_tokens": options.max_tokens, "temperature": 0}
        self.at_once = options.at_once
        told = (self._where, options.model, self._prompt, criterion, options.max_tokens)
        self.fingerprint = hash_of("endpoint", *told)

    def __repr__(self) -> str:
        return f"EndpointTeacher({self._options.model} at {self._where})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self._options, self._criterion, self._patience)

    def __enter__(self) -> "EndpointTeacher":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; a later question opens new ones."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def most_tokens(self, snippet: Snippet) -> tuple[int, int]:
        """A bound that holds for every tokenizer over bytes: no token is shorter than one."""
        return len(self._text(snippet).encode()) + _TEMPLATE_TOKENS, self._options.max_tokens

    def judge(self, snippets: Sequence[Snippet]) -> Iterator[tuple[int, Verdict]]:
        """As in `Teacher`. Raises `HeadraceError` as the module's text says."""
        client = self._connect()
        stop = threading.Event()
        pool = ThreadPoolExecutor(self.at_once, thread_name_prefix="endpoint")
        try:
            futures = {pool.submit(self._judge, client, snippet, stop): at for at, snippet in enumerate(snippets)}
            failed = None
            for future in as_completed(futures):
                failed = future.exception()
                if failed is not None:
                    break
                yield futures.pop(future), future.result()
            if failed is not None:
                # What is answered is paid for: it is handed over first.
                for future, at in futures.items():
                    if future.done() and not future.cancelled() and future.exception() is None:
                        yield at, future.result()
                raise failed
        finally:
            # Nobody waits for answers in flight when something is wrong; without this, waits for a retry would go on.
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)

    def _judge(self, client: "openai.OpenAI", snippet: Snippet, stop: threading.Event) -> Verdict:
        """One question, retries included."""

        def attempt() -> Verdict:
            if stop.is_set():
                raise Infrastructure("stopped")
            return self._attempt(client, snippet)

        try:
            verdict = self._patience.call(attempt, stop.wait)
        except Infrastructure as failure:
            verdict, last = Verdict(None, "unreachable"), failure.reason
        else:
            last = verdict.words or verdict.reason
        if verdict.reason not in (*TRANSIENT, "refused"):
            self._in_a_row = 0
            return verdict
        if stop.is_set():
            return verdict
        self._in_a_row += 1
        if self._in_a_row >= max(_FEWEST_IN_A_ROW, 2 * self.at_once):
            raise HeadraceError(
                f"The teacher at {self._where} left {self._in_a_row} questions in a row without an answer ({last}).",
                "Check the endpoint, then run the same command again: what is answered is kept.",
            )
        return verdict

    def _attempt(self, client: "openai.OpenAI", snippet: Snippet) -> Verdict:
        """One request. Raises `Infrastructure` where another may help, `HeadraceError` where none will."""
        import openai

        text = self._text(snippet)
        parameters = self._parameters
        end = time.monotonic() + self._options.timeout_seconds
        try:
            # The raw body: what a broken endpoint answers must not meet a parser that trusts it.
            with client.chat.completions.with_streaming_response.create(
                model=self._options.model, messages=[{"role": "user", "content": text}], **parameters
            ) as response:
                body, broken = _body(response, end)
            return Verdict(None, broken, *self.most_tokens(snippet)) if broken else self._read(body, snippet)
        except openai.APITimeoutError as error:
            # Not even connected, so nothing was done that could cost something.
            if "Connect" not in type(error.__cause__).__name__ and "Pool" not in type(error.__cause__).__name__:
                return Verdict(None, "timeout", *self.most_tokens(snippet))
            failure: Exception | Verdict = Infrastructure("no connection in time")
        except openai.APIStatusError as error:
            failure = self._failure(error, parameters)
        except openai.APIError as error:
            failure = Infrastructure(self._clean(error.__cause__ or error))
        # Outside the handlers: the client's errors hold the request, and with it the key.
        if isinstance(failure, Verdict):
            return failure
        raise failure

    def _failure(self, error: "openai.APIStatusError", used: dict[str, Any]) -> Exception | Verdict:
        """What an error status means: an exception to raise, or a verdict without a decision."""
        status, said = error.status_code, self._clean(error.message)
        details = f"{self._where} ({status}: {said})"
        code = str(error.code)
        if status == 429 and code == "insufficient_quota":
            return HeadraceError(f"No quota is left at {details}.", "Raise it, then run the same command again.")
        if status in _BUSY or status >= 500:
            return Infrastructure(f"{status}: {said}", _retry_after(error.response.headers))
        if status in (401, 403) and not self._key:
            return HeadraceError(
                f"The teacher at {details} wants a key.", f"Set the environment variable {self._options.key_env}."
            )
        if status in (401, 403):
            return HeadraceError(f"The key is refused by the teacher at {details}.", f"Check {self._options.key_env}.")
        if status == 404 or (status == 400 and (code == "model_not_found" or error.param == "model")):
            return HeadraceError(
                f"The model {self._options.model!r} is unknown to the teacher at {details}.",
                "Check teacher.model and teacher.url.",
            )
        if status == 400 and self._adapt(str(error.param), said, used):
            return Infrastructure(said, 0.0)
        return Verdict(None, "refused", words=said)

    def _adapt(self, parameter: str, said: str, used: dict[str, Any]) -> bool:
        """Leave out or rename a parameter that newer models refuse; whether there was something to change."""
        now = dict(used)
        if "max_tokens" in now and (parameter == "max_tokens" or "max_completion_tokens" in said):
            now["max_completion_tokens"] = now.pop("max_tokens")
        elif "temperature" in now and parameter == "temperature":
            del now["temperature"]
        else:
            return False
        self._parameters = now
        return True

    def _read(self, body: bytes, snippet: Snippet) -> Verdict:
        """The verdict in a response; whatever is odd about it, it is counted, never raised."""
        most_in, most_out = self.most_tokens(snippet)
        try:
            answer: Any = json.loads(body)
        except ValueError:
            answer = None
        choice = _at(_at(answer, "choices"), 0)
        words = _at(_at(choice, "message"), "content")
        words = self._hide(words) if isinstance(words, str) else ""
        usage = _at(answer, "usage")
        tokens_in = _count(_at(usage, "prompt_tokens"), most_in)
        tokens_out = _count(_at(usage, "completion_tokens"), most_out)
        # The end of an answer that was cut off is not its conclusion.
        cut = _at(choice, "finish_reason") == "length"
        passed = None if cut else parse_verdict(words)
        reason = "" if passed is not None else "cut off" if cut else "nonsense"
        return Verdict(passed, reason, tokens_in, tokens_out, words)

    def _connect(self) -> "openai.OpenAI":
        if self._client is None:
            import openai

            timeout = self._options.timeout_seconds
            # An endpoint of one's own may need no key, the client insists on one.
            key = self._key or "none"
            self._client = openai.OpenAI(api_key=key, base_url=self._options.url, max_retries=0, timeout=timeout)
        return self._client

    def _text(self, snippet: Snippet) -> str:
        return fill(self._prompt, self._criterion, snippet.text)

    def _clean(self, error: object) -> str:
        """What an error says, in one short line without the key."""
        return " ".join(self._hide(str(error)).split())[:200].rstrip(".") or type(error).__name__

    def _hide(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


def _rebuild(options: TeacherOptions, criterion: str, patience: Patience) -> EndpointTeacher:
    return EndpointTeacher(options, criterion, patience=patience)


def _body(response: Any, end: float) -> tuple[bytes, str]:
    """The whole body of a response, and what came in between: "", "timeout" or "no answer" (broken off).

    The client's own time-out is for each piece of a body, and some endpoints send blanks while they think.
    """
    body = bytearray()
    try:
        for piece in response.iter_bytes():
            body += piece
            if time.monotonic() > end:
                return b"", "timeout"
    # The library below the client is another one in another version, and so are its exceptions.
    except Exception as error:  # noqa: BLE001
        return b"", "timeout" if "Timeout" in type(error).__name__ else "no answer"
    return bytes(body), ""


def _at(value: Any, key: str | int) -> Any:
    """`value[key]` where there is such a thing, else None."""
    try:
        return value[key]
    except (TypeError, KeyError, IndexError):
        return None


def _count(value: Any, bound: int) -> int:
    """A token count as reported; the bound where none is."""
    return value if type(value) is int and value >= 0 else bound


def _retry_after(headers: Any) -> float | None:
    """Seconds that a response asks to wait: `retry-after-ms`, or `retry-after` as a number or a date."""
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        value = headers.get(name)
        try:
            seconds = float(value) * unit
        except (TypeError, ValueError):
            continue
        return seconds if math.isfinite(seconds) and seconds >= 0 else None
    try:
        return max(email.utils.parsedate_to_datetime(headers.get("retry-after")).timestamp() - time.time(), 0.0)
    except (TypeError, ValueError):
        return None
