"""Requests that arrive while the model is busy go through it together, as soon as it is free.

Why not `@serve.batch`: it closes a batch a few milliseconds after the first request, whether the model is free or not,
so what waits in line behind a busy model is a line of small batches. With one text a request and 16 callers every
batch held one text.

Left out: the model, and the bound on how much may wait (Serve's). Called by the applications of `serve_apps`.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Batcher(Generic[Item, Result]):
    """Calls `work` with one list of items after the other; of one event loop, and never two calls at a time.

    `most` bounds the sum of the items' `size` in a batch, but an item larger than that still goes, alone; `wait`
    (seconds) is how long a batch that is not full waits for more.
    """

    def __init__(
        self,
        work: Callable[[list[Item]], Awaitable[Sequence[Result]]],
        *,
        size: Callable[[Item], int],
        most: int,
        wait: float,
    ) -> None:
        self._work, self._size, self._most, self._wait = work, size, most, wait
        self._waiting: deque[tuple[Item, asyncio.Future[Result]]] = deque()
        self._running: asyncio.Task[None] | None = None

    async def __call__(self, item: Item) -> Result:
        """The result of one item. Raises what `work` raises for it; others' failures do not touch it."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._run())
        return await future

    async def _run(self) -> None:
        while self._waiting:
            if sum(self._size(item) for item, _ in self._waiting) < self._most:
                # Callers whose answers have just gone out are about to ask again.
                await asyncio.sleep(self._wait)
            batch = self._take()
            if batch and not await self._settle(batch) and len(batch) > 1:
                for each in batch:
                    await self._settle([each])

    def _take(self) -> list[tuple[Item, "asyncio.Future[Result]"]]:
        """The next batch; whose caller has gone is left out."""
        batch: list[tuple[Item, asyncio.Future[Result]]] = []
        room = self._most
        while self._waiting and (not batch or self._size(self._waiting[0][0]) <= room):
            item, future = self._waiting.popleft()
            if not future.done():
                batch.append((item, future))
                room -= self._size(item)
        return batch

    async def _settle(self, batch: list[tuple[Item, "asyncio.Future[Result]"]]) -> bool:
        """Hand out the results, or a failure if it can only be this item's; otherwise say that it failed."""
        try:
            results = await self._work([item for item, _ in batch])
            assert len(results) == len(batch)
        except Exception as error:  # noqa: BLE001 - it is the caller's, whatever it is
            if len(batch) == 1 and not batch[0][1].done():
                batch[0][1].set_exception(error)
            return False
        for (_, future), result in zip(batch, results, strict=True):
            if not future.done():
                future.set_result(result)
        return True
