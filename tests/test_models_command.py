"""`headrace models`, as it is called: what it prints, what it publishes, and how it refuses."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from upath import UPath

from engine.artifacts import publish_model, read_model
from engine.config import Recipe
from engine.errors import ResourceError
from engine.models import PACKAGED, load_causal_lm, save_model
from engine.models.packaged import installed
from engine.runs import Outcome
from jobs.cli import main


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Call the command line in an empty directory: exit code, stdout and stderr. `whole` is a small model there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HEADRACE_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=6, num_attention_heads=2, vocab_size=1040
    )
    transformers.LlamaForCausalLM(config).save_pretrained("whole")
    (tmp_path / "whole" / "chat_template.jinja").write_text("{{ messages }}")
    capsys.readouterr()

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["headrace", "models", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, *capsys.readouterr()

    return run


@pytest.fixture
def healing(monkeypatch):
    """Stands in for the sft job: saves the model it is given with one weight changed; notes how it was called."""

    class HealRecipe(Recipe):
        model: str
        steps: int = 1

    def run(recipe, call):
        seen.append((recipe, call))
        if recipe.steps == 0:
            raise ResourceError("There is no room.", "Make some.")
        model = load_causal_lm(recipe.model)
        with torch.no_grad():
            model.lm_head.weight[0] = 7.0
        save_model(model, None, Path("trained"))
        origin = {"recipe_fingerprint": "r", "inputs_fingerprint": "i", "seed": 0}
        output = UPath(f"runs/sft/{recipe.name}/model").absolute()
        publish_model(UPath("trained"), output, job="sft", recipe={}, **origin, counts={"steps": recipe.steps})
        return Outcome("sft", output, {})

    seen = []
    monkeypatch.setattr("jobs.models.load_job", lambda name: SimpleNamespace(RECIPE=HealRecipe, run=run))
    with open("heal.yaml", "w") as file:
        file.write("name: x\nmodel: pkg:smollm2-135m\n")
    return seen


def test_the_list_shows_what_can_be_named(call):
    assert call("convert", "whole", "runs/models/one")[0] == 0
    code, out, err = call("list")
    assert (code, err) == (0, "")
    for words in (*(f"pkg:{name}" for name in PACKAGED), "runs/models/one", "converted from whole", "1,040"):
        assert words in out
    for name, package in PACKAGED.items():
        assert (f"pkg:{name}: {package.install}\n" in out) == (installed(package) is None)
    assert "Published under elsewhere: nothing." in call("list", "--runs", "elsewhere")[1]


def test_fetch_says_what_a_model_is(call, tmp_path):
    code, out, _ = call("fetch", "whole")
    assert code == 0
    assert out.startswith(f"Directory: {tmp_path / 'whole'}\n")
    facts = dict(line.split(maxsplit=1) for line in out.splitlines()[1:])
    assert (facts["layers"].strip(), facts["width"].strip(), facts["vocab"].strip()) == ("6", "16", "1,040")
    assert facts["chat"].split() == ["template", "yes"]
    assert len(facts["fingerprint"].strip()) == len(facts["tokenizer"].strip()) == 16


def test_convert_and_prune_publish_and_say_so(call, tmp_path):
    code, out, _ = call("convert", "whole", "out", "--dtype", "bfloat16")
    assert (code, out.splitlines()[0]) == (0, f"Published: {tmp_path / 'out'}")
    assert "BF16" in out
    code, out, _ = call("prune", "out", "small", "--layers", "3")
    assert code == 0
    assert "pruned from out (3 of 6 layers)" in out
    assert "no; it writes poorly" in out
    assert read_model(UPath("small")).manifest.counts == {"layers_kept": 3, "layers_of": 6}


def test_heal_trains_the_pruned_model_and_publishes_it_as_healed(call, healing, tmp_path):
    words = ["prune", "whole", "small!", "--layers", "3", "--heal", "heal.yaml", "steps=5"]
    code, out, err = call(*words)
    assert (code, err) == (0, "")
    ((recipe, how),) = healing
    assert (recipe.name, recipe.model, recipe.steps) == ("small", str(tmp_path / "small!-unhealed"), 5)
    assert how.command == "headrace models prune whole 'small!' steps=5 --layers 3 --heal heal.yaml"
    assert "(3 of 6 layers), then healed" in out
    manifest = read_model(UPath("small!")).manifest
    assert manifest.recipe["heal"]["steps"] == 5
    assert manifest.counts == {"layers_kept": 3, "layers_of": 6, "steps": 5}
    healed = load_causal_lm("small!")
    assert healed.config.num_hidden_layers == 3
    assert healed.lm_head.weight[0].eq(7).all()
    assert not load_causal_lm("small!-unhealed").lm_head.weight[0].eq(7).any()


def test_a_healing_that_failed_goes_on_from_the_pruned_model(call, healing, tmp_path):
    words = ["prune", "whole", "small", "--layers", "3", "--heal", "heal.yaml"]
    code, _, err = call(*words, "steps=0")
    assert (code, err.strip()) == (2, "Error: There is no room. Make some.")
    pruned = tmp_path / "small-unhealed" / "manifest.json"
    before = pruned.stat().st_mtime_ns
    assert call(*words, "name=other")[0] == 0
    assert pruned.stat().st_mtime_ns == before
    assert healing[-1][0].name == "other"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["fetch", "nowhere/at/all"], "There is no model at nowhere/at/all."),
        (["convert", "whole", "whole"], "exists already"),
        (["convert", "whole", "x", "--dtype", "int8"], "--dtype"),
        (["convert", "whole", "hf://x/y"], "can be read but not written"),
        (["convert", "none.gguf", "x"], "There is no file none.gguf."),
        (["prune", "whole", "x", "--layers", "7"], "Of 6 layers 7 cannot be kept. Keep 2 to 6."),
        (["prune", "whole", "x"], "--layers"),
        (["prune", "whole", "x", "--layers", "3", "steps=1"], "changes the recipe of --heal"),
        (["prune", "whole", "x", "--layers", "3", "--heal", "none.yaml"], "There is no recipe none.yaml."),
        (["prune", "whole", "x", "--layers", "3", "--heal", "heal.yaml", "stps=1"], "known key is 'steps'"),
        (["prune", "whole", "whole", "--layers", "3", "--heal", "heal.yaml"], "exists already"),
        (["lists"], "No such command 'lists'"),
    ],
)
def test_wrong_calls_are_one_sentence(call, healing, tmp_path, words, says):
    before = sorted(tmp_path.iterdir())
    code, out, err = call(*words)
    assert (code, out) == (2, "")
    assert says in err
    assert "Traceback" not in err
    assert sorted(tmp_path.iterdir()) == before, "nothing is made before the call is known to be right"


@pytest.mark.skipif(installed(PACKAGED["smollm2-135m"]) is None, reason=PACKAGED["smollm2-135m"].install)
@pytest.mark.filterwarnings("default")
def test_smollm2_is_pruned_and_named_so(call, monkeypatch, tmp_path):
    monkeypatch.delenv("HEADRACE_CACHE")
    code, out, _ = call("prune", "pkg:smollm2-135m", "small", "--layers", "8")
    assert code == 0
    assert "pruned from pkg:smollm2-135m (8 of 30 layers)" in out
    assert json.loads((tmp_path / "small" / "config.json").read_text())["num_hidden_layers"] == 8
