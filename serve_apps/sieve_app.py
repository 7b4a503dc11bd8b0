"""A published SIEVE student behind HTTP: `POST /v1/score` says of texts how likely they pass, and whether they do.

    serve run serve_apps.sieve_app:build student=runs/sieve/laptop/student
    serve deploy serve_apps/sieve.yaml

`GET /v1/student` is the student's card, `GET /health` answers as soon as a replica does. Requests that come in at the
same time go through the encoder together. Who may ask is `serve_apps.gate`'s matter; what is too much is answered with
429 and Retry-After by Serve's proxy, which holds the bounded queue.

Left out: scoring of whole corpora (`headrace sieve-apply`). Called by Ray Serve.
"""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

import click
from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError
from ray import serve
from ray.serve import Application
from ray.serve.config import BackpressureConfig
from ray.util.metrics import Counter, Histogram
from starlette.exceptions import HTTPException as HTTPError
from upath import UPath

from engine.artifacts import read_model
from engine.cluster import API_KEY
from engine.config import Section
from engine.errors import ClusterError, HeadraceError
from engine.sieve import Student
from engine.storage import is_local
from serve_apps.batching import Batcher
from serve_apps.gate import Gate, Keys, error_body

_SECONDS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30]
_SIZES = [1, 2, 4, 8, 16, 32, 64, 128, 256]
_SHAPE = 'The body has to be JSON, sent as application/json: {"texts": ["...", "..."]}.'
_STUCK = 600.0
"""Seconds after which a batch counts as stuck, and the replica as unhealthy."""


class SieveArgs(Section):
    """What `serve run` takes as `key=value`, and a configuration file under `args`."""

    student: str
    """Directory or URI of a published student: RUN/student. Every node has to see it."""
    dtype: str = Field("float32", pattern="^(float32|bfloat16|float16)$")
    max_texts: int = Field(256, ge=1)
    """Texts in one request."""
    max_chars: int = Field(20_000, ge=1)
    """Characters in one text."""
    max_body_bytes: int = Field(1_048_576, ge=1_024)
    batch_texts: int = Field(64, ge=1)
    """Texts that go through the encoder together; a request with more goes alone."""
    batch_wait: float = Field(0.01, ge=0)
    """Seconds that a batch which is not full waits for more."""
    batch_tokens: int = Field(4_096, ge=1)
    """Tokens of one encoder call, padding included."""
    max_ongoing: int = Field(64, ge=1)
    """Requests that a replica holds at once."""
    max_queued: int = Field(128, ge=1)
    """Requests that wait for a replica, for each proxy; one more is answered with 429."""
    retry_after: float = Field(1.0, gt=0)
    """Seconds after which a refused caller may try again."""
    cpus: float = Field(1.0, gt=0)
    """CPUs of a replica; it computes with as many threads, but one at least."""
    gpus: float = Field(0.0, ge=0)
    replicas: int = Field(1, ge=1)
    max_replicas: int = Field(1, ge=1)
    """Above `replicas`, Serve adds replicas when each has more than `target_ongoing` requests."""
    target_ongoing: float = Field(16.0, gt=0)
    drain_seconds: float = Field(60.0, gt=0)
    """How long a replica that is to go may take to answer what it holds."""


