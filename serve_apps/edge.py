"""What Serve's proxy says itself, in the shape and with the status that callers of OpenAI's API know what to do with.

A replica that died, an application that is not there yet or no longer: the proxy answers those with a plain text, of
which a client makes a failure for good. They become 503 with Retry-After. What an application says passes unchanged.

Left out: refusals of the application (`serve_apps.gate`, `serve_apps.openai_app`). Used by `jobs.serve`; on a
cluster by RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=serve_apps.edge:middlewares in the environment of every node.
"""

import logging

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_apps.gate import refuse

_log = logging.getLogger("ray.serve")
_GONE = (404, 500, 503)
"""What the proxy says where there is nobody to answer."""


def middlewares() -> list[Middleware]:
    """What goes around the proxy."""
    return [Middleware(PlainRefusals)]


class PlainRefusals:
    """ASGI middleware that turns refusals in plain text into JSON."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass everything on but the proxy's own refusals and its list of applications."""
        if scope["type"] != "http" or scope["path"] == "/-/healthz":
            return await self._app(scope, receive, send)
        if scope["path"].startswith("/-/"):  # the proxy's own: it would name the applications to anyone
            return await refuse(send, 404, "There is nothing here.")
        begun = refused = False

        async def passed(message: Message) -> None:
            nonlocal begun, refused
            begun = True
            if message["type"] == "http.response.start" and message["status"] >= 400:
                kind = dict(message.get("headers", [])).get(b"content-type", b"")
                if not kind.startswith(b"application/json"):
                    refused = True
                    return await _shaped(send, message["status"])
            if not refused:
                await send(message)

        try:
            await self._app(scope, receive, passed)
        except Exception:
            if begun:
                raise
            _log.warning("%s %s was not answered", scope["method"], scope["path"], exc_info=True)
        if not begun:  # the replica that had the request died
            await _shaped(send, 500)


async def _shaped(send: Send, status: int) -> None:
    if status in _GONE:
        said = "Nobody is there to answer at the moment: the endpoint is starting, stopping, or lost a process."
        return await refuse(send, 503, said, {"Retry-After": "5"})
    said = "The request took too long." if status == 408 else "Too many requests wait."
    await refuse(send, status, said)
