"""The jobs `sft` and `reward-model` end to end on a small model: what is published, resumed and refused."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file

from engine.artifacts import read_dataset, read_model
from engine.errors import HeadraceError
from engine.finetune.store import TokenStore
from engine.models import load_causal_lm, load_scorer, load_tokenizer
from engine.observe import read_metrics, read_trajectory


def losses(home):
    """The training losses by step; where a resume repeated one, the later."""
    return {line["step"]: line["loss"] for line in read_metrics(home) if "loss" in line}


@pytest.mark.parametrize("format", ["chat", "responses", "edits", "programs", "text"])
def test_every_format_is_learnt_and_published(cluster, workshop, format):
    outcome = workshop.run("sft", format)
    model = read_model(outcome.output, verify=True)
    first, *_, last = [line["held_out/loss"] for line in read_metrics(outcome.output.parent) if "held_out/loss" in line]
    assert last < first - 0.1
    assert model.manifest.metrics["held-out loss"] == pytest.approx(last)
    tokenizer = load_tokenizer(str(outcome.output))
    assert load_causal_lm(str(outcome.output)).get_input_embeddings().num_embeddings >= len(tokenizer)
    assert ("<|diff|>" in tokenizer.get_vocab()) == (format == "edits")
    page = (outcome.output.parent / "report.html").read_text()
    for section in ("Loss", "Length of the examples", "What became of the rows"):
        assert section in page
