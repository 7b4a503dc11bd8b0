"""A real head with a token, a real submission: streamed, found again, stopped, refused."""

import os
import shutil
import time
import zipfile
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import pytest

from engine import submission
from engine.cluster import probe, session
from engine.config import Recipe
from engine.doctor import examine
from engine.errors import ClusterError, RecipeError
from engine.resources import Growth, Node, capacity
from jobs import submit

ROOT = Path(__file__).resolve().parent.parent
JOB = """
import sys, time
from pathlib import Path

import ray

from engine.cluster import session
from engine.config import read_yaml

def work():
    import engine.errors
    return engine.errors.__file__

recipe = read_yaml(sys.argv[1])
print("recipe", recipe["name"], recipe["runs"], flush=True)
with session(None) as here:
    print("private" if here.private else "cluster", flush=True)
    print("worker", ray.get(ray.remote(num_cpus=0.1)(work).remote()), flush=True)
for number in range(recipe["lines"]):
    print("line", number, flush=True)
if recipe["sleep"]:
    time.sleep(recipe["sleep"])
sys.exit(recipe["code"])
"""


class TinyRecipe(Recipe):
    """Keys of the job that stands in for the real ones."""

    lines: int = 3
    sleep: float = 0
    code: int = 0


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the code, so that nobody changes it between two submissions that shall be the same."""
    copy = tmp_path_factory.mktemp("code")
    for package in submission.PACKAGES:
        if (ROOT / package).is_dir():
            shutil.copytree(ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "jobs" / "tiny.py").write_text(JOB)
    return copy


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch, head, code: Path) -> None:
    """The stand-in job, and the head's token as this process's."""
    for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(head.token))
    monkeypatch.setattr(submit, "load_job", lambda name: SimpleNamespace(RECIPE=TinyRecipe, __name__="jobs.tiny"))
    whole = submission.bundle
    monkeypatch.setattr(submission, "bundle", lambda text, root=code: whole(text, root=root))


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text("name: tiny\n")
    return path


def test_a_job_is_submitted_streamed_and_found_again(
    head, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # Ray's client would prefer this one over the address it is given.
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
    lines: list[str] = []
    state = submit.submit("tiny", recipe, ["lines=200"], head.url, write=lines.append)
    text = "".join(lines)
    assert state.status == "SUCCEEDED", text
    assert f"recipe tiny {tmp_path / 'runs'}\n" in text
    assert "\ncluster\n" in text, "a submitted job runs on the cluster it was submitted to"
    assert "working_dir_files" in text.partition("worker ")[2].partition("\n")[0], "workers use the submitted code"
    assert [f"line {number}\n" for number in range(200)] == [f"line {x}\n" for x in _numbers(text)]
    assert head.token.read_text() not in text

    again: list[str] = []
    second = submit.submit("tiny", recipe, ["lines=200"], head.url, write=again.append)
    assert (second.id, second.status) == (state.id, "SUCCEEDED")
    assert "".join(again) == f"{state.id} is there already: succeeded.\n"
    assert submit.status(head.url, state.id).seconds == state.seconds
    whole: list[str] = []
    submit.logs(head.url, state.id, write=whole.append)
    assert _numbers("".join(whole)) == list(range(200))


def _numbers(text: str) -> list[int]:
    return [int(line.split()[1]) for line in text.splitlines() if line.startswith("line ")]


def test_a_failure_is_followed_by_another_attempt_and_a_running_job_is_stopped(head, recipe: Path) -> None:
    quiet: list[str] = []
    failed = submit.submit("tiny", recipe, ["code=3"], head.url, write=quiet.append)
    assert failed.status == "FAILED"
    assert "exit code 3" in failed.message
    running = submit.submit("tiny", recipe, ["sleep=300"], head.url, follow=False, write=quiet.append)
    retried = submit.submit("tiny", recipe, ["code=3"], head.url, follow=False, write=quiet.append)
    assert retried.id == f"{failed.id}-2"
    assert not running.done
    assert running.id != failed.id
    same = submit.submit("tiny", recipe, ["sleep=300"], head.url, follow=False, write=quiet.append)
    assert same.id == running.id
    stopped = submit.stop(head.url, running.id)
    assert stopped.status == "STOPPED"
    assert submit.stop(head.url, running.id).status == "STOPPED"


def test_an_unknown_submission_is_one_sentence(head) -> None:
    for call in (submit.status, submit.stop):
        with pytest.raises(ClusterError, match="nobody-knows-it"):
            call(head.url, "nobody-knows-it")
    with pytest.raises(ClusterError, match="nobody-knows-it"):
        submit.logs(head.url, "nobody-knows-it", follow=True)


def test_a_wrong_token_is_refused_by_both_doors(
    head, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("f" * 64)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(wrong))
    with pytest.raises(ClusterError) as caught:
        submit.submit("tiny", recipe, [], head.url)
    assert caught.value.problem == f"The cluster at {head.url} refuses the token from {wrong}."
    start = time.monotonic()
    with pytest.raises(ClusterError, match="refuses the token from"), session(head.address):
        pass
    assert time.monotonic() - start < 20
    assert "f" * 64 not in str(caught.value)


def test_without_a_token_both_doors_are_shut(
    head, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH")
    monkeypatch.setenv("HOME", str(tmp_path))
    for call in (lambda: submit.status(head.url, "x"), lambda: session(head.address).__enter__()):
        with pytest.raises(ClusterError, match="no token is found"):
            call()


def test_a_session_at_an_address_sees_the_autoscalers_maximum_and_leaves_the_cluster_running(head) -> None:
    with session(head.address) as here:
        assert not here.private
        assert here.address.rpartition(":")[2] == head.address.rpartition(":")[2]
        there = capacity(here)
        assert [node.cpus for node in there.now] == [2]
        assert [(each.node.cpus, each.count) for each in there.growth] == [(4, 8)]
        assert there.limit == 3
        assert there.growth == (Growth(Node(4), 8),)
    assert len(probe(head.address).nodes) == 1


def test_the_doctor_examines_a_cluster(head, tmp_path: Path) -> None:
    checks = {check.name: check for check in examine(head.address, str(tmp_path / "runs"))}
    assert checks["Ray"].ok, checks["Ray"]
    assert "autoscaler" in checks["Ray"].detail
    assert checks["authentication"].ok
    assert head.token.read_text() not in str(checks)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("http://192.0.2.1:8265", "plain http"),
        ("192.0.2.1:8265", "plain http"),
        ("http://example.com:8265", "plain http"),
        ("ftp://127.0.0.1:8265", "no address"),
        ("http://127.0.0.1", "no address"),
        ("http://127.0.0.1:8265/path", "no address"),
        ("http://127.0.0.1:99999", "no address"),
        ("os://127.0.0.1:8265", "no address"),
        ("auto", "no address"),
        ("http://127.0.0.1:1", "answers"),
    ],
)
def test_an_address_that_cannot_be_trusted_or_reached_is_refused(address: str, said: str) -> None:
    with pytest.raises(ClusterError, match=said):
        submit.status(address, "x")


def test_credentials_in_an_address_are_refused_and_not_repeated() -> None:
    with pytest.raises(ClusterError) as caught:
        submit.status("http://me:hunter2@127.0.0.1:8265", "x")
    assert "hunter2" not in str(caught.value)


def test_a_remote_cluster_needs_a_token_and_must_ask_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submission, "_client", lambda url: url)
    monkeypatch.setattr(submission, "_ask", lambda url: True)
    with pytest.raises(ClusterError, match="takes jobs from everybody"):
        submission.connect("https://ray.example.com")
    assert submission.connect("https://ray.example.com", allow_unauthenticated=True) == "https://ray.example.com"
    monkeypatch.setattr(submission, "_ask", lambda url: False)
    assert submission.connect("https://ray.example.com") == "https://ray.example.com"
    monkeypatch.setattr(submission, "use_token", lambda: False)
    with pytest.raises(ClusterError, match="no token"):
        submission.connect("https://ray.example.com")


def test_runs_of_a_remote_job_must_outlive_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert submit.lasting("runs", "http://127.0.0.1:8265") == str(tmp_path / "runs")
    for kept in ("s3://bucket/runs", "/shared/runs", "file:///shared/runs"):
        assert submit.lasting(kept, "https://ray.example.com") == kept
    with pytest.raises(RecipeError, match="vanishes"):
        submit.lasting("runs", "https://ray.example.com")


def test_the_bundle_is_small_deterministic_and_holds_code_only() -> None:
    first, second = submission.bundle("name: a\n"), submission.bundle("name: a\n")
    assert first == second != submission.bundle("name: b\n")
    assert len(first) < submission.LARGEST
    names = zipfile.ZipFile(BytesIO(first)).namelist()
    assert {"recipe.yaml", "engine/errors.py", "jobs/submit.py", "jobs/tiny.py"} <= set(names)
    assert {name.partition("/")[0] for name in names} <= {*submission.PACKAGES, "pyproject.toml", "recipe.yaml"}
    assert not [name for name in names if "__pycache__" in name or name.endswith(".pyc")]


def test_a_bundle_of_more_than_code_is_refused(tmp_path: Path) -> None:
    (tmp_path / "engine").mkdir()
    (tmp_path / "engine" / "weights.bin").write_bytes(os.urandom(2**20 + 1))
    with pytest.raises(ClusterError, match=r"engine/weights\.bin"):
        submission.bundle("name: a\n", root=tmp_path)


def test_a_lost_connection_is_taken_up_where_it_broke_and_given_up_in_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(submission.time, "sleep", lambda seconds: None)
    parts = [["one\n", "tw"], ["one\ntwo\n"], ["one\ntwo\n", "three\n"]]

    class Flaky:
        calls = 0

        async def tail_job_logs(self, name: str):  # type: ignore[no-untyped-def]
            self.calls += 1
            for part in parts[min(self.calls, 3) - 1]:
                yield part
            if self.calls != 3:
                raise RuntimeError("connection closed")

        def get_address(self) -> str:
            return "http://127.0.0.1:1"

        def get_job_info(self, name: str) -> SimpleNamespace:
            status = "SUCCEEDED" if self.calls == 3 else "RUNNING"
            return SimpleNamespace(submission_id=name, status=status, message="", start_time=1, end_time=2)

    text: list[str] = []
    assert submission.follow(Flaky(), "x", text.append).status == "SUCCEEDED"
    assert "".join(text) == "one\ntwo\nthree\n"
    lost = Flaky()
    lost.calls = 10
    with pytest.raises(ClusterError, match="lost 6 times"):
        submission.follow(lost, "x", text.append)
