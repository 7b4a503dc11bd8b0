"""The pipeline keeps what still matches, rebuilds from what has changed, and says in one sentence what it cannot do."""

import pytest
from upath import UPath

from engine.artifacts import read_dataset
from engine.config import load_recipe, write_yaml
from engine.corpus import transform
from engine.corpus.ledger import Ledger
from engine.errors import RecipeError, RunBusy
from engine.runs import Invocation
from jobs import pipeline

FUNCTION = 'def f{n}(x):\n    """Row {n}."""\n    y = x + {n}\n    if y > 3:\n        y = 2\n    return y\n\n\n'
STAGES = [{"job": "corpus"}, {"job": "lintseq", "inputs": {"source.paths": "corpus"}}]


class Road:
    """Python files in `in/`, the recipes of two jobs, and a pipeline of them."""

    def __init__(self, path):
        self.path = path
        (path / "in").mkdir()
        self.write("a.py", range(4))
        recipes = {
            "corpus": {"source": {"paths": [str(path / "in")], "roots": [str(path)], "format": "python"}},
            "lintseq": {"source": {"paths": ["to be filled in"], "shard_mb": 0.001}},
        }
        for job, recipe in recipes.items():
            (path / f"{job}.yaml").write_text(write_yaml({"name": "unused", **recipe}))

    def write(self, name, numbers):
        (self.path / "in" / name).write_text("".join(FUNCTION.format(n=n) for n in numbers))

    def run(self, stages=STAGES, **call):
        filled = [{"recipe": str(self.path / f"{stage['job']}.yaml"), **stage} for stage in stages]
        recipe = {"name": "road", "runs": str(self.path / "runs"), "stages": filled}
        (self.path / "pipeline.yaml").write_text(write_yaml(recipe))
        loaded = load_recipe(pipeline.RECIPE, self.path / "pipeline.yaml")
        return pipeline.run(loaded, Invocation("headrace pipeline", **call))

    def dataset(self, job, name="road"):
        return read_dataset(UPath(self.path / "runs" / job / name / "dataset"))


@pytest.fixture
def road(tmp_path):
    return Road(tmp_path)


def _nothing(*arguments, **keys):
    raise AssertionError("something is computed again")


def test_a_second_call_keeps_every_stage(cluster, road, monkeypatch):
    first = road.run()
    assert first.facts.keys() == {"corpus", "lintseq"}
    assert first.facts["lintseq"].startswith("published 4 rows at ")
    assert first.output == road.dataset("lintseq").path
    assert sum(share.share for share in first.shares) == pytest.approx(1)
    (parent,) = road.dataset("lintseq").manifest.parents
    assert parent.fingerprint == road.dataset("corpus").fingerprint
    files = {path: path.stat().st_mtime_ns for path in (road.path / "runs").rglob("*") if path.is_file()}
    for name in ("stream", "session", "make_manifest"):
        monkeypatch.setattr(transform, name, _nothing)
    second = road.run()
    assert all(fact.startswith("kept 4 rows at ") for fact in second.facts.values())
    assert second.reused
    assert {path: path.stat().st_mtime_ns for path in files} == files


def test_what_has_changed_is_built_anew_from_there_on(cluster, road):
    road.run()
    before = {job: road.dataset(job).fingerprint for job in ("corpus", "lintseq")}
    # A change in the last stage alone leaves the first one as it is.
    outcome = road.run([STAGES[0], {**STAGES[1], "set": {"lintseq.paths": 2}}])
    assert outcome.facts["corpus"].startswith("kept")
    assert outcome.facts["lintseq"].startswith("published 8 rows")
    (aside,) = (road.path / "runs" / "lintseq").glob("road.before-*")
    assert read_dataset(UPath(aside / "dataset")).fingerprint == before["lintseq"]
    # A change of the input goes all the way, and the old outputs are set aside, not deleted.
    road.write("b.py", [7])
    outcome = road.run()
    assert [fact.split()[:2] for fact in outcome.facts.values()] == [["published", "5"], ["published", "5"]]
    (aside,) = (road.path / "runs" / "corpus").glob("road.before-*")
    assert read_dataset(UPath(aside / "dataset")).fingerprint == before["corpus"]
    # An input that comes back as it was needs the work again; what is published is what the input says.
    (road.path / "in" / "b.py").unlink()
    road.run()
    assert {job: road.dataset(job).fingerprint for job in before} == before


