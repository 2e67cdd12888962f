"""The coalescer shares the store among callers by items, not by submissions: who sends thousands at once gets no more
of it than who sends one at a time, and neither is kept waiting for ever."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Sequence

import pytest

from kernel.batching import Coalescer

BATCH_MAX = 1_000


class Store:
    """Writes down whose items were in each batch. It takes nothing until the gate opens."""

    def __init__(self) -> None:
        self.batches: list[Counter[str]] = []
        self.gate = asyncio.Event()

    async def flush(self, items: Sequence[str]) -> Sequence[str]:
        self.batches.append(Counter(items))
        await self.gate.wait()
        return items

    def served(self, batches: int) -> Counter[str]:
        """Whose items were in the first batches."""
        return sum(self.batches[:batches], Counter[str]())


def coalescer(store: Store) -> Coalescer[str, str]:
    """One flush at a time, so that what is in each batch is certain."""
    return Coalescer(store.flush, batch_max=BATCH_MAX, queue_max=5 * BATCH_MAX, deadline_s=30.0)


async def all_of(desk: Coalescer[str, str], store: Store, *waiting: Awaitable[object]) -> None:
    """The gate opens, and everybody is served."""
    store.gate.set()
    await asyncio.gather(*waiting)
    await desk.drained()
    assert max(batch.total() for batch in store.batches) <= BATCH_MAX
    assert desk.depth == 0


def singles(desk: Coalescer[str, str], caller: str, how_many: int) -> "asyncio.Future[list[str]]":
    """So many items of a caller, each sent by itself."""
    return asyncio.gather(*(desk.submit(caller, caller) for _ in range(how_many)))


def bundles(desk: Coalescer[str, str], caller: str, how_many: int, size: int) -> "asyncio.Future[list[Sequence[str]]]":
    """So many bundles of a caller."""
    return asyncio.gather(*(desk.submit_all([caller] * size, caller) for _ in range(how_many)))


@pytest.mark.parametrize("size", [1_000, 600, 170])
async def test_a_caller_of_bundles_and_a_caller_of_singles_share(size: int) -> None:
    """Served by turns of a submission each, the second one got a single item for each bundle of the first."""
    store = Store()
    desk = coalescer(store)
    count = 4 * BATCH_MAX
    await all_of(desk, store, bundles(desk, "bundles", count // size, size), singles(desk, "singles", count))
    for batches in range(2, len(store.batches) + 1):
        served = store.served(batches)
        assert min(served["bundles"], served["singles"]) * 4 >= served.total(), f"after {batches} batches: {served}"


async def test_a_bundle_that_does_not_fit_is_the_first_in_the_next_batch() -> None:
    """Others go before it in what room there is, and cannot do so for ever."""
    store = Store()
    desk = coalescer(store)
    floods = [singles(desk, f"flood {number}", BATCH_MAX) for number in range(5)]
    bundle = bundles(desk, "bundle", 1, BATCH_MAX)
    await all_of(desk, store, *floods, bundle)
    assert store.served(3)["bundle"] == BATCH_MAX
    assert store.served(6).keys() >= {"bundle", "flood 0", "flood 4"}


async def test_callers_of_singles_share_each_batch_alike() -> None:
    """Who has few waits for one batch at most; the others, batch by batch, get as much as one another."""
    store = Store()
    desk = coalescer(store)
    crowd = ("one", "two", "three")
    await all_of(desk, store, *(singles(desk, caller, 2 * BATCH_MAX) for caller in crowd), singles(desk, "few", 10))
    assert store.served(2)["few"] == 10
    served = store.served(5)
    assert served.total() == 5 * BATCH_MAX
    assert max(served[caller] for caller in crowd) - min(served[caller] for caller in crowd) <= BATCH_MAX / 4


async def test_who_was_served_leaves_nothing_behind() -> None:
    """Thirty thousand shops that sold something once must not be looked through for every batch ever after."""
    store = Store()
    desk = coalescer(store)
    await all_of(desk, store, *(singles(desk, f"shop {number}", 2) for number in range(500)))
    assert not desk._queues and not desk._depths and not desk._turns
    assert await desk.submit("again", "shop 7") == "again"
