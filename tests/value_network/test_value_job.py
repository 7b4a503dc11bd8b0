"""The job `value-network` end to end on small models: what it learns, publishes, resumes and refuses."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from engine.artifacts import read_model
from engine.config import build_recipe
from engine.errors import RecipeError, SourceError
from engine.models import load_causal_lm, load_tokenizer
from engine.observe import read_metrics
from engine.runs import Invocation
from engine.storage import locate
from engine.value_network import read_card
from engine.value_network.reference import Mixture
from jobs import value_network


@pytest.fixture
def workshop(tmp_path, cluster, small, start, rows):
    """Makes recipes and runs them: `workshop.run(**keys)`."""

    def run(*, dry_run=False, **keys):
        data = {
            "name": "a",
            "runs": str(tmp_path / "runs"),
            "model": str(start),
            "bases": [str(small)],
            "source": {"paths": [str(rows)], "roots": [str(tmp_path)]},
            "format": "responses",
            "tokens": {"window": 64, "held_out": 0.2},
            "training": {"steps": 8, "examples": 16, "measure_every": 4},
            "optimiser": {"learning_rate": 2e-2},
            "parallel": {"tokens_per_device": 512, "cpus": 0.5},
            "stall_seconds": 240,
        }
        for key, value in keys.items():
            data[key] = {**data[key], **value} if isinstance(data.get(key), dict) else value
        recipe = build_recipe(value_network.RECIPE, data)
        return value_network.run(recipe, Invocation("headrace value-network", dry_run=dry_run))

    return SimpleNamespace(run=run, home=tmp_path / "runs" / "value-network" / "a")


def _held_out(home):
    return [line for line in read_metrics(locate(str(home))) if "held_out/loss" in line]


def _losses(home):
    return {line["step"]: line["loss"] for line in read_metrics(locate(str(home))) if "loss" in line}


@pytest.mark.parametrize("connection", ["residual", "linear_probe"])
def test_what_it_adds_to_the_base_says_what_was_demonstrated(workshop, small, connection):
    rate = 2e-2 if connection != "linear_probe" else 5e-3
    outcome = workshop.run(connection=connection, optimiser={"learning_rate": rate})
    first, *_, last = _held_out(workshop.home)
    alone = first["held_out/loss of base alone"]
    assert first["held_out/loss"] == pytest.approx(alone, rel=1e-5), "it starts at the base"
    assert last["held_out/loss"] < 0.8 * alone
    model = read_model(outcome.output, verify=True)
    assert set(model.manifest.models) == {"base", "base 1"}
    folder = Path(str(outcome.output))
    assert read_card(folder).connection == connection
    mixture, tokenizer = Mixture(str(small), str(folder)), load_tokenizer(str(small))
    asked = [{"role": "user", "content": "Number 3: say white"}]
    ids = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=False)
    said = ids.new_tensor(tokenizer("white")["input_ids"])
    both = torch.cat([ids, said[None]], 1)
    place = slice(ids.shape[1] - 1, both.shape[1] - 1)
    chances = []
    for beta in (0.0, 1.0):
        mixture.forget()
        logp = mixture.logits(both, None, beta)[0, place].log_softmax(-1)
        chances.append(float(logp.gather(1, said[:, None]).sum()))
    assert chances[1] > chances[0] + 1


def test_two_bases_one_after_the_other_a_cascade_and_two_workers_that_keep_logits(workshop, small, make_llama):
    other = make_llama(num_hidden_layers=1)
    keys = {
        "bases": [str(small), str(other)], "curriculum": "stages", "connection": "cascade_plus",
        "training": {"steps": 4, "measure_every": 2}, "parallel": {"workers": 2}, "cache": {"keep": "full"},
    }  # fmt: skip
    workshop.run(**keys)
    assert not (workshop.home / "base-logits").exists(), "they are of no use any more"
    forecast = workshop.run(dry_run=True, **keys).facts["logits of the bases"]
    assert re.match(r"196.6 kB for every token; about \d\.\d\d GB in .*/base-logits while training", forecast)
    first, second, third = _held_out(workshop.home)
    by_base = [{at: line[f"held_out/loss with base {at}"] for at in (1, 2)} for line in (first, second, third)]
    assert by_base[0] == pytest.approx({at: first[f"held_out/loss of base {at} alone"] for at in (1, 2)}, rel=1e-5)
    assert by_base[2][2] < by_base[1][2] < by_base[0][2] + 1
    assert by_base[2][1] != by_base[2][2]


def test_runs_that_share_run_their_base_once(workshop, tmp_path):
    keys = {"shared": str(tmp_path / "shared"), "cache": {"keep": "full"}, "training": {"steps": 2, "measure_every": 2}}
    workshop.run(**keys)
    parts = {path: path.stat().st_mtime_ns for path in tmp_path.glob("shared/base-logits/*/part-*.npy")}
    assert parts, "they stay for the next run"
    workshop.run(**keys, name="b", optimiser={"learning_rate": 1e-2})
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("shared/base-logits/*/part-*.npy")} == parts
    first, second = (_held_out(workshop.home.parent / name)[0]["held_out/loss"] for name in ("a", "b"))
    assert first == second, "both start at the base"


def test_layers_an_adapter_and_a_penalty(workshop, start):
    outcome = workshop.run(
        model=str(start), layers=2, lora={"rank": 2}, penalty={"norm": "l2", "positions": "all", "weight": 5.0},
        training={"steps": 2, "measure_every": 2},
    )  # fmt: skip
    model = load_causal_lm(str(outcome.output))
    assert model.config.num_hidden_layers == 2
    assert not model.config.tie_word_embeddings
    losses = _losses(workshop.home)
    assert losses[2] != losses[1]


def test_what_does_not_fit_is_refused(workshop, small, tmp_path):
    assert "about" in workshop.run(dry_run=True).facts["memory of a training worker"]
    with pytest.raises(RecipeError, match="Of 2 layers 7 cannot be kept"):
        workshop.run(layers=7)
    with pytest.raises(RecipeError, match="keeps in pieces"):
        workshop.run(connection="cascade", parallel={"zero": 3})
    with pytest.raises(RecipeError, match=r"cascade reads all of the base's logits, of which cache.keep: top_k leaves"):
        workshop.run(connection="cascade", cache={"keep": "top_k"})
    told = workshop.run(dry_run=True, cache={"keep": "top_k", "k": 16}).facts["logits of the bases"]
    assert told == "0.1 kB for a token with loss; how much in all is known once rows are tokenised"
    tokenizer = load_tokenizer(str(small))
    tokenizer.add_tokens(["<another>"])
    model = load_causal_lm(str(small))
    model.save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    with pytest.raises(SourceError, match="different tokenizers"):
        workshop.run(bases=[str(tmp_path / "other")])
