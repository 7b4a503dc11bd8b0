"""The same losses whatever shares the work: ZeRO 0, 2, 3, one and two workers, packed or not, resumed or not."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.finetune.learner import learning_rate
from engine.finetune.options import OptimiserOptions

WORKER = Path(__file__).with_name("training_worker.py")
RUNS = [
    (2, [
        {"zero": 0, "packed": True},
        {"zero": 2, "packed": True, "resume": True},
        {"zero": 3, "packed": False, "resume": True},
    ]),
    (1, [
        {"zero": 0, "packed": False},
        {"zero": 0, "packed": True, "resume": True},
        {"zero": 2, "packed": True, "resume": True},
        {"zero": 3, "packed": True},
        {"zero": 0, "bf16": True},
        {"zero": 0, "bf16": True, "resume": True},
        {"zero": 2, "bf16": True, "resume": True},
        {"zero": 0, "after": "0-1"},
        {"zero": 3, "after": "0-1"},
        {"zero": 2, "after": "0-2"},
    ]),
    (2, [{"zero": 2, "after": "1-1"}, {"zero": 3, "after": "1-2"}, {"zero": 0, "bf16": True, "after": "1-5"}]),
]  # fmt: skip
"""Workers, and what they train one after the other; `after` names another training, by its run and place there."""


@pytest.fixture(scope="module")
def losses(tmp_path_factory):
    folder, found = tmp_path_factory.mktemp("training"), {}
    environment = {**os.environ, "PYTHONPATH": str(WORKER.parents[2])}
    for run, (world, cases) in enumerate(RUNS):
        commands = [
            [sys.executable, WORKER, str(rank), str(world), folder, str(run), json.dumps(cases)]
            for rank in range(world)
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
        found |= json.loads((folder / f"losses-{run}.json").read_text())
    return found


def test_all_are_the_losses_of_plain_torch(losses, plain):
    assert len(losses) == sum(len(cases) for _, cases in RUNS)
    for name, found in losses.items():
        assert np.allclose(found, plain[-len(found) :], rtol=2e-2 if "bf16" in name else 2e-4), name
        assert len(found) == (10 if "after" in name else 20)
    calm, *resumed = [found for name, found in losses.items() if "bf16" in name and '"zero": 0' in name]
    for found in resumed:
        assert np.allclose(found, calm[-len(found) :], rtol=1e-3), "as if nothing had been"


def test_what_is_no_state_of_this_training_is_refused(tmp_path):
    from engine.finetune.pieces import Piece, load_pieces, save_pieces

    def optimiser(size):
        weight = torch.nn.Parameter(torch.ones(size))
        made = torch.optim.AdamW([weight])
        weight.grad = torch.ones(size)
        made.step()
        return made, Piece("weight", 0, size, weight)

    made, piece = optimiser(4)
    save_pieces(tmp_path / "some", iter([piece]), made, 7, masters=False)
    assert load_pieces([tmp_path / "some"], iter([piece]), made, masters=True) == 7
    larger, piece = optimiser(6)
    with pytest.raises(KeyError, match="4 of 6 elements of weight"):
        load_pieces([tmp_path / "some"], iter([piece]), larger, masters=False)


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
