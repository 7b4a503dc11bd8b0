"""Engines are trusted when verified: deaths, stale weights, lost tensors, engines that hang, with real Ray actors."""

import time
from functools import partial

import pytest
import ray
import torch

from engine.errors import DeadlineExceeded, HeadraceError
from engine.rlhf.engines import Drawing
from engine.rlhf.fakes import FakeEngine
from engine.rlhf.rollouts import ActorRollouts, EngineActor, LocalRollouts, Probe

PROMPTS = [[at, at + 1] for at in range(10)]
DRAWING = Drawing(1.0, 3)


def weights(value):
    return {"a": torch.full((2,), value), "b": torch.full((1,), value / 2)}


def probe(value):
    return Probe([1, 2, 3], [2.5 * value] * 2, 1e-6)


@pytest.fixture
def engines(cluster, tmp_path):
    """`engines(count)` are rollouts over so many actors; `scripts` what they are to do wrong."""
    made = []

    def start(count):
        actor = ray.remote(num_cpus=0.1, max_restarts=-1)(EngineActor)
        made.extend(actor.remote(partial(FakeEngine, tmp_path / f"script-{at}")) for at in range(count))
        return ActorRollouts(made, 120.0)

    start.script = lambda at, *words: (tmp_path / f"script-{at}").write_text("\n".join(words))
    yield start
    for each in made:
        ray.kill(each)


def answers(rollouts):
    return [each.ids for each in rollouts.generate(PROMPTS, list(range(10)), DRAWING)]


WANTED = [[at + 1] * 3 for at in range(10)]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_every_prompt_is_answered_once_and_in_order(engines, count):
    rollouts = engines(count)
    rollouts.sync(1, weights(1.0), probe(1.0))
    assert answers(rollouts) == WANTED
    rollouts.sync(2, weights(2.0), probe(2.0))
    found = rollouts.generate(PROMPTS, list(range(10)), DRAWING)
    assert {each.logprobs[0] for each in found} == {5.0}, "from the newest weights"


@pytest.mark.parametrize("count", [1, 2])
def test_prompts_of_an_engine_that_dies_are_answered_all_the_same(engines, count):
    rollouts = engines(count)
    rollouts.sync(1, weights(1.0), probe(1.0))
    engines.script(0, "die")
    found = rollouts.generate(PROMPTS, list(range(10)), DRAWING)
    assert [each.ids for each in found] == WANTED
    assert {each.logprobs[0] for each in found} == {2.5}, "the engine that came back was given the weights first"


def test_an_engine_that_is_dead_when_weights_come_is_waited_for(engines):
    rollouts = engines(1)
    rollouts.sync(1, weights(1.0), probe(1.0))
    handle = rollouts._handles[0]
    ray.kill(handle, no_restart=False)
    rollouts.sync(2, weights(2.0), probe(2.0))
    assert rollouts.generate([[1]], [0], DRAWING)[0].logprobs[0] == 5.0


def test_old_weights_are_found_out_within_the_tolerance_too(engines):
    rollouts = engines(1)
    rollouts.sync(1, weights(1.0), probe(1.0))
    engines.script(0, "stale", "stale")
    near = Probe([1, 2, 3], [2.5 * 1.01] * 2, 1.0)
    with pytest.raises(HeadraceError, match="computes with the ones before"):
        rollouts.sync(2, weights(1.01), near)


@pytest.mark.parametrize("wrong", ["stale", "drop"])
def test_a_sync_that_went_wrong_is_tried_once_more(engines, wrong):
    rollouts = engines(1)
    rollouts.sync(1, weights(1.0), probe(1.0))
    engines.script(0, wrong)
    rollouts.sync(2, weights(2.0), probe(2.0))
    assert rollouts.generate([[1]], [0], DRAWING)[0].logprobs[0] == 5.0


def test_an_engine_that_keeps_old_weights_is_named(engines):
    rollouts = engines(2)
    rollouts.sync(1, weights(1.0), probe(1.0))
    engines.script(1, "stale", "stale")
    with pytest.raises(HeadraceError, match=r"Engine 1 was given version 2 .* the ones before.* differ by up to 2.5"):
        rollouts.sync(2, weights(2.0), probe(2.0))


def test_an_engine_that_hangs_is_named_within_the_deadline(engines):
    rollouts = engines(1)
    rollouts.sync(1, weights(1.0), probe(1.0))
    rollouts._seconds = 4.0  # not before it is up: on a busy machine that alone may take longer
    engines.script(0, "hang")
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded, match="Engine 0 has not answered 10 prompts for 4 s"):
        answers(rollouts)
    assert time.monotonic() - started < 60


def test_in_process_too(tmp_path):
    rollouts = LocalRollouts(FakeEngine(tmp_path / "script"))
    rollouts.sync(1, weights(1.0), probe(1.0))
    assert answers(rollouts) == WANTED
    (tmp_path / "script").write_text("stale\nstale")
    with pytest.raises(HeadraceError, match="The engine was given version 2"):
        rollouts.sync(2, weights(2.0), probe(2.0))
