"""The budget ledger: no limit is exceeded and nothing is paid for twice, whatever fails and whenever it is killed."""

import json
import logging
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from moto.server import ThreadedMotoServer
from scripted_endpoint import PROMPT
from upath import UPath

from engine.errors import ArtifactError, HeadraceError
from engine.sieve import budget as budget_module
from engine.sieve.budget import BudgetLedger
from engine.sieve.endpoint import EndpointTeacher
from engine.sieve.labels_teacher import LabelsTeacher
from engine.sieve.options import BudgetOptions, TeacherOptions
from engine.sieve.teacher import Snippet, Verdict

WORST = (10, 5)


class Fake:
    """Says what `script` says of the n-th time that a text is asked; by default that every text passes."""

    shared = True

    def __init__(self, script=None, at_once=4, fingerprint="fake", worst=WORST):
        self.fingerprint, self.at_once = fingerprint, at_once
        self.script = script or (lambda text, time_of: Verdict(True, tokens_in=6, tokens_out=2))
        self.worst = worst
        self.counts = Counter()
        self.portions = []
        self.tokens = 0

    def most_tokens(self, snippet):
        return self.worst

    def judge(self, snippets):
        self.portions.append(len(snippets))
        # A question counts for the one who is asked as soon as it is put, answered or not.
        self.counts.update(snippet.text for snippet in snippets)
        for at, snippet in enumerate(snippets):
            said = self.script(snippet.text, self.counts[snippet.text])
            if isinstance(said, BaseException):
                raise said
            if said is not None:
                self.tokens += said.tokens_in + said.tokens_out
                yield at, said


def texts(*names):
    return [Snippet(name) for name in names]


@pytest.fixture
def place(tmp_path):
    return UPath(tmp_path)


def ledger(place, run="run", **options):
    return BudgetLedger(place / run, place / "answers", BudgetOptions(**options))


def test_answers_come_in_order_and_a_text_is_asked_once(place):
    teacher = Fake(lambda text, _: Verdict(text > "b", tokens_in=6, tokens_out=2, words=text))
    budget = ledger(place)
    said = budget.ask(teacher, texts("c", "a", "c", "d"))
    assert [each.words for each in said] == ["c", "a", "c", "d"]
    assert [each.passed for each in said] == [True, False, True, True]
    assert (budget.queries, budget.tokens) == (3, 24)
    assert budget.ask(teacher, texts("d", "e"))[0] == said[3]
    assert set(teacher.counts.values()) == {1}
    assert budget.queries == 4
    assert not budget.exhausted_by


def test_portions_are_of_the_teachers_size_once_it_has_answered(place):
    teacher = Fake(at_once=4)
    ledger(place).ask(teacher, texts(*map(str, range(10))))
    assert teacher.portions == [1, 4, 4, 1]


def test_a_refusal_at_the_start_costs_one_question(place):
    teacher = Fake(lambda text, _: HeadraceError("The key is refused."), at_once=64)
    budget = ledger(place)
    with pytest.raises(HeadraceError, match="refused"):
        budget.ask(teacher, texts(*map(str, range(80))))
    assert budget.queries == 1


def test_the_cache_is_free_and_shared_by_runs(place):
    teacher = Fake()
    first = ledger(place, "one").ask(teacher, texts("a", "b"))
    other = ledger(place, "two", queries=1)
    assert other.ask(teacher, texts("a", "b")) == first
    assert (other.queries, other.tokens) == (0, 0)
    assert other.ask(Fake(fingerprint="another"), texts("a", "b"))[1] is None
    files = [path for path in Path(str(place / "answers")).rglob("*") if path.is_file()]
    assert len(files) == 3
    assert {path.parent.name for path in files} == {path.name[:2] for path in files}


