"""Requests that arrive together go to the store together.

One flush is under way at a time; whatever arrives meanwhile forms the next one. So batches grow with
the load by themselves, and a lone request waits for nobody: the group commit of databases, one floor up.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

import structlog

from kernel.errors import HanquanError, Overloaded, StoreDown

Item = TypeVar("Item")
Answer = TypeVar("Answer")

log = structlog.get_logger()


class Coalescer(Generic[Item, Answer]):
    """Collects items and hands them to `flush`, at most `batch_max` at a time.

    `flush` answers in the order asked. It runs under `deadline_s`; an item that waited longer than
    that before its turn is turned away unsent. At most `queue_max` items wait.
    """

    def __init__(
        self,
        flush: Callable[[Sequence[Item]], Awaitable[Sequence[Answer]]],
        *,
        batch_max: int,
        queue_max: int,
        deadline_s: float,
    ) -> None:
        self._flush = flush
        self._batch_max = batch_max
        self._queue_max = queue_max
        self._deadline_s = deadline_s
        self._queue: deque[tuple[Item, asyncio.Future[Answer], float]] = deque()
        self._running: asyncio.Task[None] | None = None

    @property
    def depth(self) -> int:
        """How many items wait for their turn."""
        return len(self._queue)

    def submit(self, item: Item) -> "asyncio.Future[Answer]":
        """A future of the item's answer. Overloaded at once when the queue is full; the future fails
        with Unavailable when the store did not answer, and then the outcome is not known."""
        if len(self._queue) >= self._queue_max:
            raise Overloaded("the queue is full")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answer] = loop.create_future()
        self._queue.append((item, future, loop.time()))
        if self._running is None:
            self._running = loop.create_task(self._run())
        return future

    async def drained(self) -> None:
        """Returns when nothing waits and nothing is under way."""
        while self._running is not None:
            await asyncio.wait([self._running])

    async def _run(self) -> None:
        try:
            while batch := self._take():
                await self._flush_batch(batch)
        finally:
            self._running = None

    def _take(self) -> list[tuple[Item, "asyncio.Future[Answer]"]]:
        oldest = asyncio.get_running_loop().time() - self._deadline_s
        batch: list[tuple[Item, asyncio.Future[Answer]]] = []
        while self._queue and len(batch) < self._batch_max:
            item, future, since = self._queue.popleft()
            if future.done():
                continue
            if since < oldest:
                future.set_exception(Overloaded("waited too long for its turn"))
            else:
                batch.append((item, future))
        return batch

    async def _flush_batch(self, batch: list[tuple[Item, "asyncio.Future[Answer]"]]) -> None:
        try:
            async with asyncio.timeout(self._deadline_s):
                answers = await self._flush([item for item, _ in batch])
        except TimeoutError:
            _fail(batch, StoreDown("the store did not answer in time"))
        except HanquanError as error:
            _fail(batch, error)
        except Exception as error:
            log.exception("flush_failed")
            _fail(batch, StoreDown(f"{type(error).__name__}"))
        else:
            for (_, future), answer in zip(batch, answers, strict=True):
                if not future.done():
                    future.set_result(answer)


def _fail(batch: Sequence[tuple[Item, "asyncio.Future[Answer]"]], error: HanquanError) -> None:
    for _, future in batch:
        if not future.done():
            future.set_exception(error)
