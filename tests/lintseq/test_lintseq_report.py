"""What the report of a LintSeq job tells."""

import re

import pyarrow as pa
import pyarrow.parquet as pq
from upath import UPath

from engine.artifacts import Dataset, Manifest, Part
from engine.lintseq import LintSeqActor, LintSeqOptions, narrate, statistics
from engine.lintseq.agreement import oracle_agreement
from engine.observe import Report

PROGRAMS = [
    "import os\n\n\ndef a(x):\n    y = os.path.join(x, x)\n    if y:\n        return y\n    return x\n",
    "def b(x):\n    return np.zeros(x)\n\n\nprint(b(3))\n",
    "return 1\nx = 2\n",
]


def _table(options):
    rows = {"instruction": ["do"] * 3, "program": PROGRAMS, "source_part": ["p"] * 3, "source_row": [0, 1, 2]}
    return LintSeqActor(options=options)(pa.table(rows))


def _narrated(tmp_path, options, **more):
    table = _table(options)
    file = tmp_path / "part-000000.x.parquet"
    pq.write_table(table.drop_columns(["_drop", "_error"]), file)
    part = Part(name="part-000000", file=file.name, rows=len(table), bytes=file.stat().st_size, sha256="0" * 64)
    manifest = Manifest(
        schema_name="edit_sequences",
        columns={},
        rows=len(table),
        parts=(part,),
        parents=(),
        job="lintseq",
        recipe={},
        recipe_fingerprint="",
        inputs_fingerprint="",
        code_version="",
        seed=0,
        statistics=statistics(table),
    )
    report = Report("t", "s")
    narrate(report, Dataset(UPath(tmp_path), manifest), options=options, **more)
    return re.sub(r"\s+", " ", re.sub(r"<svg.*?</svg>|<[^>]+>", " ", report.html(), flags=re.DOTALL))


def test_the_report_counts_and_asks_the_oracle(tmp_path):
    text = _narrated(tmp_path, LintSeqOptions(paths=2), oracle_states=20)
    assert "programs 3" in text
    assert "programs with 2 different paths" in text
    assert re.search(r"accepted by pylint 100\.0% of \d+ states", text), text
    assert "Programs with errors of their own" in text
    assert "A program growing, edit by edit" in text


def test_the_oracle_is_left_out_where_it_is_not_wanted(tmp_path):
    assert "accepted by pylint" not in _narrated(tmp_path, LintSeqOptions(), oracle_states=0)


def test_agreement_tells_good_states_from_bad_ones():
    options = LintSeqOptions(paths=3)
    rows = [row for row in _table(options).to_pylist() if row["source_row"] < 2]
    good = oracle_agreement(rows, 100, options)
    assert good.states == sum(len(row["edits"]) - 1 for row in rows)
    assert good.accepted == good.states
    plain = _table(options).slice(0, 1).drop_columns(["_drop", "_error"])
    control = LintSeqOptions(algorithm="randseq")
    random = [row for seed in range(5) for row in LintSeqActor(options=control, seed=seed)(plain).to_pylist()]
    bad = oracle_agreement(random, 100, options)
    assert bad.accepted < bad.states
    assert bad.because["syntax-error"] > 0
    assert oracle_agreement([], 5, options).states == 0


def test_a_pylint_that_breaks_down_costs_its_states_only(monkeypatch):
    def broken(linter, lines):
        raise KeyError("no such node")

    options = LintSeqOptions()
    rows = [row for row in _table(options).to_pylist() if row["source_row"] < 2]
    monkeypatch.setattr("engine.lintseq.pylint_linter.PylintLinter.check", broken)
    seen = oracle_agreement(rows, 2, options)
    assert (seen.states, seen.accepted, seen.because) == (2, 0, {"pylint broke down": 2})
