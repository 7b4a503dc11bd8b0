"""What stands before the engines, with engines that follow a script: refusals, failures, deadlines, redeployment."""

import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest
from ray import serve

from engine.cluster import all_or_none, delete, deploy, require_route, session, start_serve
from engine.errors import ClusterError
from engine.value_network.endpoint import ServeRecipe, beta_for
from jobs.serve import SERVE_ENVIRONMENT
from serve_apps.fakes import ScriptedReplica
from serve_apps.openai_app import engine, ingress

pytestmark = pytest.mark.timeout(300)


def _recipe(pause=0.01, **more) -> ServeRecipe:
    models = [
        {"name": "mixed", "base": "b", "value": "v", "base_name": "base", "cpus": 0.1, "engine": {"pause": pause}},
        {"name": "plain", "base": "b", "cpus": 0.1, "at_once": 1, "max_queued": 1, "engine": {"pause": 1.0}},
    ]
    return ServeRecipe.model_validate({"name": "app", "models": models, "ingress_cpus": 0.1, **more})


def _deploy(recipe: ServeRecipe) -> None:
    engines = {f"engine-{at}": engine(each, at, recipe, ScriptedReplica) for at, each in enumerate(recipe.models)}
    deploy({"app": ingress(recipe, deploy(engines, 60))}, 60, route="/")


@pytest.fixture(scope="module")
def url(closed_port_of_module):
    os.environ |= SERVE_ENVIRONMENT  # read by Serve's processes as they start
    try:
        with session("local", cpus=2):
            start_serve("127.0.0.1", closed_port_of_module, timeout=30)
            with pytest.raises(ClusterError, match="runs on this cluster already"):
                start_serve("127.0.0.1", 1, timeout=30)
            _deploy(_recipe(request_seconds=4, retry_after=2.5))
            yield f"http://127.0.0.1:{closed_port_of_module}"
            serve.shutdown()
    finally:
        for name in SERVE_ENVIRONMENT:
            del os.environ[name]


@pytest.fixture(scope="module")
def closed_port_of_module():
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def _post(url, prompt, model="mixed", **more) -> httpx.Response:
    return httpx.post(f"{url}/v1/completions", json={"model": model, "prompt": prompt, **more}, timeout=60)


def _said(answer: httpx.Response) -> str:
    error = answer.json()["error"]
    assert error["code"] == answer.status_code
    assert set(error) == {"message", "type", "param", "code"}
    return error["message"]


def test_what_does_not_come_up_is_taken_away_and_what_ran_stays(url):
    with pytest.raises(ClusterError, match="app answers at / on this cluster already"):
        require_route("/", "another")
    require_route("/", "app")
    model = _recipe().models[0]
    tried = {"good": model, "broken": model.model_copy(update={"engine": {"pause": "none"}})}
    started = {name: engine(each, 0, _recipe(), ScriptedReplica) for name, each in tried.items()}
    with pytest.raises(ClusterError, match="does not start"), all_or_none(["app", *started]):
        deploy(started, 60)
    assert not serve.status().applications.keys() & {"good", "broken"}
    assert _post(url, "a").status_code == 200


def test_names_carry_their_beta(url):
    assert _post(url, "a").json()["beta"] == 1.0
    assert _post(url, "a", value_beta=0.25).json()["beta"] == 0.25
    assert _post(url, "a", vllm_xargs={"value_beta": 2}).json()["beta"] == 2.0
    assert _post(url, "a", model="base").json()["beta"] == 0.0
    assert _post(url, "a", model="base", value_beta=0).json()["beta"] == 0.0
    assert "has no value network" in _said(_post(url, "a", model="plain", value_beta=0))


def test_what_an_engine_does_not_survive_is_told(url):
    failed = _post(url, "fail")
    assert failed.status_code == 503
    assert "has failed" in _said(failed)
    died = _post(url, "die")
    assert (died.status_code, died.headers["retry-after"]) == (503, "3")
    deadline = time.monotonic() + 60
    while _post(url, "a").status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    broken = _post(url, "fail later", stream=True)
    assert broken.status_code == 200
    lines = [line for line in broken.text.splitlines() if line]
    assert json.loads(lines[-1].removeprefix("data: "))["error"]["code"] == 503
    assert "[DONE]" not in broken.text


