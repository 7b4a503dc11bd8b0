"""Jobs handed to a running cluster through the Ray Jobs API: what is sent, under which name, and who may be trusted.

What is sent is one small deterministic zip: the packages, and the resolved recipe as `recipe.yaml`. Its hash names the
submission, so handing in the same thing twice finds the first one instead of starting a second.

Left out: what jobs there are and how a state is shown (`jobs.submit`, the only caller).
"""

import asyncio
import contextlib
import hashlib
import io
import logging
import os
import tempfile
import time
import zipfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from engine.cluster import find_token, is_loopback, use_token
from engine.cluster.access import TOKEN_REMEDY, first_line
from engine.errors import ClusterError

PACKAGES = ("engine", "jobs", "serve_apps", "tuning")
RECIPE = "recipe.yaml"
LARGEST = 2**20
"""Bytes of a zip: every worker of every node unpacks it, and code alone is far smaller."""
DONE = ("SUCCEEDED", "FAILED", "STOPPED")
_REQUEST_SECONDS = 30.0
_RECONNECTS = 5
_STOP_SECONDS = 30
"""What Ray gives a stopped job between SIGTERM and SIGKILL, so that it can leave a state to resume from."""


@dataclass(frozen=True)
class State:
    """One submission as the cluster reports it; `status` is Ray's (PENDING, RUNNING, SUCCEEDED, FAILED, STOPPED)."""

    id: str
    status: str
    message: str
    seconds: float | None
    """How long it has run, or ran."""

    @property
    def done(self) -> bool:
        return self.status in DONE


def bundle(recipe: str, *, root: Path | None = None) -> bytes:
    """The zip that a cluster is sent: the packages below `root` (this checkout), pyproject.toml, the recipe's text.

    The same files give the same bytes. Raises `ClusterError` above 1 MiB.
    """
    root = root or Path(__file__).resolve().parent.parent
    files = {"pyproject.toml": root / "pyproject.toml"}
    for package in PACKAGES:
        for path in (root / package).rglob("*"):
            inside = path.relative_to(root)
            if path.is_file() and not any(part.startswith((".", "__pycache__")) for part in inside.parts):
                files[inside.as_posix()] = path
    contents = {name: path.read_bytes() for name, path in files.items() if path.is_file()}
    contents[RECIPE] = recipe.encode()
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(contents):
            # A fixed date, or the same code would get another name tomorrow.
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), contents[name], zipfile.ZIP_DEFLATED)
    if stream.tell() > LARGEST:
        largest = max(contents, key=lambda name: len(contents[name]))
        raise ClusterError(
            f"The code to submit makes {stream.tell() / LARGEST:.1f} MiB, more than 1; {largest} is its largest file.",
            f"Move what is no code out of {', '.join(PACKAGES)}.",
        )
    return stream.getvalue()


def connect(address: str, *, allow_unauthenticated: bool = False) -> Any:
    """A client of the Jobs API at `http(s)://host:port`, trusted and reachable. Raises `ClusterError`.

    Refused, unless allowed: a remote cluster that answers without a token, or to which one would travel in the clear.
    """
    url = _url(address)
    parts = urlsplit(url)
    remote = not is_loopback(parts.hostname or "")
    if remote and parts.scheme == "http" and not allow_unauthenticated:
        raise ClusterError(
            f"{url} is on another machine, and plain http would show the token and the job to the network between.",
            "Use a tunnel (ssh -L 8265:127.0.0.1:8265 HEAD, then --address http://127.0.0.1:8265) or https; "
            "--allow-unauthenticated goes ahead.",
        )
    with_token = use_token()
    if remote and not with_token and not allow_unauthenticated:
        raise ClusterError(
            f"There is no token for {url}, and a remote cluster without one is open to everybody.",
            f"{TOKEN_REMEDY} --allow-unauthenticated goes ahead without.",
        )
    open_to_all = _ask(url)
    if remote and open_to_all and not allow_unauthenticated:
        raise ClusterError(
            f"The cluster at {url} takes jobs from everybody: its token authentication is off.",
            "Start it with RAY_AUTH_MODE=token, as cluster.yaml does; --allow-unauthenticated goes ahead.",
        )
    with _failures(url):
        return _client(url)


