"""The filter through Ray Data against the bare student, and against transformers' own pipeline at its defaults.

20,000 BBC snippets and a student on MiniLM, random head (speed does not depend on it). Bare students, one per core side
by side, score shard by shard, reading and writing the same Parquet, their start-up left aside; the job does the same
through Ray Data with ledger and manifest, with Ray up, and starts its actors within the clock. The pipeline runs
`text-classification` over a part of the same texts at its default settings (one text at a time, all cores).
"""

import os
import shutil
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from upath import UPath

from engine.artifacts import publish_model, read_dataset, read_model
from engine.cluster import session
from engine.config import build_recipe
from engine.corpus.sink import encode
from engine.runs import Invocation
from engine.sieve import FilterOptions, SieveFilter
from engine.sieve.encoder import Encoder
from engine.sieve.student import Card, Head, Student
from jobs import sieve_apply
from tests.benchmarks.bbc import snippets
from tests.benchmarks.watch import Watch

TEXTS = 20_000
GROUP = 500
PIPELINE_TEXTS = 400
RUNS = 2
CORES = len(os.sched_getaffinity(0))
OPTIONS = FilterOptions(mode="tag", cpus=1)


def main():
    """Bare students, the job, the pipeline; twice."""
    home = Path(tempfile.mkdtemp(prefix="hrbench-"))
    try:
        texts = [text for _, _, text in snippets()]
        texts = [texts[at] for at in np.random.default_rng(0).permutation(len(texts))[:TEXTS]]
        source, small = home / "texts.parquet", home / "small.parquet"
        pq.write_table(pa.table({"text": texts}), source, compression="zstd", row_group_size=GROUP)
        pq.write_table(pa.table({"text": texts[: 2 * GROUP]}), small, compression="zstd", row_group_size=GROUP)
        student = _student(home / "student")
        with session(None) as ray_session:
            assert ray_session
            _job(home, "warm", small, student)
            runs = [_compare(home, f"run-{number}", source, student, texts) for number in range(RUNS)]
    finally:
        shutil.rmtree(home)
    middle = {name: statistics.median(run[name] for run in runs) for name in runs[0] if name != "job_cpu_by_kind"}
    return {
        "texts": TEXTS,
        "cores": CORES,
        "runs": runs,
        "summary": {name: round(each, 3) for name, each in middle.items()},
    }


def _student(output):
    encoder = Encoder("pkg:minilm", max_tokens=128)
    card = Card(
        kind="frozen", criterion="x", base="pkg:minilm", base_fingerprint="", max_tokens=128, long="split",
        join="mean", pooling="mean", slope=1, offset=0, rate=0.5, threshold=0.5, labels=0,
    )  # fmt: skip
    staging = output.with_suffix(".made")
    weight = np.random.default_rng(0).normal(size=encoder.width).astype(np.float32)
    Student(encoder, Head(weight, 0.0), card).save(staging)
    publish_model(staging, UPath(output), job="bench", recipe={}, recipe_fingerprint="", inputs_fingerprint="", seed=0)
    return output


def _compare(home, name, source, student, texts):
    bare = _bare_side_by_side(source, home / name, student)
    with Watch() as watch:
        outcome = _job(home, name, source, student)
    phases = {share.name: share.seconds for share in outcome.shares}
    streaming = sum(phases.get(each, 0.0) for each in ("read", "filter", "score", "write", "stream"))
    assert read_dataset(UPath(outcome.output)).rows == TEXTS
    pipeline = _pipeline(student, texts[:PIPELINE_TEXTS])
    return {
        "job_texts_per_second": TEXTS / streaming,
        "bare_texts_per_second": TEXTS / bare,
        "pipeline_texts_per_second": PIPELINE_TEXTS / pipeline,
        "job_to_bare": bare / streaming,
        "job_to_pipeline": (TEXTS / streaming) / (PIPELINE_TEXTS / pipeline),
        "job_cpu_seconds": watch.cpu_seconds,
        "job_cpu_by_kind": watch.cpu_by_kind,
    }


def _bare_side_by_side(source, folder, student):
    """Wall seconds of one bare student per core, their start-up left aside."""
    with ProcessPoolExecutor(CORES, get_context("spawn"), initializer=_load, initargs=(student,)) as pool:
        list(pool.map(_settled, range(CORES)))
        started = time.perf_counter()
        list(pool.map(_bare, [source] * CORES, [folder.with_suffix(f".{core}") for core in range(CORES)], range(CORES)))
        return time.perf_counter() - started


_filter = None


def _load(student):
    global _filter
    _filter = SieveFilter(student=str(student), options=OPTIONS)
    _filter.annotate(["warm"] * 64)


def _settled(core):
    """Nothing; a process that has done it has its student. The pause leaves a call for each of the others."""
    time.sleep(2)


def _bare(source, folder, first):
    folder.mkdir()
    file = pq.ParquetFile(source)
    for number in range(first, file.num_row_groups, CORES):
        table = file.read_row_group(number, use_threads=False)
        scores = pa.array(_filter.annotate(table["text"].to_pylist())["sieve_score"], pa.float32())
        (folder / f"{number}.parquet").write_bytes(encode(table.append_column("sieve_score", scores)))


def _job(home, name, source, student):
    data = {"name": name, "runs": str(home / "runs"), "student": str(student), "filter": OPTIONS.model_dump()}
    data["source"] = {"paths": [str(source)], "roots": [str(home)], "shard_mb": 0.1}
    return sieve_apply.run(build_recipe(sieve_apply.RECIPE, data), Invocation("bench"))


def _pipeline(student, texts):
    """Wall seconds of transformers' pipeline over the texts."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

    folder = read_model(UPath(student)).local()
    torch.set_num_threads(CORES)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
    classify = pipeline("text-classification", model=model, tokenizer=AutoTokenizer.from_pretrained(folder))
    classify(texts[:8])
    started = time.perf_counter()
    classify(texts)
    return time.perf_counter() - started
