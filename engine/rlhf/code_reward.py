"""A program's worth by its tests, on the scale of APPS: it is run in the sandbox and nowhere else.

    -1.0                    it does not compile
    -0.6                    it raised, was ended, or used up its time on a test
    -0.3 + 1.3 * passed     otherwise, by the share of tests that it passed

(The scale of Le et al., arXiv 2207.01780, with MA-RLHF's share of tests.) A
prompt's reference holds its tests as JSON: {"inputs": [...], "outputs": [...]}, what the program reads and what it must
print, compared line by line without white space at the ends; or {"tests": "...", "entry_point": "..."}, a function
`check(candidate)` as HumanEval's.

Called by `engine.rlhf.rewards`.
"""

import json
import re
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING

from engine.errors import HeadraceError
from engine.evaluation.checker import Checker, Task, parses
from engine.evaluation.sandbox import Sandbox, SandboxOptions
from engine.lintseq.text import DIFF_TOKEN, parse_completion, resolve
from engine.resources import usable_cpus

if TYPE_CHECKING:
    from engine.rlhf.rewards import Answer

NO_PROGRAM = -1.0
RAISED = -0.6
_BLOCK = re.compile(r"```[^\n`]*\n(.*?)(?:```|\Z)", re.DOTALL)
_FAILED = ("test", "value")
"""How a check ends whose candidate came to its end and was wrong."""


def apps_reward(passed: int, failed: int) -> float:
    """The reward of a program that ran, by how many tests it passed and failed (one at least)."""
    return -0.3 + 1.3 * passed / (passed + failed)


class CodeReward:
    """Runs programs. Raises `HeadraceError` where the machine cannot confine them as asked."""

    def __init__(self, options: SandboxOptions) -> None:
        self._options = options
        self._sandbox = Sandbox(options)

    def scores(self, answers: "Sequence[Answer]") -> list[float]:
        """See `engine.rlhf.rewards.Reward`."""
        with ExitStack() as stack, ThreadPoolExecutor(usable_cpus()) as pool:
            own = threading.local()

            def scored(answer: "Answer") -> float:
                if not hasattr(own, "checker"):
                    own.checker = stack.enter_context(Checker(self._options))
                return self._one(own.checker, answer)

            return list(pool.map(scored, answers))

    def _one(self, checker: Checker, answer: "Answer") -> float:
        program, tests = program_in(answer.response), _tests(answer)
        if not program.strip() or not parses(program):
            return NO_PROGRAM
        if isinstance(tests, Task):
            checked = checker.check(program, tests, graded=True)
            if not checked.passed and not checked.why.startswith(_FAILED):
                return RAISED
            if not checked.tests:  # tests that cannot be told apart count as one
                return apps_reward(int(checked.passed), int(not checked.passed))
            return apps_reward(checked.tests_passed, checked.tests - checked.tests_passed)
        passed = 0
        for given, wanted in tests:
            ended = self._sandbox.run(program, given)
            if not ended.ok:
                return RAISED
            passed += _lines(ended.out) == _lines(wanted)
        return apps_reward(passed, len(tests) - passed)


def program_in(response: str) -> str:
    """The program in a response: its edits applied, else its last block of code, else all of it."""
    if DIFF_TOKEN in response:
        return resolve(parse_completion(response))
    blocks = _BLOCK.findall(response)
    return str(blocks[-1]) if blocks else response


def _tests(answer: "Answer") -> Task | list[tuple[str, str]]:
    try:
        found = json.loads(answer.reference or "")
        if "tests" in found:
            return Task(str(found["entry_point"]), str(found["tests"]), str(found.get("preamble", "")))
        pairs = [(_text(given), _text(wanted)) for given, wanted in zip(found["inputs"], found["outputs"], strict=True)]
        if pairs:
            return pairs
    except (ValueError, TypeError, KeyError):
        pass
    raise HeadraceError(
        f"The reference of the prompt {answer.prompt[:60]!r} holds no tests.",
        'Give JSON in the column reference: {"inputs": [...], "outputs": [...]}, or {"tests", "entry_point"}.',
    )


def _text(value: object) -> str:
    """Some of APPS has lists of lines."""
    return "\n".join(map(str, value)) if isinstance(value, list) else str(value)


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.strip().splitlines()]