def _whole(text: str) -> str:
    """Refuses halves of surrogate pairs, which JSON can hold and no tokenizer reads."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise PydanticCustomError("unicode", "Input should be valid Unicode") from None
    return text


class Texts(Section):
    """The body of `POST /v1/score`."""

    texts: list[Annotated[str, AfterValidator(_whole)]]


def load_student(args: SieveArgs) -> tuple[Student, str]:
    """The published student and its fingerprint. Raises `ArtifactError`, `SourceError`, `StorageError`."""
    model = read_model(UPath(args.student))
    return Student.load(model.local(), args.dtype), model.fingerprint


@serve.deployment(name="sieve")
@serve.ingress()
class SieveStudent:
    """One replica: a student, the thread it computes in, and the HTTP application around it."""

    def __init__(self, args: SieveArgs, *, expects_key: bool, load: Callable[[SieveArgs], Any] = load_student) -> None:
        self._args, self._keys = args, Keys.from_environment()
        if expects_key and not self._keys:
            raise ClusterError(
                f"{API_KEY} is set where the application is deployed from, but not on this node.",
                "Set it in the environment of every node before Ray starts.",
            )
        threads = max(1, int(args.cpus))
        # One thread of our own: the event loop stays free, and torch computes for one batch at a time.
        self._thread = ThreadPoolExecutor(1, "student", _use_threads, (threads,))
        self._student, self._fingerprint = load(args)
        self._since: float | None = None
        self._texts = Counter("headrace_sieve_texts", description="Texts scored.", tag_keys=("student",))
        self._seconds = Histogram(
            "headrace_sieve_batch_seconds",
            description="Seconds a batch spent in the student.",
            boundaries=_SECONDS,
            tag_keys=("student",),
        )
        self._sizes = Histogram(
            "headrace_sieve_batch_texts",
            description="Texts that went through the student together.",
            boundaries=_SIZES,
            tag_keys=("student",),
        )
        for metric in (self._texts, self._seconds, self._sizes):
            metric.set_default_tags({"student": self._fingerprint})
        self._score_together = Batcher(self._score_batch, size=len, most=args.batch_texts, wait=args.batch_wait)
        self._thread.submit(self._student.scores, ["warm"]).result()

    async def __serve_build_asgi_app__(self) -> FastAPI:
        """The routes and what stands before them; made here because keys and limits are known in the replica only."""
        app = FastAPI(title="SIEVE", openapi_url=None, docs_url=None, redoc_url=None)
        app.add_api_route("/health", _health, methods=["GET"])
        app.add_api_route("/v1/student", self._show, methods=["GET"])
        app.add_api_route("/v1/score", self._answer, methods=["POST"])
        app.add_exception_handler(HTTPError, _say)
        app.add_exception_handler(RequestValidationError, _say_what_is_wrong)
        app.add_exception_handler(Exception, _say_nothing)
        app.add_middleware(Gate, keys=self._keys, max_body_bytes=self._args.max_body_bytes, open_paths=("/health",))
        return app

    async def check_health(self) -> None:
        """Serve replaces a replica whose student hangs."""
        if self._since is not None and time.monotonic() - self._since > _STUCK:
            raise RuntimeError(f"The student has worked on one batch for more than {_STUCK:.0f} seconds.")

    async def _show(self) -> dict[str, Any]:
        card = self._student.card
        kept = ("criterion", "threshold", "labels", "base", "base_fingerprint", "kind", "max_tokens", "long", "join")
        return {"student": self._fingerprint, **{name: getattr(card, name) for name in kept}}

    async def _answer(self, body: Texts) -> dict[str, Any]:
        args, card = self._args, self._student.card
        if len(body.texts) > args.max_texts:
            raise HTTPException(413, f"A request may hold {args.max_texts:,} texts, not {len(body.texts):,}.")
        longest = max(map(len, body.texts), default=0)
        if longest > args.max_chars:
            raise HTTPException(413, f"A text may hold {args.max_chars:,} characters, not {longest:,}.")
        scores, passes = await self._score_together(body.texts) if body.texts else ([], [])
        results = [{"score": score, "passes": each} for score, each in zip(scores, passes, strict=True)]
        return {
            "student": self._fingerprint,
            "criterion": card.criterion,
            "threshold": card.threshold,
            "results": results,
        }

    async def _score_batch(self, requests: list[list[str]]) -> list[tuple[list[float], list[bool]]]:
        """Scores of the texts of each request, and whether they pass."""
        texts = [text for request in requests for text in request]
        self._since = started = time.monotonic()
        try:
            scores = await asyncio.get_running_loop().run_in_executor(
                self._thread, self._student.scores, texts, self._args.batch_tokens
            )
        finally:
            self._since = None
        self._seconds.observe(time.monotonic() - started)
        self._texts.inc(len(texts))
        self._sizes.observe(len(texts))
        return list(_split(scores.tolist(), self._student.passes(scores).tolist(), [len(each) for each in requests]))


def build(args: SieveArgs) -> Application:
    """The application, for `serve run` and `serve deploy`. Raises `click.ClickException`, which they show as a
    sentence, where no student is published."""
    place = UPath(args.student)
    if is_local(place):  # replicas start in directories of their own
        place = place.absolute()
    try:
        read_model(place)  # what is no published model is refused here, before anything starts
    except HeadraceError as error:
        raise click.ClickException(str(error)) from error
    return deployment(args).bind(
        args.model_copy(update={"student": str(place)}), expects_key=bool(Keys.from_environment())
    )


def deployment(args: SieveArgs) -> serve.Deployment:
    """The deployment with its resources, its queue and its scaling, not yet bound to a student."""
    return SieveStudent.options(  # type: ignore[attr-defined]
        ray_actor_options={"num_cpus": args.cpus, "num_gpus": args.gpus},
        max_ongoing_requests=args.max_ongoing,
        max_queued_requests=args.max_queued,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=args.retry_after),
        autoscaling_config={
            "min_replicas": args.replicas,
            "max_replicas": max(args.replicas, args.max_replicas),
            "target_ongoing_requests": args.target_ongoing,
        },
        graceful_shutdown_wait_loop_s=0.5,
        graceful_shutdown_timeout_s=args.drain_seconds,
        health_check_period_s=10,
        health_check_timeout_s=30,
    )


def _split(
    scores: Sequence[float], passes: Sequence[bool], lengths: Sequence[int]
) -> Iterator[tuple[list[float], list[bool]]]:
    first = 0
    for length in lengths:
        yield list(scores[first : first + length]), list(passes[first : first + length])
        first += length


def _use_threads(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)


async def _health() -> dict[str, str]:
    return {"status": "ok"}


async def _say(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPError)
    return JSONResponse(error_body(error.status_code, str(error.detail)), error.status_code, headers=error.headers)


async def _say_what_is_wrong(request: Request, error: Exception) -> JSONResponse:
    """The first thing wrong with a body, without repeating any of it."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = [str(step) for step in first["loc"][1:]]
    said = f"{'.'.join(place)}: {first['msg']}." if place and first["type"] != "json_invalid" else _SHAPE
    return JSONResponse(error_body(422, said), 422)


async def _say_nothing(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse(error_body(500, "The student failed at this; the replica's log says how."), 500)
