from .actor import LintSeqActor, path_seed
from .diffs import MalformedEdit, apply_edit_sequence
from .fast_linter import FastLinter
from .linting import Finding, Linter, Unlintable, linter_for
from .options import LintSeqOptions
from .pylint_linter import PylintLinter
from .report import narrate
from .sampler import sample_edit_sequence
from .statistics import statistics
from .syntax_linter import SyntaxLinter
from .text import DIFF_TOKEN, parse_completion, prompt_text, resolve, to_training_text
from .training import (
    TrainingExample,
    add_diff_token,
    counting_tokenizer,
    length_quantiles,
    share_within,
    token_lengths,
    training_example,
)

__all__ = [
    "DIFF_TOKEN",
    "FastLinter",
    "Finding",
    "LintSeqActor",
    "LintSeqOptions",
    "Linter",
    "MalformedEdit",
    "PylintLinter",
    "SyntaxLinter",
    "TrainingExample",
    "Unlintable",
    "add_diff_token",
    "apply_edit_sequence",
    "counting_tokenizer",
    "length_quantiles",
    "linter_for",
    "narrate",
    "parse_completion",
    "path_seed",
    "prompt_text",
    "resolve",
    "sample_edit_sequence",
    "share_within",
    "statistics",
    "to_training_text",
    "token_lengths",
    "training_example",
]