def hand_in(client: Any, job: str, package: bytes, entrypoint: str, *, again: bool = False) -> tuple[State, bool]:
    """Submit, unless this very package of this job is there already; its state, and whether this call started it.

    A pending, running or succeeded submission is found again; a failed or stopped one is followed by another attempt,
    its number at the end of the name. `again` starts another attempt after success too.
    """
    digest = hashlib.sha256(f"{entrypoint}\n".encode() + package).hexdigest()
    name = f"headrace-{job}-{digest[:12]}"
    with _failures(client.get_address()), tempfile.TemporaryDirectory() as folder:
        known = {each.submission_id: each for each in client.list_jobs()}
        attempt, current = 1, name
        while current in known:
            found = _state(known[current])
            if not found.done or (found.status == "SUCCEEDED" and not again):
                return found, False
            attempt += 1
            current = f"{name}-{attempt}"
        path = Path(folder) / f"{name}.zip"
        path.write_bytes(package)
        environment = {"RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_SECONDS)}
        try:
            client.submit_job(
                entrypoint=entrypoint,
                submission_id=current,
                runtime_env={"working_dir": str(path), "env_vars": environment},
                metadata={"headrace_job": job},
            )
        except RuntimeError as error:
            # Somebody else handed in the same package between our look and our call.
            if "already exists" not in str(error):
                raise
            return _state(client.get_job_info(current)), False
        return _state(client.get_job_info(current)), True


def look(client: Any, submission: str) -> State:
    """The state of a submission. Raises `ClusterError`, also if the cluster does not know it."""
    with _failures(client.get_address()):
        return _state(client.get_job_info(submission))


def halt(client: Any, submission: str, *, deadline: float = _STOP_SECONDS + 30.0) -> State:
    """Ask a submission to stop and wait until it has, at most `deadline` seconds; one that is done stays as it is."""
    state = look(client, submission)
    if not state.done:
        with _failures(client.get_address()):
            client.stop_job(submission)
    end = time.monotonic() + deadline
    while not state.done and time.monotonic() < end:
        time.sleep(0.5)
        state = look(client, submission)
    return state


def read_logs(client: Any, submission: str) -> str:
    """Everything a submission has printed so far."""
    with _failures(client.get_address()):
        return str(client.get_job_logs(submission))


def follow(client: Any, submission: str, write: Callable[[str], object]) -> State:
    """Hand what a submission prints to `write` until it is done, however long that takes; its last state.

    A lost connection is taken up again where it broke; `ClusterError` after five in a row that brought nothing new.
    """
    import aiohttp

    look(client, submission)
    log, failures = _Log(write), 0
    while True:
        before = log.written
        try:
            # The stream ends by itself only when the job is done and its log read to the end.
            asyncio.run(_tail(client, submission, log))
            if (state := look(client, submission)).done:
                return state
        except (ClusterError, RuntimeError, OSError, aiohttp.ClientError) as error:
            failures = 1 if log.written > before else failures + 1
            if failures > _RECONNECTS:
                raise ClusterError(
                    f"The connection to {submission} was lost {failures} times in a row: {first_line(error)}",
                    f"The job may well run on; see: headrace logs {submission}.",
                ) from None
        time.sleep(min(2.0**failures, 15.0))


class _Log:
    """What was written of a log so far; a stream taken up again starts at the log's beginning."""

    def __init__(self, write: Callable[[str], object]) -> None:
        self.written = 0
        self._write = write

    def add(self, chunk: str, start: int) -> None:
        fresh = chunk[max(self.written - start, 0) :]
        if fresh:
            self._write(fresh)
            self.written = start + len(chunk)


async def _tail(client: Any, submission: str, log: _Log) -> None:
    position = 0
    chunks: AsyncIterator[str] = client.tail_job_logs(submission)
    while (chunk := await _patiently(anext(chunks, None), lambda: look(client, submission))) is not None:
        log.add(chunk, position)
        position += len(chunk)


async def _patiently(waited: Awaitable[str | None], check: Callable[[], State]) -> str | None:
    """Await the next lines; while none come, see now and then that the cluster still answers (or fail)."""
    task = asyncio.ensure_future(waited)
    while not (await asyncio.wait({task}, timeout=_REQUEST_SECONDS))[0]:
        await asyncio.to_thread(check)
    return task.result()


def _url(address: str) -> str:
    text = address if "://" in address else f"http://{address}"
    parts = urlsplit(text)
    try:
        port = parts.port
    except ValueError:
        port = None
    bare = not parts.username and not parts.query and parts.path in ("", "/")
    if parts.scheme not in ("http", "https") or not parts.hostname or (not port and parts.scheme == "http") or not bare:
        raise ClusterError(
            f"{address.rpartition('@')[2]!r} is no address of a Ray Jobs API.",
            "Give the dashboard's: http://127.0.0.1:8265.",
        )
    return f"{parts.scheme}://{parts.netloc}"


def _ask(url: str) -> bool:
    """Whether the Jobs API answers a request that carries no token. Raises `ClusterError` if nothing answers."""
    import requests

    try:
        answer = requests.get(f"{url}/api/jobs/", timeout=10, allow_redirects=False)
    except requests.RequestException:
        raise ClusterError(
            f"No Ray Jobs API answers at {url}.", "Is the cluster up, and the tunnel to its port 8265 open?"
        ) from None
    return answer.ok


def _client(url: str) -> Any:
    from ray.job_submission import JobSubmissionClient

    class Client(JobSubmissionClient):  # type: ignore[misc]
        """Ray's client with a limit on the time of a request; it has none of its own."""

        def _do_request(self, *args: Any, **kwargs: Any) -> Any:
            return super()._do_request(*args, **{"timeout": _REQUEST_SECONDS, **kwargs})

    for name in ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Ray prefers these over the address it is given.
    hidden = {key: os.environ.pop(key) for key in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS") if key in os.environ}
    try:
        client = Client(url)
        # Ray hands its None on to aiohttp, which no longer likes it; True means the same: certificates are checked.
        client._ssl_context = client._ssl_context or True
        return client
    finally:
        os.environ.update(hidden)


@contextlib.contextmanager
def _failures(url: str) -> Iterator[None]:
    """Turn what Ray's client raises into a `ClusterError` of one sentence."""
    import requests
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError:
        token = find_token()
        shown = f"the token from {token.origin}" if token else "a request without a token"
        raise ClusterError(f"The cluster at {url} refuses {shown}.", TOKEN_REMEDY) from None
    except (requests.RequestException, ConnectionError) as error:
        raise ClusterError(f"The Jobs API at {url} does not answer ({type(error).__name__}).", "Try again.") from None
    except RuntimeError as error:
        raise ClusterError(f"The cluster at {url} refuses: {first_line(error)}", "Check name and address.") from None


def _state(details: Any) -> State:
    end = details.end_time or time.time() * 1000
    seconds = (end - details.start_time) / 1000 if details.start_time else None
    status = str(getattr(details.status, "value", details.status))
    return State(details.submission_id, status, (details.message or "").strip(), seconds)
