"""Rewards: the scale of APPS (T22), functions, endpoints that go down, verifiers, and sums of several."""

import json
import math
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace

import pytest
import torch

from engine.errors import HeadraceError, RecipeError, SourceError
from engine.models import load_scorer, load_tokenizer, save_model
from engine.retries import Patience
from engine.rlhf.code_reward import CodeReward, apps_reward, program_in
from engine.rlhf.reward_options import RewardOptions
from engine.rlhf.rewards import Answer, CombinedReward, HttpReward, make_reward
from engine.rlhf.verifier import runs_answers

DOUBLE = json.dumps({"inputs": ["1\n", "2\n", "3\n", "10\n"], "outputs": ["2", "4", "6\n", ["20"]]})
HUMAN = json.dumps({"entry_point": "double", "tests": "def check(f):\n    assert f(1) == 2\n    assert f(0) == 0\n"})


def lengths(prompts, responses, references):
    return [len(response) for response in responses]


def raises(prompts, responses, references):
    raise KeyError("oh")


def short(prompts, responses, references):
    return []


def nan(prompts, responses, references):
    return [float("nan") for _ in responses]


def test_t22_the_scale_of_apps():
    assert [apps_reward(passed, 4 - passed) for passed in (0, 1, 3, 4)] == pytest.approx([-0.3, 0.025, 0.675, 1])


@pytest.mark.parametrize(
    ("program", "score"),
    [
        ("print(2 * int(input()))", 1.0),
        ("Here it is:\n```python\nprint(2 * int(input()))\n```\nGood luck!", 1.0),
        ("x = int(input())\nprint(2 * x if x < 10 else 0)", 0.675),
        ("print(0)", -0.3),
        ("print(1 / 0)", -0.6),
        ("while True: pass", -0.6),
        ("import os; os.kill(os.getppid(), 9); open('/etc/passwd')", -0.6),
        ("print(", -1.0),
        ("", -1.0),
    ],
)
def test_programs_are_run_against_what_they_must_print(program, score):
    reward = CodeReward(RewardOptions(kind="code", sandbox={"seconds": 1}).sandbox)
    assert reward.scores([Answer("Double it.", program, DOUBLE)]) == pytest.approx([score])


@pytest.mark.parametrize(
    ("program", "score"),
    [
        ("def double(x):\n    return 2 * x\n", 1.0),
        ("def double(x):\n    return x\n", 0.35),
        ("def double(x):\n    raise ValueError\n", -0.6),
        ("def other(x):\n    return 2 * x\n", -0.6),
    ],
)
def test_functions_are_called_by_their_tests(program, score):
    reward = CodeReward(RewardOptions(kind="code").sandbox)
    assert reward.scores([Answer("Double it.", program, HUMAN)]) == pytest.approx([score])


def test_edits_are_applied():
    edits = "<|diff|>\n@@ -0,0 +1,2 @@\n+a = 1\n+b = 2\n"
    assert "a = 1" in program_in(edits)
    assert "@@" not in program_in(edits)


@pytest.mark.parametrize("reference", [None, "", "[]", "{}", '{"inputs": [], "outputs": []}', '{"inputs": ["1"]}'])
def test_a_prompt_without_tests_is_named(reference):
    with pytest.raises(HeadraceError, match=r"'Double it.' holds no tests"):
        CodeReward(RewardOptions(kind="code").sandbox).scores([Answer("Double it.", "print(1)", reference)])


def test_a_weighted_sum():
    options = [
        RewardOptions(kind="function", function="test_rewards:lengths", weight=0.5, clip=3),
        RewardOptions(kind="function", function="builtins:sorted", name="other", weight=0),
    ]
    with pytest.raises(HeadraceError, match="builtins:sorted raised TypeError"):
        CombinedReward(options).scores([Answer("", "abcdef")])
    sums, apart = CombinedReward(options[:1]).scores([Answer("", "abcdef"), Answer("", "a")])
    assert (sums, apart) == ([1.5, 0.5], {"function": [6, 1]})


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("test_rewards:raises", "raised KeyError: 'oh'"),
        ("test_rewards:short", "gave 0 scores for 1 responses"),
        ("test_rewards:nan", "gave the score nan"),
        ("test_rewards:none", "There is no reward function test_rewards:none"),
        ("no_such_module:none", "No module named 'no_such_module'"),
    ],
)
def test_a_function_that_cannot_score_is_named(function, said):
    with pytest.raises(HeadraceError, match=said):
        CombinedReward([RewardOptions(kind="function", function=function)]).scores([Answer("", "a")])


@pytest.fixture
def endpoint():
    """An endpoint whose answers are scripted: statuses to fail with first, then scores."""
    script = {"fail": [], "body": None, "seen": []}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            script["seen"].append((asked, self.headers.get("Authorization")))
            status = script["fail"].pop(0) if script["fail"] else 200
            body = script["body"] or json.dumps({"scores": [len(each) for each in asked["responses"]]})
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    script["url"] = f"http://127.0.0.1:{server.server_port}/score"
    yield script
    server.shutdown()
    server.server_close()


def test_an_endpoint_that_was_down_for_a_while_costs_nothing(endpoint, monkeypatch):
    monkeypatch.setenv("REWARD_KEY", "secret-key")
    endpoint["fail"] = [503, 429, 500]
    options = RewardOptions(kind="http", url=endpoint["url"], key_env="REWARD_KEY")
    reward = HttpReward(options, Patience(attempts=9, seconds=20, first=0.01))
    assert reward.scores([Answer("p", "abc", "r"), Answer("q", "", None)]) == [3, 0]
    asked, key = endpoint["seen"][-1]
    assert asked == {"prompts": ["p", "q"], "responses": ["abc", ""], "references": ["r", None]}
    assert key == "Bearer secret-key"
    assert len(endpoint["seen"]) == 4


