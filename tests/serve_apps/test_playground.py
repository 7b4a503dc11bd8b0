"""The playground in a browser: headless Chromium before a server that answers from a script, in vLLM's shapes."""

import asyncio
import json
import math
import shutil
import socket
import subprocess
import threading

import pytest
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from playwright.sync_api import expect, sync_playwright

from serve_apps import openai_app
from serve_apps.gate import Gate, Keys, error_body

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip
CARD = {"object": "model", "created": 1, "owned_by": "headrace", "max_model_len": 256, "base": "pkg:small"}
PAIR = {**CARD, "id": "tweets", "value_beta": 1.0, "value_network": "runs/mine/model"}
ALONE = {**CARD, "id": "small", "value_beta": 0.0, "value_network": None}
PLAIN = {**CARD, "id": "plain", "value_beta": None, "value_network": None}
PROMPT = [1, 9690, 198]
NBSP = "\u00a0"

# A token: id, its text, what the base and the mix list at its place (text: probability; its own among them).
HOW = [
    (10, "I", {"I": 0.9, "It": 0.08}, {"I": 0.9, "It": 0.08}),
    (11, " feel", {" feel": 0.5, " am": 0.4}, {" feel": 0.62, " am": 0.28}),
    (12, " good", {" good": 0.6, " bad": 0.3}, {" good": 0.1, " great": 0.8}),
    (13, "\n", {"\n": 0.5, ".": 0.5}, {"\n": 0.2, ".": 0.8}),
    (2, "<|im_end|>", {"<|im_end|>": 1.0}, {"<|im_end|>": 1.0}),
]
BETTER = [(20, "Great", {"Great": 0.2, "I": 0.7}, {"Great": 0.9, "I": 0.05}), HOW[-1]]
IDS = {text: 100 + at for at, text in enumerate([" am", " bad", " great", ".", "It"])}


def _chunk(model, choice, **more):
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": model}
    return "data: " + json.dumps({**head, "choices": [{"index": 0, **choice}], **more}) + "\n\n"


def _listed(text, p):
    return {"token": text, "logprob": math.log(p), "bytes": list(text.encode())}


