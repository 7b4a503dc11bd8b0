"""The sampler against pylint: speed, and how far the fast linter agrees with the oracle.

Programs are top-level functions of the standard library, 10 to 60 lines, undecorated, without an error for the oracle.

    speed      sequences per CPU-second, one process, one path each: ours, and the sampler that starts pylint anew for
               every state, as the reference does, on the same programs in turn
    agreement  how many intermediate states of our paths the oracle accepts; how many of the oracle's states our linter
               rejects; edits per program on the same seeds
"""

import contextlib
import os
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
from tests.benchmarks.programs import functions

SHUFFLE = 0
LINES = (10, 60)
SEEDS = 4
PER_DELETION = 25
ORACLE_SEEDS = 2
ROUNDS = 5


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
    clean = [each for each in functions(*LINES, seed=SHUFFLE) if not oracle.check(each.split("\n"))]
    ours = [_speed(clean, fast, options) for _ in range(ROUNDS)]
    few = clean[:PER_DELETION]
    reference = _speed(few, PylintPerDeletion(), options)
    ours_few = statistics.median(_speed(few, fast, options) for _ in range(4 * ROUNDS))
    agreement = _agreement(clean, fast, oracle, options)
    rate = statistics.median(ours)
    return {
        "programs": len(clean),
        "mean_lines": round(statistics.mean(program.count("\n") + 1 for program in clean), 1),
        "sequences_per_cpu_second": [round(each, 1) for each in ours],
        "agreement": agreement,
        "constants": {
            "shuffle_seed": SHUFFLE,
            "lines": LINES,
            "path_seeds": list(range(SEEDS)),
            "oracle_path_seeds": list(range(ORACLE_SEEDS)),
            "per_deletion": PER_DELETION,
            "rounds": ROUNDS,
        },
        "summary": {
            "sequences_per_cpu_second": round(rate, 1),
            "pylint_per_deletion": round(reference, 3),
            "ratio_same_programs": round(ours_few / reference, 1),
            "ratio": round(rate / reference, 1),
            **{key: value for key, value in agreement.items() if key != "rejected_because"},
        },
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
            for state in states_of(prepare(program, fast, options), seed, ours):
                found = oracle.check(state)
                states += 1
                accepted += not found
                because.update({each.code for each in found})
    refused = oracle_states = 0
    for seed in range(ORACLE_SEEDS):
        for program in clean:
            for state in states_of(prepare(program, oracle, options), seed, theirs):
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


def states_of(prepared, seed, edits):
    """The states between the empty and the whole program; the number of edits goes to `edits`."""
    groups = prepared.groups(weighted_draws(seed))
    edits.append(len(groups))
    gone = set()
    for group in groups[:-1]:
        gone.update(group)
        yield [line for index, line in enumerate(prepared.lines) if index not in gone]