def test_what_an_endpoint_does_wrong_is_told_without_the_key(endpoint, monkeypatch, closed_port):
    monkeypatch.setenv("REWARD_KEY", "secret-key")
    options = RewardOptions(kind="http", url=endpoint["url"], key_env="REWARD_KEY")
    reward = HttpReward(options, Patience(attempts=2, seconds=5, first=0.01))
    for fail, body, said in (
        ([401], None, "refuses what it is asked .status 401"),
        ([], "{}", "gives no scores"),
        ([], '{"scores": ["secret-key"]}', "gives no scores"),
        ([500] * 9, None, "has not answered for"),
    ):
        endpoint.update(fail=fail, body=body)
        with pytest.raises(HeadraceError, match=said):
            reward.scores([Answer("p", "abc")])
    gone = RewardOptions(kind="http", url=f"http://127.0.0.1:{closed_port}/")
    with pytest.raises(HeadraceError, match="ConnectError"):
        HttpReward(gone, Patience(attempts=2, seconds=5, first=0.01)).scores([Answer("p", "abc")])
    monkeypatch.delenv("REWARD_KEY")
    with pytest.raises(RecipeError, match="REWARD_KEY is not set"):
        make_reward(options)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"kind": "model"}, "needs model"),
        ({"kind": "function", "function": "nothing"}, "needs package.module:name"),
        ({"kind": "function", "function": "os;x:y"}, "needs package.module:name"),
        ({"kind": "http", "url": "http://me:pw@host/"}, "without credentials"),
    ],
)
def test_a_section_that_cannot_work_is_refused(keys, said):
    with pytest.raises(ValueError, match=said):
        RewardOptions(**keys)


def test_a_verifier_or_how_to_get_one():
    options = RewardOptions(kind="verifier", dataset="basic_arithmetic")
    try:
        import reasoning_gym
    except ImportError:
        with pytest.raises(SourceError, match=r"headrace\[verifiers\]"):
            make_reward(options)
        return
    entry = reasoning_gym.create_dataset("basic_arithmetic", size=1, seed=1)[0]
    reward, reference = make_reward(options), json.dumps(entry)
    right, wrong = f"I think <answer>1</answer> no, <answer> {entry['answer']} </answer>", "none"
    assert reward.scores([Answer("?", right, reference), Answer("?", wrong, reference)])[0] == 1
    with pytest.raises(RecipeError, match="no task 'none'"):
        make_reward(RewardOptions(kind="verifier", dataset="none"))
    with pytest.raises(HeadraceError, match="no entry of reasoning-gym"):
        reward.scores([Answer("?", right, "17")])
    for task in ("spiral_matrix", "countdown", "bitwise_arithmetic"):
        with pytest.raises(RecipeError, match="runs the answers it is given as code"):
            make_reward(RewardOptions(kind="verifier", dataset=task))


def running(answer, entry):
    return float(eval(answer) == entry["answer"])  # noqa: S307


def running_by_another(answer, entry):
    return running(answer, entry)


def parse_expr(answer):
    return int(answer)


def parsing(answer, entry):
    return float(parse_expr(answer) == entry["answer"])


def test_a_verifier_that_runs_answers_is_found_out():
    assert runs_answers(running)
    assert runs_answers(running_by_another)
    assert not runs_answers(parsing), "its own function, whatever it is called"


def counting(answer, entry):
    return float(int(answer) == int(entry["answer"]))


def test_an_answer_that_a_verifier_cannot_read_is_wrong(monkeypatch):
    dataset = type("Dataset", (), {"score_answer": staticmethod(counting)})
    factory = SimpleNamespace(DATASETS={"sums": (dataset, None)})
    gym = SimpleNamespace(factory=factory, get_score_answer_fn=lambda name: counting)
    monkeypatch.setitem(sys.modules, "reasoning_gym", gym)
    monkeypatch.setitem(sys.modules, "reasoning_gym.factory", factory)
    reward = make_reward(RewardOptions(kind="verifier", dataset="sums"))
    said = ["<answer>17</answer>", "seventeen", "<answer>16</answer>", "I say 17 <answer> 17 </answer>"]
    reference = json.dumps({"answer": "17"})
    assert reward.scores([Answer("?", each, reference) for each in said]) == [1, 0, 0, 1]


def test_a_model_reads_the_response_or_both(small, tmp_path):
    torch.manual_seed(0)
    model, tokenizer = load_scorer(str(small), new_head=True), load_tokenizer(str(small))
    model.config.pad_token_id = 0
    save_model(model, tokenizer, tmp_path)
    answers = [Answer("How are you?", "Fine."), Answer("And you?", "Fine."), Answer("How are you?", "Bad.")]

    def scores(**keys):
        return make_reward(RewardOptions(kind="model", model=str(tmp_path), **keys)).scores(answers)

    response = scores(reads="response")
    assert response[0] == pytest.approx(response[1], abs=1e-5)
    assert response[0] != pytest.approx(response[2], abs=1e-4)
    both = scores()
    assert both[0] != pytest.approx(both[1], abs=1e-4)
    chances = scores(reads="response", probability=True)
    assert chances == pytest.approx([1 / (1 + math.exp(-each)) for each in response], abs=1e-5)
