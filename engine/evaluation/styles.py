"""How a model is asked for a function, and the program in what it answers.

    plain     the prompt, which the model continues; its text ends where another statement begins at the margin
    program   an instruction, after which the model writes the whole program (`engine.finetune.formats`)
    edits     an instruction, after which it writes LintSeq's insertions; a damaged one is left out, the rest applied
    chat      a request through the chat template; the program is the first code block, or the whole answer without one

Before a whole program stands what the prompt defines ahead of its function (imports, helpers), on which the tests may
rely too. A prompt is handed over without the white space at its end: tokenizers join a line break with the
indentation that follows, and the model has learnt to write them together.

Left out: generating and checking. Called by `engine.evaluation.questions` and by the stage that checks.
"""

import ast
import inspect
import re
from typing import TYPE_CHECKING

from engine.errors import SourceError
from engine.evaluation.humaneval import Problem
from engine.evaluation.options import HumanEvalOptions, Style
from engine.finetune.formats import beginning, encoder, program_pieces
from engine.lintseq.text import DIFF_TOKEN, parse_completion, prompt_text, resolve

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MARGIN = ("\nclass ", "\ndef ", "\nasync def ", "\n#", "\n@", "\nif ", "\nprint", "\nassert ", "\nfrom ", "\nimport ")
STOPS: dict[Style, tuple[str, ...]] = {
    "plain": (*_MARGIN, "\n```", "\n>>>"),
    "program": (),
    "edits": (f"\n{DIFF_TOKEN}\n{DIFF_TOKEN}",),
    "chat": (),
}
"""Texts before which an answer ends: what begins another statement at the margin; two edits that insert nothing."""

_BLOCK = re.compile(r"```[^\n`]*\n(.*?)(?:```|\Z)", re.DOTALL)


def wording(style: Style, problem: Problem, options: HumanEvalOptions) -> str:
    """What a model is told, as a person reads it."""
    if style == "plain":
        return problem.prompt.rstrip()
    if style == "chat":
        return options.request.replace("{prompt}", problem.prompt.strip())
    filled = {
        "{docstring}": _docstring(problem),
        "{signature}": _signature(problem),
        "{prompt}": problem.prompt.strip(),
    }
    return re.sub(r"\{(docstring|signature|prompt)\}", lambda match: filled[match.group()], options.instruction)


def asked(style: Style, text: str, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Token ids of a wording, as they stood before answers in training. Raises `SourceError` without a chat template.

    A tokenizer without the token `<|diff|>` writes it in ordinary ones.
    """
    if style == "chat":
        return chat_ids(tokenizer, [{"role": "user", "content": text}])
    if style == "plain":
        return bare_ids(tokenizer, text)
    if style == "program":
        return encoder(tokenizer)(program_pieces(tokenizer, text, "")[0].text, True)
    return encoder(tokenizer)(beginning(tokenizer) + prompt_text(text), True)


def bare_ids(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    """A text to be continued, behind the beginning-of-sequence token if the tokenizer has one; never a special token
    within it."""
    encode = encoder(tokenizer)
    return encode(beginning(tokenizer), True) + encode(text, False)


def chat_ids(tokenizer: "PreTrainedTokenizerBase", messages: list[dict[str, str]]) -> list[int]:
    """A conversation up to where the assistant answers. Raises `SourceError` where there is no template for it."""
    if tokenizer.chat_template is None:
        raise SourceError(
            f"The model {tokenizer.name_or_path} has no chat template, so it cannot be asked in chat form.",
            "Choose humaneval.styles=[plain] or prompts.chat=false, or a model with a template (pkg:smollm2-135m).",
        )
    try:
        ids: list[int] = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    # Templates are programs: they raise what they like at conversations that they do not foresee.
    except Exception as error:
        why = str(error).strip().partition("\n")[0][:200]
        raise SourceError(
            f"The chat template of {tokenizer.name_or_path} refuses a conversation ({why}).",
            "Give prompts whose turns it knows, or prompts.chat=false.",
        ) from error
    return ids


def program_of(style: Style, problem: Problem, answer: str) -> str:
    """The program that an answer stands for; what is no program comes out as text that does not parse or pass."""
    if style == "plain":
        return f"{problem.prompt.rstrip()}{answer}\n"
    if style == "chat":
        block = _BLOCK.search(answer)
        answer = block[1] if block else answer
        if not re.search(rf"^def {re.escape(problem.entry_point)}\b", answer, re.MULTILINE) and answer[:1].isspace():
            return f"{problem.prompt.rstrip()}\n{answer}\n"
    elif style == "edits":
        answer = resolve(parse_completion(answer))
    return f"{_ahead(problem)}{answer}\n"


def _ahead(problem: Problem) -> str:
    """What stands in the prompt before the function."""
    return problem.prompt[: _start(problem)]


def _signature(problem: Problem) -> str:
    rest = problem.prompt[_start(problem) :]
    return rest[: rest.index("\n")].strip()


def _docstring(problem: Problem) -> str:
    for node in ast.parse(problem.prompt + "\n    pass\n").body:
        if isinstance(node, ast.FunctionDef) and node.name == problem.entry_point:
            return inspect.cleandoc(ast.get_docstring(node) or "")
    return ""


def _start(problem: Problem) -> int:
    match = re.search(rf"^def {re.escape(problem.entry_point)}\b", problem.prompt, re.MULTILINE)
    assert match, f"{problem.name} defines no {problem.entry_point}"
    return match.start()