def test_an_answer_has_a_deadline(url):
    late = _post(url, "a b c d e f g h", model="plain")
    assert late.status_code == 504
    assert "within 4 seconds" in _said(late)
    ended = _post(url, "a b c d e f g h", model="plain", stream=True)
    assert '"code": 504' in ended.text.splitlines()[-2]


def test_a_full_queue(url):
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda _: _post(url, "a", model="plain"), range(12)))
    refused = [each for each in answers if each.status_code == 429]
    assert refused
    assert {each.status_code for each in answers} == {200, 429}
    assert {each.headers["retry-after"] for each in refused} == {"3"}
    assert "Too many requests wait for plain" in _said(refused[0])


def test_what_the_proxy_says_has_openais_shape_too(url):
    command = "ServeReplica:app:ingress"
    (process,) = (each for each in psutil.process_iter(["cmdline"]) if command in " ".join(each.info["cmdline"] or ()))
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(_post, url, "a b c", model="plain")
        time.sleep(0.5)
        process.kill()
        lost = asked.result()
    assert (lost.status_code, lost.headers["retry-after"]) == (503, "5")
    assert "lost a process" in _said(lost)


def test_a_redeployment_drops_nothing(url):
    _deploy(_recipe())  # a busy machine may need longer for an answer than the fixture allows
    stop, answers = threading.Event(), []

    def ask():
        while not stop.is_set():
            answer = _post(url, "one two three", stream=True)
            answers.append((answer.status_code, answer.text.endswith("data: [DONE]\n\n")))

    with ThreadPoolExecutor(6) as pool:
        for _ in range(6):
            pool.submit(ask)
        time.sleep(1)
        _deploy(_recipe(pause=0.02, retry_after=1, max_body_bytes=5_000))
        time.sleep(1)
        stop.set()
    assert len(answers) > 12
    assert set(answers) == {(200, True)}
    assert _post(url, "x" * 6_000).status_code == 413, "the new recipe holds"
    assert httpx.get(f"{url}/health").json() == {"status": "ok"}
    delete(["engine-0", "engine-1"], 20)
    deadline = time.monotonic() + 20
    while (health := httpx.get(f"{url}/health")).status_code == 200:
        assert time.monotonic() < deadline, "engines are looked for every two seconds"
        time.sleep(0.5)
    assert (health.status_code, _said(health)) == (503, "No engine runs at the moment.")
    delete(["app"], 20)
    gone = _post(url, "a")
    assert (gone.status_code, gone.headers["retry-after"]) == (503, "5")


@pytest.mark.parametrize(
    ("models", "said"),
    [
        ([], "at least 1 item"),
        ([{"name": "a", "base": "b"}, {"name": "a", "base": "c"}], "the name a is given to two models"),
        ([{"name": "a", "base": "b", "base_name": "c"}], "base_name is for a model with a value network"),
        ([{"name": "a", "base": "b", "replicas": 3}], "max_replicas 1 is less than replicas 3"),
        ([{"name": "a", "base": "b", "beta": -1}], "greater than or equal to 0"),
        ([{"name": "a", "base": "b", "engine": {"model": "x"}}], "engine.model is set by the endpoint itself"),
        ([{"name": "a b", "base": "b"}], "pattern"),
    ],
)
def test_recipes_that_make_no_sense(models, said):
    with pytest.raises(ValueError, match=said):
        ServeRecipe.model_validate({"name": "x", "models": models})


def test_a_beta_for_each_name():
    mixed, base = _recipe().models[0].offered()
    assert [beta_for(mixed, each) for each in (None, 0, 0.5)] == [1.0, 0.0, 0.5]
    assert beta_for(base, None) == 0.0
    for wrong in (-1, float("nan"), float("inf"), "1", True, [1], 10**400, 1e5):
        with pytest.raises(ValueError, match="value_beta must be a number of at least 0"):
            beta_for(mixed, wrong)
