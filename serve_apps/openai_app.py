"""An OpenAI-compatible endpoint over base models with value networks: chat, completions, models, playground, metrics.

    headrace serve jobs/recipes/serve_laptop.yaml
    serve run serve_apps.openai_app:build recipe=jobs/recipes/serve_laptop.yaml
    serve deploy serve_apps/openai.yaml

    caller -- proxy -- Ingress (who may ask, which model, how much waits) -- ModelReplica (vLLM), one or several each

A request goes to the engine of the name it asks for with the beta that it says in `value_beta`. What vLLM would not
know (keys, names, beta, the bounded queue, an engine that died) is answered here; the rest is vLLM's own word. Every
refusal has OpenAI's shape.

Left out: reading requests and writing answers (`serve_apps.replica`), the gate (`serve_apps.gate`). Called by Ray
Serve.
"""

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any

import click
from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, StreamingResponse
from ray import serve
from ray.exceptions import RayError
from ray.serve import Application
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle
from ray.util.metrics import Counter
from starlette.exceptions import HTTPException

from engine.cluster import API_KEY
from engine.config import Section, load_recipe
from engine.errors import ClusterError, HeadraceError
from engine.value_network.card import BETA
from engine.value_network.endpoint import Offered, ServedModel, ServeRecipe, beta_for
from serve_apps.gate import Gate, Keys, error_body
from serve_apps.observation import cluster_metrics
from serve_apps.replica import ModelReplica

_PLAYGROUND = Path(__file__).parent / "playground.html"
_EVENTS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
_PAGE = {"Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
         "connect-src 'self'; img-src data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"}  # fmt: skip
_MANY = 10_000
"""Requests that an ingress holds at once: what is bounded is the queue of each engine."""


_GLANCE = 2.0
"""Seconds for which what was found of the engines' health holds."""


class BuildArgs(Section):
    """What `serve run` takes as `key=value`, and a configuration file under `args`."""

    recipe: str
    """A `serve` recipe."""
    overrides: list[str] = []
    """`key=value` over it."""


class _Route:
    """A name that callers may ask for, and the engine that answers."""

    def __init__(self, offered: Offered, model: ServedModel, handle: DeploymentHandle) -> None:
        self.offered, self.model = offered, model
        self.handle = handle.options(stream=True)

    def card(self, created: int) -> dict[str, Any]:
        """Its entry in the list of models."""
        kept = {"base": self.model.base, "value_network": None if self.offered.fixed else self.model.value}
        return {
            "id": self.offered.name,
            "object": "model",
            "created": created,
            "owned_by": "headrace",
            "max_model_len": self.model.longest,
            "value_beta": self.offered.beta,
            **kept,
        }


