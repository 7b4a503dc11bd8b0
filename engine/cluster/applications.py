"""Ray Serve on the Ray this process is connected to: start it, deploy applications, stay, take them away again.

Every wait has a deadline and names what it waited for. Left out: what the applications do (`serve_apps`). Called by
`jobs.serve`.
"""

import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from engine.errors import ClusterError, DeadlineExceeded

_FAILED = ("DEPLOY_FAILED", "UNHEALTHY")
_UNDOING = 20.0
"""Seconds that applications which did not come up may take to go."""
_GLANCE = 2.0
"""Seconds between two looks at whether Serve is still there."""


def start_serve(host: str, port: int, *, timeout: float) -> None:
    """Start Serve with its proxy at `host:port`; `timeout` in seconds is for a whole request.

    Raises `ClusterError` where Serve runs already and listens elsewhere.
    """
    from ray import serve
    from ray.serve.config import HTTPOptions

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    options = HTTPOptions(host=host, port=port, request_timeout_s=timeout)
    serve.start(http_options=options)
    running = serve.context._get_global_client().http_config
    if (running.host, running.port) != (host, port):
        raise ClusterError(
            f"Serve runs on this cluster already and listens on {running.host}:{running.port}.",
            f"Say host={running.host} port={running.port}, or end it there: serve shutdown.",
        )


def deploy(applications: Mapping[str, Any], seconds: float, *, route: str | None = None) -> list[Any]:
    """Deploy applications by name and wait until all of them run; returns their handles.

    Raises `ClusterError` with its own words if one fails, `DeadlineExceeded` after so many seconds.
    """
    from ray import serve

    targets = [serve.RunTarget(each, name=name, route_prefix=route) for name, each in applications.items()]
    serve.run_many(targets, wait_for_applications_running=False)
    deadline = time.monotonic() + seconds
    while True:
        states = {name: serve.status().applications[name] for name in applications}
        starting = [name for name, state in states.items() if state.status != "RUNNING"]
        if not starting:
            return [serve.get_app_handle(name) for name in applications]
        for name in starting:
            if states[name].status in _FAILED:
                raise ClusterError(f"{name} does not start: {_reason(states[name])}", "`headrace doctor` may say more.")
        if time.monotonic() > deadline:
            waited = f"{', '.join(starting)} did not start within {seconds:g} seconds."
            raise DeadlineExceeded(waited, "Give it longer: start_seconds=...")
        time.sleep(0.5)


def require_route(route: str, name: str) -> None:
    """Raise `ClusterError` where another application than `name` answers at `route`."""
    from ray import serve

    applications = serve.context._get_global_client().get_serve_details()["applications"]
    for other, found in applications.items():
        if other != name and found["route_prefix"] == route:
            raise ClusterError(
                f"{other} answers at {route} on this cluster already.", f"End it first: serve delete {other}."
            )


@contextmanager
def all_or_none(names: Iterable[str]) -> Iterator[None]:
    """Take away again what was deployed under these names inside, if it ends in an exception; what ran before stays."""
    from ray import serve

    before = serve.status().applications.keys()
    try:
        yield
    except BaseException:
        delete([name for name in names if name not in before], _UNDOING)
        raise


def stay() -> None:
    """Return never: raises `KeyboardInterrupt` when told to stop, `ClusterError` if Serve is gone."""
    from ray import serve

    while True:
        time.sleep(_GLANCE)
        try:
            serve.status()
        except Exception as error:  # of Ray, of Serve, of gRPC: whatever it is, there is nothing to stay for
            raise ClusterError(f"Ray Serve is gone ({type(error).__name__}).", "Start the endpoint again.") from error


def delete(names: Sequence[str], seconds: float) -> None:
    """Take applications away; their requests come to their end, for at most so many seconds."""
    from ray import serve

    for name in names:
        serve.delete(name, _blocking=False)
    deadline = time.monotonic() + seconds
    while serve.status().applications.keys() & set(names) and time.monotonic() < deadline:
        time.sleep(0.2)


def _reason(state: Any) -> str:
    """The last line of what the first failed deployment says, which is its exception."""
    said = [each.message for each in state.deployments.values() if each.status != "HEALTHY" and each.message]
    lines = [line.strip() for line in (said or [state.message])[0].splitlines() if line.strip()]
    return lines[-1] if lines else "it gives no reason."
