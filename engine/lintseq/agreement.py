"""How far published edit sequences agree with the oracle: intermediate states of a sample, shown to pylint.

Left out: sampling by the oracle itself (`linter: pylint`) and the benchmark's larger measurement. Called by
`engine.lintseq.report`.
"""

import random
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from engine.lintseq.diffs import apply_edit_sequence
from engine.lintseq.linting import NAME_CODES, Unlintable
from engine.lintseq.options import LintSeqOptions

_LONGEST = 200
"""Lines of a program shown to the oracle: it takes seconds for one much longer."""


class Agreement(NamedTuple):
    """States shown to the oracle, those it accepted, and what it said of the others (pylint's symbols, counted)."""

    states: int
    accepted: int
    because: Mapping[str, int]


def oracle_agreement(rows: Iterable[Mapping[str, Any]], count: int, options: LintSeqOptions) -> Agreement:
    """Show up to `count` intermediate states to pylint, drawn at random from rows of `edit_sequences`.

    A state agrees if it has no error that its whole program has not; under `undefined_names: error` undefined names
    are errors wherever they are. A state at which pylint itself breaks down does not agree.
    """
    states = [
        (row["program"], row["edits"], length)
        for row in rows
        if row["program"].count("\n") < _LONGEST
        for length in range(1, len(row["edits"]))
    ]
    chosen = random.Random(0).sample(states, min(count, len(states)))
    if not chosen:
        return Agreement(0, 0, {})
    from engine.lintseq.pylint_linter import PylintLinter

    oracle = PylintLinter(missing_imports=options.missing_imports)
    accepted, because = 0, Counter[str]()
    for program, edits, length in sorted(chosen):
        try:
            strict = NAME_CODES if options.undefined_names == "error" else frozenset()
            given = {(each.code, each.name) for each in oracle.check(program.split("\n")) if each.code not in strict}
            found = oracle.check(apply_edit_sequence(edits[:length]).split("\n"))
        except Unlintable:
            because["cannot be linted"] += 1
            continue
        # Pylint breaks down in many ways at odd programs; a report of finished work must not fail with it.
        except Exception:  # noqa: BLE001
            because["pylint broke down"] += 1
            continue
        wrong = {each.code for each in found if (each.code, each.name) not in given}
        accepted += not wrong
        because.update(wrong)
    return Agreement(len(chosen), accepted, because)