def chat(model, tokens, *, mixed):
    """What vLLM streams: the prompt's ids first, then one token to an event, the last with why it ended."""
    yield _chunk(
        model,
        {"delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None},
        prompt_token_ids=PROMPT,
        prompt_text=None,
    )
    for at, (identity, text, *lists) in enumerate(tokens):
        places = lists[mixed]
        logprobs = {**_listed(text, places[text]), "top_logprobs": [_listed(*each) for each in places.items()]}
        last = {"finish_reason": "stop", "stop_reason": None} if at == len(tokens) - 1 else {"finish_reason": None}
        said = "" if text.startswith("<|") else text
        yield _chunk(
            model, {"delta": {"content": said}, "logprobs": {"content": [logprobs]}, "token_ids": [identity], **last}
        )
    yield "data: [DONE]\n\n"


def forced(tokens, *, mixed):
    """vLLM's answer to a prompt of ids, with what it would have written at each place."""
    places = [None] + [{"9": {"logprob": 0.0, "rank": 1, "decoded_token": "x"}}] * (len(PROMPT) - 1)
    for identity, text, *lists in tokens:
        ranked = sorted(lists[mixed].items(), key=lambda each: -each[1])
        places.append(
            {
                str(identity if each == text else IDS.get(each, 99)): {
                    "logprob": math.log(p),
                    "rank": rank,
                    "decoded_token": each,
                }
                for rank, (each, p) in enumerate(ranked, 1)
            }
        )
    choice = {"index": 0, "text": "\n", "logprobs": None, "finish_reason": "length", "prompt_logprobs": places}
    return {"id": "cmpl-1", "object": "text_completion", "created": 1, "choices": [choice]}


class Endpoint:
    """A server whose answers are said beforehand and whose streams can be held."""

    def __init__(self, keys=""):
        self.models, self.bodies, self.gone = [PAIR, ALONE, PLAIN], [], threading.Event()
        self.base, self.mixed, self.chat = HOW, BETTER, chat
        self.refusal, self.hold, self.go_on = None, None, threading.Event()
        app = FastAPI()
        app.add_api_route("/", openai_app._playground)
        app.add_api_route("/v1/models", self._list)
        app.add_api_route("/v1/chat/completions", self._chat, methods=["POST"])
        app.add_api_route("/v1/completions", self._complete, methods=["POST"])
        gate = Gate(app, Keys(keys), max_body_bytes=100_000)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._server = uvicorn.Server(uvicorn.Config(gate, log_level="error", ws="none", lifespan="off"))
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]})
        self._thread.start()

    def close(self):
        self.go_on.set()
        self._server.should_exit = True
        self._thread.join(timeout=20)
        self._socket.close()

    def asked(self, path):
        return [body for where, body in self.bodies if where == path]

    async def _list(self):
        return {"object": "list", "data": self.models}

    async def _chat(self, request: Request):
        return await self._answer("chat", request)

    async def _complete(self, request: Request):
        return await self._answer("completions", request)

    async def _answer(self, path, request):
        assert request.headers["content-type"] == "application/json"
        body = await request.json()
        self.bodies.append((path, body))
        if self.refusal:
            status, sentence, headers = self.refusal
            return JSONResponse(error_body(status, sentence), status, headers=headers)
        beta = body.get("value_beta", 0)
        if path == "chat":
            tokens = self.mixed if beta else self.base
            return StreamingResponse(self._stream(self.chat(body["model"], tokens, mixed=bool(beta))))
        tokens = next(
            each for each in (self.base, self.mixed) if body["prompt"] == PROMPT + [token[0] for token in each]
        )
        return JSONResponse(forced(tokens, mixed=bool(beta)))

    async def _stream(self, events):
        whole = False
        try:
            for at, event in enumerate(events):
                while at == self.hold and not self.go_on.is_set():
                    await asyncio.sleep(0.01)
                yield event
            whole = True
        finally:
            if not whole:
                self.gone.set()


