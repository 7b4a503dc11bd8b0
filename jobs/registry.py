"""The jobs there are, by name; a job's module is imported when it is asked for.

Called by `jobs.cli` and `jobs.pipeline`.
"""

import difflib
from collections.abc import Iterable
from importlib import import_module
from typing import Any

from engine.errors import RecipeError

JOBS = {
    "corpus": "Stream a corpus of any format into a published dataset.",
    "sieve": "Filter a corpus by a plain-language criterion, learned from a few labels of a costly teacher.",
    "sieve-apply": "Filter a corpus with a student that is published already.",
    "lintseq": "Refactor programs into sequences of error-free edits.",
    "sft": "Fine-tune a causal language model on demonstrations, edits, programs or text.",
    "reward-model": "Train a model that gives texts one score, from preferences or labels.",
    "select-tasks": "Choose the tasks to train on by estimates, without training on each subset.",
    "value-network": "Train a small model whose logits, added to a frozen one's, stand for fine-tuning it.",
    "rlhf": "Align a language model with rewards, by PPO with macro actions.",
    "serve": "Answer over HTTP as OpenAI does, with value networks beside their bases.",
    "generate": "Write responses to prompts with a model, a value network beside it or not.",
    "evaluate": "Measure a model: HumanEval in a sandbox, perplexity, reward, win rates, robustness.",
    "tune": "Search a recipe's keys for the values that give the best result.",
    "pipeline": "Walk a list of jobs, each one's output handed to the next.",
}

PIPELINE_JOBS = tuple(name for name in JOBS if name not in ("pipeline", "serve", "tune"))


def known_job(name: str, among: Iterable[str] = JOBS) -> None:
    """Raise `RecipeError`, with the nearest name, unless there is such a job."""
    if name not in among:
        nearest = difflib.get_close_matches(name, list(among), n=1, cutoff=0.0)
        raise RecipeError(f"There is no job {name!r}; the nearest is {nearest[0]!r}.", "See headrace --help.")


def load_job(name: str) -> Any:
    """The module of a job: it has `RECIPE` (the recipe class) and `run(recipe, call) -> Outcome`."""
    return import_module(f"jobs.{name.replace('-', '_')}")
