"""A task of reasoning-gym as a reward: its own verifier looks at the answer.

Some of its verifiers hand what a model has written to Python's `eval`, or to sympy, which does so too. Those are
refused: answers are parsed, never run. Left out: the other rewards (`engine.rlhf.rewards`, which calls this).
"""

import ast
import inspect
import json
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from engine.errors import HeadraceError, RecipeError, SourceError
from engine.observe import get_logger
from engine.rlhf.reward_options import RewardOptions
from engine.rlhf.rewards import Answer

_log = get_logger("rlhf")
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_RUNNING = frozenset({"eval", "exec", "parse_expr", "sympify", "S"})
"""Functions, of Python and of sympy, that run the text they are given."""


class VerifierReward:
    """What stands between the last <answer> tags, or else the whole response, against the entry that the prompt's
    reference holds as JSON. Raises `SourceError` where reasoning-gym is not installed, `RecipeError` for a task that it
    does not have or that runs answers."""

    def __init__(self, options: RewardOptions) -> None:
        assert options.dataset
        try:
            import reasoning_gym
            from reasoning_gym.factory import DATASETS
        except ImportError as error:
            raise SourceError(
                f"reasoning-gym cannot be imported ({error}).", "Run: pip install 'headrace[verifiers]'"
            ) from None
        if options.dataset not in DATASETS:
            raise RecipeError(
                f"reasoning-gym has no task {options.dataset!r}.", "Look them up in reasoning_gym.factory.DATASETS."
            )
        if runs_answers(DATASETS[options.dataset][0].score_answer):
            raise RecipeError(
                f"The verifier of reasoning-gym's task {options.dataset} runs the answers it is given as code.",
                "Choose another task, or score it by a function or a code reward.",
            )
        self._score = reasoning_gym.get_score_answer_fn(options.dataset)

    def scores(self, answers: Sequence[Answer]) -> list[float]:
        """See `engine.rlhf.rewards.Reward`."""
        return [self._one(each) for each in answers]

    def _one(self, answer: Answer) -> float:
        try:
            entry = json.loads(answer.reference or "")
        except ValueError:
            entry = None
        if not isinstance(entry, dict) or "answer" not in entry:
            raise HeadraceError(
                f"The reference of the prompt {answer.prompt[:60]!r} is no entry of reasoning-gym.",
                "Give each prompt its entry as JSON in the column reference.",
            )
        said = _ANSWER.findall(answer.response)
        try:
            return float(self._score(answer=(said[-1] if said else answer.response).strip(), entry=entry))
        # Verifiers raise what they like at an answer that they do not foresee: it is wrong.
        except Exception as error:  # noqa: BLE001
            _log.warning("a verifier cannot read an answer, which counts 0", error=f"{type(error).__name__}: {error}")
            return 0.0


def runs_answers(function: Callable[..., Any]) -> bool:
    """Whether a function, or one of its module that it calls by name, calls what runs text as code."""
    module = ast.parse(inspect.getsource(sys.modules[function.__module__]))
    defined = {each.name: each for each in ast.walk(module) if isinstance(each, ast.FunctionDef)}
    own = ast.parse(textwrap.dedent(inspect.getsource(function)))
    seen: set[str] = set()
    todo: list[ast.AST] = [own]
    while todo:
        for name in set(_called(todo.pop())) - seen:
            seen.add(name)
            if name in defined:
                todo.append(defined[name])
    return bool((seen & _RUNNING) - defined.keys())


def _called(node: ast.AST) -> Iterator[str]:
    for each in ast.walk(node):
        if isinstance(each, ast.Call):
            if isinstance(each.func, ast.Name):
                yield each.func.id
            elif isinstance(each.func, ast.Attribute):
                yield each.func.attr
