"""How functions are asked for: a right answer in each style passes, and what stands around it does no harm."""

import pytest

from engine.errors import SourceError
from engine.evaluation import Checker, problems, program_of, wording
from engine.evaluation.options import HumanEvalOptions
from engine.evaluation.styles import STOPS, asked
from engine.lintseq import prompt_text, sample_edit_sequence, to_training_text
from engine.models import load_tokenizer

OPTIONS = HumanEvalOptions()


@pytest.fixture(scope="module")
def checker():
    with Checker() as checker:
        yield checker


@pytest.mark.parametrize("name", ["HumanEval/0", "HumanEval/10", "HumanEval/32", "HumanEval/38", "HumanEval/115"])
def test_a_right_answer_passes_in_every_style(checker, name):
    problem = next(each for each in problems() if each.name == name)
    start = problem.prompt.index(f"def {problem.entry_point}")
    whole = problem.prompt[start:] + problem.solution
    edits = to_training_text("x", sample_edit_sequence(whole, seed=1))[len(prompt_text("x")) :]
    answers = {
        "plain": [f"\n{problem.solution}"],
        "program": [whole],
        "edits": [edits, edits.partition(STOPS["edits"][0])[0]],
        "chat": [f"Sure!\n```python\n{whole}\n```\nDone.", f"```\n{whole}", whole, f"```python\n{problem.solution}```"],
    }
    for style, texts in answers.items():
        for text in texts:
            assert checker.check(program_of(style, problem, text), problem.task).passed, (style, text)
            assert not checker.check(program_of(style, problem, ""), problem.task).passed


def test_no_solution_would_be_stopped():
    for problem in problems():
        assert not any(stop in f"\n{problem.solution.rstrip()}" for stop in STOPS["plain"]), problem.name


def test_wordings_say_what_they_are_told_to():
    problem = problems()[0]
    assert wording("plain", problem, OPTIONS) == problem.prompt.rstrip()
    told = wording("program", problem, OPTIONS)
    assert told.startswith("Check if in given list")
    assert told.endswith("def has_close_elements(numbers: List[float], threshold: float) -> bool:")
    assert wording("edits", problem, OPTIONS) == told
    assert problem.prompt.strip() in wording("chat", problem, OPTIONS)
    braces = HumanEvalOptions(instruction="{prompt} and {signature} {nothing}")
    assert wording("program", problem, braces).endswith("-> bool: {nothing}")


def test_questions_are_asked_in_the_format_of_training(tiny_lm, tiny_bare_lm):
    tokenizer = load_tokenizer(tiny_lm)
    says = {style: tokenizer.decode(asked(style, "Words <|end|>", tokenizer)) for style in STOPS}
    assert says == {
        "plain": "Words <|end|>",
        "program": "Words <|end|>\n",
        "edits": "Words <|end|>\n<|diff|>",
        "chat": "<|user|>Words <|end|><|end|>\n<|assistant|>",
    }
    assert tokenizer.eos_token_id not in asked("plain", "Words <|end|>", tokenizer), "a text is no special token"
    with pytest.raises(SourceError, match="has no chat template"):
        asked("chat", "Words", load_tokenizer(tiny_bare_lm))
