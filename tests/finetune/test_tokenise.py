"""Rows become tokens the same way wherever it is done; what must not be trained on is refused."""

import os
import time

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.config import build_recipe
from engine.errors import RecipeError, SourceError
from engine.evaluation import given_away, problems
from engine.finetune.formats import scored_ids
from engine.finetune.recipe import SftRecipe
from engine.finetune.store import _KEPT_SECONDS, TokenStore, _build, _forget
from engine.finetune.tokenise import Tokenise, TokensRecipe, statistics, tokenizer_for
from engine.models import load_tokenizer

MODEL = "pkg:smollm2-135m"
PROGRAM = {"instruction": "Add one.", "program": "def f(x):\n    return x + 1"}


def recipe(format, *, copies=1, classes=None, **tokens):
    return TokensRecipe(
        name="x", source={"paths": ["x"]}, model=MODEL, format=format, copies=copies, classes=classes or {},
        tokens={"window": 256, "held_out": 0.0, **tokens},
    )  # fmt: skip


def table(rows, part="a.parquet", first=0):
    marks = {"source_part": part, "_drop": None, "_error": None}
    made = pa.Table.from_pylist([{**row, **marks, "source_row": first + at} for at, row in enumerate(rows)])
    for name in ("_drop", "_error"):
        made = made.set_column(made.schema.get_field_index(name), name, pa.nulls(len(made), pa.string()))
    return made


def tokens(recipe, rows, **keys):
    return Tokenise(recipe=recipe, **keys)(table(rows)).to_pylist()


