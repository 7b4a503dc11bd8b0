"""One engine behind the endpoint: vLLM with a model, or a base and a value network, that answers under its names.

vLLM's own classes read requests and write answers, so what they know of OpenAI's protocol is what callers get. Not
`ray.serve.llm`'s server: it gives an engine one name, on CPUs it starts vLLM's workers as processes that outlive a
killed replica, and it has no place for a beta.

Left out: names, keys, queue and refusals (`serve_apps.openai_app`, the only caller).
"""

import contextvars
import copy
import os
import time
from argparse import Namespace
from collections.abc import AsyncGenerator
from typing import Any

from ray.util.metrics import Counter, Gauge, Histogram

from engine.value_network.card import BETA
from engine.value_network.endpoint import ServedModel
from engine.value_network.plugin import OWNER

_SECONDS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60]
_STUCK = 300.0
"""Seconds without a step, while it has requests, after which an engine counts as stuck."""
_REQUEST: contextvars.ContextVar[tuple[str, float]] = contextvars.ContextVar("request")
"""Of the request being answered: the name it asked for, and the seconds it had waited before it came here."""


class ModelReplica:
    """A replica: vLLM's engine in a process of its own, and vLLM's two OpenAI services for each name."""

    async def __init__(self, served: ServedModel) -> None:
        os.environ |= {
            OWNER: str(os.getpid()),
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine computes in its process, not in a child of it
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "WARNING"),
        }
        keys = served.vllm()
        from starlette.datastructures import State
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.entrypoints.launchers.api_server.app_state import init_app_state
        from vllm.entrypoints.launchers.cli_args import FrontendArgs
        from vllm.entrypoints.openai.models.protocol import BaseModelPath
        from vllm.entrypoints.openai.models.serving import OpenAIServingModels

        names = [each.name for each in served.offered()]
        args = AsyncEngineArgs(**keys, served_model_name=names)
        self._engine = _watched_engine(args)
        state = State()
        tasks = await self._engine.get_supported_tasks()
        await init_app_state(self._engine, state, Namespace(**vars(FrontendArgs()) | vars(args)), tasks)
        self._services: dict[tuple[str, str], Any] = {}
        for name in names:
            # An answer names the model that was asked for; vLLM itself would always give the first name.
            models = OpenAIServingModels(self._engine, [BaseModelPath(name, keys["model"])])
            for route, service in (
                ("chat", state.openai_serving_chat),
                ("completions", state.openai_serving_completion),
            ):
                named = copy.copy(service)
                named.models = models
                self._services[route, name] = named

    async def answer(
        self, route: str, name: str, beta: float | None, body: dict[str, Any], arrived: float
    ) -> AsyncGenerator[Any, None]:
        """First a status and the whole answer, or None if it comes in pieces; then those, server-sent events as text.

        `route` is `chat` or `completions`; `arrived` the time (seconds since the epoch) at which the request came in.
        """
        from pydantic import ValidationError
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
        from vllm.entrypoints.openai.completion.protocol import CompletionRequest
        from vllm.entrypoints.serve import create_error_response
        from vllm.entrypoints.serve.engine.protocol import ErrorResponse
        from vllm.exceptions import VLLMClientError

        _REQUEST.set((name, max(0.0, time.time() - arrived)))
        service = self._services[route, name]
        try:
            if beta is not None:
                body = {**body, "vllm_xargs": {**(body.get("vllm_xargs") or {}), BETA: beta}}
            request = (ChatCompletionRequest if route == "chat" else CompletionRequest).model_validate(body)
            create = service.create_chat_completion if route == "chat" else service.create_completion
            found = await create(request)
        except ValidationError as error:
            found = create_error_response(_first_problem(error))
        except (ValueError, TypeError, VLLMClientError, NotImplementedError) as error:
            found = create_error_response(error)
        if isinstance(found, ErrorResponse):
            yield found.error.code, found.model_dump()
        elif not isinstance(found, AsyncGenerator):
            yield 200, found.model_dump()
        else:
            yield 200, None
            async for event in found:
                yield event

    async def check_health(self) -> None:
        """Serve replaces a replica whose engine has died or hangs."""
        await self._engine.check_health()
        if self._engine.hangs():
            raise RuntimeError(f"The engine has made no step for {_STUCK:.0f} seconds though it has requests.")

    def __del__(self) -> None:
        engine = getattr(self, "_engine", None)
        if engine is not None:
            engine.shutdown(timeout=5)