def test_an_unfinished_stage_goes_on_where_it_stopped(cluster, road, monkeypatch):
    class Stop(BaseException):
        """Stands in for a kill."""

    def stop(plan, records, staging, identity, *rest, **keys):
        if identity.job == "lintseq":
            raise Stop
        return make_manifest(plan, records, staging, identity, *rest, **keys)

    make_manifest = transform.make_manifest
    with monkeypatch.context() as patch:
        patch.setattr(transform, "make_manifest", stop)
        with pytest.raises(Stop):
            road.run()
    monkeypatch.setattr(transform, "stream", _nothing)
    outcome = road.run()
    assert [fact.split()[0] for fact in outcome.facts.values()] == ["kept", "published"]


def test_a_stage_that_another_run_works_on_is_left_alone(cluster, road):
    road.run()
    road.write("b.py", [7])
    folder = road.path / "runs" / "corpus" / "road"
    with Ledger(UPath(folder)).claimed(), pytest.raises(RunBusy):
        road.run()
    assert road.dataset("corpus").rows == 4


def test_a_dry_run_makes_nothing(cluster, road):
    outcome = road.run(dry_run=True)
    assert not outcome.published
    assert outcome.facts["corpus"].startswith("would publish")
    assert outcome.facts["lintseq"] == "runs once the stages before it have published"
    assert not (road.path / "runs").exists()
    road.run(STAGES[:1])
    before = sorted((road.path / "runs").rglob("*"))
    outcome = road.run(dry_run=True)
    assert [fact.partition(" /")[0] for fact in outcome.facts.values()] == ["kept", "would publish"]
    road.write("b.py", [7])
    outcome = road.run(dry_run=True)
    assert outcome.facts["corpus"].startswith("would publish")
    assert sorted((road.path / "runs").rglob("*")) == before


def test_two_stages_of_one_job_have_their_own_runs(cluster, road):
    stages = [*STAGES, {**STAGES[1], "name": "again", "set": {"lintseq.paths": 2}}]
    road.run(stages)
    assert road.dataset("lintseq").rows == 4
    assert road.dataset("lintseq", "road-again").rows == 8
    assert all(fact.startswith("kept") for fact in road.run(stages).facts.values())


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([STAGES[0], {"job": "lintseq", "inputs": {"source.paths": "corpsu"}}], "'corpsu', which is no stage"),
        ([STAGES[1], STAGES[0]], "'corpus', which is no stage before it"),
        ([STAGES[0], STAGES[0]], "2 stages are called 'corpus'"),
        ([{"job": "korpus", "recipe": "x"}], "should be one of corpus, sieve, sieve-apply, lintseq"),
        ([{"job": "pipeline", "recipe": "x"}], "should be one of corpus, sieve, sieve-apply, lintseq"),
        ([STAGES[0], {**STAGES[1], "set": {"lintseq.path": 2}}], r"nearest known key is '(lintseq\.)?paths'"),
        ([STAGES[0], {**STAGES[1], "set": {"name.x": 2}}], "goes through name, which holds no keys"),
        ([STAGES[0], {**STAGES[1], "recipe": "nowhere.yaml"}], "no recipe nowhere.yaml"),
        ([], "stages"),
    ],
)  # fmt: skip
def test_what_cannot_be_walked_is_one_sentence_before_any_work(road, stages, message):
    with pytest.raises(RecipeError, match=message) as caught:
        road.run(stages)
    assert "\n" not in str(caught.value)
    assert not (road.path / "runs").exists()


def test_an_input_set_to_nothing_is_filled_in(cluster, road):
    """`source:` alone in a recipe is a section like any other."""
    road.run(STAGES[:1])
    (road.path / "lintseq.yaml").write_text("name: x\nsource:\n")
    assert road.run().facts["lintseq"].startswith("published 4 rows")
