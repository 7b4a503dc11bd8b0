"""The teacher seam: prompts, verdicts, the labels column, retries."""

import pickle
import time

import pytest

from engine.retries import Infrastructure, Patience
from engine.sieve.labels_teacher import LabelsTeacher
from engine.sieve.teacher import PROMPT, Snippet, Verdict, fill, parse_verdict


@pytest.mark.parametrize(
    ("words", "passed"),
    [
        ("It is about politics. PASS", True),
        ("... **FAIL**.", False),
        ("pass", True),
        ("Verdict: Fail\n\n", False),
        ("PASS or FAIL? I cannot say.", None),
        ("PASSED", None),
        ("", None),
        ("...", None),
    ],
)
def test_the_last_word_is_the_verdict(words, passed):
    assert parse_verdict(words) is passed


def test_prompts_are_filled_once_and_only_at_their_places():
    assert fill("{criterion}: {snippet} {x}", "{snippet}", "a {criterion} b") == "{snippet}: a {criterion} b {x}"
    assert fill(PROMPT, "is short", "text").count("is short") == 1
    assert fill("{snippet}", "", "half a pair \ud800") == "half a pair ?"


def test_a_labels_column_says_what_it_says():
    teacher = LabelsTeacher(["yes", "1"])
    snippets = [Snippet("a", truth=True), Snippet("b", truth=False), Snippet("c")]
    assert dict(teacher.judge(snippets)) == {0: Verdict(True), 1: Verdict(False), 2: Verdict(None, "no label")}
    assert teacher.most_tokens(snippets[0]) == (0, 0)
    assert teacher.fingerprint == LabelsTeacher(["1", "yes"]).fingerprint != LabelsTeacher(["1"]).fingerprint


def _failing(times, wait=None):
    calls = []

    def attempt():
        calls.append(time.monotonic())
        if len(calls) <= times:
            raise Infrastructure("busy", wait)
        return "done"

    return attempt, calls


def test_infrastructure_is_tried_again_with_growing_waits():
    attempt, calls = _failing(3)
    pauses = []
    assert Patience(first=1.0, longest=3.0).call(attempt, pauses.append) == "done"
    assert len(calls) == 4
    assert all(low <= pause <= high for pause, low, high in zip(pauses, (0.5, 1, 1.5), (1, 2, 3), strict=True))


def test_patience_ends_by_attempts_by_time_and_before_a_wait_beyond_it():
    attempt, calls = _failing(99)
    with pytest.raises(Infrastructure, match="busy"):
        Patience(attempts=3).call(attempt, lambda _: None)
    assert len(calls) == 3
    attempt, calls = _failing(99, wait=1000)
    with pytest.raises(Infrastructure):
        Patience(seconds=60).call(attempt)
    assert len(calls) == 1


def test_the_wait_that_is_asked_for_is_kept():
    attempt, _ = _failing(1, wait=7)
    pauses = []
    Patience(first=0.5).call(attempt, pauses.append)
    assert 7 <= pauses[0] <= 7.5


def test_other_failures_are_not_tried_again():
    calls = []

    def attempt():
        calls.append(1)
        raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011
        Patience().call(attempt)
    assert len(calls) == 1


def test_a_failure_survives_pickling():
    again = pickle.loads(pickle.dumps(Infrastructure("busy", 2.0)))  # noqa: S301
    assert (str(again), again.wait) == ("busy", 2.0)
