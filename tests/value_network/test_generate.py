"""Responses of models and of mixes: drawn as the reference says, by the stage as Ray calls it, without Ray."""

import pyarrow as pa
import pytest
from mixes import greedy, publish

from engine.config import build_recipe
from engine.errors import SourceError
from engine.models import Generated, Sampling, VllmGenerator, load_tokenizer
from engine.models import generation as models_generation
from engine.value_network import generation
from engine.value_network.generation import MixtureGenerator
from engine.value_network.reference import Mixture
from engine.value_network.responses import Responding
from jobs import generate

KINDS = ["residual", "cascade", "cascade_plus", "linear_probe"]
PROMPTS = [[5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41], [3, 2], [101, 102, 103, 104, 105]]


@pytest.fixture(scope="module")
def base(make_llama):
    """Its own logits matter beside those of a value network."""
    return make_llama(hidden_size=32, num_hidden_layers=2, initializer_range=0.2)


@pytest.fixture(scope="module")
def cascade(start, tmp_path_factory):
    return publish(start, tmp_path_factory.mktemp("cascade"), "cascade")


@pytest.mark.parametrize("kind", KINDS)
def test_a_mix_writes_what_the_reference_says(monkeypatch, base, start, tmp_path, kind):
    monkeypatch.setattr(generation, "_READ_AT_ONCE", 9)  # three tokens of each prompt
    value = publish(start, tmp_path, kind, 4.0 if kind != "linear_probe" else 20.0)
    mixture, tokenizer = Mixture(str(base), str(value)), load_tokenizer(str(base))
    written = {}
    for beta in (0.0, 0.7):
        wanted = [greedy(mixture, prompt, beta, 8) for prompt in PROMPTS]
        generator = MixtureGenerator(str(base), str(value), beta, at_once=3)
        found = generator.generate(PROMPTS, Sampling(max_tokens=8), [0] * 3)
        assert found == [Generated(tokenizer.decode(ids), 8, False) for ids in wanted]
        written[beta] = found
    assert written[0.0] != written[0.7]


def test_a_mix_is_drawn_by_seeds_and_ends(base, cascade):
    generator = MixtureGenerator(str(base), str(cascade), 0.3, at_once=2, longest=16)
    drawing = Sampling(temperature=1.0, top_p=0.9, max_tokens=9)
    together = generator.generate(PROMPTS, drawing, [1, 2, 3])
    assert [generator.generate([prompt], drawing, [at])[0] for at, prompt in enumerate(PROMPTS, 1)] == together
    assert generator.generate(PROMPTS, drawing, [4, 5, 6]) != together
    assert [each.tokens for each in together] == [5, 9, 9], "the first has eleven tokens in a window of sixteen"
    stop = together[1].text[6:9]
    cut = generator.generate(PROMPTS, Sampling(1.0, 0.9, 9, (stop,)), [1, 2, 3])[1]
    assert (cut.text, cut.finished) == (together[1].text.partition(stop)[0], True)
    ids = greedy(Mixture(str(base), str(cascade)), PROMPTS[1], 0.3, 9)
    generator._ends = {ids[3]}
    ended = generator.generate(PROMPTS[1:], Sampling(max_tokens=9), [0, 0])[0]
    assert (ended.tokens, ended.finished) == (ids.index(ids[3]) + 1, True)


def test_an_architecture_that_vllm_does_not_know_is_named(monkeypatch, base):
    def refuse(*arguments, **keys):
        raise ValueError("Model architectures ['Odd'] are not supported for now. Supported architectures: ...")

    monkeypatch.setattr(models_generation, "start_vllm", refuse)
    with pytest.raises(SourceError, match=r"does not know the architecture .* engine be transformers"):
        VllmGenerator(str(base))


def _stage(base, **keys):
    data = {"name": "x", "source": {"paths": ["x"]}, "model": str(base), "longest": 64, "sampling": {"max_tokens": 4}}
    return Responding(recipe=build_recipe(generate.RECIPE, {**data, **keys}), engine="transformers")


def _block(**columns):
    count = len(next(iter(columns.values())))
    marks = {"_drop": pa.nulls(count, pa.string()), "_error": pa.nulls(count, pa.string())}
    return pa.table({**columns, "source_part": ["a"] * count, "source_row": list(range(10, 10 + count)), **marks})


def test_a_shard_comes_out_with_its_responses_in_order(base):
    block = _block(
        prompt=["Say a.", "gone", None, " \n", "word " * 70, "Say b."],
        response=["their own", "", "", "", "", None],
        tokens=["an older column"] * 6,
        topic=[1, 2, 3, 4, 5, 6],
    )
    block = block.set_column(block.column_names.index("_drop"), "_drop", pa.array([None, "where"] + [None] * 4))
    stage = _stage(base, samples=2, sampling={"temperature": 1.0, "max_tokens": 4})
    found = stage(block)
    assert stage(block).equals(found)
    rows = found.to_pylist()
    assert [row["source_row"] for row in rows] == [10, 10, 11, 12, 13, 14, 15, 15]
    assert [row["topic"] for row in rows] == [1, 1, 2, 3, 4, 5, 6, 6]
    assert [row["_drop"] for row in rows] == [None, None, "where", *["quarantine"] * 3, None, None]
    assert [row["_error"] for row in rows[3:5]] == ["there is nothing in the prompt"] * 2
    assert "which leaves no room for a response in a window of 64" in rows[5]["_error"]
    kept = [row for row in rows if row["_drop"] is None]
    assert [row["sample"] for row in kept] == [0, 1, 0, 1]
    assert len({row["seed"] for row in kept}) == 4
    assert len({row["response"] for row in kept}) > 1
    assert all(0 < row["tokens"] <= 4 and row["finish_reason"] in ("stop", "length") for row in kept)
    assert [row["reference"] for row in kept] == ["their own", "their own", None, None]
    assert all(row["response"] is None and row["tokens"] is None for row in rows if row["_drop"])
    # Another part of the corpus, or another seed, and the same prompt is drawn otherwise.
    other = _stage(base, seed=1, samples=2, sampling={"temperature": 1.0, "max_tokens": 4})(block)
    assert not {row["seed"] for row in other.to_pylist() if row["seed"]} & {row["seed"] for row in kept}


def test_a_conversation_grows_by_the_answer(base):
    hello = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "?"}]
    talks = [
        [{"role": "user", "content": "Say a."}, {"role": "assistant", "content": "A."}],
        [*hello, {"role": "user", "content": "!"}],
        [{"role": "assistant", "content": "I begin."}],
        None,
        [{"role": None, "content": "whose?"}],
    ]
    rows = _stage(base, rows="demonstrations")(_block(messages=talks)).to_pylist()
    assert rows[0]["messages"] == [talks[0][0], {"role": "assistant", "content": rows[0]["response"]}]
    assert [row["reference"] for row in rows] == ["A.", None, None, None, None]
    assert rows[1]["messages"][:3] == talks[1]
    assert [row["_error"] for row in rows[2:]] == ["nobody asks in the conversation"] * 2 + [
        "a turn's role or content is no text"
    ]
    bare = _stage(base, rows="demonstrations", chat=False)(_block(messages=talks[:1])).to_pylist()
    assert bare[0]["response"] != rows[0]["response"]
    (odd,) = _stage(base, rows="demonstrations")(_block(messages=[["no turns"]])).to_pylist()
    assert odd["_error"] == "the messages are no turns with a role and a content"