@pytest.fixture(scope="module")
def browser():
    path = next(filter(None, map(shutil.which, ["chromium", "chromium-browser", "google-chrome"])), None)
    if path is None:
        pytest.skip("no Chromium on this machine (Debian: apt-get install chromium)")
    started = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=60)
    if started.returncode:
        pytest.skip(f"{path} does not start: {started.stderr[-200:]}")
    expect.set_options(timeout=20_000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def endpoint():
    endpoint = Endpoint()
    yield endpoint
    endpoint.close()


@pytest.fixture
def page(browser, endpoint):
    """The page, opened; whatever it asks of another host or says in the console fails the test."""
    context = browser.new_context(viewport={"width": 1100, "height": 900}, reduced_motion="reduce")
    page, hosts, said = context.new_page(), set(), []
    page.on("request", lambda request: hosts.add(request.url.split("/")[2]))
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(endpoint.url)
    expect(page.get_by_label("Model")).to_have_value("tweets")
    yield page
    context.close()
    assert hosts <= {endpoint.url.removeprefix("http://")}
    # The browser itself reports every refusal that a test asks for.
    assert not [each for each in said if "Failed to load resource" not in each]


def ask(page, prompt="How are you?"):
    page.get_by_label("Prompt").fill(prompt)
    page.get_by_role("button", name="Send").click()


def texts(page):
    return page.locator("article .text")


def token(page, text, answer=0):
    return page.locator("article").nth(answer).get_by_role("option").filter(has_text=text)


def status(page):
    return page.locator("#status")


def test_answers_stream_side_by_side(page, endpoint):
    endpoint.hold = 2
    ask(page)
    expect(texts(page)).to_have_text(["I", "Great"])
    expect(page.get_by_role("heading", level=2)).to_have_text(["Base", "With value network, β 1.00"])
    expect(status(page)).to_have_text("Writing…")
    one, other = (page.locator("article").nth(at).bounding_box() for at in (0, 1))
    assert one["y"] == other["y"]
    assert one["x"] + one["width"] <= other["x"]
    endpoint.go_on.set()
    expect(status(page)).to_contain_text("Done.")
    expect(texts(page)).to_have_text(["I feel good\nend", "Greatend"], use_inner_text=True)
    expect(page.locator("article").first).to_contain_text("5 tokens in")
    expect(page.locator("article").first).to_contain_text("ended by itself")
    expect(page.get_by_role("button", name="Stop")).to_be_hidden()


def test_tokens_that_differ_are_marked_and_show_what_else_there_was(page):
    ask(page)
    expect(status(page)).to_contain_text("Done. Tokens marked: 3 and 1.")
    # Total variation: of " good" 0.5 and of " bad" 0.3, less the 0.1 that the mix has left for it.
    expected = {"I": (0, 0.0), " feel": (1, 0.12), " good": (3, 0.7), "end": (0, 0.0)}
    for text, (level, apart) in expected.items():
        element = token(page, text)
        assert element.get_attribute("data-level") == str(level), text
        assert float(element.evaluate("each => each.style.getPropertyValue('--apart')")) == pytest.approx(
            apart, abs=1e-3
        )
        underline = element.evaluate("each => getComputedStyle(each).textDecorationLine")
        assert underline == ("underline" if level else "none")
    first = page.locator("article").first
    expect(first.locator(".most button")).to_have_text(
        [f"␣good 70{NBSP}%", f"↵ 30{NBSP}%", f"␣feel 12{NBSP}%"], use_inner_text=True
    )
    token(page, " good").click()
    panel = page.get_by_role("region", name="Token")
    expect(panel.get_by_role("heading", level=2)).to_have_text(f"␣good 70{NBSP}% apart")
    expect(panel.get_by_role("heading", level=3)).to_have_text(["Base", "With β 1.00"])
    expect(panel.get_by_role("listitem")).to_have_text(
        [f"␣good60{NBSP}%", f"␣bad30{NBSP}%", f"␣great80{NBSP}%", f"␣good10{NBSP}%"]
    )
    expect(panel.locator("[aria-current]")).to_have_text([f"␣good60{NBSP}%", f"␣good10{NBSP}%"])
    first.get_by_role("button", name="␣feel").click()
    expect(panel.get_by_role("heading", level=2)).to_contain_text("␣feel")
    expect(token(page, " feel")).to_be_focused()
    panel.get_by_role("button", name="Close").click()
    expect(panel).to_be_hidden()


def test_the_slider_is_the_beta_of_the_answer_and_of_the_comparison(page, endpoint):
    slider = page.get_by_role("slider")
    assert [slider.get_attribute(each) for each in ("min", "max", "step")] == ["0", "2", "0.05"]
    slider.focus()
    for _ in range(5):
        page.keyboard.press("ArrowLeft")
    expect(page.locator("#shown-beta")).to_have_text("0.75")
    expect(page.get_by_label("Value network, β")).to_have_value("0.75")
    page.get_by_label("Max tokens").fill("7")
    page.get_by_label("Temperature").fill("0.5")
    page.get_by_text("System message").click()
    page.get_by_label("System message").fill("Be short.")
    ask(page)
    expect(status(page)).to_contain_text("Done.")
    mixed, base = sorted(endpoint.asked("chat"), key=lambda body: body["model"], reverse=True)
    assert (mixed.pop("model"), base.pop("model")) == ("tweets", "small")
    assert mixed.pop("value_beta") == 0.75
    assert mixed == base
    said = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "How are you?"}]
    assert {key: base[key] for key in ("messages", "max_tokens", "temperature", "stream", "return_token_ids")} == {
        "messages": said, "max_tokens": 7, "temperature": 0.5, "stream": True, "return_token_ids": True}  # fmt: skip
    compared = endpoint.asked("completions")
    assert {body["model"] for body in compared} == {"tweets"}
    assert sorted((len(body["prompt"]), body["value_beta"]) for body in compared) == [
        (5, 0), (5, 0.75), (8, 0), (8, 0.75)]  # fmt: skip
    assert {(body["max_tokens"], body["temperature"], body["prompt_logprobs"]) for body in compared} == {(1, 0, 20)}


