"""Serve models over HTTP as OpenAI does: chat, completions, and for a base with a value network a beta by request.

Starts a private Ray with Ray Serve on it (or uses the cluster at --address), waits until every engine is up, prints the
URLs and stays until it is told to stop (Ctrl-C, SIGTERM); then it takes no new requests and lets answers that have
begun come to their end.

Left out: the application itself (`serve_apps.openai_app`), which Serve imports by its name. Called by `jobs.cli`.
"""

import os
import socket
from importlib import import_module

import click

from engine.cluster import API_KEY
from engine.errors import ClusterError
from engine.runs import Invocation, Outcome, Run
from engine.value_network.endpoint import ServedModel, ServeRecipe

RECIPE = ServeRecipe
SERVE_ENVIRONMENT = {
    # What Serve's proxy says by itself gets the shape of OpenAI's errors.
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serve_apps.edge:middlewares",
    # Tokens go from process to process at half the CPU time that Ray's own way takes.
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
}
"""Read by Serve's processes as they start."""


def run(recipe: ServeRecipe, call: Invocation) -> Outcome:
    """Check, start, stay, drain."""
    from engine.cluster import delete, is_loopback, session, stay
    from engine.observe import Stopwatch
    from engine.resources import capacity, local_capacity, preflight

    if not is_loopback(recipe.host) and not _has_key():
        raise ClusterError(
            f"Without a key nobody may listen on {recipe.host}: every caller could use the models.",
            f"Set {API_KEY} in the environment, or host=127.0.0.1.",
        )
    recipe = recipe.fitted()
    if (call.address or os.environ.get("RAY_ADDRESS") or "local") == "local":
        _require_free(recipe.host, recipe.port)  # on a cluster Serve may be there already, and listen where it should
    outcome = Outcome("serve", Run("serve", recipe).path, _facts(recipe), published=False)
    if call.dry_run:
        if not call.address:
            preflight(recipe.demands(), local_capacity())
        return outcome
    for name, value in SERVE_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    port = recipe.port or _free_port(recipe.host)
    clock = Stopwatch()
    with session(call.address) as ray_session:
        preflight(recipe.demands(), capacity(ray_session))
        with clock.phase("start"):
            _start(recipe, port)
        url = f"http://{'127.0.0.1' if recipe.host == '0.0.0.0' else recipe.host}:{port}"
        _welcome(recipe, url)
        try:
            with clock.phase("serve"):
                stay()
        except KeyboardInterrupt:
            click.echo("Draining: no new requests; answers that have begun come to their end.", err=True)
        # What receives requests first, with those that wait in it; engines when nobody asks any more.
        with clock.phase("drain"):
            for names in ([recipe.name], list(_engines(recipe))):
                delete(names, recipe.drain_seconds + 5)
    return Outcome("serve", outcome.output, {"was served at": url}, clock.shares(), published=False)


def _facts(recipe: ServeRecipe) -> dict[str, str]:
    facts = {"listens on": f"{recipe.host}:{recipe.port or 'any free port'}"}
    facts["key"] = "wanted" if _has_key() else f"none ({API_KEY} is not set): this machine only"
    for model in recipe.models:
        for offered in model.offered():
            beta = "" if offered.beta is None else f", beta {offered.beta:g}{'' if offered.fixed else ' or as asked'}"
            facts[offered.name] = f"{model.base}{f' + {model.value}' if model.value else ''}{beta}"
    return facts | {"demand": "; ".join(map(str, recipe.demands()))}


def _has_key() -> bool:
    return bool(os.environ.get(API_KEY, "").strip())


def _free_port(host: str) -> int:
    with socket.create_server((host, 0)) as server:
        return int(server.getsockname()[1])


def _require_free(host: str, port: int) -> None:
    try:
        socket.create_server((host, port)).close()
    except OSError as error:
        raise ClusterError(
            f"{host}:{port} cannot be listened on: {error.strerror}.", "Choose another with port=..., or 0."
        ) from None


def _start(recipe: ServeRecipe, port: int) -> None:
    """Engines first, then what receives requests."""
    from engine.cluster import all_or_none, deploy, require_route, start_serve

    # By their names, as Serve's own configuration has them: the outer rooms do not import each other.
    app = import_module("serve_apps.openai_app")
    start_serve(recipe.host, port, timeout=recipe.request_seconds + 5)
    require_route("/", recipe.name)
    with all_or_none([recipe.name, *_engines(recipe)]):
        engines = {name: app.engine(each, at, recipe) for at, (name, each) in enumerate(_engines(recipe).items())}
        handles = deploy(engines, recipe.start_seconds)
        deploy({recipe.name: app.ingress(recipe, handles)}, recipe.start_seconds, route="/")


def _engines(recipe: ServeRecipe) -> dict[str, ServedModel]:
    """Its engines by the names of their applications."""
    return {f"{recipe.name}-engine-{at}": model for at, model in enumerate(recipe.models)}


def _welcome(recipe: ServeRecipe, url: str) -> None:
    names = ", ".join(offered.name for model in recipe.models for offered in model.offered())
    click.echo(f"{url}/v1 answers as OpenAI does; models: {names}")
    if recipe.playground:
        click.echo(f"{url}/ is a page to try them; {url}/metrics is for Prometheus. Ctrl-C ends it.")


if __name__ == "__main__":
    from jobs.cli import main

    main("serve")
