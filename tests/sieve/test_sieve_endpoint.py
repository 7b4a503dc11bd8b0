"""The endpoint teacher against a real HTTP server: failures by class, concurrency, and a key that never shows."""

import logging
import pickle
import time
import traceback

import pytest
from scripted_endpoint import ODD, PROMPT

from engine.errors import HeadraceError
from engine.retries import Patience
from engine.sieve.endpoint import EndpointTeacher
from engine.sieve.options import TeacherOptions
from engine.sieve.teacher import Snippet

KEY = "sk-very-secret-0123456789"
QUICK = Patience(attempts=4, seconds=10, first=0.01, longest=0.05)


@pytest.fixture
def make(endpoint):
    made = []

    def teacher(criterion="is good", patience=QUICK, **options):
        keys = {"model": "gold", "prompt": PROMPT, "timeout_seconds": 5, "at_once": 8, "key_env": "TEST_KEY", **options}
        made.append(
            EndpointTeacher(TeacherOptions(kind="endpoint", url=endpoint.url, **keys), criterion, patience=patience)
        )
        return made[-1]

    yield teacher
    for each in made:
        each.close()


def _judge(teacher, *texts):
    said = dict(teacher.judge([Snippet(text) for text in texts]))
    assert sorted(said) == list(range(len(texts)))
    return [said[at] for at in range(len(texts))]


def test_verdicts_tokens_and_what_is_asked(endpoint, make):
    good, bad = _judge(make(), "a good text", "a text")
    assert (good.passed, good.tokens_in, good.tokens_out) == (True, 13, 5)
    assert (bad.passed, bad.reason) == (False, "")
    assert good.words == "It is so. **PASS**"
    body = next(body for body in endpoint.bodies if "good text" in body["messages"][0]["content"])
    assert body["messages"] == [{"role": "user", "content": "is good|a good text"}]
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("gold", 0, 256)


def test_questions_are_asked_at_once_and_arrive_as_they_come(endpoint, make):
    endpoint.delay, endpoint.slow_seconds = 0.1, 20
    order = []
    for at, _ in make().judge([Snippet("slow"), *(Snippet(f"text {n}") for n in range(15))]):
        order.append(at)
        if len(order) == 15:
            endpoint.hurry.set()
    assert 4 < endpoint.most_at_once <= 8
    assert sorted(order) == list(range(16))
    assert order[-1] == 0


@pytest.mark.parametrize("word", ["limited", "broken"])
def test_busy_and_broken_endpoints_are_asked_again(endpoint, make, word):
    began = time.monotonic()
    assert _judge(make(), f"a {word} good text")[0].passed is True
    assert endpoint.counts[f"a {word} good text"] == 2
    assert word == "broken" or time.monotonic() - began >= 0.2


def test_a_dead_question_does_not_stop_the_others(endpoint, make):
    dead, good = _judge(make(), "dead", "good")
    assert (dead.passed, dead.reason, dead.tokens_in) == (None, "unreachable", 0)
    assert good.passed is True
    assert endpoint.counts["dead"] == QUICK.attempts


def test_a_late_answer_costs_the_most_and_is_not_asked_again(endpoint, make):
    teacher = make(timeout_seconds=0.2)
    late, good = _judge(teacher, "slow", "good")
    assert (late.passed, late.reason) == (None, "timeout")
    assert (late.tokens_in, late.tokens_out) == teacher.most_tokens(Snippet("slow"))
    assert good.passed is True
    assert endpoint.counts["slow"] == 1


def test_an_answer_that_trickles_is_late_and_one_that_breaks_off_is_none(endpoint, make):
    teacher = make(timeout_seconds=0.5)
    late, torn, good = _judge(teacher, "trickle good", "torn good", "good")
    assert [each.reason for each in (late, torn, good)] == ["timeout", "no answer", ""]
    assert (torn.tokens_in, torn.tokens_out) == teacher.most_tokens(Snippet("torn good"))
    assert endpoint.counts["torn good"] == 1
    assert _judge(make(), "trickle good")[0].passed is True


@pytest.mark.parametrize("word", ["nonsense", "html", *ODD])
def test_nonsense_is_counted(make, word):
    assert (_judge(make(), word)[0].passed, _judge(make(), word)[0].reason) == (None, "nonsense")


def test_a_verdict_that_was_cut_off_is_none(make):
    assert _judge(make(), "cut good")[0].reason == "cut off"


def test_a_text_that_the_endpoint_refuses_is_counted(endpoint, make):
    refused = _judge(make(), "too long a text")[0]
    assert (refused.passed, refused.reason, refused.tokens_in) == (None, "refused", 0)
    assert endpoint.counts["too long a text"] == 1