def test_without_a_name_of_its_own_the_base_is_the_pair_at_beta_0(page, endpoint):
    endpoint.models = [PAIR, {**ALONE, "base": "pkg:other"}]
    page.reload()
    ask(page)
    expect(status(page)).to_contain_text("Done.")
    assert sorted((body["model"], body["value_beta"]) for body in endpoint.asked("chat")) == [
        ("tweets", 0), ("tweets", 1)]  # fmt: skip


@pytest.mark.parametrize("name", ["plain", "small"])
def test_without_a_value_network_there_is_one_answer(page, endpoint, name):
    page.get_by_label("Model").select_option(name)
    expect(page.get_by_role("slider")).to_be_hidden()
    ask(page)
    expect(status(page)).to_have_text("Done.")
    expect(page.get_by_role("heading", level=2)).to_have_text([name])
    (body,) = endpoint.asked("chat")
    assert "value_beta" not in body
    assert not endpoint.asked("completions")
    token(page, " good").click()
    expect(page.get_by_role("listitem")).to_have_text([f"␣good60{NBSP}%", f"␣bad30{NBSP}%"])
    expect(page.locator("#legend")).to_be_hidden()


@pytest.mark.parametrize("how", ["button", "key"])
def test_stop_ends_the_requests_and_keeps_what_is_there(page, endpoint, how):
    endpoint.hold = 2
    ask(page)
    expect(texts(page)).to_have_text(["I", "Great"])
    if how == "button":
        page.get_by_role("button", name="Stop").click()
    else:
        page.keyboard.press("Escape")
    expect(status(page)).to_have_text("Stopped.")
    assert endpoint.gone.wait(20)
    expect(texts(page)).to_have_text(["I", "Great"])
    assert not endpoint.asked("completions")
    endpoint.go_on.set()
    ask(page, "Again?")
    expect(status(page)).to_contain_text("Done.")


def test_all_of_it_can_be_done_with_the_keyboard(page, endpoint):
    page.keyboard.press("Tab")
    expect(page.get_by_label("Prompt")).to_be_focused()
    page.keyboard.type("How?")
    reached = []
    for _ in range(6):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
    assert reached == ["SUMMARY", "model", "beta", "most", "temperature", "send"]
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Control+Enter")
    expect(status(page)).to_contain_text("Done.")
    assert len(endpoint.asked("chat")) == 2
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    expect(token(page, "I").first).to_be_focused()
    panel = page.get_by_role("region", name="Token")
    heading = panel.get_by_role("heading", level=2)
    for key, shown in [("ArrowRight", "␣feel"), ("ArrowDown", "␣good"), ("ArrowDown", "↵"), ("ArrowDown", "↵"),
                       ("ArrowUp", "␣good"), ("ArrowLeft", "␣feel"), ("End", "<|im_end|>"), ("Home", "I")]:  # fmt: skip
        page.keyboard.press(key)
        expect(heading).to_contain_text(shown)
    assert page.locator("[role=option][aria-selected=true]").count() == 1
    page.keyboard.press("ArrowRight")
    name = f"␣feel, 12{NBSP}% apart. Base 50{NBSP}%. With β 1.00 62{NBSP}%"
    expect(page.get_by_role("option", name=name)).to_be_focused()
    page.keyboard.press("Escape")
    expect(panel).to_be_hidden()
    page.keyboard.press("Tab")  # one stop for all tokens of an answer; then the tokens that differ most
    expect(page.locator(".most button").first).to_be_focused()
    page.keyboard.press("Enter")
    expect(heading).to_contain_text("␣good")


REFUSALS = [
    ((429, "Too many requests wait for tweets; try again later.", {"Retry-After": "3"}), "try again in 3 s"),
    ((503, "The engine of tweets has failed and is started again.", {"Retry-After": "1"}), "503"),
    ((400, "max_tokens=5000 cannot be greater than max_model_len=1024.", {}), "max_model_len=1024. (400)"),
]


