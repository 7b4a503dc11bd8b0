"""The same losses whatever shares the work: ZeRO 0, 2, 3, one and two workers, packed or not, resumed or not."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from engine.finetune.learner import learning_rate
from engine.finetune.options import OptimiserOptions

WORKER = Path(__file__).with_name("training_worker.py")
CASES = {
    1: [
        {"zero": 0, "packed": False, "resume": False},
        {"zero": 0, "packed": True, "resume": True},
        {"zero": 2, "packed": True, "resume": True},
        {"zero": 3, "packed": True, "resume": False},
        {"zero": 0, "packed": True, "resume": False, "bf16": True},
        {"zero": 0, "packed": True, "resume": True, "bf16": True},
        {"zero": 2, "packed": True, "resume": True, "bf16": True},
    ],
    2: [
        {"zero": 0, "packed": True, "resume": False},
        {"zero": 2, "packed": True, "resume": True},
        {"zero": 3, "packed": False, "resume": True},
    ],
}


@pytest.fixture(scope="module", params=[1, 2])
def losses(request, tmp_path_factory):
    world, folder = request.param, tmp_path_factory.mktemp("training")
    environment = {**os.environ, "PYTHONPATH": str(WORKER.parents[2])}
    commands = [
        [sys.executable, WORKER, str(rank), str(world), folder, json.dumps(CASES[world])] for rank in range(world)
    ]
    workers = [
        subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for command in commands
    ]
    try:
        said = [each.communicate(timeout=300)[1] for each in workers]
    finally:
        for each in workers:
            each.kill()
    assert not any(each.returncode for each in workers), [each.returncode for each in workers] + said
    return json.loads((folder / f"losses-{world}.json").read_text())


def test_all_are_the_losses_of_plain_torch(losses, plain):
    half = {name: found for name, found in losses.items() if "bf16" in name}
    for name in losses.keys() - half.keys():
        assert np.allclose(losses[name], plain, rtol=2e-4), name
    for name, found in half.items():
        assert np.allclose(found, plain, rtol=2e-2), name
    calm, *resumed = [half[name] for name in half if '"zero": 0' in name] or [[]]
    for found in resumed:
        assert np.allclose(found, calm, rtol=1e-4), "as if nothing had been"


@pytest.fixture(scope="module")
def plain():
    sys.path.insert(0, str(WORKER.parent))
    try:
        from training_worker import plainly
    finally:
        sys.path.pop(0)
    found = plainly()
    assert found[-1] < found[0] - 0.1, "it learns"
    return found


def test_the_learning_rate_rises_then_falls():
    options = OptimiserOptions(learning_rate=1.0, warm_up=0.2, final=0.1)
    rates = [learning_rate(options, step, 10) for step in range(10)]
    assert rates[:2] == [0.5, 1.0]
    assert rates[2] == 1.0
    assert rates == rates[:2] + sorted(rates[2:], reverse=True)
    assert math.isclose(rates[-1], 0.1)
    flat = OptimiserOptions(learning_rate=1.0, warm_up=0.0, schedule="constant")
    assert {learning_rate(flat, step, 10) for step in range(10)} == {1.0}
    line = OptimiserOptions(learning_rate=1.0, warm_up=0.0, schedule="linear", final=0.0)
    assert [round(learning_rate(line, step, 5), 2) for step in range(5)] == [1.0, 0.75, 0.5, 0.25, 0.0]