def test_the_bound_is_above_the_truth_and_counts_where_no_usage_is_told(endpoint, make):
    teacher = make()
    most = teacher.most_tokens(Snippet("günstig " * 20))
    assert most[0] >= len(("is good|" + "günstig " * 20).encode())
    endpoint.usage = False
    said = _judge(teacher, "good")[0]
    assert (said.tokens_in, said.tokens_out) == teacher.most_tokens(Snippet("good"))


def test_text_that_is_no_unicode_or_empty_is_asked_all_the_same(make):
    assert [each.passed for each in _judge(make(), "good \ud800", "")] == [True, False]


def test_newer_parameters_are_found_out(endpoint, make):
    endpoint.refused = {"max_tokens": "Use 'max_completion_tokens' instead.", "temperature": "Only 1 is supported."}
    assert _judge(make(), "good")[0].passed is True
    assert endpoint.bodies[-1]["max_completion_tokens"] == 256
    assert "temperature" not in endpoint.bodies[-1]


def test_an_unknown_model_ends_the_asking_at_once(endpoint, make):
    endpoint.models = ["gold"]
    with pytest.raises(HeadraceError, match="'lead' is unknown"):
        _judge(make(model="lead"), *(f"text {n}" for n in range(50)))
    assert sum(endpoint.counts.values()) < 50


def test_what_is_answered_is_handed_over_before_an_error(endpoint, make):
    endpoint.slow_seconds = 0.3
    texts = ["good", "slow quota", *(f"text {n}" for n in range(6))]
    asking = make().judge([Snippet(text) for text in texts])
    said = []
    with pytest.raises(HeadraceError, match="No quota"):  # noqa: PT012
        for at, _ in asking:
            said.append(at)
            # All are answered by the time that the second is read.
            while endpoint.answered.total() < 7:
                time.sleep(0.05)
            time.sleep(0.6 if len(said) == 1 else 0)
    assert sorted(said) == [0, 2, 3, 4, 5, 6, 7]


def test_no_quota_ends_the_asking_at_once(endpoint, make):
    with pytest.raises(HeadraceError, match="No quota is left"):
        _judge(make(), "quota")
    assert endpoint.counts["quota"] == 1


def test_an_endpoint_that_is_down_is_said_so(endpoint, make, closed_port):
    with pytest.raises(HeadraceError, match=r"10 questions in a row without an answer \(500: .*out of order"):
        _judge(make(at_once=5), *(f"dead {n}" for n in range(30)))
    options = TeacherOptions(kind="endpoint", url=f"http://127.0.0.1:{closed_port}/v1", at_once=2)
    with EndpointTeacher(options, "", patience=QUICK) as gone, pytest.raises(HeadraceError, match="in a row"):
        _judge(gone, *(f"text {n}" for n in range(30)))


def test_a_missing_key_is_only_missed_where_one_is_wanted(endpoint, make):
    assert _judge(make(), "good")[0].passed is True
    endpoint.key = KEY
    with pytest.raises(HeadraceError, match="Set the environment variable TEST_KEY"):
        _judge(make(), "good")


def test_the_key_never_shows(endpoint, make, monkeypatch, caplog):
    monkeypatch.setenv("TEST_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    teacher = make()
    endpoint.key = KEY
    assert _judge(teacher, "good")[0].passed is True
    assert KEY not in _judge(teacher, "nonsense")[0].words
    assert KEY not in repr(teacher)
    assert KEY.encode() not in pickle.dumps(teacher)
    again = pickle.loads(pickle.dumps(teacher))  # noqa: S301
    assert again.fingerprint == teacher.fingerprint
    assert _judge(again, "good")[0].passed is True
    again.close()
    endpoint.key = "another"
    with pytest.raises(HeadraceError, match="The key is refused") as caught:
        _judge(teacher, "good")
    shown = "".join(traceback.format_exception(caught.value, chain=True))
    assert "***" in str(caught.value)
    assert KEY not in shown
    assert caught.value.__context__ is None
    assert KEY not in caplog.text


def test_a_key_with_odd_characters_is_refused_without_being_shown(make, monkeypatch):
    monkeypatch.setenv("TEST_KEY", "sk-\nsecret")
    with pytest.raises(HeadraceError, match="TEST_KEY") as caught:
        make()
    assert "secret" not in str(caught.value)


def test_fingerprints_tell_apart_what_decides_the_answer(make):
    one = make()
    others = [make("else"), make(model="lead"), make(prompt="{snippet}"), make(max_tokens=9), make(at_once=3)]
    assert [each.fingerprint == one.fingerprint for each in others] == [False, False, False, False, True]
