"""Engines are trusted when verified: deaths, stale weights, lost tensors, engines that hang, with real Ray actors."""

import os
import signal
import threading
import time
from functools import partial

import pytest
import ray
import torch

from engine.errors import DeadlineExceeded, HeadraceError
from engine.rlhf import fleet
from engine.rlhf.engines import Drawing
from engine.rlhf.fakes import FakeEngine
from engine.rlhf.fleet import ActorRollouts
from engine.rlhf.rollouts import EngineActor, LocalRollouts, Probe

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

    start.handles = made
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
    ray.kill(engines.handles[0], no_restart=False)
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


def drawn_from(rollouts):
    """The weights' sums that prompts were answered from, all of them being right."""
    found = rollouts.generate(PROMPTS, list(range(10)), DRAWING)
    assert [each.ids for each in found] == WANTED
    return {each.logprobs[0] for each in found}


def later(seconds, do):
    timer = threading.Timer(seconds, do)
    timer.daemon = True
    timer.start()


def test_an_engine_that_hangs_is_named_within_the_deadline(engines):
    rollouts = engines(1)
    rollouts.sync(1, weights(1.0), probe(1.0))
    rollouts._seconds = 2.0
    engines.script(0, "hang", "gone")
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded, match="Engine 0 has not answered 10 prompts for 2 s"):
        answers(rollouts)
    assert time.monotonic() - started < 60


def test_an_engine_that_dies_for_good_holds_up_nobody(engines):
    rollouts = engines(2)
    rollouts.sync(1, weights(1.0), probe(1.0))
    engines.script(0, "die", "gone")
    started = time.monotonic()
    assert drawn_from(rollouts) == {2.5}
    rollouts.sync(2, weights(2.0), probe(2.0))
    assert drawn_from(rollouts) == {5.0}
    assert time.monotonic() - started < 60, "the deadline is 120 s"
    assert [each.state for each in rollouts._engines] == ["away", "healthy"]


def test_prompts_of_an_engine_that_hangs_are_answered_by_another(engines):
    rollouts = engines(2)
    rollouts.sync(1, weights(1.0), probe(1.0))
    rollouts._seconds = 5.0
    engines.script(0, "hang", "gone")
    assert drawn_from(rollouts) == {2.5}


def test_the_only_engine_hangs_once_and_answers_when_it_is_back(engines):
    rollouts = engines(1)
    rollouts.sync(1, weights(1.0), probe(1.0))
    _, process = ray.get(engines.handles[0].version.remote())
    rollouts._seconds = 3.0
    later(1.0, lambda: setattr(rollouts, "_seconds", 120.0))  # to be started again may take longer
    engines.script(0, "hang")
    assert drawn_from(rollouts) == {2.5}
    assert ray.get(engines.handles[0].version.remote())[1] != process


def test_prompts_over_which_every_engine_hangs_are_given_up(engines):
    rollouts = engines(2)
    rollouts.sync(1, weights(1.0), probe(1.0))
    rollouts._seconds = 5.0
    engines.script(0, "hang", "gone")
    engines.script(1, "hang", "gone")
    with pytest.raises(DeadlineExceeded, match=r"Engine 1 has not answered 1 prompts for 5 s, and the one .* before"):
        rollouts.generate([[1]], [0], DRAWING)


@pytest.mark.parametrize("count", [1, 2])
def test_an_engine_that_hangs_with_new_weights_is_killed(engines, monkeypatch, count):
    monkeypatch.setattr(fleet, "_TAKING", 1 / 15)
    rollouts = engines(count)
    rollouts.sync(1, weights(1.0), probe(1.0))
    _, process = ray.get(engines.handles[0].version.remote())
    engines.script(0, "jam")
    rollouts.sync(2, weights(2.0), probe(2.0))
    assert [each.state for each in rollouts._engines] == [["healthy"], ["away", "healthy"]][count - 1]
    assert drawn_from(rollouts) == {5.0}
    while rollouts._engines[0].state != "healthy":
        assert drawn_from(rollouts) == {5.0}
    assert ray.get(engines.handles[0].version.remote())[1] != process


def test_an_engine_that_was_away_draws_again_once_it_was_given_the_weights(engines, monkeypatch):
    monkeypatch.setattr(fleet, "_PATIENCE", 1.0)
    rollouts = engines(2)
    rollouts.sync(1, weights(1.0), probe(1.0))
    _, process = ray.get(engines.handles[0].version.remote())
    os.kill(process, signal.SIGSTOP)
    rollouts.sync(2, weights(2.0), probe(2.0))
    assert drawn_from(rollouts) == {5.0}
    os.kill(process, signal.SIGCONT)
    assert ray.get(engines.handles[0].version.remote()) == (1, process), "it has the old weights still"
    assert ray.get(engines.handles[0].generate.remote(2, PROMPTS, [0] * 10, DRAWING)) is None
    while rollouts._engines[0].state != "healthy":
        assert drawn_from(rollouts) == {5.0}
    assert ray.get(engines.handles[0].version.remote()) == (2, process)
    engines.script(1, "die", "gone")
    assert drawn_from(rollouts) == {5.0}, "it draws alone"


def test_an_engine_that_is_not_the_one_that_was_verified_draws_nothing(engines):
    rollouts = engines(1)
    rollouts.sync(1, weights(1.0), probe(1.0))
    (handle,) = engines.handles
    _, process = ray.get(handle.version.remote())
    assert not ray.get(handle.confirm.remote(2, process + 1)), "another process was"
    assert ray.get(handle.generate.remote(2, PROMPTS, [0] * 10, DRAWING)) is None


def test_an_engine_that_cannot_start_is_given_up(engines):
    engines.script(0, "broken")
    rollouts = engines(2)
    rollouts.sync(1, weights(1.0), probe(1.0))
    assert drawn_from(rollouts) == {2.5}
    assert [each.state for each in rollouts._engines] == ["lost", "healthy"]


def test_the_only_engine_that_cannot_start_is_named(engines):
    engines.script(0, "broken")
    with pytest.raises(HeadraceError, match=r"There is no engine left: Engine 0 cannot start .*no model here"):
        engines(1).sync(1, weights(1.0), probe(1.0))


def test_in_process_too(tmp_path):
    rollouts = LocalRollouts(FakeEngine(tmp_path / "script"))
    rollouts.sync(1, weights(1.0), probe(1.0))
    assert answers(rollouts) == WANTED
    (tmp_path / "script").write_text("stale\nstale")
    with pytest.raises(HeadraceError, match="The engine was given version 2"):
        rollouts.sync(2, weights(2.0), probe(2.0))
