import asyncio
import json
import os
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import click
import httpx
import psutil
import pydantic
import pytest
import ray
import small_student
import yaml
from ray import cloudpickle, serve
from ray.serve.config import HTTPOptions
from ray.serve.schema import ServeDeploySchema

from engine.cluster import API_KEY as KEY
from engine.cluster import is_loopback, session
from engine.errors import ClusterError
from engine.sieve import Student
from serve_apps import sieve_app
from serve_apps.sieve_app import SieveArgs, SieveStudent, build, deployment, load_student

SECRETS = ("sesame-4711", "other-0815")
HEADERS = {"Authorization": f"Bearer {SECRETS[1]}"}
JSON = {**HEADERS, "Content-Type": "application/json"}
REPLICA = SieveStudent.func_or_class.__mro__[1]
"""The class itself, without Serve's wrapper."""
TEXTS = ["the mill .", "goal cup goal", "", "bank rate nothing\x00", "millers the mill . " * 20]


@dataclass
class Served:
    """What a test asks: the two applications under one address, and where they write."""

    client: httpx.Client
    logs: Path
    diary: Path
    student: Student
    fingerprint: str

    def ask(self, method: str, path: str, **request) -> httpx.Response:
        return self.client.request(method, path, **request)

    def score(self, texts, app: str = "", headers=None) -> httpx.Response:
        return self.ask(
            "POST", f"{app}/v1/score", json={"texts": texts}, headers=HEADERS if headers is None else headers
        )

    def batches(self) -> list[int]:
        return [int(line) for line in self.diary.read_text().splitlines()]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A private Ray whose environment has two keys, with an application at / and, at /slow, one that has no key, takes
    a request a second and lets one wait."""
    folder = tmp_path_factory.mktemp("served")
    model = small_student.publish_small(folder)
    cloudpickle.register_pickle_by_value(small_student)
    diary = folder / "diary"
    diary.touch()

    def slowed(seconds):
        def load(args):
            student, fingerprint = load_student(args)
            return small_student.Slowed(student, seconds, diary if seconds < 1 else folder / "other"), fingerprint

        return load

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    args = {"student": str(model.path), "cpus": 0.1, "max_texts": 6, "max_chars": 1_000, "max_body_bytes": 20_000}
    brisk = SieveArgs(**args)
    slow = SieveArgs(**args, max_ongoing=1, max_queued=1, retry_after=2.5)
    no_key = {"num_cpus": 0.1, "runtime_env": {"env_vars": {KEY: ""}}}
    apps = {
        "/": deployment(brisk).bind(brisk, expects_key=True, load=slowed(0.15)),
        "/slow": deployment(slow).options(ray_actor_options=no_key).bind(slow, expects_key=False, load=slowed(1.0)),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(KEY, ", ".join(SECRETS))
        patch.setenv("RAY_metrics_report_interval_ms", "1000")
        with session("local", cpus=2) as private:
            serve.start(http_options=HTTPOptions(port=port))
            try:
                serve.run_many([serve.RunTarget(app, f"app{at[1:]}", at) for at, app in apps.items()])
                student = Student.load(model.local())
                # One client for all: making one takes as long as the student does.
                with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client:
                    logs = private.directory / "session_latest" / "logs"
                    yield Served(client, logs, diary, student, model.fingerprint)
            finally:
                serve.shutdown()


def test_scores_are_the_students(served):
    answer = served.score(TEXTS)
    assert answer.status_code == 200
    body = answer.json()
    assert (body["student"], body["criterion"], body["threshold"]) == (served.fingerprint, "It is about mills.", 0.1)
    scores = served.student.scores(TEXTS)
    assert [each["score"] for each in body["results"]] == pytest.approx(scores.tolist(), abs=1e-6)
    assert [each["passes"] for each in body["results"]] == (scores > 0.1).tolist()
    assert 0 < sum(scores > 0.1) < len(TEXTS)
    assert served.score([]).json()["results"] == []
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_the_card(served):
    card = served.ask("GET", "/v1/student", headers=HEADERS).json()
    assert card["student"] == served.fingerprint
    assert (card["criterion"], card["threshold"], card["labels"], card["base"]) == (
        "It is about mills.", 0.1, 7, "small",
    )  # fmt: skip


def test_health_is_open_and_nothing_else_is(served):
    assert served.ask("GET", "/health").json() == {"status": "ok"}
    for method, path in [("POST", "/v1/score"), ("GET", "/v1/student"), ("GET", "/docs"), ("GET", "/openapi.json")]:
        answer = served.ask(method, path)
        assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer"), path
    assert served.score(["the"], headers={"Authorization": "Bearer sesame"}).status_code == 401
    assert served.score(["the"], headers={"Authorization": f"Bearer {SECRETS[0]}"}).status_code == 200
    preflight = {"Origin": "http://elsewhere.example", "Access-Control-Request-Method": "POST"}
    answer = served.ask("OPTIONS", "/v1/score", headers=preflight)
    assert answer.status_code == 401
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_without_a_key_only_this_machine_is_served(served):
    assert served.score(["the"], "/slow", headers={}).status_code == 200
    for headers in ({"X-Forwarded-For": "192.0.2.9"}, {"Host": "sieve.example.org"}):
        answer = served.score(["the"], "/slow", headers=headers)
        assert answer.status_code == 403
        assert KEY in answer.json()["error"]["message"]
    elsewhere = [each.address for all in psutil.net_if_addrs().values() for each in all
                 if each.family == socket.AF_INET and not is_loopback(each.address)]  # fmt: skip
    for address in elsewhere:
        with pytest.raises(OSError, match=r"refused|unreachable|timed out"):
            socket.create_connection((address, served.client.base_url.port), timeout=2).close()


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({"texts": ["the"] * 7}, 413, "6 texts, not 7"),
        ({"texts": ["the", "x" * 1_001]}, 413, "1,000 characters, not 1,001"),
        ({"texts": ["x" * 21_000]}, 413, "20,000 bytes"),
        ({"texts": "the"}, 422, "texts: "),
        ({"texts": ["the", 7]}, 422, "texts.1: "),
        ({"texts": ["\ud800"]}, 422, "texts.0: Input should be valid Unicode."),
        ({"texts": [], "student": "x"}, 422, "student: Extra inputs"),
        ({}, 422, "texts: Field required."),
        ([], 422, "has to be JSON"),
    ],
    ids=["texts", "characters", "bytes", "no list", "a number", "half a pair", "unknown key", "no texts", "a list"],
)
def test_what_is_wrong_is_said_in_a_sentence(served, body, status, says):
    answer = served.ask("POST", "/v1/score", headers=JSON, content=json.dumps(body))
    assert answer.status_code == status
    error = answer.json()["error"]
    assert says in error["message"]
    assert (error["code"], "\n" in error["message"]) == (status, False)


@pytest.mark.parametrize("content", [b'{"texts": [', b"", b"\xff\xfe", b"[" * 15_000])
def test_what_is_no_json_is_refused(served, content):
    answer = served.ask("POST", "/v1/score", headers=JSON, content=content)
    assert answer.status_code in (400, 422)
    assert answer.json()["error"]["message"]


def test_an_endless_body_is_cut_off(served):
    answer = served.ask("POST", "/v1/score", headers=HEADERS, content=(b"x" * 10_000 for _ in range(100)))
    assert answer.status_code == 413


def test_requests_go_through_the_student_together(served):
    before = len(served.batches())
    texts = [[f"the {word}"] for word in small_student.WORDS[4:]] * 2
    with ThreadPoolExecutor(len(texts)) as pool:
        answers = list(pool.map(served.score, texts))
    assert [each.status_code for each in answers] == [200] * len(texts)
    merged = served.batches()[before:]
    assert sum(merged) == len(texts)
    assert len(merged) <= len(texts) / 2, merged
    for asked, answer in zip(texts, answers, strict=True):
        expected = served.student.scores(asked).tolist()
        assert [each["score"] for each in answer.json()["results"]] == pytest.approx(expected, abs=1e-6)


def test_a_flood_is_told_to_come_again(served):
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: served.score(["the"], "/slow"), range(8)))
    codes = [each.status_code for each in answers]
    assert set(codes) == {200, 429}
    assert codes.count(429) >= 4
    assert {each.headers["Retry-After"] for each in answers if each.status_code == 429} == {"3"}
    assert served.score(["the"], "/slow").status_code == 200


def test_metrics_are_there_for_prometheus(served):
    node = ray.nodes()[0]
    end = time.monotonic() + 30
    while True:
        page = httpx.get(f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics").text
        lines = [line for line in page.splitlines() if "headrace_sieve" in line and served.fingerprint in line]
        counted = [float(line.split()[-1]) for line in lines if line.startswith("ray_headrace_sieve_texts_total")]
        if sum(counted) >= sum(served.batches()) and any("batch_seconds_sum" in line for line in lines):
            break
        assert time.monotonic() < end, lines
        time.sleep(0.5)


def test_a_request_in_flight_is_answered_when_the_application_goes(served):
    with ThreadPoolExecutor(1) as pool:
        flying = pool.submit(served.score, ["the"], "/slow")
        time.sleep(0.5)
        assert not flying.done()
        serve.delete("appslow")
        assert flying.result().status_code == 200
    assert served.score(["the"], "/slow").status_code == 404


def test_no_key_is_written_anywhere(served):
    """The last of those that use the applications: by now every kind of request has been logged."""
    texts = {path: path.read_text(errors="replace") for path in served.logs.rglob("*") if path.is_file()}
    assert any("/v1/score" in text for text in texts.values())
    assert not [path for path, text in texts.items() if any(secret in text for secret in SECRETS)]
    assert not any(secret in str(serve.status()) for secret in SECRETS)


def test_an_application_whose_key_did_not_reach_the_node_does_not_start(monkeypatch):
    monkeypatch.delenv(KEY, raising=False)
    replica = object.__new__(REPLICA)
    with pytest.raises(ClusterError, match=KEY):
        replica.__init__(SieveArgs(student="x"), expects_key=True)


def test_a_student_that_hangs_is_unhealthy(monkeypatch):
    replica = object.__new__(REPLICA)
    replica._since = None
    asyncio.run(replica.check_health())
    replica._since = time.monotonic() - 10
    asyncio.run(replica.check_health())
    monkeypatch.setattr(sieve_app, "_STUCK", 5.0)
    with pytest.raises(RuntimeError, match="one batch"):
        asyncio.run(replica.check_health())


def test_what_is_no_student_is_refused_before_anything_starts(tmp_path):
    with pytest.raises(click.ClickException, match=r"manifest\.json"):
        build(SieveArgs(student=str(tmp_path)))
    with pytest.raises(pydantic.ValidationError, match="studnt"):
        SieveArgs(studnt="x")


def test_the_configuration_file_builds_and_stays_on_this_machine(tmp_path, monkeypatch):
    file = yaml.safe_load(Path(sieve_app.__file__).with_name("sieve.yaml").read_text())
    config = ServeDeploySchema.model_validate(file)
    assert config.http_options.host == "127.0.0.1"
    assert HTTPOptions().host == "127.0.0.1"
    (app,) = config.applications
    assert app.import_path == "serve_apps.sieve_app:build"
    monkeypatch.chdir(tmp_path)
    args = SieveArgs(**app.args)
    place = tmp_path / args.student
    place.parent.mkdir(parents=True)
    small_student.publish_small(tmp_path).local().rename(place)
    bound = build(args)._bound_deployment
    assert bound.init_args[0].student == str(place)
    assert bound.max_queued_requests == args.max_queued
    assert json.dumps(bound.ray_actor_options) == json.dumps({"num_cpus": 1.0, "num_gpus": 0.0})
    assert os.environ.get(KEY, "-") not in str(bound.init_kwargs)
