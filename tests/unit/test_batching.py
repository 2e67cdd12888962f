"""The coalescer: together, in order, bounded, and never silent."""

import asyncio
import contextlib
from collections.abc import Sequence

import pytest

from kernel.batching import Coalescer
from kernel.errors import Broken, Overloaded, StoreDown


class Store:
    """Doubles numbers, remembers its batches, can be made to hang or fail."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.error: Exception | None = None

    async def flush(self, items: Sequence[int]) -> list[int]:
        self.batches.append(len(items))
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return [2 * item for item in items]


def coalescer(store: Store, **limits: float) -> Coalescer[int, int]:
    settings = {"batch_max": 100, "queue_max": 1000, "deadline_s": 5.0} | limits
    return Coalescer(store.flush, **settings)  # type: ignore[arg-type]


async def test_items_of_one_turn_go_together_and_get_their_own_answers() -> None:
    store = Store()
    desk = coalescer(store)
    assert await asyncio.gather(*(desk.submit(i) for i in range(50))) == [2 * i for i in range(50)]
    assert store.batches == [50]


async def test_what_arrives_during_a_flush_forms_the_next_batch() -> None:
    store = Store()
    desk = coalescer(store, batch_max=30)
    store.gate.clear()
    first = desk.submit(1)
    await asyncio.sleep(0)
    rest = [desk.submit(i) for i in range(40)]
    store.gate.set()
    assert await first == 2
    assert await asyncio.gather(*rest) == [2 * i for i in range(40)]
    assert store.batches == [1, 30, 10]
    await desk.drained()


async def test_a_full_queue_refuses_at_once() -> None:
    store = Store()
    desk = coalescer(store, queue_max=3)
    futures = [desk.submit(i) for i in range(3)]
    with pytest.raises(Overloaded):
        desk.submit(4)
    await asyncio.gather(*futures)


async def test_a_hanging_store_is_given_up_and_the_queue_with_it() -> None:
    store = Store()
    desk = coalescer(store, deadline_s=0.05, batch_max=1)
    store.gate.clear()
    futures = [desk.submit(i) for i in range(3)]
    outcomes = await asyncio.wait_for(asyncio.gather(*futures, return_exceptions=True), 30)
    assert isinstance(outcomes[0], StoreDown)
    assert all(isinstance(outcome, StoreDown | Overloaded) for outcome in outcomes)


async def test_a_fault_reaches_its_batch_and_no_other() -> None:
    store = Store()
    desk = coalescer(store)
    store.error = Broken("bad data")
    with pytest.raises(Broken):
        await desk.submit(1)
    store.error = None
    assert await desk.submit(2) == 4


async def test_a_caller_that_went_away_disturbs_nobody() -> None:
    store = Store()
    desk = coalescer(store)
    gone, stays = desk.submit(1), desk.submit(2)
    gone.cancel()
    assert await stays == 4


async def test_nobody_waits_longer_than_the_deadline_for_a_store_that_does_not_let_go() -> None:
    """A batch that was given up may take its time to end; neither it nor who is behind it waits for that."""
    held = asyncio.Event()

    async def flush(items: Sequence[int]) -> list[int]:
        try:
            await asyncio.Event().wait()
        finally:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(held.wait(), 20)
        return []

    desk: Coalescer[int, int] = Coalescer(flush, batch_max=1, queue_max=10, deadline_s=0.1)
    first, second = desk.submit(1), desk.submit(2)
    outcomes = await asyncio.wait_for(asyncio.gather(first, second, return_exceptions=True), 10)
    assert [type(outcome) for outcome in outcomes] == [StoreDown, Overloaded]
    held.set()
    await desk.drained()


@pytest.mark.parametrize("answers", [[], [2], [2, 4, 6]])
async def test_a_store_that_answers_too_few_or_too_many_answers_nobody(answers: list[int]) -> None:
    async def flush(items: Sequence[int]) -> list[int]:
        return answers

    desk: Coalescer[int, int] = Coalescer(flush, batch_max=10, queue_max=10, deadline_s=20)
    futures = [desk.submit(1), desk.submit(2)]
    outcomes = await asyncio.wait_for(asyncio.gather(*futures, return_exceptions=True), 30)
    assert [type(outcome) for outcome in outcomes] == [Broken, Broken]


async def test_several_flushes_may_be_under_way_and_nobody_is_forgotten() -> None:
    under_way, most = 0, 0

    async def flush(items: Sequence[int]) -> list[int]:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.001 * (items[0] % 3))
        under_way -= 1
        return [2 * item for item in items]

    desk: Coalescer[int, int] = Coalescer(flush, batch_max=7, queue_max=1_000, deadline_s=20, flushes_max=3)

    async def ask(i: int) -> None:
        await asyncio.sleep(0.0001 * (i % 17))
        assert await desk.submit(i, i % 5) == 2 * i

    await asyncio.wait_for(asyncio.gather(*(ask(i) for i in range(500))), 60)
    await desk.drained()
    assert (most, desk.depth) == (3, 0)


async def test_callers_are_served_in_turn_and_the_flood_of_one_fills_its_own_queue_only() -> None:
    store = Store()
    desk = coalescer(store, batch_max=10, queue_max=50)
    store.gate.clear()
    first = desk.submit(0, "flood")
    await asyncio.sleep(0)
    flood = [desk.submit(i, "flood") for i in range(50)]
    with pytest.raises(Overloaded):
        desk.submit(51, "flood")
    other = desk.submit(7, "other")
    served: list[str] = []
    flood[20].add_done_callback(lambda _: served.append("flood"))
    other.add_done_callback(lambda _: served.append("other"))
    store.gate.set()
    await asyncio.gather(first, other, *flood)
    assert served == ["other", "flood"]


async def test_items_submitted_together_go_together() -> None:
    store = Store()
    desk = coalescer(store, batch_max=10)
    store.gate.clear()
    first = desk.submit(1)
    await asyncio.sleep(0)
    six, five = desk.submit_all([1, 2, 3, 4, 5, 6], "a"), desk.submit_all([7, 8, 9, 10, 11], "b")
    store.gate.set()
    assert await first == 2
    assert [await six, await five] == [[2, 4, 6, 8, 10, 12], [14, 16, 18, 20, 22]]
    assert store.batches == [1, 6, 5]