class Ingress:
    """One process that receives requests."""

    def __init__(self, recipe: ServeRecipe, handles: list[DeploymentHandle], *, expects_key: bool) -> None:
        self._recipe, self._keys = recipe, Keys.from_environment()
        if expects_key and not self._keys:
            raise ClusterError(
                f"{API_KEY} is set where the application is deployed from, but not on this node.",
                "Set it in the environment of every node before Ray starts.",
            )
        self._routes = {
            offered.name: _Route(offered, model, handle)
            for model, handle in zip(recipe.models, handles, strict=True)
            for offered in model.offered()
        }
        self._created = int(time.time())
        self._looked, self._up = -math.inf, True
        self._requests = Counter(
            "headrace_requests", description="Requests, by model and status.", tag_keys=("model", "status")
        )

    async def __serve_build_asgi_app__(self) -> FastAPI:
        """The routes and what stands before them; made here because keys and limits are known in the replica only."""
        app = FastAPI(title="Headrace", openapi_url=None, docs_url=None, redoc_url=None)
        app.add_api_route("/health", self._health, methods=["GET"])
        app.add_api_route("/v1/models", self._list, methods=["GET"])
        app.add_api_route("/v1/models/{name:path}", self._show, methods=["GET"])
        app.add_api_route("/v1/chat/completions", self._chat, methods=["POST"])
        app.add_api_route("/v1/completions", self._complete, methods=["POST"])
        app.add_api_route("/metrics", self._metrics, methods=["GET"])
        if self._recipe.playground:
            app.add_api_route("/", _playground, methods=["GET"])
        app.add_exception_handler(HTTPException, _say)
        app.add_exception_handler(Exception, _say_nothing)
        limit = self._recipe.max_body_bytes
        app.add_middleware(Gate, keys=self._keys, max_body_bytes=limit, open_paths=("/health",))
        return app

    async def _health(self) -> Response:
        """Whether an engine is there to answer; looked up every few seconds, however often it is asked."""
        now = time.monotonic()
        if now - self._looked > _GLANCE:
            self._looked = now
            self._up = await asyncio.to_thread(_any_runs, [route.handle for route in self._routes.values()])
        if not self._up:
            raise HTTPException(503, "No engine runs at the moment.", {"Retry-After": "5"})
        return JSONResponse({"status": "ok"})

    async def _list(self) -> dict[str, Any]:
        return {"object": "list", "data": [each.card(self._created) for each in self._routes.values()]}

    async def _show(self, name: str) -> dict[str, Any]:
        return self._route(name).card(self._created)

    async def _metrics(self) -> Response:
        return PlainTextResponse(await cluster_metrics())

    async def _chat(self, request: Request) -> Response:
        return await self._answer("chat", request)

    async def _complete(self, request: Request) -> Response:
        return await self._answer("completions", request)

    def _route(self, name: Any) -> _Route:
        if not isinstance(name, str):
            raise HTTPException(400, "model: a text, one of those that /v1/models lists.")
        if name not in self._routes:
            raise HTTPException(404, f"There is no model {name[:100]!r}; /v1/models lists what there is.")
        return self._routes[name]

    async def _answer(self, kind: str, request: Request) -> Response:
        arrived = time.time()
        body = await _read(request)
        route = self._route(body.get("model"))
        try:
            answer = await self._ask(kind, route, body, arrived)
        except HTTPException as error:
            self._count(route, error.status_code)
            raise
        self._count(route, answer.status_code)
        return answer

    async def _ask(self, kind: str, route: _Route, body: dict[str, Any], arrived: float) -> Response:
        name = route.offered.name
        try:
            beta = beta_for(route.offered, _said_of_beta(body))
        except ValueError as error:
            raise HTTPException(400, str(error)) from None
        most, wanted = route.model.at_once + route.model.max_queued, _texts(body)
        if wanted > most:
            raise HTTPException(400, f"One request may ask for {most} texts (prompts times n), not {wanted}.")
        events = route.handle.answer.remote(kind, name, beta, body, arrived)
        begun = False
        try:
            async with asyncio.timeout(self._recipe.request_seconds):
                status, answer = await anext(events)
            begun = answer is None
        except BackPressureError:
            wait = {"Retry-After": str(math.ceil(self._recipe.retry_after))}
            raise HTTPException(429, f"Too many requests wait for {name}; try again later.", wait) from None
        except TimeoutError:
            seconds = self._recipe.request_seconds
            raise HTTPException(504, f"There was no answer within {seconds:g} seconds.") from None
        except (RayError, RayServeException):
            wait = {"Retry-After": str(math.ceil(self._recipe.retry_after))}
            raise HTTPException(503, f"The engine of {name} has failed and is started again.", wait) from None
        finally:
            if not begun:
                _let_go(events)
        if answer is not None:
            return JSONResponse(answer, status)
        deadline = arrived + self._recipe.request_seconds - time.time()
        return StreamingResponse(_events(events, name, deadline), headers=_EVENTS, media_type="text/event-stream")

    def _count(self, route: _Route, status: int) -> None:
        self._requests.inc(1, {"model": route.offered.name, "status": str(status)})


async def _events(events: Any, name: str, seconds: float) -> AsyncIterator[str]:
    """An answer's events; one that breaks off ends with an error and without [DONE]."""
    end = asyncio.get_running_loop().time() + seconds
    try:
        while True:
            async with asyncio.timeout_at(end):  # around the engine's work only, not the caller's reading
                event = await anext(events)
            yield event
    except StopAsyncIteration:
        return
    except TimeoutError:
        yield _failure(504, "The answer took too long and was ended.")
    except (RayError, RayServeException):
        yield _failure(503, f"The engine of {name} has failed; what is above is not the whole answer.")
    finally:
        _let_go(events)  # where the caller has gone, the engine stops writing for it


def _let_go(events: Any) -> None:
    with suppress(Exception):  # of a request that failed, it raises once more what was its failure
        events.cancel()


def _failure(status: int, sentence: str) -> str:
    return f"data: {json.dumps(error_body(status, sentence))}\n\n"