@pytest.mark.parametrize(("refusal", "also"), REFUSALS)
def test_refusals_are_shown_in_their_words(page, endpoint, refusal, also):
    endpoint.refusal = refusal
    ask(page)
    for at in (0, 1):
        expect(page.locator("article .wrong").nth(at)).to_contain_text(refusal[1])
        expect(page.locator("article .wrong").nth(at)).to_contain_text(also)
    expect(status(page)).to_have_text("That did not work.")
    endpoint.refusal = None
    ask(page)
    expect(status(page)).to_contain_text("Done.")
    expect(page.locator("article .wrong").first).to_be_hidden()


@pytest.mark.parametrize(
    ("ending", "said"),
    [
        (
            "data: " + json.dumps(error_body(503, "The engine of tweets has failed.")) + "\n\n",
            "The engine of tweets has",
        ),
        ("", "The answer broke off"),
    ],
)
def test_an_answer_that_breaks_off_says_so(page, endpoint, ending, said):
    endpoint.chat = lambda *given, **named: [*list(chat(*given, **named))[:3], ending]
    ask(page)
    expect(page.locator("article .wrong").first).to_contain_text(said)
    expect(texts(page).first).to_have_text("I feel")


def test_an_endpoint_that_is_gone_is_named_so(page, endpoint):
    endpoint.close()
    ask(page)
    expect(page.locator("article .wrong").first).to_have_text("The endpoint does not answer; is it still running?")


def test_several_tokens_in_an_event_are_taken_apart(page, endpoint):
    def hasty(model, tokens, *, mixed):
        events = [json.loads(event[6:]) for event in list(chat(model, tokens, mixed=mixed))[:-1]]
        joined = events[-1]["choices"][0]
        joined["delta"]["content"] = "".join(event["choices"][0]["delta"]["content"] for event in events[1:])
        for key, of in (("token_ids", lambda choice: choice), ("content", lambda choice: choice["logprobs"])):
            of(joined)[key] = [of(event["choices"][0])[key][0] for event in events[1:]]
        return [f"data: {json.dumps(event)}\n\n" for event in (events[0], events[-1])] + ["data: [DONE]\n\n"]

    # The first three bytes of an emoji have no text; it comes with its last token.
    endpoint.base = [(30, "", {"": 1.0}, {"": 1.0}), (31, "🙂", {"🙂": 1.0}, {"🙂": 1.0}), *HOW[1:]]
    endpoint.chat = hasty
    ask(page)
    expect(status(page)).to_contain_text("Done.")
    expect(page.locator("article").first.get_by_role("option")).to_have_text(["◌", "🙂", " feel", " good", "\n", "end"])


def test_text_of_a_model_is_text(page, endpoint):
    evil = "<img src=x onerror=\"document.title='broken'\"></script><script>document.title='broken'</script>"
    lists = {evil: 0.5, "<b>bold</b>": 0.4}
    endpoint.base = endpoint.mixed = [(40, evil, lists, {**lists, evil: 0.1}), HOW[-1]]
    endpoint.models = [{**PAIR, "id": evil, "base": evil, "value_network": evil}]
    page.reload()
    ask(page, evil)
    expect(status(page)).to_contain_text("Done.")
    expect(token(page, "<img")).to_have_text(evil)
    token(page, "<img").click()
    expect(page.get_by_role("listitem").first).to_contain_text("<img␣src=x")
    endpoint.refusal = (400, evil, {})
    ask(page, evil)
    expect(page.locator("article .wrong").first).to_contain_text(evil)
    assert page.title() == "Headrace playground"
    assert page.locator("main img, main b, body > script").count() == 1  # the page's own script
    assert endpoint.asked("chat")[0]["messages"][0]["content"] == evil