def test_two_runs_at_once_share_the_cache(place):
    barrier = threading.Barrier(2)

    def script(text, _):
        barrier.wait(10)
        return Verdict(True, tokens_in=1, words=threading.current_thread().name)

    said, budgets = {}, [ledger(place, "one"), ledger(place, "two")]

    def ask(at):
        said[at] = budgets[at].ask(Fake(script), texts("a"))

    threads = [threading.Thread(target=ask, args=(at,), name=str(at)) for at in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert said[0] == said[1], "the answer that was first stands for both"
    assert [each.queries for each in budgets] == [1, 1]


@pytest.mark.parametrize(
    ("limits", "asked", "reason"),
    [
        ({"queries": 0}, 0, "all 0 questions"),
        ({"queries": 5}, 5, "all 5 questions"),
        ({"tokens": 0}, 0, "0 of 0 tokens"),
        # Each costs 8 and can cost 15: after five, 10 are left.
        ({"tokens": 50}, 5, "10 of 50 tokens are left, too few"),
        ({"money": 50.0, "price_in": 1e6, "price_out": 1e6}, 5, "10 of the budget of 50 is left"),
        ({"money": 0.0, "price_in": 1.0}, 0, "0 of the budget of 0"),
    ],
)
def test_limits_end_the_asking_in_order(place, limits, asked, reason):
    budget = ledger(place, **limits)
    said = budget.ask(Fake(), texts(*map(str, range(9))))
    assert [each is not None for each in said] == [True] * asked + [False] * (9 - asked)
    assert budget.exhausted_by.startswith(reason)
    assert ledger(place, **limits).queries == asked


def test_money_is_by_the_prices(place):
    budget = ledger(place, price_in=2.0, price_out=8.0)
    budget.ask(Fake(), texts("a", "b"))
    assert budget.money == pytest.approx((12 * 2 + 4 * 8) / 1e6)


def test_an_unclear_answer_is_asked_for_once_more(place):
    def script(text, time_of):
        return Verdict(True if text == "a" and time_of == 2 else None, "nonsense", tokens_in=6)

    teacher, budget = Fake(script), ledger(place)
    said = budget.ask(teacher, texts("a", "b"))
    assert [each.passed for each in said] == [True, None]
    assert teacher.counts == {"a": 2, "b": 2}
    assert (budget.queries, budget.tokens, budget.discards) == (4, 24, {"nonsense": 1})
    for run in ("run", "other"):
        again = ledger(place, run)
        assert [each.passed for each in again.ask(teacher, texts("a", "b"))] == [True, None]
        assert again.discards == {"nonsense": 1}
    assert teacher.counts == {"a": 2, "b": 2}


def test_without_budget_for_a_second_try_the_first_stands(place):
    teacher = Fake(lambda *_: Verdict(None, "nonsense", tokens_in=6))
    budget = ledger(place, queries=1)
    assert budget.ask(teacher, texts("a", "b")) == [Verdict(None, "nonsense", 6), None]
    assert budget.discards == {"nonsense": 1}
    again = ledger(place, queries=2)
    assert again.discards == {"nonsense": 1}
    again.ask(teacher, texts("a"))
    assert teacher.counts == {"a": 2}
    assert ledger(place, queries=9).ask(teacher, texts("a"))[0].passed is None
    assert teacher.counts == {"a": 2}


def test_what_says_nothing_of_the_text_is_not_shared(place):
    teacher = Fake(lambda text, _: Verdict(None, "timeout", *WORST))
    assert ledger(place).ask(teacher, texts("a"))[0].reason == "timeout"
    assert ledger(place).ask(teacher, texts("a"))[0].reason == "timeout"
    assert teacher.counts == {"a": 2}
    assert ledger(place, "other").ask(Fake(), texts("a"))[0].passed is True


def test_a_teacher_that_leaves_one_out_is_asked_again(place):
    teacher = Fake(lambda text, time_of: None if text == "a" and time_of == 1 else Verdict(True, tokens_in=6))
    budget = ledger(place)
    assert [each.passed for each in budget.ask(teacher, texts("a", "b"))] == [True, True]
    assert budget.tokens == sum(WORST) + 12


def test_a_labels_column_is_neither_shared_nor_asked_twice(place):
    teacher = LabelsTeacher(["1"])
    snippets = [Snippet("a", truth=True), Snippet("b", truth=False), Snippet("c")]
    for _ in range(2):
        budget = ledger(place)
        assert [each.passed for each in budget.ask(teacher, snippets)] == [True, False, None]
        assert (budget.queries, budget.discards) == (3, {"no label": 1})
    other = ledger(place, "other").ask(teacher, [Snippet("a", truth=False)])
    assert other[0].passed is False


def test_self_agreement_asks_again_under_the_budget(place):
    teacher = Fake(lambda text, time_of: Verdict(time_of == 1 or text != "b", tokens_in=6))
    budget = ledger(place, queries=7)
    assert budget.self_agreement(teacher, texts("a", "b", "c")) == (pytest.approx(2 / 3), 3)
    assert (budget.queries, teacher.counts) == (6, {"a": 2, "b": 2, "c": 2})
    assert ledger(place).self_agreement(teacher, texts("a", "b", "c")) == (pytest.approx(2 / 3), 3)
    assert teacher.counts.total() == 6
    assert budget.ask(teacher, texts("b"))[0].passed is True
    assert ledger(place, "none", queries=0).self_agreement(teacher, texts("x")) == (None, 0)


def test_what_arrived_before_an_error_is_kept(place):
    teacher = Fake(lambda text, _: HeadraceError("refused") if text == "c" else Verdict(True, tokens_in=6))
    budget = ledger(place)
    with pytest.raises(HeadraceError, match="refused"):
        budget.ask(teacher, texts("a", "b", "c", "d"))
    again = ledger(place)
    assert (again.queries, again.tokens) == (budget.queries, budget.tokens) == (4, 12 + 2 * sum(WORST))
    again.ask(Fake(), texts("a", "b", "c", "d"))
    assert again.queries == 6


def test_after_a_kill_the_answers_that_had_arrived_are_known_at_their_price(place):
    budget = ledger(place)
    budget.ask(Fake(lambda text, _: Verdict(None if text == "b" else True, "x", tokens_in=6)), texts("a", "b"))
    ledger(place, "other").ask(Fake(fingerprint="another"), texts("c"))
    for settled in Path(str(place / "run" / "budget")).glob("settled-*.json"):
        settled.unlink()
    again = ledger(place)
    # Of the two answers about b the first, which held no verdict, is nowhere: it counts at its worst case.
    assert (again.queries, again.tokens, again.discards) == (3, 12 + sum(WORST), {"x": 1})
    assert [each.passed for each in again.ask(Fake(), texts("a", "b"))] == [True, None]
    assert again.queries == 3


def test_damaged_files_are_named(place):
    budget = ledger(place)
    budget.ask(Fake(), texts("a"))
    (answer,) = (path for path in Path(str(place / "answers")).rglob("*.json"))
    answer.write_text("{")
    with pytest.raises(ArtifactError, match=answer.name):
        ledger(place, "other").ask(Fake(), texts("a"))
    (place / "run" / "budget" / "asked-000001.json").write_text("")
    with pytest.raises(ArtifactError, match="asked-000001"):
        ledger(place)


def test_two_processes_on_one_budget_stay_within_it(place):
    one, two = ledger(place, queries=10), ledger(place, queries=10)
    teacher = Fake(at_once=3)
    for at in range(6):
        for budget in (one, two):
            budget.ask(teacher, texts(*(f"{id(budget)} {at} {n}" for n in range(2))))
    assert teacher.counts.total() == 10
    assert ledger(place, queries=10).queries == 10


ANSWERS = st.sampled_from(["pass", "fail", "nonsense", "timeout", "nothing", "error", "kill"])


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 10**6),
    weights=st.lists(st.integers(0, 5), min_size=7, max_size=7).filter(any),
    queries=st.integers(0, 25),
    tokens=st.none() | st.integers(0, 250),
    money=st.none() | st.floats(0, 300),
    at_once=st.integers(1, 6),
)
def test_no_limit_is_ever_exceeded(monkeypatch, seed, weights, queries, tokens, money, at_once):
    chance = random.Random(seed)
    kinds = ["pass", "fail", "nonsense", "timeout", "nothing", "error", "kill"]
    decided, paid_again = set(), []
    dead = threading.Event()

    def script(text, _):
        kind = chance.choices(kinds, weights)[0]
        used = (chance.randint(0, WORST[0]), chance.randint(0, WORST[1]))
        if kind == "kill":
            dead.set()
            return KeyboardInterrupt()
        if kind in ("nothing", "error"):
            return None if kind == "nothing" else HeadraceError("the endpoint is gone")
        if text in decided:
            paid_again.append(text)
        if kind in ("pass", "fail"):
            decided.add(text)
        return Verdict({"pass": True, "fail": False}.get(kind), kind, *(WORST if kind == "timeout" else used))

    def replace(path, data):
        # What a killed process would have written last is not there.
        if not dead.is_set():
            path.write_bytes(data)

    limits = {"queries": queries, "tokens": tokens, "money": money, "price_in": 1e6, "price_out": 2e6}
    teacher = Fake(script, at_once)
    with tempfile.TemporaryDirectory() as folder, monkeypatch.context() as patch:
        patch.setattr(budget_module, "replace", replace)
        place = UPath(folder)
        budget = ledger(place, **limits)
        for _ in range(12):
            wanted = texts(*(f"text {chance.randrange(20)}" for _ in range(chance.randint(1, 8))))
            try:
                said = budget.ask(teacher, wanted)
                assert all(each is not None for each in said) or budget.exhausted_by
                assert all(each.passed == {"pass": True, "fail": False}.get(each.reason) for each in said if each)
            except (KeyboardInterrupt, HeadraceError):
                dead.clear()
                budget = ledger(place, **limits)
            assert teacher.counts.total() == budget.queries <= queries
            assert teacher.tokens <= budget.tokens
            assert tokens is None or budget.tokens <= tokens
            assert money is None or budget.money <= money
        again = ledger(place, **limits)
        assert (again.queries, again.tokens, again.discards) == (budget.queries, budget.tokens, budget.discards)
        assert not paid_again


