import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from upath import UPath

from engine.artifacts import Part
from engine.corpus.ledger import Identity, Ledger, Record
from engine.errors import ResumeRefused, RunBusy, Superseded

IDENTITY = Identity(job="corpus", recipe_fingerprint="r", inputs_fingerprint="i", shards=2)


def _record(shard, claim, file="a"):
    part = Part(name=f"part-{shard:06d}", file=file, rows=1, bytes=1, sha256="")
    return Record(
        shard=shard, source="a", fingerprint="f", code_version="0", claim=claim,
        rows_in=1, rows_out=1, dropped={}, quarantined=0, bytes_in=1, bytes_out=1,
        seconds={}, statistics={}, part=part,
    )  # fmt: skip


@pytest.fixture(params=["disk", "objects"])
def ledger(request, tmp_path):
    root = UPath(tmp_path) if request.param == "disk" else UPath(f"memory://{tmp_path.name}")
    ledger = Ledger(root)
    ledger.identify(IDENTITY, {"a": {"b": 1}}, {"x": "1", "y": "2"})
    return ledger


def test_a_shard_is_committed_once(ledger):
    with ledger.claimed() as claimed:
        threads, standing = [], []
        for n in range(8):
            commit = lambda n=n: standing.append(claimed.commit(_record(0, claimed.claim, f"file{n}")))  # noqa: E731
            threads.append(threading.Thread(target=commit))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(standing) == 8
        assert len({record.part.file for record in standing}) == 1
        assert claimed.records() == {0: standing[0]}


def test_a_live_run_keeps_others_out(ledger):
    with ledger.claimed(), pytest.raises(RunBusy, match=str(os.getpid())):
        ledger.claimed().__enter__()
    with ledger.claimed() as again:
        assert again.claim == 2


def test_a_worker_that_outlived_its_run_is_stopped(ledger):
    with ledger.claimed() as old:
        pass
    with ledger.claimed() as new:
        with pytest.raises(Superseded):
            old.commit(_record(0, old.claim))
        assert new.records() == {}
        new.commit(_record(0, new.claim))


def test_a_worker_of_a_run_that_was_set_aside_is_stopped(tmp_path):
    """The new run stands in the same place and counts its claims from 1 again."""
    run = tmp_path / "run"
    first = Ledger(UPath(run))
    first.identify(IDENTITY, {}, {})
    with first.claimed() as old:
        old.commit(_record(0, old.claim, "old"))
    run.rename(tmp_path / "run.before")
    second = Ledger(UPath(run))
    second.identify(IDENTITY, {}, {})
    assert second.run != first.run
    with second.claimed() as new:
        assert new.claim == old.claim
        with pytest.raises(Superseded):
            old.commit(_record(1, old.claim, "old"))
        # Even a record written after the check is none of the new run's.
        (run / "ledger" / "shards" / f"000001.{first.run}.json").write_text(_record(1, 1, "old").model_dump_json())
        assert new.records() == {}
        assert new.commit(_record(1, new.claim, "new")).part.file == "new"


def test_a_driver_that_lost_its_run_does_not_renew_the_claim_of_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr("engine.corpus.ledger.HEARTBEAT_SECONDS", 0.01)
    run = tmp_path / "run"
    first = Ledger(UPath(run))
    first.identify(IDENTITY, {}, {})
    with first.claimed():
        run.rename(tmp_path / "run.before")
        second = Ledger(UPath(run))
        second.identify(IDENTITY, {}, {})
        time.sleep(0.1)
        with second.claimed() as claimed:
            assert claimed.claim == 1
            time.sleep(0.1)
            names = sorted(path.name for path in (run / "ledger" / "claims").glob("*.json"))
            assert f"000001.{second.run}.json" in names


def test_resume_from_something_else_is_refused_and_says_what(ledger):
    ledger.identify(IDENTITY, {"a": {"b": 1}}, {"x": "1", "y": "2"})
    other = IDENTITY.model_copy(update={"recipe_fingerprint": "r2"})
    with pytest.raises(ResumeRefused, match=r"recipe changed at a\.b"):
        ledger.identify(other, {"a": {"b": 2}}, {"x": "1", "y": "2"})
    other = IDENTITY.model_copy(update={"inputs_fingerprint": "i2"})
    with pytest.raises(ResumeRefused, match=r"input changed \(y\)"):
        ledger.identify(other, {"a": {"b": 1}}, {"x": "1", "y": "3"})


def test_a_claim_dies_with_its_process(tmp_path):
    ledger = Ledger(UPath(tmp_path))
    ledger.identify(IDENTITY, {}, {})
    code = (
        "import sys, time; from upath import UPath; from engine.corpus.ledger import Ledger\n"
        "with Ledger(UPath(sys.argv[1])).claimed():\n    print('claimed', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "claimed\n"
    with pytest.raises(RunBusy, match=str(process.pid)):
        ledger.claimed().__enter__()
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    process.stdout.close()
    with ledger.claimed() as claimed:
        assert claimed.claim == 2


def test_the_claim_of_another_machine_lives_by_its_heartbeat(tmp_path):
    ledger = Ledger(UPath(tmp_path))
    ledger.identify(IDENTITY, {}, {})
    claim = tmp_path / "ledger" / "claims" / f"000001.{ledger.run}.json"
    owner = {"host": "elsewhere", "pid": 1, "started": 0.0}
    claim.write_text(json.dumps({**owner, "beat": time.time() - 5}))
    with pytest.raises(RunBusy, match="elsewhere"):
        ledger.claimed().__enter__()
    claim.write_text(json.dumps({**owner, "beat": time.time() - 500}))
    with ledger.claimed() as claimed:
        assert claimed.claim == 2