def test_on_a_phone_answers_stack_and_nothing_runs_out_of_it(page, endpoint):
    page.set_viewport_size({"width": 360, "height": 740})
    long = "x" * 300
    lists = {long: 0.5, "y" * 300: 0.4}
    endpoint.models = [{**PAIR, "id": "a-model/" + "n" * 92}]
    endpoint.base = endpoint.mixed = [(40, long, lists, {**lists, long: 0.05}), *HOW]
    page.reload()
    ask(page)
    expect(status(page)).to_contain_text("Done.")
    token(page, "xxx").click()
    expect(page.get_by_role("region", name="Token")).to_be_visible()
    page.get_by_text("System message").click()
    widths = "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    assert page.evaluate(widths) == [360, 360]
    one, other = (page.locator("article").nth(at).bounding_box() for at in (0, 1))
    assert one["y"] + one["height"] <= other["y"]
    for name in ("Send", "Close"):
        box = page.get_by_role("button", name=name).bounding_box()
        assert box["height"] >= 32
        assert box["x"] + box["width"] <= 360


def test_every_control_has_a_name_and_what_happens_is_told(page):
    unnamed = "[...document.querySelectorAll('input, select, textarea')].filter(e => !e.labels.length && !e.ariaLabel)"
    assert page.evaluate(f"{unnamed}.length") == 0
    assert page.get_by_role("status").count() == 1
    assert page.locator("html").get_attribute("lang") == "en"
    page.get_by_role("button", name="Send").click()  # without a prompt
    assert page.evaluate("document.querySelector('#prompt').matches(':invalid:focus')")
    expect(texts(page)).to_have_count(0)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_stand_out_in_both_schemes(page, scheme):
    page.emulate_media(color_scheme=scheme)
    style = "getComputedStyle(document.documentElement)"
    names = ["page", "sheet", "ink", "soft", "water", "on-water", "mark", "under", "bar", "wrong", "edge"]
    found = {name: page.evaluate(f"{style}.getPropertyValue('--{name}')") for name in names}
    light = {name: _luminance(value.strip()) for name, value in found.items()}
    assert (light["page"] > light["ink"]) == (scheme == "light")
    pairs = [(text, ground) for text in ("ink", "soft", "wrong", "water") for ground in ("page", "sheet")]
    pairs += [("ink", "bar"), ("ink", "mark"), ("on-water", "water"), ("under", "sheet")]
    assert {pair: _contrast(*(light[each] for each in pair)) for pair in pairs if
            _contrast(*(light[each] for each in pair)) < 4.5} == {}  # fmt: skip
    assert _contrast(light["edge"], light["page"]) >= 2.5


def _luminance(colour):
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(part * weight for part, weight in zip(linear, (0.2126, 0.7152, 0.0722), strict=True))


def _contrast(one, other):
    return (max(one, other) + 0.05) / (min(one, other) + 0.05)


def test_nothing_moves_where_that_is_not_wanted(page, endpoint):
    endpoint.hold = 2
    ask(page)
    expect(texts(page).first).to_have_text("I")
    moving = "getComputedStyle(document.querySelector('.writing .text'), '::after').animationName"
    assert page.evaluate(moving) == "none"
    page.emulate_media(reduced_motion="no-preference")
    assert page.evaluate(moving) == "breathe"


def test_a_browser_that_has_the_key_needs_no_more(browser):
    endpoint = Endpoint(keys="sesame")
    try:
        closed = browser.new_context()
        assert closed.request.get(endpoint.url).status == 401
        closed.close()
        context = browser.new_context(http_credentials={"username": "me", "password": "sesame"})
        page = context.new_page()
        for url in (endpoint.url, endpoint.url.replace("//", "//me:sesame@")):
            page.goto(url)
            ask(page)
            expect(status(page)).to_contain_text("Done.")
        context.close()
    finally:
        endpoint.close()


def test_the_page_may_load_nothing(endpoint, browser):
    context = browser.new_context()
    page = context.new_page()
    policy = page.goto(endpoint.url).headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "connect-src 'self'" in policy
    blocked = "fetch('http://192.0.2.1/').then(() => 'reached', () => 'blocked')"
    assert page.evaluate(blocked) == "blocked"
    context.close()