class _Metrics:
    """What is measured of every answer, by the name that was asked for; vLLM adds its own of the engine."""

    def __init__(self) -> None:
        def seconds(name: str, what: str) -> Histogram:
            return Histogram(name, description=what, boundaries=_SECONDS, tag_keys=("model",))

        self._queue = seconds("headrace_queue_seconds", "Seconds from a request's arrival until it is worked on.")
        self._first = seconds("headrace_first_token_seconds", "Seconds from a request's arrival to its first token.")
        self._between = seconds("headrace_inter_token_seconds", "Mean seconds between two tokens of an answer.")
        self._prompt = Counter("headrace_prompt_tokens", description="Tokens of prompts.", tag_keys=("model",))
        self._written = Counter("headrace_generated_tokens", description="Tokens written.", tag_keys=("model",))
        self._running = Gauge("headrace_running_requests", description="Requests at the engine.", tag_keys=("model",))
        self._at_engine: dict[str, int] = {}

    def running(self, model: str, change: int) -> None:
        """Count a request that has come to the engine, or gone."""
        self._at_engine[model] = self._at_engine.get(model, 0) + change
        self._running.set(self._at_engine[model], {"model": model})

    def answered(self, model: str, waited: float, output: Any, tokens: int) -> None:
        """Count an answer that has ended: vLLM's last word on it, its tokens, and seconds before the engine had it."""
        tags = {"model": model}
        self._prompt.inc(len(output.prompt_token_ids or ()), tags)
        self._written.inc(tokens, tags)
        times = output.metrics
        if times is None or not times.first_token_ts:
            return
        self._queue.observe(waited + max(0.0, times.scheduled_ts - times.queued_ts), tags)
        self._first.observe(waited + times.first_token_latency, tags)
        if times.num_generation_tokens > 1:
            between = (times.last_token_ts - times.first_token_ts) / (times.num_generation_tokens - 1)
            self._between.observe(between, tags)


def _watched_engine(args: Any) -> Any:
    """vLLM's engine, whose answers are measured on their way out, and which knows when it last worked."""
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.metrics.ray_wrappers import RayPrometheusStatLogger

    metrics = _Metrics()

    class Pulse(RayPrometheusStatLogger):  # type: ignore[misc]
        def record(self, *given: Any, **named: Any) -> None:
            Watched.worked = time.monotonic()
            super().record(*given, **named)

    class Watched(AsyncLLM):  # type: ignore[misc]
        worked = time.monotonic()
        unfinished = 0

        async def generate(self, *given: Any, **named: Any) -> AsyncGenerator[Any, None]:
            (model, waited), tokens = _REQUEST.get(), 0
            if not self.unfinished:
                Watched.worked = time.monotonic()
            self.unfinished += 1
            metrics.running(model, 1)
            answers = super().generate(*given, **named)
            try:
                async for output in answers:
                    tokens += sum(len(each.token_ids) for each in output.outputs)
                    if output.finished:
                        metrics.answered(model, waited, output, tokens)
                    yield output
            finally:
                self.unfinished -= 1
                metrics.running(model, -1)
                await answers.aclose()  # tells the engine to let go of the request where its caller has gone

        def hangs(self) -> bool:
            return bool(self.unfinished) and time.monotonic() - self.worked > _STUCK

    return Watched.from_engine_args(args, stat_loggers=[Pulse])


def _first_problem(error: Any) -> str:
    """The first thing wrong with a body."""
    first = error.errors()[0]
    place = ".".join(str(step) for step in first["loc"])
    said = str(first["msg"]).removeprefix("Value error, ")
    return f"{place}: {said}" if place else said
