"""The OpenAI-compatible endpoint as callers meet it: a `headrace serve` over a small pair, asked by real clients."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai
import psutil
import pytest
from mixes import BETAS, greedy, make_pair, make_prompts
from ruamel.yaml import YAML

from engine.value_network.reference import Mixture

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]
KEY = "sesame-4711"
HEADERS = {"Authorization": f"Bearer {KEY}"}
TOKENS = 8
AT_ONCE, QUEUED = 4, 12


@dataclass
class Endpoint:
    """A running `headrace serve`."""

    url: str
    process: subprocess.Popen
    log: Path
    pair: tuple[str, str]

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=KEY, max_retries=0, timeout=120)

    def post(self, body, path="/v1/completions", **more) -> httpx.Response:
        given = {"content": body} if isinstance(body, bytes) else {"json": body}
        headers = {**HEADERS, "Content-Type": "application/json", **more.pop("headers", {})}
        return httpx.post(self.url + path, headers=headers, timeout=120, **given, **more)

    def ids(self, prompt: list[int], model="mixed", **more) -> list[int]:
        body = {"model": model, "prompt": prompt, "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True}
        answer = self.post({**body, "return_token_ids": True, **more})
        assert answer.status_code == 200, answer.text
        return answer.json()["choices"][0]["token_ids"]

    def engine(self) -> psutil.Process:
        (found,) = (each for each in psutil.Process(self.process.pid).children(recursive=True) if _is_engine(each))
        return found


def _is_engine(process: psutil.Process) -> bool:
    try:
        return "VLLM::EngineCore" in " ".join(process.cmdline())
    except psutil.Error:
        return False


def _wait(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it has not come to pass"
        time.sleep(0.2)
    return found


def _start(folder: Path, pair: tuple[str, str]) -> Endpoint:
    models = [
        {
            "name": "mixed",
            "base": pair[0],
            "value": os.path.relpath(pair[1], folder),
            "base_name": "base",
            "longest": 512,
            "at_once": AT_ONCE,
            "max_queued": QUEUED,
            # Prompts longer than a step's tokens are read in pieces; some of ours share their beginning.
            "engine": {"enable_chunked_prefill": True, "max_num_batched_tokens": 64, "enable_prefix_caching": True},
        }
    ]
    recipe, log = folder / "serve.yaml", folder / "log"
    YAML().dump({"name": "small", "port": 0, "models": models, "drain_seconds": 30}, recipe)
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "jobs.serve", str(recipe), f"runs={folder}"],
            env={**os.environ, "HEADRACE_API_KEY": f"other,{KEY}"},
            cwd=folder,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    found = _wait(lambda: process.poll() is not None or re.search(r"(http://\S+)/v1 answers", log.read_text()), 240)
    assert process.poll() is None, log.read_text()
    return Endpoint(found[1], process, log, pair)


@pytest.fixture(scope="module")
def pair(make_llama, tmp_path_factory) -> tuple[str, str]:
    """A base, and a value network with a will of its own."""
    return make_pair(make_llama, tmp_path_factory.mktemp("value"))


@pytest.fixture(scope="module")
def served(pair, tmp_path_factory):
    endpoint = _start(tmp_path_factory.mktemp("serve"), pair)
    yield endpoint
    if endpoint.process.poll() is None:
        endpoint.process.send_signal(signal.SIGKILL)
        endpoint.process.wait(30)


def test_200_prompts_with_their_betas_give_the_references_tokens_beside_neighbours_that_leave(served):
    """Chunked prefill, prefix cache, four betas in a batch, and streams that are closed in the middle."""
    prompts = make_prompts(200)
    betas = [BETAS[at % 4] for at in range(len(prompts))]
    stop = threading.Event()

    def leaves() -> int:
        left = 0
        while not stop.is_set():
            body = {"model": "mixed", "prompt": [7, 8, 9], "max_tokens": 400, "ignore_eos": True, "stream": True}
            with httpx.stream("POST", f"{served.url}/v1/completions", headers=HEADERS, json=body, timeout=60) as answer:
                if answer.status_code == 200:
                    next(answer.iter_lines())
                    left += 1
        return left

    with ThreadPoolExecutor(9) as pool:
        leaver = pool.submit(leaves)
        found = list(pool.map(lambda prompt, beta: served.ids(prompt, value_beta=beta), prompts, betas))
        stop.set()
        assert leaver.result() > 5
    mixture = Mixture(*served.pair)
    wanted = [greedy(mixture, prompt, beta, TOKENS) for prompt, beta in zip(prompts, betas, strict=True)]
    assert found == wanted
    alone = [greedy(mixture, prompt, 0.0, TOKENS) for prompt in prompts[:40]]
    assert sum(one != other for one, other in zip(alone, wanted, strict=False)) > 15, "the value network has to matter"


def test_names_stand_for_betas(served):
    prompt = make_prompts(3)[1]
    assert served.ids(prompt, model="base") == served.ids(prompt, value_beta=0)
    assert served.ids(prompt) == served.ids(prompt, value_beta=1.0) == served.ids(prompt, vllm_xargs={"value_beta": 1})
    assert served.ids(prompt) != served.ids(prompt, model="base")
    listed = {each.id: each for each in served.client.models.list()}
    assert set(listed) == {"mixed", "base"}
    assert (listed["mixed"].value_beta, listed["base"].value_beta) == (1.0, 0.0)
    assert served.client.models.retrieve("base").id == "base"


def test_the_openai_client_gets_what_it_asks_for(served):
    client, said = served.client, [{"role": "user", "content": "Say something."}]
    whole = client.chat.completions.create(model="mixed", messages=said, max_tokens=6, temperature=0)
    assert whole.model == "mixed"
    assert whole.usage.completion_tokens == 6
    pieces = list(
        client.chat.completions.create(
            model="base",
            messages=said,
            max_tokens=6,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert {piece.model for piece in pieces} == {"base"}
    assert pieces[-1].usage.completion_tokens == 6
    text = "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
    assert (
        text
        == client.chat.completions.create(
            model="mixed", messages=said, max_tokens=6, temperature=0, extra_body={"value_beta": 0}
        )
        .choices[0]
        .message.content
    )
    several = client.completions.create(model="mixed", prompt="a", n=3, max_tokens=4, seed=5, logprobs=2)
    again = client.completions.create(model="mixed", prompt="a", n=3, max_tokens=4, seed=5, logprobs=2)
    assert [each.text for each in several.choices] == [each.text for each in again.choices]
    assert len(several.choices) == 3
    assert len(several.choices[0].logprobs.tokens) == 4
    first = client.completions.create(model="mixed", prompt="a", max_tokens=9, temperature=0).choices[0]
    stop = client.completions.create(model="mixed", prompt="a", max_tokens=9, temperature=0, stop=first.text[3:5])
    assert stop.choices[0].text == first.text[: first.text.index(first.text[3:5])]
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    shaped = client.chat.completions.create(
        model="mixed",
        messages=said,
        max_tokens=60,
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
        extra_body={"structured_outputs": None},
    )
    if shaped.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(shaped.choices[0].message.content)["ok"], bool)
    assert shaped.choices[0].message.content.lstrip().startswith("{")


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"model": "nobody", "prompt": "a"}, 404, "There is no model 'nobody'"),
        ({"prompt": "a"}, 400, "model: a text"),
        ({"model": ["mixed"], "prompt": "a"}, 400, "model: a text"),
        ({"model": "mixed"}, 400, "prompt"),
        (b'{"model": "mixed", "prompt": ', 400, "not valid JSON"),
        (b'{"model": "mixed", "prompt": "\xff"}', 400, "not valid JSON"),
        (b'{"model": "mixed", "prompt": "\\ud800"}', 400, "not valid JSON"),
        (b"[" * 100_000, 400, "nested too deeply"),
        (b"[1]", 400, "JSON object"),
        ({"model": "mixed", "prompt": "a", "max_tokens": 10**9}, 400, "max_tokens"),
        ({"model": "mixed", "prompt": "a", "max_tokens": -1}, 400, "max_tokens"),
        ({"model": "mixed", "prompt": "a " * 600}, 400, "maximum context length"),
        ({"model": "mixed", "prompt": "a", "value_beta": -0.5}, 400, "value_beta must be a number of at least 0"),
        (b'{"model": "mixed", "prompt": "a", "value_beta": NaN}', 400, "value_beta must be"),
        (b'{"model": "mixed", "prompt": "a", "value_beta": Infinity}', 400, "value_beta must be"),
        ({"model": "mixed", "prompt": "a", "value_beta": "1"}, 400, "value_beta must be"),
        ({"model": "mixed", "prompt": "a", "value_beta": True}, 400, "value_beta must be"),
        ({"model": "mixed", "prompt": "a", "vllm_xargs": {"value_beta": -1}}, 400, "value_beta must be"),
        ({"model": "base", "prompt": "a", "value_beta": 1}, 400, "base is the base alone"),
        ({"model": "mixed", "prompt": "a", "n": 1000}, 400, "One request may ask for 16 texts"),
        ({"model": "mixed", "prompt": "a", "n": "1000"}, 400, "One request may ask for 16 texts"),
        ({"model": "mixed", "prompt": ["a"] * 1000}, 400, "One request may ask for 16 texts"),
        ({"model": "mixed", "prompt": "a", "temperature": -1}, 400, "temperature"),
        ({"model": "mixed", "prompt": [10**7]}, 400, "out of vocabulary"),
        (b'{"model": "mixed", "prompt": "' + b"x" * 10_000_000 + b'"}', 413, "at most 2,097,152 bytes"),
    ],
)
def test_what_is_wrong_with_a_request_is_said_in_openais_shape(served, body, status, said):
    answer = served.post(body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (status, status)
    assert said in error["message"]
    assert error["type"]
    assert "param" in error
    assert served.ids([5, 6]), "nothing has come to harm"


def test_who_may_come_in(served):
    body = {"model": "mixed", "prompt": "a", "max_tokens": 1}
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": KEY}):
        for path in ("/v1/completions", "/v1/models", "/metrics", "/", "/v1/models/mixed"):
            ask = httpx.post if path == "/v1/completions" else httpx.get
            answer = ask(served.url + path, headers=headers, **({"json": body} if ask is httpx.post else {}))
            assert answer.status_code == 401, path
            assert answer.json()["error"]["type"] == "AuthenticationError"
    assert httpx.get(f"{served.url}/health").json() == {"status": "ok"}
    assert served.post(body, headers={"Content-Type": "text/plain"}).status_code == 415
    preflight = {"Origin": "http://elsewhere.example", "Access-Control-Request-Method": "POST"}
    answer = httpx.options(f"{served.url}/v1/completions", headers={**HEADERS, **preflight})
    assert not [name for name in answer.headers if name.startswith("access-control")]
    assert served.post(body, path="/v1/nothing").status_code == 404
    assert "sesame" not in served.log.read_text()


def test_a_caller_that_leaves_frees_its_place(served):
    body = {"model": "mixed", "prompt": [1, 2], "max_tokens": 500, "ignore_eos": True}
    for _ in range(AT_ONCE + QUEUED):
        with httpx.stream(
            "POST", f"{served.url}/v1/completions", headers=HEADERS, json={**body, "stream": True}, timeout=60
        ) as answer:
            next(answer.iter_lines())
        with pytest.raises(httpx.TimeoutException):
            httpx.post(f"{served.url}/v1/completions", headers=HEADERS, json=body, timeout=0.05)
    assert len(served.ids([5, 6])) == TOKENS, "as many as engine and queue hold have left: with one still there, 429"


def test_a_full_queue_refuses_at_once_and_every_accepted_stream_ends(served):
    body = {"model": "mixed", "prompt": [1, 2], "max_tokens": 300, "ignore_eos": True, "stream": True}

    def ask(_):
        with httpx.stream("POST", f"{served.url}/v1/completions", headers=HEADERS, json=body, timeout=120) as answer:
            return answer.status_code, [line for line in answer.iter_lines() if line], answer.headers

    with ThreadPoolExecutor(60) as pool:
        found = list(pool.map(ask, range(60)))
    accepted = [lines for status, lines, _ in found if status == 200]
    refused = [(json.loads(lines[0])["error"], headers) for status, lines, headers in found if status == 429]
    assert len(accepted) + len(refused) == 60
    assert len(accepted) >= AT_ONCE + QUEUED
    assert refused
    assert all(lines[-1] == "data: [DONE]" and '"finish_reason":"length"' in lines[-2] for lines in accepted)
    for error, headers in refused:
        assert error["type"] == "RateLimitError"
        assert headers["retry-after"] == "1"


def test_metrics_are_for_prometheus_and_by_model(served):
    served.ids([5, 6], model="base")

    def told():
        text = httpx.get(f"{served.url}/metrics", headers=HEADERS, timeout=30).text
        wanted = [
            r'headrace_requests(_total)?{.*model="mixed".*status="200"',
            r'headrace_requests(_total)?{.*model="mixed".*status="429"',
            r'headrace_first_token_seconds_count{.*model="base"',
            r'headrace_inter_token_seconds_count{.*model="mixed"',
            r'headrace_queue_seconds_count{.*model="mixed"',
            r'headrace_generated_tokens(_total)?{.*model="mixed"',
        ]
        return all(re.search(each, text) for each in wanted) and text

    text = _wait(told, 60)
    kinds = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(kinds) == len(set(kinds))


def test_a_killed_engine_is_told_in_openais_shape_and_started_again(served):
    engine = served.engine()
    body = {"model": "mixed", "prompt": [1, 2], "max_tokens": 480, "ignore_eos": True}
    with ThreadPoolExecutor(4) as pool:
        many = [pool.submit(served.post, body) for _ in range(4)]
        _wait(lambda: engine.cpu_percent(0.2) > 20, 20)
        replica = engine.parent()
        replica.kill()
        answers = [each.result() for each in many]
    broken = [each for each in answers if each.status_code != 200]
    assert broken
    assert {each.status_code for each in broken} == {503}
    assert all(each.json()["error"]["type"] == "ServiceUnavailableError" for each in broken)
    assert all("retry-after" in each.headers for each in broken)
    _wait(lambda: not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE, 20)
    _wait(lambda: served.post({**body, "max_tokens": 2}).status_code == 200, 240)
    assert len(served.ids([5, 6])) == TOKENS


def test_told_to_stop_it_answers_what_it_has_taken_and_leaves_nothing(served):
    body = {"model": "mixed", "prompt": [1, 2], "max_tokens": 300, "ignore_eos": True}
    family = psutil.Process(served.process.pid).children(recursive=True)
    with ThreadPoolExecutor(AT_ONCE + 6) as pool:
        asked = [pool.submit(served.post, body) for _ in range(AT_ONCE + 6)]
        time.sleep(0.5)
        served.process.send_signal(signal.SIGTERM)
        assert [each.result().status_code for each in asked] == [200] * (AT_ONCE + 6)
    assert served.process.wait(60) == 0, served.log.read_text()
    assert "Draining" in served.log.read_text()
    _, left = psutil.wait_procs(family, 15)
    assert not left
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(served.url.rpartition(":")[2])), 1)