ASKER = """
import sys
from upath import UPath
from engine.retries import Patience
from engine.sieve.budget import BudgetLedger
from engine.sieve.endpoint import EndpointTeacher
from engine.sieve.options import BudgetOptions, TeacherOptions
from engine.sieve.teacher import Snippet
place, url, prompt = UPath(sys.argv[1]), sys.argv[2], sys.argv[3]
options = TeacherOptions(kind="endpoint", url=url, prompt=prompt, at_once=4, key_env="NO_KEY")
budget = BudgetLedger(place / "run", place / "answers", BudgetOptions(queries=60))
with EndpointTeacher(options, "x", patience=Patience(attempts=2, first=0.01)) as teacher:
    said = budget.ask(teacher, [Snippet(f"good {n}") for n in range(48)])
print(budget.queries, budget.tokens, sum(each is not None and each.passed is True for each in said))
"""


def test_killed_in_the_middle_nothing_is_paid_for_twice(endpoint, place):
    endpoint.delay = 0.15
    command = [sys.executable, "-c", ASKER, str(place), endpoint.url, PROMPT]
    for enough in (6, 20):
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        end = time.monotonic() + 60
        while endpoint.counts.total() < enough and time.monotonic() < end:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        time.sleep(0.5)
        kept = {path.name for path in Path(str(place / "answers")).rglob("*.json")}
        asked_before = Counter(endpoint.counts)
        assert len(kept) < 48
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    queries, tokens, passed = map(int, done.stdout.split())
    assert passed == 48
    reserved = [json.loads(path.read_bytes()) for path in Path(str(place / "run" / "budget")).glob("asked-*.json")]
    assert queries == sum(len(each["charges"]) for each in reserved) <= 60
    assert endpoint.counts.total() <= queries
    twice = {text: count for text, count in endpoint.counts.items() if count > 1}
    # At each of two kills at most one portion was in flight.
    assert all(asked_before[text] for text in twice)
    assert sum(count - 1 for count in twice.values()) <= 8
    assert tokens >= 48 * 17
    budget = BudgetLedger(place / "run", place / "answers", BudgetOptions(queries=60))
    assert (budget.queries, budget.tokens) == (queries, tokens)