async def _read(request: Request) -> dict[str, Any]:
    """The body of a request. Anything but JSON is refused unread: no page elsewhere can send it unasked."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, "Send the body as Content-Type: application/json.")
    raw = await request.body()
    try:
        body = json.loads(raw)
        if b"\\ud" in raw.lower():
            json.dumps(body, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except ValueError:
        raise HTTPException(400, "The body is not valid JSON.") from None
    except RecursionError:
        raise HTTPException(400, "The body is nested too deeply.") from None
    if not isinstance(body, dict):
        raise HTTPException(400, "The body has to be a JSON object.")
    return body


def _said_of_beta(body: dict[str, Any]) -> Any:
    """What a request says of beta: by itself, or among vLLM's extra arguments."""
    said = body.pop(BETA, None)
    extra = body.get("vllm_xargs")
    if said is None and isinstance(extra, dict):
        return extra.get(BETA)
    return said


def _texts(body: dict[str, Any]) -> int:
    """How many texts a request wants written; what it says wrongly is vLLM's to refuse."""
    prompt, n = body.get("prompt"), body.get("n")
    prompts = len(prompt) if isinstance(prompt, list) and not all(isinstance(each, int) for each in prompt) else 1
    try:
        return prompts * int(float(n))  # vLLM takes "16" for 16
    except (TypeError, ValueError, OverflowError):
        return prompts


def _any_runs(handles: list[DeploymentHandle]) -> bool:
    """Whether Serve has a replica that runs for any of these deployments."""
    applications = serve.status().applications
    deployments = [
        applications[each.app_name].deployments.get(each.deployment_name)
        for each in handles
        if each.app_name in applications
    ]
    return any(each is not None and each.replica_states.get("RUNNING") for each in deployments)


async def _playground() -> Response:
    return HTMLResponse(_PLAYGROUND.read_text(encoding="utf-8"), headers=_PAGE)


async def _say(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    said = str(error.detail)
    if said == HTTPStatus(error.status_code).phrase:  # of the framework: no such path, no such method
        said = f"There is no {request.method} {request.url.path[:100]} here."
    return JSONResponse(error_body(error.status_code, said), error.status_code, headers=error.headers)


async def _say_nothing(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse(error_body(500, "The endpoint failed at this; the ingress's log says how."), 500)


def engine(model: ServedModel, at: int, recipe: ServeRecipe, replica: type = ModelReplica) -> Application:
    """The deployment of one engine, the `at`-th of a recipe."""
    return serve.deployment(
        replica,
        name=f"engine-{at}-{model.name.replace('/', '-')}",
        # A few more than the engine works on, so that none of its places is empty while Serve finds the next.
        max_ongoing_requests=model.at_once + max(2, model.at_once // 2),
        max_queued_requests=model.max_queued,
        max_constructor_retry_count=2,
        graceful_shutdown_timeout_s=recipe.drain_seconds,
        graceful_shutdown_wait_loop_s=0.2,
        health_check_period_s=5,
        ray_actor_options={
            "num_cpus": model.cpus,
            "num_gpus": model.gpus,
            "runtime_env": {"env_vars": {"OMP_NUM_THREADS": str(max(1, int(model.cpus)))}},
        },
        **_replicas(model),
    ).bind(model.located())


def ingress(recipe: ServeRecipe, engines: Sequence[Application | DeploymentHandle]) -> Application:
    """The deployment that receives requests; `engines` are in the order of the recipe's models.

    An application of engines alone, and one of the ingress over their handles, can be stopped one after the other: then
    the requests that wait in the ingress are answered too (`jobs.serve`).
    """
    deployment = serve.deployment(
        serve.ingress()(Ingress),
        name="ingress",
        num_replicas=recipe.ingress_replicas,
        max_ongoing_requests=_MANY,
        max_constructor_retry_count=2,
        graceful_shutdown_timeout_s=recipe.drain_seconds,
        graceful_shutdown_wait_loop_s=0.2,
        ray_actor_options={"num_cpus": recipe.ingress_cpus},
    )
    return deployment.bind(recipe, list(engines), expects_key=bool(Keys.from_environment()))


def _replicas(model: ServedModel) -> dict[str, Any]:
    if model.max_replicas == model.replicas:
        return {"num_replicas": model.replicas}
    scaling = {
        "min_replicas": model.replicas,
        "max_replicas": model.max_replicas,
        "target_ongoing_requests": model.target_ongoing,
    }
    return {"autoscaling_config": scaling}


def build(args: BuildArgs) -> Application:
    """The application, for `serve run` and `serve deploy`. Raises `click.ClickException`, which they show as a
    sentence, for a recipe that cannot be served."""
    try:
        # What does not fit is refused here, before anything starts.
        recipe = load_recipe(ServeRecipe, args.recipe, args.overrides).fitted()
        return ingress(recipe, [engine(model, at, recipe) for at, model in enumerate(recipe.models)])
    except HeadraceError as error:
        raise click.ClickException(str(error)) from error
