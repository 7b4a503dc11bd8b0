import asyncio
import base64

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import PlainTextResponse

from engine.cluster import API_KEY as KEY
from serve_apps.edge import PlainRefusals
from serve_apps.gate import Gate, Keys

SECRET = "sesame, open"
HERE, THERE = ("127.0.0.1", 5), ("192.0.2.9", 5)


def ask(keys, path="/guarded", *, client=HERE, url="http://127.0.0.1", root="", **request):
    app = FastAPI()

    @app.post("/guarded")
    @app.get("/health")
    async def read(request: Request):
        return len(await request.body())

    gate = Gate(app, Keys(keys), max_body_bytes=100, open_paths=("/health",))

    async def send():
        transport = httpx.ASGITransport(gate, client=client, root_path=root)
        async with httpx.AsyncClient(transport=transport, base_url=url) as caller:
            return await caller.request("GET" if path.endswith("health") else "POST", path, **request)

    return asyncio.run(send())


@pytest.mark.parametrize("shown", ["Bearer one", "bearer one", "Bearer  two "])
def test_any_of_the_keys_opens(shown):
    assert ask("one, two,", headers={"Authorization": shown}, client=THERE).status_code == 200


def basic(pair):
    return "Basic " + base64.b64encode(pair.encode()).decode()


@pytest.mark.parametrize("pair", ["me:one", ":two", "anybody at all:one"])
def test_a_browser_shows_a_key_as_a_password(pair):
    for shown in (basic(pair), basic(pair).replace("Basic", "basic ")):
        assert ask("one, two", headers={"Authorization": shown}, client=THERE).status_code == 200
    assert ask("k:é", headers={"Authorization": basic("me:k:é")}).status_code == 200


@pytest.mark.parametrize(
    "shown",
    [basic("one"), basic("one:"), basic("one:no"), basic("me:one "), basic(":"), "Basic", "Basic !",
     "Basic bWU6b25l\tx", "Bearer bWU6b25l", "Basic bWU6b25"],
)  # fmt: skip
def test_another_password_does_not(shown):
    assert ask("one,two", headers={"Authorization": shown}).status_code == 401


def test_only_a_browser_that_opens_a_page_is_told_to_ask():
    page = {"headers": {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}}
    asked = ask("one", "/guarded/health", **page).headers.get_list("www-authenticate")
    assert asked == ["Bearer", 'Basic realm="headrace", charset="UTF-8"']
    for path, request in [("/guarded/health", {"headers": {"Accept": "*/*"}}), ("/guarded", page)]:
        assert ask("one", path, **request).headers.get_list("www-authenticate") == ["Bearer"]


@pytest.mark.parametrize(
    "shown", ["", "one", "Bearer", "Bearer ", "Bearer on", "Bearer one,two", "Basic one", "Bearer é"]
)
def test_anything_else_does_not(shown):
    answer = ask("one,two", headers={"Authorization": shown.encode()})
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert "wants a key" in answer.json()["error"]["message"]
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_health_is_open_under_any_prefix_and_nothing_else_is():
    assert ask("one", "/health", client=THERE).status_code == 200
    assert ask("one", "/sieve/health", root="/sieve").status_code == 200
    assert ask("one", "/sieve/guarded", root="/sieve").status_code == 401
    assert ask("one", "/guarded/health").status_code == 401


@pytest.mark.parametrize("url", ["http://127.0.0.1:8000", "http://localhost:8000", "http://[::1]:8000"])
def test_without_a_key_this_machine_is_served(url):
    assert ask(" , ", url=url).status_code == 200


@pytest.mark.parametrize(
    "far",
    [
        {"client": THERE},
        {"url": "http://192.0.2.1"},
        {"url": "http://[2001:db8::1]"},
        {"headers": {"Host": "localhost.example.org"}},
        {"headers": {"Host": ""}},
    ],
)
def test_without_a_key_no_other_is(far):
    answer = ask("", **far)
    assert answer.status_code == 403
    assert KEY in answer.json()["error"]["message"]


def test_a_body_is_read_up_to_its_limit():
    assert ask("", content=b"x" * 100).json() == 100
    assert ask("", content=b"x" * 101).status_code == 413

    async def pieces():
        for _ in range(4):
            yield b"x" * 30

    assert ask("", content=pieces()).status_code == 413


def test_other_protocols_are_turned_away():
    sent = []

    async def send(message):
        sent.append(message)

    gate = Gate(FastAPI(), Keys(""), max_body_bytes=1)
    asyncio.run(gate({"type": "websocket", "path": "/", "headers": []}, None, send))
    assert [message["type"] for message in sent] == ["websocket.close"]


def test_no_key_can_be_read_off(monkeypatch):
    monkeypatch.setenv(KEY, SECRET)
    keys = Keys.from_environment()
    for part in SECRET.split(", "):
        assert part not in f"{keys!r} {keys} {vars(keys)}"
    assert keys
    assert not Keys("")


def test_what_the_proxy_says_in_plain_text_is_said_in_json():
    app = FastAPI()
    app.add_api_route("/", lambda: PlainTextResponse("gone", 500))

    async def send():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(PlainRefusals(app)), base_url="http://x") as caller:
            return await caller.get("/")

    answer = asyncio.run(send())
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
    assert answer.json()["error"]["type"] == "ServiceUnavailableError"


def test_the_proxy_names_its_applications_to_nobody():
    app = FastAPI()

    @app.get("/-/{what}")
    async def told(what: str):
        return {"/": "app"}

    async def send(path):
        async with httpx.AsyncClient(transport=httpx.ASGITransport(PlainRefusals(app)), base_url="http://x") as caller:
            return (await caller.get(path)).status_code

    assert asyncio.run(send("/-/routes")) == 404
    assert asyncio.run(send("/-/healthz")) == 200
