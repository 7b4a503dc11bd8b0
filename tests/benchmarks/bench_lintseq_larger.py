"""How far the fast linter agrees with the oracle on programs that are more than one function.

Classes and whole modules of the standard library without an error for the oracle, each for itself: these have
attributes, bases and calls of their own. Of one path of each program at most so many states are drawn at random and
shown to the oracle.
"""

import itertools
import random
import statistics
from collections import Counter

from engine.lintseq.fast_linter import FastLinter
from engine.lintseq.options import LintSeqOptions
from engine.lintseq.pylint_linter import PylintLinter
from engine.lintseq.sampler import prepare
from tests.benchmarks.bench_lintseq import states_of
from tests.benchmarks.programs import classes, modules

SEED = 0
CLASS_LINES = (10, 60)
MODULE_LINES = (20, 150)
PROGRAMS = 60
"""At most so many classes, and so many modules."""
STATES = 10
"""At most so many states of each."""


def main():
    """Classes, then modules."""
    oracle = PylintLinter()
    found = {"classes": classes(*CLASS_LINES, seed=SEED), "modules": modules(*MODULE_LINES, seed=SEED)}
    measured = {name: _accepted(programs, oracle) for name, programs in found.items()}
    constants = {"seed": SEED, "class_lines": CLASS_LINES, "module_lines": MODULE_LINES, "programs": PROGRAMS}
    return {
        **measured,
        "constants": {**constants, "states_of_each": STATES},
        "summary": {
            f"{name}_{key}": measured[name][key]
            for name in measured
            for key in ("programs", "states", "accepted_by_oracle", "mean_edits")
        },
    }


def _accepted(programs, oracle):
    clean = (each for each in programs if not oracle.check(each.split("\n")))
    edits, because = [], Counter()
    accepted = states = 0
    for program in itertools.islice(clean, PROGRAMS):
        found = list(states_of(prepare(program, FastLinter(), LintSeqOptions()), SEED, edits))
        for state in random.Random(SEED).sample(found, min(STATES, len(found))):
            errors = oracle.check(state)
            states += 1
            accepted += not errors
            because.update({each.code for each in errors})
    return {
        "programs": len(edits),
        "states": states,
        "accepted_by_oracle": round(accepted / states, 5),
        "rejected_because": dict(because.most_common()),
        "mean_edits": round(statistics.mean(edits), 3),
    }
