"""Measure a model: HumanEval in a sandbox, perplexity, reward, win rates, and what noise in the questions does.

Writes every question down first and says what they will take, answers them through vLLM exactly once, runs programs in
the sandbox and nowhere else, and publishes `samples`: one row per answer or text with all that was measured of it.
The numbers with their intervals are in RUN/metrics.json and RUN/report.html.

Left out: training what it measures. Called by `jobs.cli`; the engine half is `engine.evaluation`.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any

from pydantic import model_validator

from engine.config import Field, knob
from engine.evaluation.recipe import EvaluationRecipe
from engine.runs import Invocation, Outcome, Run
from engine.sieve.options import BudgetOptions, TeacherOptions


class EvaluateRecipe(EvaluationRecipe):
    """The keys of an evaluation, with the teacher that may judge."""

    teacher: TeacherOptions | None = None
    """Who judges: endpoint, vllm or scorer."""
    budget: BudgetOptions = Field(default_factory=BudgetOptions)
    """What its judgements may cost."""
    cache: str | None = knob(None)
    """Where judgements are kept for all runs; RUNS/cache if not given."""

    @model_validator(mode="after")
    def _has_a_judge(self) -> "EvaluateRecipe":
        if self.judge and self.judge.by == "teacher" and (self.teacher is None or self.teacher.kind == "labels"):
            raise ValueError("judge.by=teacher needs the section teacher, of kind endpoint, vllm or scorer")
        return self


RECIPE = EvaluateRecipe


def run(recipe: EvaluateRecipe, call: Invocation) -> Outcome:
    """Write questions, answer, check, measure, publish."""
    from engine.corpus import Transform, run_transform
    from engine.corpus.transform import room
    from engine.evaluation import Judging, conclude, narrate, prepare, read_results, statistics
    from engine.observe import get_logger
    from engine.resources import preflight
    from engine.sieve import check_key

    if recipe.judge and recipe.teacher:
        check_key(recipe.teacher)
        preflight(_demands(recipe.teacher), room(call.address, recipe.workers))
    home = Run("evaluate", recipe).path
    planned = prepare(recipe)
    judging = None
    if recipe.judge:
        judging = Judging(partial(_judge, recipe, call), recipe.judge.against, recipe.judge.pairs)
    with ExitStack() as stack:
        folder = stack.enter_context(TemporaryDirectory()) if call.dry_run else f"{recipe.runs}/cache/questions"
        transform = Transform(
            job="evaluate",
            reads="questions",
            writes="samples",
            content="prompt",
            source=planned.publish(folder),
            stages=planned.stages(),
            statistics=statistics,
            first=lambda shop: get_logger("evaluation").info("sample budget", **planned.budget()),
            after=partial(conclude, recipe, home, judging),
            narrate=partial(narrate, home=home),
            uses=planned.uses,
            models=lambda: planned.uses,
            limited_by_codec=False,
            hints={
                "generate": "fewer samples, a smaller sampling.max_tokens, or engine.actors on more cores or GPUs.",
                "check": "a smaller sandbox.seconds, or more engine.actors.",
                "start Ray": "give --address of a running Ray to skip it.",
            },
        )
        outcome = run_transform(transform, recipe, call)
    if call.dry_run:
        return replace(outcome, facts={**planned.budget(), **outcome.facts})
    results = read_results(home)
    facts = {**outcome.facts, **(results.headline() if results else {})}
    return replace(outcome, facts=facts, next_command=f"open {outcome.report}" if outcome.report else "")


def _demands(teacher: TeacherOptions) -> list[Any]:
    """What has to be schedulable for a judge that holds a model."""
    from engine.resources import Demand

    if teacher.kind == "endpoint":
        return []
    return [Demand("teachers", teacher.actors, cpus=teacher.cpus, gpus=teacher.gpus, key="teacher.actors")]


@contextmanager
def _judge(recipe: EvaluateRecipe, call: Invocation, texts: Sequence[str]) -> Iterator[Any]:
    """The judge that the recipe asks for, a scorer calibrated on `texts`; its processes end with the block."""
    from engine.cluster import session
    from engine.evaluation import RewardJudge, RewardModel, TextJudge
    from engine.sieve import BudgetLedger, Snippet
    from engine.sieve.actors import RemoteTeacher
    from engine.sieve.endpoint import EndpointTeacher
    from engine.storage import writable

    options = recipe.judge
    if options.by == "reward":
        yield RewardJudge(RewardModel(recipe.reward.model, window=recipe.reward.window), options.margin)
        return
    with ExitStack() as stack:
        if recipe.teacher.kind == "endpoint":
            teacher: Any = EndpointTeacher(recipe.teacher, options.criterion)
        else:
            stack.enter_context(session(call.address, cpus=recipe.workers))
            calibration = texts[: recipe.teacher.calibration]
            teacher = RemoteTeacher(recipe.teacher, options.criterion, calibration, recipe.stall_seconds)
            stack.enter_context(closing(teacher))
        cache = writable(recipe.cache) if recipe.cache else writable(recipe.runs) / "cache"
        ledger = BudgetLedger(Run("evaluate", recipe).path / "judge", cache, recipe.budget)

        def passes(texts: list[str]) -> list[bool | None]:
            return [said and said.passed for said in ledger.ask(teacher, [Snippet(text) for text in texts])]

        yield TextJudge(passes)


if __name__ == "__main__":
    from jobs.cli import main

    main("evaluate")
