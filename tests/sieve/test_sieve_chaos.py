"""Drivers and learners killed at random moments while they label and train: no answered question is asked again, no
limit is passed.

HEADRACE_CHAOS_KILLS and HEADRACE_CHAOS_SEED as in tests/chaos.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from workbench import make_workbench

from engine.artifacts import read_dataset
from engine.config import write_yaml

KILLS = max(2, int(os.environ.get("HEADRACE_CHAOS_KILLS", "2")) // 2)
SEED = int(os.environ.get("HEADRACE_CHAOS_SEED", time.time_ns() % 10**6))
ROOT = Path(__file__).parents[2]
AT_ONCE = 4
QUERIES = 90 + 2 * AT_ONCE * KILLS


def learners(head):
    """The processes that train and score, of all drivers there are."""
    everybody = psutil.Process(head.pid).children(recursive=True)
    return [each for each in everybody if each.name().startswith("ray::Learner")]


@pytest.mark.timeout(KILLS * 90 + 600)
def test_no_label_is_paid_for_twice_whatever_dies(head, tmp_path, endpoint):
    print(f"chaos with seed {SEED}, {KILLS} kills")
    rng = random.Random(SEED)
    endpoint.delay = 0.05
    bench = make_workbench(tmp_path)
    teacher = {"kind": "endpoint", "url": endpoint.url, "model": "any", "at_once": AT_ONCE, "prompt": "|{snippet}"}
    recipe = bench.recipe("killed", teacher=teacher, budget={"queries": QUERIES})
    del recipe["truth"]
    path = tmp_path / "killed.yaml"
    path.write_text(write_yaml(recipe))
    command = [sys.executable, "-m", "jobs.sieve", str(path), "--address", head.address]
    moments = sorted(rng.sample(range(1, 80), KILLS))
    for questions in moments:
        with open(tmp_path / "said", "w") as file:
            driver = subprocess.Popen(command, cwd=ROOT, env=head.environment, stderr=file)
        end = time.monotonic() + 180
        questions = max(questions, sum(endpoint.counts.values()) + 1)  # so that this driver has got to asking
        while sum(endpoint.counts.values()) < questions and time.monotonic() < end and driver.poll() is None:
            time.sleep(0.01)
        assert driver.poll() is None, "it ended before it could be killed"
        if rng.random() < 0.5:
            driver.send_signal(signal.SIGKILL)
            driver.wait(20)
        else:
            for learner in learners(head):
                learner.send_signal(signal.SIGKILL)
            driver.wait(60)
            said = (tmp_path / "said").read_text()
            assert driver.returncode == 2, said
            assert "died" in said
            assert "Traceback" not in said
    assert subprocess.run(command, cwd=ROOT, env=head.environment, timeout=300).returncode == 0
    repeated = sum(count - 1 for count in endpoint.counts.values())
    assert repeated <= AT_ONCE * KILLS, "more was asked twice than was in flight at the kills"
    assert sum(endpoint.counts.values()) <= QUERIES
    assert read_dataset(bench.home("killed") / "dataset").rows
