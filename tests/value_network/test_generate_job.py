"""The job `generate` end to end on small models: exactly once, over a kill, and one sentence for what cannot be."""

import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mixes import publish
from upath import UPath

from engine.artifacts import read_dataset
from engine.config import build_recipe, write_yaml
from engine.errors import HeadraceError, Outdated, RecipeError, SchemaError, SourceError
from engine.models import Sampling, load_causal_lm, load_tokenizer
from engine.runs import Invocation
from engine.value_network.generation import MixtureGenerator
from jobs import generate

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def mill(tmp_path_factory, make_llama, start):
    folder = tmp_path_factory.mktemp("generate")
    base = make_llama(hidden_size=32, num_hidden_layers=2, initializer_range=0.2)
    value = publish(start, folder / "value", "cascade_plus")
    prompts = [{"prompt": f"Number {at} is", "topic": at} for at in range(24)] + [{"prompt": "word " * 600, "topic": 0}]
    talks = [{"messages": [{"role": "user", "content": f"What is {at}?"}]} for at in range(40)]
    for name, rows in (("prompts", prompts), ("talks", talks), ("none", [])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    plain = {
        "runs": str(folder / "runs"), "workers": 1, "model": str(base), "cpus": 0.5, "at_once": 8,
        "sampling": {"max_tokens": 6}, "stall_seconds": 240,
    }  # fmt: skip

    def recipe(name, source="prompts", **keys):
        shards = {"paths": [str(folder / f"{source}.jsonl")], "roots": [str(folder)], "shard_mb": 0.0005}
        return build_recipe(generate.RECIPE, {"name": name, "source": shards, **plain, **keys})

    def run(name, source="prompts", *, dry_run=False, **keys):
        return generate.run(recipe(name, source, **keys), Invocation("headrace generate r.yaml", dry_run=dry_run))

    def home(name):
        return UPath(folder) / "runs" / "generate" / name

    def rows(name):
        dataset = read_dataset(home(name) / "dataset")
        return pa.concat_tables(pq.read_table(str(dataset.path / part.file)) for part in dataset.parts).to_pylist()

    return SimpleNamespace(recipe=recipe, run=run, home=home, rows=rows, folder=folder, base=base, value=value)


def test_a_mix_answers_every_prompt_once(cluster, mill, start):
    keys = {"value": str(mill.value), "beta": 0.4, "chat": False}
    outcome = mill.run("mix", **keys)
    rows, dataset = mill.rows("mix"), read_dataset(mill.home("mix") / "dataset")
    tokenizer = load_tokenizer(str(mill.base))
    wanted = MixtureGenerator(str(mill.base), str(mill.value), 0.4).generate(
        [tokenizer(row["prompt"])["input_ids"] for row in rows], Sampling(max_tokens=6), [0] * len(rows)
    )
    assert [row["response"] for row in rows] == [each.text for each in wanted]
    assert [row["topic"] for row in rows] == list(range(24))
    manifest = dataset.manifest
    assert (manifest.schema_name, set(manifest.models)) == ("responses", {"model", "value"})
    assert manifest.counts == {"read": 25, "quarantined": 1}
    assert len(dataset.parts) > 1
    (aside,) = (mill.home("mix") / "quarantine").iterdir()
    (poison,) = pq.read_table(str(aside)).to_pylist()
    assert "no room for a response in a window of 512" in poison["error"]
    assert manifest.statistics["responses"] == 24
    assert outcome.facts["tokens written"].startswith("144 (6.0 a response)")
    assert "Prompts and responses" in outcome.report.read_text()
    assert mill.run("mix", **keys).reused
    with pytest.raises(Outdated, match="another recipe"):
        mill.run("mix", **{**keys, "beta": 0.5})
    with pytest.raises(Outdated, match="another input"):
        mill.run("mix", **{**keys, "model": str(start)})


def test_what_is_killed_goes_on_to_what_it_would_have_written(cluster, mill):
    keys = {"rows": "demonstrations", "samples": 2, "sampling": {"temperature": 1.0, "max_tokens": 6},
            "engine": "transformers"}  # fmt: skip
    path = mill.folder / "wild.yaml"
    path.write_text(write_yaml(mill.recipe("wild", "talks", **keys).model_dump(mode="json", exclude_none=True)))
    command = [sys.executable, "-m", "jobs.generate", str(path), "--address", cluster.address]
    driver = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    records = Path(str(mill.home("wild") / "ledger" / "shards"))
    try:
        end = time.monotonic() + 200
        while not list(records.glob("*.json")):
            assert time.monotonic() < end, "nothing was committed"
            assert driver.poll() is None, "it ended by itself"
            time.sleep(0.02)
    finally:
        driver.kill()
        driver.wait(timeout=20)
    before = {each.name: each.read_bytes() for each in records.glob("*.json")}
    assert not (mill.home("wild") / "dataset" / "manifest.json").exists()
    mill.run("wild", "talks", **keys)
    assert {name: (records / name).read_bytes() for name in before} == before
    mill.run("calm", "talks", **keys)
    wild, calm = (read_dataset(mill.home(name) / "dataset") for name in ("wild", "calm"))
    assert [part.sha256 for part in wild.parts] == [part.sha256 for part in calm.parts]
    rows = mill.rows("wild")
    assert [(row["source_row"], row["sample"]) for row in rows] == [
        (at, sample) for at in range(40) for sample in (0, 1)
    ]
    assert all(row["messages"][-1] == {"role": "assistant", "content": row["response"]} for row in rows)
    assert wild.manifest.schema_name == "demonstrations"


def test_a_dry_run_tells_what_follows_and_does_nothing(mill):
    facts = mill.run("dry", dry_run=True).facts
    assert facts["engine"].startswith("vllm (auto)")
    assert facts["window"].startswith("512 tokens")
    assert "generate actors of 0.5 CPU" in facts["demand"]
    assert facts["memory per actor"].startswith("about")
    assert mill.run("dry", dry_run=True, value=str(mill.value)).facts["engine"].startswith("transformers (auto)")
    assert not mill.home("dry").exists()


@pytest.mark.parametrize(
    ("keys", "error", "says"),
    [
        ({"beta": -1, "value": "V"}, RecipeError, "'beta': input should be greater than or equal to 0"),
        ({"beta": float("nan"), "value": "V"}, RecipeError, "'beta': input should be"),
        ({"model": "V"}, SourceError, "is a value network, which says nothing by itself"),
        ({"model": "pkg:minilm"}, SourceError, "is a BertModel, which writes no text"),
        ({"longest": 64, "sampling": {"max_tokens": 64}}, RecipeError, "max_tokens 64 leaves no room for a prompt"),
        ({"bridge": "x"}, RecipeError, "a bridge leads from a value network"),
        ({"bridge": "x", "value": "V", "engine": "vllm"}, RecipeError, "a bridge runs in transformers only"),
        ({"bridge": "x", "value": "V"}, SourceError, "holds no bridge between vocabularies"),
        ({"beta": 0.5}, RecipeError, "give value, which one"),
        ({"samples": 2}, RecipeError, "several samples at temperature 0"),
        ({"sampling": {"stop": [""]}}, RecipeError, "an empty text in sampling.stop"),
        ({"rows": "demonstrations", "filters": {"min_chars": 3}}, RecipeError, "only where can look at"),
        ({"engine": "vllm", "value": "V"}, SourceError, "vLLM cannot run it. Set engine=transformers."),
        ({"value": "B"}, SourceError, "is no value network"),
        ({"value": "V", "model": "OTHER"}, SourceError, "different tokenizers"),
        ({"model": "OTHER"}, SourceError, "has no chat template, .* Set chat=false"),
        ({"model": "/none"}, SourceError, "There is no model at /none"),
        ({"value": "x/runs/value-network/laptop/model"}, SourceError, "headrace value-network jobs/recipes/value_l"),
        ({"source": "talks"}, SchemaError, "has no column 'prompt'"),
        ({"source": "none"}, SourceError, "holds no rows"),
    ],
)
def test_what_cannot_be_generated_is_one_sentence(mill, monkeypatch, tmp_path, keys, error, says):
    monkeypatch.chdir(ROOT)
    if keys.get("model") == "OTHER":
        tokenizer = load_tokenizer(str(mill.base))
        tokenizer.add_tokens(["<another>"])
        tokenizer.chat_template = None
        load_causal_lm(str(mill.base)).save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
    places = {"V": str(mill.value), "B": str(mill.base), "OTHER": str(tmp_path)}
    keys = {name: places.get(value, value) if isinstance(value, str) else value for name, value in keys.items()}
    with pytest.raises(error, match=says) as told:
        mill.run("wrong", **keys)
    assert isinstance(told.value, HeadraceError)
    assert "\n" not in str(told.value)
