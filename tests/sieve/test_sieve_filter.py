"""The filter and its base: what is scored, kept, tagged and marked, and what the manifest says of the student."""

import numpy as np
import pyarrow as pa
import pytest
from tiny_student import publish_tiny
from upath import UPath

from engine.corpus.annotator import Annotator
from engine.errors import ArtifactError
from engine.sieve import FilterOptions, SieveFilter, Student, filter_stages, statistics


class Length(Annotator):
    """Adds the length of a text; drops the long ones."""

    reads = "text"
    columns = {"length": pa.int64(), "long": pa.bool_()}
    version = "1"

    def annotate(self, texts):
        return {"length": [len(text) for text in texts], "long": [len(text) > 3 for text in texts]}

    def drops(self, annotated):
        return {"long": annotated["long"]}


def block(texts, drop=None):
    return pa.table(
        {
            "text": texts,
            "length": ["an older column"] * len(texts),
            "_drop": pa.array(drop or [None] * len(texts), pa.string()),
            "_error": pa.array([None] * len(texts), pa.string()),
        }
    )


def test_an_annotator_passes_marked_rows_and_keeps_the_order():
    found = Length()(block(["abcd", "x", None, "yy"], [None, None, "quarantine", None]))
    assert found["length"].to_pylist() == [4, 1, None, 2]
    assert found["_drop"].to_pylist() == ["long", None, "quarantine", None]
    assert found.schema.field("length").type == pa.int64()
    assert Length()(block([])).num_rows == 0
    assert Length()(block(["a"], ["too_short"]))["length"].to_pylist() == [None]


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return publish_tiny(UPath(tmp_path_factory.mktemp("student") / "student"))


TEXTS = ["goal match team", "bank share", "", "the cup of the match", "tax"]


@pytest.mark.parametrize("mode", ["keep", "tag"])
def test_the_filter_scores_as_the_student_does(student, mode):
    found = SieveFilter(student=str(student.path), options=FilterOptions(mode=mode, cpus=1))(block(TEXTS))
    loaded = Student.load(student.local())
    scores = loaded.scores(TEXTS).astype(np.float32)
    assert np.allclose(found["sieve_score"].to_pylist(), scores, atol=1e-6)
    passed = loaded.passes(scores.astype(float))
    assert 0 < passed.sum() < len(TEXTS)
    dropped = [None if ok or mode == "tag" else "sieve" for ok in passed]
    assert found["_drop"].to_pylist() == dropped
    assert sum(statistics(found)["scores"].values()) == len(TEXTS)


@pytest.mark.parametrize(("threshold", "kept"), [(0.0, 5), (1.0, 0)])
def test_all_pass_and_all_fail(student, threshold, kept):
    found = SieveFilter(student=str(student.path), options=FilterOptions(threshold=threshold, cpus=1))(block(TEXTS))
    assert found["_drop"].null_count == kept


@pytest.mark.parametrize(
    ("options", "actors"), [({}, 8), ({"cpus": 2}, 4), ({"cpus": 16}, 1), ({"gpus": 1, "cpus": 2, "actors": 3}, 3)]
)
def test_there_are_as_many_actors_as_have_room(options, actors):
    (stage,) = filter_stages(UPath("student"), FilterOptions(**options))(8)
    assert (stage.actors, stage.gpus) == (actors, options.get("gpus", 0))


def test_what_is_no_student(tmp_path):
    with pytest.raises(ArtifactError):
        SieveFilter(student=str(tmp_path), options=FilterOptions())
