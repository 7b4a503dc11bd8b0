"""An OpenAI-compatible endpoint that does what the snippet's words say, for the tests of SIEVE."""

import json
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PROMPT = "{criterion}|{snippet}"
"""A prompt from which the endpoint can take the snippet again."""
ODD = {
    "odd-list": [],
    "odd-null": None,
    "odd-empty": {},
    "odd-choices": {"choices": []},
    "odd-message": {"choices": [{"message": None}], "usage": {"prompt_tokens": "many"}},
    "odd-content": {"choices": [{"message": {"content": 7}}], "usage": []},
}


class Endpoint:
    """A server in a thread. Words in a snippet steer it, the first that applies:

    good            PASS; a snippet without any of these words: FAIL
    nonsense        never a verdict             unsure    a verdict only at the second answer
    limited         429 at first                broken    500 at first; dead: always
    slow            answers after `slow_seconds`, or as soon as `hurry` is set
    long            400, as for a text that is too long
    cut             a verdict that was cut off at the longest answer
    trickle         blanks for `slow_seconds`, then the answer        torn            half an answer
    odd-...         JSON of the wrong shape; html: no JSON at all
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        """Requests by snippet."""
        self.answered: Counter[str] = Counter()
        """Whole answers sent by snippet."""
        self.bodies: list[dict] = []
        self.most_at_once = 0
        self.delay = 0.0
        self.slow_seconds = 1.5
        self.hurry = threading.Event()
        self.retry_after = "0.2"
        self.key: str | None = None
        """The key wanted; another is answered with 401 that repeats it."""
        self.models: list[str] | None = None
        self.refused: dict[str, str] = {}
        """Parameters that are answered with 400, and the message."""
        self.usage = True
        self._busy = 0
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def reply(self, body: dict, authorization: str) -> tuple[int, object, dict[str, str]]:
        """Status, body and headers of the answer to a request."""
        words = body["messages"][0]["content"].partition("|")[2]
        with self._lock:
            self.counts[words] += 1
            self.bodies.append(body)
            self._busy += 1
            self.most_at_once = max(self.most_at_once, self._busy)
            time_of = self.counts[words]
        try:
            if "slow" in words:
                self.hurry.wait(self.slow_seconds)
            else:
                time.sleep(self.delay)
            return self._decide(body, words, time_of, authorization)
        finally:
            with self._lock:
                self._busy -= 1

    def _decide(self, body: dict, words: str, time_of: int, authorization: str) -> tuple[int, object, dict[str, str]]:
        if self.key is not None and authorization != f"Bearer {self.key}":
            return 401, {"error": {"message": f"Incorrect key: {authorization}", "code": "invalid_api_key"}}, {}
        if self.models is not None and body["model"] not in self.models:
            return 404, {"error": {"message": "no such model", "code": "model_not_found"}}, {}
        for name, message in self.refused.items():
            if name in body:
                return 400, {"error": {"message": message, "param": name}}, {}
        if ("limited" in words and time_of == 1) or "quota" in words:
            code = "insufficient_quota" if "quota" in words else "rate_limit_exceeded"
            return 429, {"error": {"message": "slow down", "code": code}}, {"Retry-After": self.retry_after}
        if ("broken" in words and time_of == 1) or "dead" in words:
            return 500, {"error": {"message": "out of order"}}, {}
        if "long" in words:
            return 400, {"error": {"message": "too many tokens", "code": "context_length_exceeded"}}, {}
        if "html" in words:
            return 200, "<html>welcome</html>", {}
        for name, odd in ODD.items():
            if name in words:
                return 200, odd, {}
        said = "It is so. **PASS**" if "good" in words else "It is not. FAIL"
        if "nonsense" in words or ("unsure" in words and time_of == 1):
            said = f"I cannot say. {authorization}"
        choice = {"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
        if "cut" in words:
            choice["finish_reason"] = "length"
        usage = {"prompt_tokens": 10 + len(words.split()), "completion_tokens": 5, "total_tokens": 0}
        return 200, {"id": "x", "choices": [choice], **({"usage": usage} if self.usage else {})}, {}


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address) -> None:
        """A client that has gone is nothing to talk about."""


def _handler(endpoint: Endpoint) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, answer, headers = endpoint.reply(body, self.headers.get("Authorization", ""))
            html = isinstance(answer, str)
            data = answer.encode() if html else json.dumps(answer).encode()
            words = body["messages"][0]["content"]
            blanks = 10 if "trickle" in words else 0
            self.send_response(status)
            for name, value in {"Content-Type": "text/html" if html else "application/json", **headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data) + blanks))
            self.end_headers()
            for _ in range(blanks):
                self.wfile.write(b" ")
                time.sleep(endpoint.slow_seconds / blanks)
            if "torn" in words:
                self.wfile.write(data[: len(data) // 2])
                self.close_connection = True
                return
            self.wfile.write(data)
            endpoint.answered[body["messages"][0]["content"].partition("|")[2]] += status == 200

        def log_message(self, *_: object) -> None:
            """Quiet."""

    return Handler
