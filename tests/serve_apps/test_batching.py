import asyncio

import pytest

from serve_apps.batching import Batcher


class Model:
    """Doubles numbers, a little slowly; fails at a batch that holds a 13."""

    def __init__(self):
        self.batches = []

    async def __call__(self, items):
        self.batches.append(items)
        await asyncio.sleep(0.02)
        if 13 in items:
            raise ValueError("thirteen")
        return [2 * item for item in items]


def make(most=100, wait=0.001):
    model = Model()
    return model, Batcher(model, size=lambda item: item, most=most, wait=wait)


def test_what_comes_while_the_model_is_busy_goes_together():
    model, batcher = make()

    async def run():
        first = asyncio.create_task(batcher(1))
        await asyncio.sleep(0.01)
        others = [asyncio.create_task(batcher(item)) for item in (2, 3, 4)]
        return await asyncio.gather(first, *others), await batcher(5)

    assert asyncio.run(run()) == ([2, 4, 6, 8], 10)
    assert model.batches == [[1], [2, 3, 4], [5]]


def test_a_batch_is_full_at_its_size_and_a_large_item_goes_alone():
    model, batcher = make(most=5)

    async def run():
        return await asyncio.gather(*(batcher(item) for item in (2, 3, 9, 1, 0, 5)))

    assert asyncio.run(run()) == [4, 6, 18, 2, 0, 10]
    assert model.batches == [[2, 3], [9], [1, 0], [5]]


def test_a_failure_is_its_own_items_only():
    _, batcher = make()

    async def run():
        return await asyncio.gather(*(batcher(item) for item in (1, 13, 2)), return_exceptions=True)

    one, failed, two = asyncio.run(run())
    assert (one, two) == (2, 4)
    assert str(failed) == "thirteen"


def test_who_has_gone_is_left_out_and_holds_up_nobody():
    model, batcher = make()

    async def run():
        first = asyncio.create_task(batcher(1))
        await asyncio.sleep(0.01)
        gone, stays = asyncio.create_task(batcher(2)), asyncio.create_task(batcher(3))
        await asyncio.sleep(0)
        gone.cancel()
        first_gone = asyncio.create_task(batcher(4))
        assert await asyncio.gather(first, stays, first_gone) == [2, 6, 8]
        with pytest.raises(asyncio.CancelledError):
            await gone

    asyncio.run(run())
    assert model.batches == [[1], [3, 4]]
