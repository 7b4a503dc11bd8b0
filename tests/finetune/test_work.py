"""The driver's watch over a training: what moves, what stands still, and a worker that fails while others wait."""

import json
import threading
import time

import pytest
from upath import UPath

from engine.errors import DeadlineExceeded
from engine.finetune import workers as watch
from engine.finetune.options import ParallelOptions
from engine.finetune.sft import grow
from engine.models import load_causal_lm, load_scorer, load_tokenizer
from engine.observe import MetricsWriter


class Trainer:
    """Stands for Ray Train's: `fit` does what it is given."""

    def __init__(self, fit):
        self.fit = fit


def watched(fit, home, seconds, workers=1):
    return watch._watched(Trainer(fit), home, seconds, ParallelOptions(workers=workers), 2, None, ["loss"])


def test_steps_done_again_after_a_kill_are_progress(tmp_path):
    home = UPath(tmp_path)
    with MetricsWriter(home) as metrics:
        metrics.log(100, loss=1.0)

    def again():
        with MetricsWriter(home) as metrics:
            for step in range(51, 60):
                time.sleep(0.6)
                metrics.log(step, loss=1.0)
        return type("Result", (), {"return_value": None})

    assert watched(again, home, 4.0) is None


def test_a_training_that_stands_still_ends(tmp_path):
    with pytest.raises(DeadlineExceeded, match="have not finished a step for 1 s after step 0"):
        watched(threading.Event().wait, UPath(tmp_path), 1.0)


def test_what_one_worker_says_is_heard_while_the_others_wait(tmp_path, monkeypatch):
    monkeypatch.setattr(watch, "_LAST_WORDS_SECONDS", 0.1)
    (tmp_path / watch._FAILED).write_text("of an earlier run")

    def waits():
        said = {"kind": "SourceError", "problem": "There is no model.", "remedy": "Give one."}
        (tmp_path / watch._FAILED).write_text(json.dumps(said))
        threading.Event().wait()

    said = watched(waits, UPath(tmp_path), 60.0, workers=2)
    assert str(watch._named(said)).startswith("There is no model.")


def test_new_tokens_have_rows_that_start_as_the_mean(small):
    known, tokenizer = load_tokenizer(str(small)), load_tokenizer(str(small))
    assert grow(load_causal_lm(str(small)), tokenizer, known) == []
    tokenizer.add_tokens(["<|new|>"])
    new = tokenizer.convert_tokens_to_ids("<|new|>")
    for rows in (len(known), len(known) + 40):  # with and without a spare row
        model = load_causal_lm(str(small))
        model.resize_token_embeddings(rows, mean_resizing=False)
        assert grow(model, tokenizer, known) == [new]
        weight = model.get_input_embeddings().weight
        assert (weight[new] - weight[: min(new, rows)].mean(0)).abs().max() < 1e-6
    scorer = load_scorer(str(small), "float32", new_head=True)
    assert grow(scorer, tokenizer, known) == [new]
    assert scorer.get_input_embeddings().num_embeddings > new
