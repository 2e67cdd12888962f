"""Requests that arrive together go to the store together.

One flush is under way at a time; whatever arrives meanwhile forms the next one. So batches grow with
the load by themselves, and a lone request waits for nobody: the group commit of databases, one floor up.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from itertools import takewhile
from typing import Generic, TypeVar

import structlog

from kernel.errors import Broken, HanquanError, Overloaded, StoreDown

Item = TypeVar("Item")
Answer = TypeVar("Answer")
Waiting = tuple[Item, asyncio.Future[Answer], float]
"""An item, the future of its answer, and since when it waits."""

LOOKS = 20
"""How often within a deadline it is looked for items that are past it."""

log = structlog.get_logger()


class Coalescer(Generic[Item, Answer]):
    """Collects items and hands them to `flush`, at most `batch_max` at a time.

    `flush` answers in the order asked. Whoever asks is told within `deadline_s` (and a twentieth), also when
    the store hangs and takes its time to let go: an item that waits longer is turned away unsent. A `flush`
    is given up after `deadline_s`, too. At most `queue_max` items wait.
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
        self._queue: deque[Waiting[Item, Answer]] = deque()
        self._batch: list[Waiting[Item, Answer]] = []
        self._running: asyncio.Task[None] | None = None
        self._look: asyncio.TimerHandle | None = None

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
        self._look_later()
        try:
            while batch := self._take():
                self._batch = batch
                await self._flush_batch(batch)
        finally:
            self._batch = []
            self._running = None
            if self._look is not None:
                self._look.cancel()

    def _look_later(self) -> None:
        self._look = asyncio.get_running_loop().call_later(self._deadline_s / LOOKS, self._turn_away_late)

    def _turn_away_late(self) -> None:
        oldest = asyncio.get_running_loop().time() - self._deadline_s
        _fail(_late(self._batch, oldest), StoreDown("the store did not answer in time"))
        _fail(_late(self._queue, oldest), Overloaded("waited too long for its turn"))
        self._look_later()

    def _take(self) -> list[Waiting[Item, Answer]]:
        oldest = asyncio.get_running_loop().time() - self._deadline_s
        _fail(_late(self._queue, oldest), Overloaded("waited too long for its turn"))
        batch: list[Waiting[Item, Answer]] = []
        while self._queue and len(batch) < self._batch_max:
            waiting = self._queue.popleft()
            if not waiting[1].done():
                batch.append(waiting)
        return batch

    async def _flush_batch(self, batch: Sequence[Waiting[Item, Answer]]) -> None:
        try:
            async with asyncio.timeout(self._deadline_s):
                answers = await self._flush([item for item, _, _ in batch])
        except TimeoutError:
            _fail(batch, StoreDown("the store did not answer in time"))
        except HanquanError as error:
            _fail(batch, error)
        except Exception as error:
            log.exception("flush_failed")
            _fail(batch, StoreDown(f"{type(error).__name__}"))
        else:
            _answer(batch, answers)


def _late(waiting: Iterable[Waiting[Item, Answer]], oldest: float) -> Iterator[Waiting[Item, Answer]]:
    return takewhile(lambda each: each[2] < oldest, waiting)


def _fail(batch: Iterable[Waiting[Item, Answer]], error: HanquanError) -> None:
    for _, future, _ in batch:
        if not future.done():
            future.set_exception(error)


def _answer(batch: Sequence[Waiting[Item, Answer]], answers: Sequence[Answer]) -> None:
    if len(answers) != len(batch):
        _fail(batch, Broken(f"{len(batch)} items were asked, {len(answers)} answered"))
        return
    for (_, future, _), answer in zip(batch, answers, strict=True):
        if not future.done():
            future.set_result(answer)