def test_an_endpoints_failures_are_charged_as_they_cost(endpoint, place):
    options = TeacherOptions(kind="endpoint", url=endpoint.url, prompt=PROMPT, at_once=3, timeout_seconds=0.3)
    budget = ledger(place)
    with EndpointTeacher(options, "x") as teacher:
        said = budget.ask(teacher, texts("good", "unsure good", "limited", "broken", "slow", "nonsense", "long"))
        bound = sum(teacher.most_tokens(Snippet("slow")))
    assert [each.passed for each in said] == [True, True, False, False, None, None, None]
    assert budget.discards == {"timeout": 1, "nonsense": 1, "refused": 1}
    assert budget.queries == 11
    assert budget.tokens == 2 * bound + 16 + 2 * 17 + 16 + 16 + 2 * 16


def test_on_an_object_store(place, monkeypatch):
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
        for name, value in {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_EC2_METADATA_DISABLED": "true"}.items():
            keys[name] = value
        for name, value in keys.items():
            monkeypatch.setenv(name, value)
        # A store's client keeps the environment it was made in.
        bucket = UPath("s3://budget-test", skip_instance_cache=True, use_listings_cache=False)
        bucket.fs.mkdir("budget-test")
        teacher = Fake()
        budget = ledger(bucket, queries=7)
        first = budget.ask(teacher, texts("a", "b", "c", "d", "e"))
        again = ledger(bucket, queries=7)
        assert (again.queries, again.tokens) == (budget.queries, budget.tokens) == (5, 40)
        assert again.ask(teacher, texts("e", "a", "f", "g", "h")) == [first[4], first[0], first[0], first[0], None]
        assert ledger(bucket, "other").ask(teacher, texts("a")) == first[:1]
        assert teacher.counts.total() == 7
    finally:
        server.stop()
