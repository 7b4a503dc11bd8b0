"""The gate in front of an HTTP application: who may come in, and how much of a body is read.

With keys in the environment a caller shows one of them as `Authorization: Bearer KEY`. A browser that opens a page
cannot, so a key is also taken as the password of `Authorization: Basic`, whatever the user's name, and a browser is
told to ask for one. It then sends that unasked, for other sites' pages too: applications take nothing but JSON, which
those cannot send. Without any keys, only callers on this machine are served: the caller's address, the address it
reached and the host it names must all be loopback (the last keeps out web pages whose name was made to point here). No
CORS header is ever sent.

Left out: encryption (Serve's `http_options` take a certificate), rate limits per caller, and the queue, which is
Serve's own. Called by the applications of `serve_apps`.
"""

import base64
import hashlib
import hmac
import json
import os
from collections.abc import Iterable, Mapping

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from engine.cluster import API_KEY, is_loopback

_KINDS = {
    401: "AuthenticationError",
    403: "PermissionDeniedError",
    404: "NotFoundError",
    422: "UnprocessableEntityError",
    429: "RateLimitError",
    503: "ServiceUnavailableError",
}
_BEARER = "Bearer"
_BASIC = 'Basic realm="headrace", charset="UTF-8"'


class Keys:
    """Keys, held as digests only: no repr, log or dump can show one, and all compare in the same time."""

    def __init__(self, listed: str) -> None:
        self._digests = tuple(_digest(key.strip().encode()) for key in listed.split(",") if key.strip())

    @classmethod
    def from_environment(cls) -> "Keys":
        """The keys that this process was started with."""
        return cls(os.environ.get(API_KEY, ""))

    def __bool__(self) -> bool:
        return bool(self._digests)

    def admit(self, authorization: bytes) -> bool:
        """Whether an `Authorization` header shows one of them."""
        digest = _digest(_shown(authorization))
        known = False
        for each in self._digests:  # all of them: which one it is must not show in the time either
            known |= hmac.compare_digest(digest, each)
        return known


class Gate:
    """ASGI middleware that lets in who may come in; every route is guarded but those named open."""

    def __init__(self, app: ASGIApp, keys: Keys, *, max_body_bytes: int, open_paths: Iterable[str] = ()) -> None:
        self._app, self._keys = app, keys
        self._max, self._open = max_body_bytes, frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or pass on with the body counted as it comes in."""
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close", "code": 1008})
        headers = {name.lower(): value for name, value in scope["headers"]}
        if scope["path"].removeprefix(scope.get("root_path", "")) not in self._open:
            if self._keys and not self._keys.admit(headers.get(b"authorization", b"")):
                said = "This endpoint wants a key: Authorization: Bearer KEY."
                asks = scope["method"] == "GET" and b"text/html" in headers.get(b"accept", b"").lower()
                shown = (_BEARER, _BASIC) if asks else _BEARER
                return await refuse(send, 401, said, {"WWW-Authenticate": shown})
            if not self._keys and not _from_here(scope, headers.get(b"host", b"")):
                said = f"Without a key only this machine is served; set {API_KEY} on every node before Ray starts."
                return await refuse(send, 403, said)
        length = headers.get(b"content-length", b"")
        if length.isdigit() and int(length) > self._max:
            return await refuse(send, 413, self._too_large())
        read = 0

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self._max:
                raise HTTPException(413, self._too_large())
            return message

        await self._app(scope, counted, send)

    def _too_large(self) -> str:
        return f"A body may hold at most {self._max:,} bytes."


def error_body(status: int, sentence: str) -> dict[str, dict[str, str | int | None]]:
    """What every refusal says, in the shape of OpenAI's."""
    kind = _KINDS.get(status, "BadRequestError" if status < 500 else "InternalServerError")
    return {"error": {"message": sentence, "type": kind, "param": None, "code": status}}


async def refuse(
    send: Send, status: int, sentence: str, headers: Mapping[str, str | tuple[str, ...]] | None = None
) -> None:
    """Send a whole response that says why not; a header of several values is sent as often."""
    body = json.dumps(error_body(status, sentence)).encode()
    sent = {"Content-Type": "application/json", "Content-Length": str(len(body)), **(headers or {})}
    encoded = [
        (name.lower().encode(), value.encode())
        for name, values in sent.items()
        for value in ((values,) if isinstance(values, str) else values)
    ]
    await send({"type": "http.response.start", "status": status, "headers": encoded})
    await send({"type": "http.response.body", "body": body})


def _from_here(scope: Scope, host: bytes) -> bool:
    named = host.decode("latin-1")
    named = named.partition("]")[0] + "]" if named.startswith("[") else named.partition(":")[0]
    # uvicorn takes X-Forwarded-For from callers on this machine only, so a proxy here does not make others local.
    ends = [(scope.get(end) or ("",))[0] for end in ("client", "server")]
    return all(is_loopback(each) for each in [*ends, named])


def _shown(authorization: bytes) -> bytes:
    """The key that a header shows, empty where it shows none; no key is empty."""
    scheme, _, shown = authorization.strip().partition(b" ")
    if scheme.lower() == b"bearer":
        return shown.strip()
    if scheme.lower() != b"basic":
        return b""
    try:
        return base64.b64decode(shown.strip(), validate=True).partition(b":")[2]
    except ValueError:
        return b""


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