def test_every_format_gives_the_text_back_and_learns_the_answer():
    tokenizer = tokenizer_for(MODEL, "edits", recipe("edits").tokens)
    turns = [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Ho!"}]
    cases = {
        "chat": ({"messages": turns}, "Ho!<|im_end|>"),
        "responses": ({"prompt": "Hi?", "response": "Ho!"}, "Ho!<|im_end|>"),
        "programs": (PROGRAM, PROGRAM["program"] + "<|im_end|>"),
        "edits": (
            PROGRAM | {"edits": ["@@ -0,0 +1,2 @@\n+def f(x):\n+    return x + 1"]},
            "@@ -0,0 +1,2 @@\n+def f(x):\n+    return x + 1\n<|diff|>\n<|diff|><|im_end|>",
        ),
        "text": ({"text": "Once upon a time."}, "Once upon a time.<|im_end|>"),
    }
    for format, (row, learnt) in cases.items():
        (found,) = tokens(recipe(format), [row])
        start, end = found["loss"]
        assert tokenizer.decode(found["ids"][start:end]) == learnt, format
        assert found["_drop"] is None


def test_a_text_is_cut_into_windows_and_nothing_of_it_is_lost():
    text = "A river runs down to the mill. " * 40
    found = tokens(recipe("text", window=32), [{"text": text}])
    ids = [each for row in found for each in row["ids"]]
    assert load_tokenizer(MODEL).decode(ids) == text + "<|im_end|>"
    assert {row["copy"] for row in found} == {0}
    assert all(len(row["ids"]) <= 32 for row in found)


@given(seed=st.integers(0, 5), cut=st.integers(1, 3))
@settings(max_examples=5, deadline=None)
def test_a_row_is_spelt_and_held_out_alike_in_whatever_block_it_comes(seed, cut):
    rows = [{"instruction": f"Add {at}.", "program": f"def add_{at}(x):\n    return x + {at}"} for at in range(4)]
    asked = recipe("programs", copies=3, bpe_dropout=0.3, held_out=0.4).model_copy(update={"seed": seed})
    stage = Tokenise(recipe=asked)
    whole = stage(table(rows)).to_pylist()
    pieces = stage(table(rows[:cut])).to_pylist() + Tokenise(recipe=asked)(table(rows[cut:], first=cut)).to_pylist()
    assert whole == pieces
    trained = [row for row in whole if not row["held_out"]]
    assert [row["copy"] for row in trained] == [0, 1, 2] * (len(trained) // 3)
    assert all(row["ids"] != other["ids"] for row, other in zip(trained[::3], trained[1::3], strict=True))
    plain = tokens(recipe("programs"), rows)
    assert all(row["ids"] == plain[row["source_row"]]["ids"] for row in whole if row["held_out"]), "held out: as it is"


def test_all_answers_to_a_prompt_fall_on_one_side():
    rows = [{"prompt": f"Question {at % 20}", "response": f"Answer {at}"} for at in range(200)]
    sides = {}
    for row, found in zip(rows, tokens(recipe("responses", held_out=0.3), rows), strict=True):
        sides.setdefault(row["prompt"], set()).add(found["held_out"])
    assert all(len(side) == 1 for side in sides.values())
    assert {True, False} == {held for side in sides.values() for held in side}


@pytest.mark.parametrize(
    ("format", "row", "drop"),
    [
        ("programs", {"instruction": "x", "program": "y = 1\n" * 200}, "longer than the window"),
        ("chat", {"messages": []}, "quarantine"),
        ("chat", {"messages": [{"role": "user", "content": "Hi?"}]}, "quarantine"),
        (
            "chat",
            {"messages": [{"role": "user", "content": None}, {"role": "assistant", "content": "b"}]},
            "quarantine",
        ),
        (
            "chat",
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": None}]},
            "quarantine",
        ),
        ("programs", {"instruction": None, "program": "x"}, "quarantine"),
        ("text", {"text": "  "}, "nothing to learn"),
        ("pairs", {"prompt": "a", "chosen": "b" * 2000, "rejected": "c"}, "longer than the window"),
        ("labels", {"text": "so so", "label": "neutral"}, "another label"),
        ("programs", {"instruction": "x", "program": "s = '\x04'"}, "not spelt by the vocabulary"),
    ],
)
def test_what_cannot_be_learnt_is_marked_and_counted(format, row, drop):
    good = {"chat": {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}}
    rows = [good[format], row] if format in good else [row]
    found = tokens(recipe(format, classes={"positive": 1}), rows)
    assert found[-1]["_drop"] == drop
    assert found[-1]["ids"] is None


def test_too_long_a_sequence_of_edits_ends_after_a_whole_edit():
    lines = [f"x{at} = '<|diff|>'" for at in range(60)]
    edits = [f"@@ -{at},0 +{at + 1},1 @@\n+{line}" for at, line in enumerate(lines)]
    row = {"instruction": "Count.", "program": "\n".join(lines), "edits": edits}
    (found,) = tokens(recipe("edits", window=200, long="truncate"), [row])
    tokenizer = tokenizer_for(MODEL, "edits", recipe("edits").tokens)
    text = tokenizer.decode(found["ids"][found["loss"][0] :])
    assert text.endswith("\n<|diff|>")
    whole = text.split("\n<|diff|>")[:-1]
    assert whole == edits[: len(whole)]
    assert len(found["ids"]) <= 200


def test_what_is_held_out_is_spelt_as_the_tokenizer_does():
    rows = [PROGRAM | {"instruction": f"Say {at}."} for at in range(8)]
    plain = tokens(recipe("programs", held_out=0.5), rows)
    for copies in (1, 2):
        found = tokens(recipe("programs", copies=copies, bpe_dropout=0.9, held_out=0.5), rows)
        kept = [row["ids"] for row in found if row["held_out"]]
        assert kept == [row["ids"] for row in plain if row["held_out"]]
        assert kept
        assert next(row["ids"] for row in found if not row["held_out"]) not in [row["ids"] for row in plain]


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_edits_are_spelt_anew_each_epoch_around_the_same_diff_tokens(rate):
    row = PROGRAM | {"edits": ["@@ -0,0 +1,2 @@\n+def fair(x):\n+    return x + 1"]}
    found = tokens(recipe("edits", copies=2, bpe_dropout=rate, held_out=0.0), [row])
    tokenizer = tokenizer_for(MODEL, "edits", recipe("edits").tokens)
    text = f"{PROGRAM['instruction']}\n<|diff|>{row['edits'][0]}\n<|diff|>\n<|diff|><|im_end|>"
    assert [tokenizer.decode(each["ids"]) for each in found] == [text, text]
    diff = tokenizer.convert_tokens_to_ids("<|diff|>")
    for each in found:
        assert each["ids"].index(diff) + 1 == each["loss"][0]
        assert each["ids"].count(diff) == 3
    assert (found[0]["ids"] == found[1]["ids"]) == (rate == 0)


def test_humaneval_is_refused_or_dropped():
    problem = problems()[3]
    row = {"instruction": "Write it.", "program": problem.prompt + problem.solution}
    with pytest.raises(SourceError, match=f"holds {problem.name}, which is for evaluation only"):
        tokens(recipe("programs", window=1024), [PROGRAM, row], given_away=given_away)
    found = tokens(recipe("programs", window=1024, humaneval="drop"), [PROGRAM, row], given_away=given_away)
    assert [each["_drop"] for each in found] == [None, "holds a problem of HumanEval"]


def test_a_template_is_needed_and_may_be_given(tmp_path, small):
    from engine.models import load_causal_lm, save_model

    tokenizer = load_tokenizer(MODEL)
    tokenizer.chat_template = None
    save_model(load_causal_lm(str(small)), tokenizer, tmp_path / "bare")
    with pytest.raises(SourceError, match="has no chat template"):
        tokenizer_for(str(tmp_path / "bare"), "chat", recipe("chat").tokens)
    with pytest.raises(SourceError, match="cannot be read"):
        tokenizer_for(MODEL, "chat", recipe("chat", chat_template=str(tmp_path / "none.jinja")).tokens)
    path = tmp_path / "t.jinja"
    path.write_text(
        "{% for m in messages %}[{{ m.role }}] {{ m.content }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant] {% endif %}"
    )
    own = tokenizer_for(str(tmp_path / "bare"), "chat", recipe("chat", chat_template=str(path)).tokens)
    assert own.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False) == "[user] a<|im_end|>"


def test_the_store_holds_every_example_by_its_number(tmp_path):
    from types import SimpleNamespace

    import pyarrow.parquet as pq
    from upath import UPath

    rows = [{"instruction": f"Add {at}.", "program": f"def add_{at}(x):\n    return x + {at}"} for at in range(30)]
    made = Tokenise(recipe=recipe("programs", copies=2, bpe_dropout=0.2, held_out=0.3))(table(rows))
    published = made.drop_columns(["_drop", "_error"])
    parts = []
    for at in range(2):
        pq.write_table(published.slice(at * 20, 20 if not at else None), tmp_path / f"{at}.parquet")
        parts.append(SimpleNamespace(file=f"{at}.parquet"))
    _build(SimpleNamespace(parts=parts, path=UPath(tmp_path)), tmp_path)
    store = TokenStore(tmp_path)
    listed = published.to_pylist()
    for number, row in enumerate(listed):
        example = store[number]
        assert (example.ids, example.loss) == (row["ids"], [tuple(row["loss"])])
        assert store.length(number) == len(row["ids"])
        assert store.loss_tokens[number] == example.loss_tokens
    assert store.train.shape == (sum(not row["held_out"] for row in listed) // 2, 2)
    assert sorted(store.held_out.reshape(-1)) == [at for at, row in enumerate(listed) if row["held_out"]]
    assert np.array_equal(
        np.sort(np.concatenate([store.train.reshape(-1), store.held_out.reshape(-1)])), range(len(listed))
    )
    counted = statistics(published)
    assert counted["tokens"] == sum(len(row["ids"]) for row in listed)
    assert counted["loss_tokens"] == store.loss_tokens.sum()


def test_what_is_scored_is_the_conversation_or_the_text_with_its_end():
    smollm, minilm = load_tokenizer(MODEL), load_tokenizer("pkg:minilm")
    chat = smollm.decode(scored_ids(smollm, "Hi?", "Ho!"))
    assert chat.endswith("<|im_start|>assistant\nHo!<|im_end|>\n")
    assert smollm.decode(scored_ids(smollm, "", "Ho!")) == "Ho!<|im_end|>"
    assert minilm.decode(scored_ids(minilm, "Hi", "ho")) == "[CLS] hi [SEP] ho [SEP]"


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"tokens": {"window": 4096}}, "more than parallel.tokens_per_device"),
        ({"format": "text", "tokens": {"bpe_dropout": 0.1}}, "not for format text"),
        ({"tokens": {"bpe_dropout": 0.1}, "training": {"steps": 5}}, "goes by training.epochs"),
        ({"training": {"patience": 1}, "tokens": {"held_out": 0}}, "patience needs tokens.held_out"),
        ({"parallel": {"offload": "all", "zero": 2}}, "needs parallel.zero: 3"),
        ({"format": "pairs"}, "format"),
    ],
)
def test_recipes_that_make_no_sense(keys, said):
    data = {"name": "x", "model": MODEL, "source": {"paths": ["x"]}, "format": "edits", **keys}
    with pytest.raises(RecipeError, match=said):
        build_recipe(SftRecipe, data)


def test_a_store_goes_a_month_after_its_last_use(tmp_path):
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "ids.npy").touch()
    os.utime(tmp_path / "old", (0, time.time() - _KEPT_SECONDS - 10))
    _forget(tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == ["new"]
