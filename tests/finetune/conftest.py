"""Rows to train a small model on, and recipes for it."""

import hashlib
import os
import tempfile
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine import artifacts
from engine.artifacts import Part
from engine.config import build_recipe
from engine.corpus.sink import encode
from engine.finetune.job import FineTuningJob, FineTuningRun
from engine.finetune.tokenise import Tokenise
from engine.finetune.work import train_worker
from engine.lintseq import sample_edit_sequence
from engine.runs import Invocation
from engine.storage import locate
from jobs.registry import load_job


def programs(count):
    return [
        {"instruction": f"Add {at}.", "program": f"def add_{at}(x):\n    y = x + {at}\n    return y\n"}
        for at in range(count)
    ]


ROWS = {
    "programs": lambda at, row: row,
    "edits": lambda at, row: row | {"edits": sample_edit_sequence(row["program"], seed=at), "seed": at, "path": 0},
    "chat": lambda at, row: {
        "messages": [
            {"role": "user", "content": row["instruction"]},
            {"role": "assistant", "content": row["program"]},
        ]
    },
    "responses": lambda at, row: {"prompt": row["instruction"], "response": row["program"]},
    "text": lambda at, row: {"text": row["program"] * 5},
    "pairs": lambda at, row: {"prompt": row["instruction"], "chosen": "good good", "rejected": "bad"},
    "labels": lambda at, row: {"text": f"{at}: {'good good' if at % 2 else 'bad bad'}", "label": at % 2},
}


@pytest.fixture
def workshop(tmp_path, small):
    """Writes rows and runs jobs on them: `workshop.rows(format)`, `workshop.run(job, format, **keys)`."""

    def rows(format, count=60, change=None):
        made = [ROWS[format](at, row) for at, row in enumerate(programs(count))]
        made = [change(at, row) for at, row in enumerate(made)] if change else made
        path = tmp_path / f"{format}.parquet"
        pq.write_table(pa.Table.from_pylist(made), path)
        return path

    def recipe(job, format, **keys):
        path = tmp_path / f"{format}.parquet"
        if not path.exists():
            rows(format)
        data = {
            "name": format,
            "runs": str(tmp_path / "runs"),
            "model": str(small),
            "source": {"paths": [str(path)], "roots": [str(tmp_path)]},
            "format": format,
            "tokens": {"window": 128, "held_out": 0.2},
            "training": {"steps": 6, "examples": 8, "measure_every": 3},
            "optimiser": {"learning_rate": 1e-2},
            "parallel": {"tokens_per_device": 256, "cpus": 0.5},
            "workers": 1,
        }
        for key, value in keys.items():
            data[key] = {**data[key], **value} if isinstance(data.get(key), dict) else value
        return build_recipe(load_job(job).RECIPE, data)

    def run(job, format, *, dry_run=False, fresh=False, **keys):
        call = Invocation("headrace x", dry_run=dry_run, fresh=fresh)
        return load_job(job).run(recipe(job, format, **keys), call)

    def here(job, format, **keys):
        """Tokenise and train in this process, without Ray; the run's directory."""
        asked = recipe(job, format, **keys)
        work = FineTuningRun(FineTuningJob(job), asked, Invocation("headrace x"))
        table = pq.read_table(tmp_path / f"{format}.parquet")
        rows = [
            {**row, "source_part": f"{format}.parquet", "source_row": at} for at, row in enumerate(table.to_pylist())
        ]
        marked = pa.Table.from_pylist(rows)
        for name in ("_drop", "_error"):
            marked = marked.append_column(name, pa.nulls(len(marked), pa.string()))
        made = Tokenise(recipe=work._tokens_recipe())(marked)
        place = locate(str(tmp_path / f"tokens-{asked.name}"))
        train_in(_published(made.drop_columns(["_drop", "_error"]), place), work)
        return work.home.path

    return SimpleNamespace(path=tmp_path, rows=rows, recipe=recipe, run=run, here=here, model=small)


def train_in(dataset, work):
    """Do a worker's part, as the only one."""
    import torch

    if not torch.distributed.is_initialized():
        where = tempfile.mkdtemp(prefix="hrtest-")
        os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")
        torch.distributed.init_process_group("gloo", f"file://{where}/meet", rank=0, world_size=1)
    work.home.open()
    train_worker(work._assignment(dataset))


def _published(table, place):
    body = encode(table)
    part = Part(name="part-000000", file="part.parquet", rows=len(table), bytes=len(body), sha256="0" * 64)
    staging = artifacts.open_staging(place)
    (staging / part.file).write_bytes(body)
    fingerprint = hashlib.sha256(body).hexdigest()
    manifest = artifacts.Manifest(
        schema_name="tokens", columns={}, rows=len(table), parts=(part.model_copy(update={"sha256": fingerprint}),),
        job="tokenise", recipe={}, recipe_fingerprint="", inputs_fingerprint="", code_version="", seed=0,
    )  # fmt: skip
    return artifacts.publish(staging, place, manifest)
