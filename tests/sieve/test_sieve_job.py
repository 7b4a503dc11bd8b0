"""The jobs `sieve` and `sieve-apply` end to end on a tiny corpus and a tiny student; what a kill costs."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_student import labelled
from workbench import CALL, make_workbench

from engine.artifacts import read_dataset, read_model
from engine.config import build_recipe
from engine.errors import HeadraceError, Outdated, SchemaError
from engine.sieve import StudentOptions
from engine.sieve.distillation import Learned
from jobs import sieve_apply


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return make_workbench(tmp_path_factory.mktemp("sieve"))


CALM = {"controls": ["random", "random"], "compare": True, "teacher": {"kind": "labels", "recheck": 5}}


def rows(dataset):
    return pa.concat_tables(pq.read_table(str(dataset.path / part.file)) for part in dataset.parts).to_pylist()


@pytest.fixture(scope="module")
def calm(cluster, bench):
    return bench.run("calm", **CALM)


def test_it_publishes_student_dataset_and_report(bench, calm):
    home = bench.home("calm")
    student, dataset = read_model(home / "student", verify=True), read_dataset(home / "dataset")
    assert dataset.manifest.models == {"student": student.fingerprint}
    assert student.manifest.counts["queries"] == 85, "five are kept back to ask again"
    kept = rows(dataset)
    assert len(kept) + dataset.manifest.counts["dropped: sieve"] == 1200
    threshold = json.loads((home / "student" / "student.json").read_text())["threshold"]
    assert all(row["sieve_score"] > threshold for row in kept)
    assert np.mean([row["topic"] == "sport" for row in kept]) > 0.8
    learned = Learned.model_validate_json((home / "loop" / "learned.json").read_bytes())
    assert list(learned.rounds) == ["band", "random"]
    page = (home / "report.html").read_text()
    for section in ("Learning curve", "Scores of the stream", "Agreement", "Disagreements", "Rounds (band)"):
        assert section in page
    assert "encoder student against teacher" in page
    assert learned.self_agreement == 1.0
    assert learned.queries == learned.questions == 90
    assert learned.effort.answered == 85
    assert learned.effort.training > 0
    assert learned.controls["random"][0] == 90 - 5
    assert learned.snippets_per_text == 1.0
    assert (home / "metrics.jsonl").exists()


def test_a_second_call_changes_nothing(bench, calm):
    again = bench.run("calm", **CALM)
    assert again.reused
    assert again.output == calm.output


def test_another_criterion_is_another_run(bench, calm):
    with pytest.raises(Outdated, match="another recipe"):
        bench.run("calm", criterion="It is about money.", **CALM)


def test_a_published_student_filters_another_corpus(bench, calm):
    recipe = {
        "name": "apply", "runs": str(bench.folder / "runs"), "student": str(bench.home("calm") / "student"),
        "source": {"paths": [str(bench.folder / "corpus.jsonl")], "roots": [str(bench.folder)], "shard_mb": 0.012},
        "filter": {"mode": "tag", "cpus": 0.3},
    }  # fmt: skip
    outcome = sieve_apply.run(build_recipe(sieve_apply.RECIPE, recipe), CALL)
    tagged, kept = rows(read_dataset(outcome.output)), rows(read_dataset(bench.home("calm") / "dataset"))
    assert len(tagged) == 1200
    scores = {row["text"]: row["sieve_score"] for row in tagged}
    assert all(scores[row["text"]] == pytest.approx(row["sieve_score"], abs=1e-6) for row in kept)


@pytest.mark.parametrize("moment", ["_publish", "_opinions"])
def test_a_stop_after_the_loop_asks_nothing_again(cluster, bench, monkeypatch, moment):
    import engine.sieve.distillation as module

    class Stop(BaseException):
        pass

    def stop(*arguments):
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(module._Distillation, moment, stop)
        with pytest.raises(Stop):
            bench.run(f"stopped{moment}")
    asked = []
    real = module.LabelsTeacher.judge
    monkeypatch.setattr(module.LabelsTeacher, "judge", lambda self, those: asked.append(those) or real(self, those))
    bench.run(f"stopped{moment}")
    assert not asked


def test_what_fails_as_an_actor_starts_is_told(cluster, bench):
    student = {"kind": "frozen", "model": bench.model, "max_tokens": 4096, "cpus": 0.2}
    with pytest.raises(HeadraceError, match=r"Set student\.max_tokens to"):
        bench.run("too-long", student=student)


def test_a_missing_truth_column_is_told(cluster, bench):
    with pytest.raises(SchemaError, match="no column 'subject'"):
        bench.run("wrong", truth={"column": "subject", "passes": ["x"]})


@pytest.mark.parametrize(("passes", "says"), [(["*"], "let everything pass"), (["nothing"], "let nothing pass")])
def test_a_criterion_that_all_or_none_meet(cluster, bench, passes, says):
    with pytest.raises(HeadraceError, match=says):
        bench.run(f"one-{len(passes[0])}", truth={"column": "topic", "passes": passes})


def test_two_workers_train_the_student_that_one_would(cluster, bench):
    from engine.sieve.distributed import fine_tune_on_many
    from engine.sieve.training import make_trainer

    options = StudentOptions(
        model=bench.model, max_tokens=16, epochs=2, batch=7, learning_rate=1e-3, cpus=0.3, workers=2
    )
    data = labelled(40)
    together, alone = make_trainer(options), make_trainer(options.model_copy(update={"workers": 1}))
    together.restore(fine_tune_on_many(data, options, 0))
    alone.fit(data, 0)
    texts = ["goal match", "bank tax of", "the cup"]
    assert np.allclose(together.logits(texts), alone.logits(texts), atol=1e-3)
