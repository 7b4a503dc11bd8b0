"""Checkpoints are whole or not there, and the last good one stays whatever happens to the next."""

import errno

import pytest
from upath import UPath

from engine.errors import ArtifactError, StorageError
from engine.finetune.checkpoints import Checkpoints, Measured, State


def write(folder, weights):
    (weights / "model.safetensors").write_text("weights")
    (folder / "worker-00000-of-00001.safetensors").write_text("averages")


def at(step, best=None):
    return State(steps=step, best=best, measured=(Measured(step=step, values={"loss": 1.0}),))


@pytest.fixture(params=["local", "memory"])
def home(request, tmp_path):
    return UPath(tmp_path) if request.param == "local" else UPath(f"memory://{tmp_path.name}")


def files(home):
    root = home / "checkpoints"
    return sorted(str(each).partition("checkpoints/")[2] for each in root.rglob("*") if each.is_file())


def test_the_newest_and_the_best_are_kept(home):
    checkpoints = Checkpoints(home)
    assert checkpoints.latest() is None
    for step in (2, 4, 6):
        checkpoints.save(at(step, best=2), write)
    assert checkpoints.latest() == at(6, best=2)
    kept = [name for name in files(home) if "worker" in name or "model" in name]
    assert kept == [
        "step-00000002/weights/model.safetensors",
        "step-00000006/weights/model.safetensors",
        "step-00000006/worker-00000-of-00001.safetensors",
    ]
    with checkpoints.weights(2) as folder:
        assert (folder / "model.safetensors").read_text() == "weights"


def test_a_worker_fetches_its_own_part_or_all_of_them(home):
    def two(folder, weights):
        for name in ("worker-0", "worker-1", "weights/model"):
            (folder / name).write_text(name)

    checkpoints = Checkpoints(home)
    checkpoints.save(at(2), two)
    with checkpoints.optimiser(2, "worker-1") as folder:
        assert (folder / "worker-1").read_text() == "worker-1"
        if home.protocol == "memory":
            assert [each.name for each in folder.iterdir()] == ["worker-1"]
    with checkpoints.optimiser(2, "worker-2") as folder:
        assert {"worker-0", "worker-1"} <= {each.name for each in folder.iterdir()}


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("I/O error: No space left on device")]
)
def test_a_full_disk_is_one_sentence_and_the_last_one_stays(home, error):
    checkpoints = Checkpoints(home)
    checkpoints.save(at(2), write)

    def full(folder, weights):
        write(folder, weights)
        raise error

    with pytest.raises(StorageError, match=r"step 4 cannot be written .*No space left"):
        checkpoints.save(at(4), full)
    assert checkpoints.latest() == at(2)
    checkpoints.save(at(4), write)
    assert checkpoints.latest() == at(4)
    assert not [name for name in files(home) if name.startswith("step-00000002")]


def test_a_kill_before_the_state_is_written_leaves_the_one_before(tmp_path):
    home = UPath(tmp_path)
    checkpoints = Checkpoints(home)
    checkpoints.save(at(2), write)
    half = tmp_path / "checkpoints" / "step-00000004" / "weights"
    half.mkdir(parents=True)
    (half / "left.safetensors").write_text("half")
    assert checkpoints.latest() == at(2)
    checkpoints.save(at(4), write)
    assert not (half / "left.safetensors").exists()


def test_another_worker_that_fails_fails_all(tmp_path):
    checkpoints = Checkpoints(UPath(tmp_path), rank=0, agree=lambda well: False)
    with pytest.raises(StorageError, match="another worker failed"):
        checkpoints.save(at(2), write)
    assert checkpoints.latest() is None


def test_damage_is_named(tmp_path):
    checkpoints = Checkpoints(UPath(tmp_path))
    checkpoints.save(at(2), write)
    (tmp_path / "checkpoints" / "step-00000002" / "state.json").write_text("{")
    with pytest.raises(ArtifactError, match="is damaged"):
        checkpoints.latest()
