"""Requests that arrive together go to the store together.

A flush or a few are under way at a time; whatever arrives meanwhile forms the next one. So batches grow with
the load by themselves, and a lone request waits for nobody: the group commit of databases, one floor up.
Callers stand in queues of their own and are served in turn, so that the flood of one does not delay another.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Iterable, Iterator, Sequence
from itertools import chain, takewhile
from typing import Any, Generic, TypeVar

import structlog

from kernel import logs
from kernel.errors import Broken, HanquanError, Overloaded, StoreDown

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class Waiting(Generic[Item]):
    """Items that were submitted together, the future of their answers, and since when they wait.

    is_one   the future is of the only item's answer, not of a list of answers
    """

    __slots__ = ("future", "is_one", "items", "since")

    def __init__(self, items: Sequence[Item], future: "asyncio.Future[Any]", since: float, is_one: bool) -> None:
        self.items = items
        self.future = future
        self.since = since
        self.is_one = is_one


LOOKS = 20
"""How often within a deadline it is looked for items that are past it."""

log = structlog.get_logger()


class Coalescer(Generic[Item, Answer]):
    """Collects items and hands them to `flush`, at most `batch_max` at a time.

    `flush` answers in the order asked. Whoever asks is told within `deadline_s` (and a twentieth), also when
    the store hangs and takes its time to let go: an item that waits longer is turned away unsent. A `flush`
    is given up after `deadline_s`, too. At most `queue_max` items of one caller wait. Up to `flushes_max` flushes are
    under way at once; with more than one, items may be answered in another order than they came.
    """

    def __init__(
        self,
        flush: Callable[[Sequence[Item]], Awaitable[Sequence[Answer]]],
        *,
        batch_max: int,
        queue_max: int,
        deadline_s: float,
        flushes_max: int = 1,
    ) -> None:
        self._flush = flush
        self._batch_max = batch_max
        self._queue_max = queue_max
        self._deadline_s = deadline_s
        self._flushes_max = flushes_max
        self._queues: dict[Hashable, deque[Waiting[Item]]] = {}
        """None is empty: callers are many, and each batch goes through all that wait."""
        self._depths: dict[Hashable, int] = {}
        self._turns: deque[Hashable] = deque()
        """Who has a queue, in the order of their turns."""
        self._batches: dict[asyncio.Task[None], list[Waiting[Item]]] = {}
        """What is under way, by the task that sees to it."""
        self._look: asyncio.TimerHandle | None = None

    @property
    def depth(self) -> int:
        """How many items wait for their turn."""
        return sum(self._depths.values())

    def submit(self, item: Item, caller: Hashable = None) -> "asyncio.Future[Answer]":
        """A future of the item's answer. Overloaded at once when the caller's queue is full; the future fails
        with Unavailable when the store did not answer, and then the outcome is not known."""
        return self._enqueue((item,), caller, True)

    def submit_all(self, items: Sequence[Item], caller: Hashable = None) -> "asyncio.Future[Sequence[Answer]]":
        """A future of the answers to at most `batch_max` items, which go to the store in one call. Raises and
        fails as `submit`, for all of them."""
        return self._enqueue(items, caller, False)

    def _enqueue(self, items: Sequence[Item], caller: Hashable, is_one: bool) -> "asyncio.Future[Any]":
        depth = self._depths.get(caller, 0)
        if depth + len(items) > self._queue_max:
            raise Overloaded("the queue is full")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        queue = self._queues.get(caller)
        if queue is None:
            queue = self._queues[caller] = deque()
            self._turns.append(caller)
        queue.append(Waiting(items, future, loop.time(), is_one))
        self._depths[caller] = depth + len(items)
        if len(self._batches) < self._flushes_max:
            self._start(loop)
        return future

    async def drained(self) -> None:
        """Returns when nothing waits and nothing is under way."""
        while self._batches:
            await asyncio.wait(list(self._batches))

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        task = loop.create_task(self._run())
        self._batches[task] = []
        task.add_done_callback(self._ended)
        if self._look is None:
            self._look_later()

    async def _run(self) -> None:
        logs.request_id.set(None)  # one run serves the requests of many
        task = asyncio.current_task()
        assert task is not None
        try:
            while batch := self._take():
                self._batches[task] = batch
                await self._flush_batch(batch)
        finally:  # in the same breath as the last look at the queues: who comes next must start another run
            self._ended(task)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._batches.pop(task, None)
        if not self._batches and self._look is not None:
            self._look.cancel()
            self._look = None

    def _look_later(self) -> None:
        self._look = asyncio.get_running_loop().call_later(self._deadline_s / LOOKS, self._turn_away_late)

    def _turn_away_late(self) -> None:
        oldest = asyncio.get_running_loop().time() - self._deadline_s
        for batch in self._batches.values():
            _fail(_late(batch, oldest), StoreDown("the store did not answer in time"))
        _fail(self._late_in_queues(oldest), Overloaded("waited too long for its turn"))
        self._look_later()

    def _late_in_queues(self, oldest: float) -> "Iterator[Waiting[Item]]":
        return chain.from_iterable(_late(queue, oldest) for queue in self._queues.values())

    def _take(self) -> "list[Waiting[Item]]":
        """The next batch. Each caller whose turn it is puts in its share, and who has not used it up, because what is
        next in its queue does not fit, has the first turn of the next one."""
        oldest = asyncio.get_running_loop().time() - self._deadline_s
        _fail(self._late_in_queues(oldest), Overloaded("waited too long for its turn"))
        batch: list[Waiting[Item]] = []
        room, passed_over = self._batch_max, deque[Hashable]()
        share = max(room // max(len(self._turns), 1), 1)
        while self._turns and room > 0:
            caller = self._turns.popleft()
            taken = self._take_share(caller, room, not batch, share)
            batch += taken
            room -= sum(len(waiting.items) for waiting in taken)
            if caller in self._queues:
                (self._turns if taken else passed_over).append(caller)
        self._turns.extendleft(reversed(passed_over))
        return batch

    def _take_share(self, caller: Hashable, room: int, is_first: bool, share: int) -> "list[Waiting[Item]]":
        """What a caller puts in on its turn: up to its share of the room, and at least one submission that fits."""
        queue, taken = self._queues[caller], list[Waiting[Item]]()
        while queue and share > 0:
            size = len(queue[0].items)
            if size > room and not (is_first and not taken):
                break
            waiting = queue.popleft()
            self._depths[caller] -= size
            if not waiting.future.done():
                taken.append(waiting)
                room -= size
                share -= size
        if not queue:
            del self._queues[caller], self._depths[caller]
        return taken

    async def _flush_batch(self, batch: "Sequence[Waiting[Item]]") -> None:
        items = [item for waiting in batch for item in waiting.items]
        try:
            async with asyncio.timeout(self._deadline_s):
                answers = await self._flush(items)
        except TimeoutError:
            _fail(batch, StoreDown("the store did not answer in time"))
        except HanquanError as error:
            _fail(batch, error)
        except Exception as error:
            log.exception("flush_failed")
            _fail(batch, StoreDown(f"{type(error).__name__}"))
        else:
            _answer(batch, answers, len(items))


def _late(waiting: "Iterable[Waiting[Item]]", oldest: float) -> "Iterator[Waiting[Item]]":
    return takewhile(lambda each: each.since < oldest, waiting)


def _fail(batch: "Iterable[Waiting[Item]]", error: HanquanError) -> None:
    for waiting in batch:
        if not waiting.future.done():
            waiting.future.set_exception(error)


def _answer(batch: "Sequence[Waiting[Item]]", answers: Sequence[Answer], asked: int) -> None:
    if len(answers) != asked:
        _fail(batch, Broken(f"{asked} items were asked, {len(answers)} answered"))
        return
    at = 0
    for waiting in batch:
        end = at + len(waiting.items)
        if not waiting.future.done():
            waiting.future.set_result(answers[at] if waiting.is_one else answers[at:end])
        at = end
