"""The sampler against pylint: speed, and how far the fast linter agrees with the oracle.

Programs are top-level functions of the standard library, 10 to 60 lines, undecorated, without an error for the oracle.

    speed      sequences per CPU-second, one process, one path each: ours, and the sampler that starts pylint anew for
               every state, as the reference does, on the same programs in turn
    agreement  how many intermediate states of our paths the oracle accepts; how many of the oracle's states our linter
               rejects; edits per program on the same seeds
    larger     the same first figure for classes (10 to 60 lines) and for whole modules (20 to 150 lines), each for
               itself: these have attributes, bases and calls of their own
"""

import contextlib
import itertools
import os
import random
import statistics
import tempfile
import time
from collections import Counter

import pylint.lint
from pylint.reporters import CollectingReporter

from engine.lintseq.fast_linter import FastLinter
from engine.lintseq.linting import SYNTAX_ERROR, Finding, blamed_line
from engine.lintseq.options import LintSeqOptions
from engine.lintseq.pylint_linter import PylintLinter
from engine.lintseq.sampler import prepare, weighted_draws
from tests.benchmarks.programs import classes, functions, modules

SHUFFLE = 0
LINES = (10, 60)
MODULE_LINES = (20, 150)
SEEDS = 4
PER_DELETION = 25
ORACLE_SEEDS = 2
ROUNDS = 5
LARGER_PROGRAMS = 60
"""At most so many classes, and so many modules."""
LARGER_STATES = 20
"""At most so many states of each of them, drawn at random with the seed SHUFFLE."""


class PylintPerDeletion:
    """Pylint as the reference runs it: a file written and a pylint built for every state."""

    def check(self, lines):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "program.py")
            with open(path, "w", encoding="utf-8") as file:
                file.write("\n".join(lines))
            reporter = CollectingReporter()
            with contextlib.redirect_stdout(None):
                pylint.lint.Run(
                    ["--disable=C,R", "--generated-members=cv2.*", "--persistent=n", path], reporter, exit=False
                )
        kept = [each for each in reporter.messages if each.msg_id[0] != "W" or each.msg_id == "W0231"]
        return [
            Finding(
                min((blamed_line(each.msg, each.line) or 1) - 1, len(lines) - 1)
                if each.symbol == SYNTAX_ERROR
                else each.line - 1,
                each.symbol,
            )
            for each in kept
        ]


def main():
    """Speed first, while the machine is cool; then agreement."""
    oracle, fast, options = PylintLinter(), FastLinter(), LintSeqOptions()
    clean = _clean(functions(*LINES, seed=SHUFFLE), oracle)
    ours = [_speed(clean, fast, options) for _ in range(ROUNDS)]
    few = clean[:PER_DELETION]
    reference = _speed(few, PylintPerDeletion(), options)
    ours_few = statistics.median(_speed(few, fast, options) for _ in range(4 * ROUNDS))
    agreement = _agreement(clean, fast, oracle, options)
    larger = measure_larger(fast, oracle, options)
    rate = statistics.median(ours)
    return {
        "programs": len(clean),
        "mean_lines": round(statistics.mean(program.count("\n") + 1 for program in clean), 1),
        "sequences_per_cpu_second": [round(each, 1) for each in ours],
        "agreement": agreement,
        **larger,
        "constants": {
            "shuffle_seed": SHUFFLE,
            "lines": LINES,
            "module_lines": MODULE_LINES,
            "path_seeds": list(range(SEEDS)),
            "oracle_path_seeds": list(range(ORACLE_SEEDS)),
            "per_deletion": PER_DELETION,
            "rounds": ROUNDS,
            "larger_programs": LARGER_PROGRAMS,
            "larger_states": LARGER_STATES,
        },
        "summary": {
            "sequences_per_cpu_second": round(rate, 1),
            "pylint_per_deletion": round(reference, 3),
            "ratio_same_programs": round(ours_few / reference, 1),
            "ratio": round(rate / reference, 1),
            **{key: value for key, value in agreement.items() if key != "rejected_because"},
            **{f"{name}_accepted": each["accepted_by_oracle"] for name, each in larger.items()},
        },
    }


def measure_larger(fast, oracle, options):
    """Agreement on clean classes and clean modules, each for itself."""
    found = {"classes": classes(*LINES, seed=SHUFFLE), "modules": modules(*MODULE_LINES, seed=SHUFFLE)}
    return {
        name: _accepted(_clean(programs, oracle, LARGER_PROGRAMS), fast, oracle, options)
        for name, programs in found.items()
    }


def _clean(programs, oracle, most=None):
    """The first programs that the oracle finds nothing wrong with."""
    return list(itertools.islice((each for each in programs if not oracle.check(each.split("\n"))), most))


def _accepted(clean, fast, oracle, options):
    """What the oracle says of states of one path of each program."""
    edits, because = [], Counter()
    accepted = states = 0
    for program in clean:
        found = list(_states(prepare(program, fast, options), SHUFFLE, edits))
        for state in random.Random(SHUFFLE).sample(found, min(LARGER_STATES, len(found))):
            errors = oracle.check(state)
            states += 1
            accepted += not errors
            because.update({each.code for each in errors})
    return {
        "programs": len(clean),
        "states": states,
        "accepted_by_oracle": round(accepted / states, 5),
        "rejected_because": dict(because.most_common()),
        "mean_edits": round(statistics.mean(edits), 3),
    }


def _speed(programs, linter, options):
    """Sequences per CPU-second, diffs and all."""
    started = time.process_time()
    for number, program in enumerate(programs):
        prepare(program, linter, options).sample(number)
    return len(programs) / (time.process_time() - started)


def _agreement(clean, fast, oracle, options):
    accepted = states = 0
    because = Counter()
    ours, theirs = [], []
    for seed in range(SEEDS):
        for program in clean:
            for state in _states(prepare(program, fast, options), seed, ours):
                found = oracle.check(state)
                states += 1
                accepted += not found
                because.update({each.code for each in found})
    refused = oracle_states = 0
    for seed in range(ORACLE_SEEDS):
        for program in clean:
            for state in _states(prepare(program, oracle, options), seed, theirs):
                oracle_states += 1
                refused += bool(fast.check(state))
    mean, other = statistics.mean(ours[: len(theirs)]), statistics.mean(theirs)
    return {
        "states": states,
        "accepted_by_oracle": round(accepted / states, 5),
        "rejected_because": dict(because.most_common()),
        "oracle_states": oracle_states,
        "rejected_by_fast": round(refused / oracle_states, 5),
        "mean_edits": round(mean, 3),
        "mean_edits_oracle": round(other, 3),
        "edits_ratio": round(mean / other, 4),
    }


def _states(prepared, seed, edits):
    """The states between the empty and the whole program; the number of edits goes to `edits`."""
    groups = prepared.groups(weighted_draws(seed))
    edits.append(len(groups))
    gone = set()
    for group in groups[:-1]:
        gone.update(group)
        yield [line for index, line in enumerate(prepared.lines) if index not in gone]
