"""Wrong SIEVE recipes are told in a sentence, before anything starts."""

import pytest

from engine.config import build_recipe, write_yaml
from engine.errors import RecipeError
from jobs import sieve
from jobs.cli import main

GOOD = {
    "name": "a",
    "source": {"paths": ["in"]},
    "criterion": "It is about sport.",
    "teacher": {"kind": "scorer", "passes": ["sport"], "fails": ["tax"]},
}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"criterion": ""}, "'criterion'"),
        ({"teacher": {"kind": "labels"}}, "needs the section truth"),
        ({"teacher": {"kind": "scorer", "passes": ["sport"]}}, "words in both passes and fails"),
        ({"teacher": {"kind": "vllm", "prompt": "Is it good?"}}, "needs {snippet}"),
        ({"teacher": {"kind": "oracle"}}, "'labels', 'endpoint', 'vllm' or 'scorer'"),
        ({"budget": {"money": 5}}, "needs price_in or price_out"),
        ({"budget": {"queries": 50}}, "less than loop.warm_start"),
        ({"budget": {"queries": 0}}, "less than loop.warm_start"),
        ({"student": {"max_token": 9}}, "the nearest known key is 'student.max_tokens'"),
        ({"loop": {"rule": "bands"}}, "'band', 'published', 'uncertainty' or 'random'"),
        ({"truth": {"column": "x", "passes": []}}, "'truth.passes'"),
        ({"filter": {"threshold": 2}}, "'filter.threshold'"),
        ({"filter": {"gpus": 1}}, "needs filter.actors"),
        ({"teacher": {"kind": "scorer", "passes": ["a", "b"], "fails": ["b"]}}, "both hold 'b'"),
        ({"teacher": {"kind": "endpoint", "url": "localhost:8000/v1"}}, "needs a URL such as"),
        ({"teacher": {"kind": "endpoint", "url": "http://host:port/v1"}}, "needs a URL such as"),
        ({"teacher": {"kind": "endpoint", "url": "https://me:secret@host/v1"}}, "without credentials"),
        ({"teacher": {"kind": "endpoint", "url": "https://host/v1?api-key=secret"}}, "without credentials"),
        ({"teacher": {"kind": "endpoint", "key_env": "sk-123.456"}}, "'teacher.key_env'"),
    ],
)
def test_a_wrong_recipe_is_told(changes, says):
    with pytest.raises(RecipeError) as told:
        build_recipe(sieve.RECIPE, {**GOOD, **changes})
    assert says in str(told.value)
    assert "\n" not in str(told.value)
    assert "secret" not in str(told.value)


def test_the_usual_endpoint_without_a_key_is_refused_before_ray_starts(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "r.yaml").write_text(write_yaml({**GOOD, "teacher": {"kind": "endpoint", "model": "m"}}))
    for options in ([], ["--dry-run"]):
        monkeypatch.setattr("sys.argv", ["headrace", "sieve", "r.yaml", "source.paths=[a.txt]", *options])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 2
        assert "OPENAI_API_KEY is not set" in capsys.readouterr().err


def test_a_good_one_is_taken_and_holds_no_key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    recipe = build_recipe(sieve.RECIPE, {**GOOD, "teacher": {"kind": "endpoint", "model": "m"}})
    assert "sk-secret" not in repr(recipe) + recipe.model_dump_json()


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["sieve-apply", "r.yaml", "student=in"], "no manifest.json"),
        (["sieve", "s.yaml", "student.model=pkg:nothing"], "There is no packaged model pkg:nothing"),
        (["sieve", "s.yaml", "student.model=in"], "no config.json"),
        (["sieve", "s.yaml", "teacher.model=pkg:nothing"], "There is no packaged model pkg:nothing"),
    ],
)
def test_what_is_no_model_is_told_before_ray_starts(tmp_path, monkeypatch, capsys, command, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("goal")
    (tmp_path / "r.yaml").write_text("name: a\nsource: {paths: [in]}\nstudent: in\n")
    (tmp_path / "s.yaml").write_text(
        "name: a\nsource: {paths: [in]}\ncriterion: sport\nteacher: {kind: scorer, passes: [sport], fails: [tax]}\n"
    )
    monkeypatch.setattr("sys.argv", ["headrace", *command])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert says in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "runs").exists()
