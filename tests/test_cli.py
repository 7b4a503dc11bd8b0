"""The command line: help that is complete and light, calls that are refused with a sentence."""

import subprocess
import sys

import pytest

from engine.config import describe
from jobs.cli import main
from jobs.registry import JOBS, load_job


def _run(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["headrace", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code, *capsys.readouterr()


def test_help_lists_every_job_and_command(monkeypatch, capsys):
    code, out, _ = _run(monkeypatch, capsys, "--help")
    assert code == 0
    for name in [*JOBS, "doctor", "models", "submit", "status", "logs", "stop"]:
        assert f"\n  {name} " in out


@pytest.mark.parametrize("job", JOBS)
def test_help_of_a_job_lists_every_key(monkeypatch, capsys, job):
    code, out, _ = _run(monkeypatch, capsys, job, "--help")
    assert code == 0
    for key in describe(load_job(job).RECIPE):
        assert f"\n  {key.name} " in out or f"\n  {key.name}\n" in out
        assert key.help, f"{key.name} is not explained"


@pytest.mark.parametrize(
    "words", [["--help"], ["corpus", "--help"], ["lintseq", "--help"], ["submit", "--help"], ["models", "--help"]]
)
def test_help_imports_nothing_heavy(words):
    code = (
        "import sys; from jobs.cli import main\n"
        f"sys.argv = ['headrace', *{words!r}]\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print(sorted({'torch', 'ray', 'vllm', 'transformers', 'pyarrow', 'pandas', 'pylint'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["linseq", "x.yaml"], "There is no job 'linseq'; the nearest is 'lintseq'."),
        (["corpus"], "Missing argument 'RECIPE.yaml'"),
        (["corpus", "jobs/recipes/corpus_smoke.yaml", "--dryrun"], "--dry-run"),
        (["corpus", "jobs/recipes/corpus_smok.yaml"], "Did you mean jobs/recipes/corpus_smoke.yaml?"),
        (["corpus", "jobs/recipes/corpus_smoke.yaml", "sead=1"], "the nearest known key is 'seed'"),
        (["submit", "corps", "x.yaml", "--address", "http://127.0.0.1:1"], "the nearest is 'corpus'"),
    ],
)
def test_wrong_calls_are_one_sentence(monkeypatch, capsys, words, says):
    code, _, err = _run(monkeypatch, capsys, *words)
    assert code == 2
    assert says in err
    assert "Traceback" not in err


def test_a_bug_is_no_traceback_unless_asked_for(monkeypatch, capsys):
    def broken(name):
        raise ZeroDivisionError("bug")

    monkeypatch.setattr("jobs.cli.load_job", broken)
    code, _, err = _run(monkeypatch, capsys, "corpus", "jobs/recipes/corpus_smoke.yaml")
    assert code == 1
    assert err.startswith("Internal error, please report it: ZeroDivisionError: bug")
    assert "Traceback" not in err
