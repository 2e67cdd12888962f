"""An edit that dies after any of its steps: nothing is ever oversold, and whoever comes next ends it."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import pytest_asyncio

from antifraud.gate import GateLimits, SignalWriter
from issuer.claim import ClaimDesk
from issuer.operator.budget import Edited, edit_budget, keep_up
from issuer.operator.office import Office, published_alone
from issuer.operator.store import StockBook
from issuer.publish import Publisher
from issuer.stock import StockStore
from kernel.errors import Refusal
from tests import stores
from tests.city import City, open_city
from tests.city_plan import person
from tests.offices import LIFE, WANG, drain_all, left_of, office, row_of

pytestmark = pytest.mark.asyncio(loop_scope="module")

DINING, MALL = "life_r1_dining", "life_r1_mall"
CLAIMED = 12
BOOK_STEPS, STORE_STEPS = {"edit", "ask_back", "note_given", "finish_edit"}, {"adjust"}


class Crash(Exception):
    """The process is gone."""


class Fuse:
    """Ends the process after so many steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def watch(self, method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        """The method, which the process does not survive when its time has come."""

        async def step(*arguments: Any) -> Any:
            answer = await method(*arguments)
            self.left -= 1
            if self.left < 0:
                raise Crash
            return answer

        return step


class Mortal:
    """A book or a store whose steps burn the fuse."""

    def __init__(self, inner: StockBook | StockStore, fuse: Fuse) -> None:
        self._inner = inner
        self._fuse = fuse

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        return self._fuse.watch(found) if name in BOOK_STEPS | STORE_STEPS else found


class MortalOffice(Office, frozen=True, kw_only=True):
    """An operator who may die at work."""

    fuse: Fuse

    @property
    def book(self) -> Any:
        return Mortal(StockBook(self.conn), self.fuse)


@asynccontextmanager
async def mortal_office(city: City, steps: int) -> AsyncIterator[Office]:
    async with city.database.connection("hanquan_operator") as conn:
        fuse = Fuse(steps)
        store: Any = Mortal(StockStore(city.valkey.client, GateLimits()), fuse)
        yield MortalOffice(conn=conn, store=store, shards=2, by=WANG, now=city.clock.now(), fuse=fuse)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def city(cluster: stores.Cluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[City]:
    async with open_city(cluster, tmp_path_factory.mktemp("crash"), campaigns=[LIFE], shards=2) as made:
        for n in range(CLAIMED):
            assert (await made.claim(DINING, person(n))).status == 200
        await drain_all(made)
        yield made


async def dies(city: City, steps: int, target: int) -> bool:
    """An edit that ends after so many steps; False when it came through."""
    async with mortal_office(city, steps) as desk:
        quantity = (await row_of(desk, DINING)).quantity
        try:
            await edit_budget(desk, DINING, quantity, target, "a test")
        except Crash:
            return True
    return False


@pytest.mark.parametrize("target", [160, 50], ids=["up", "down"])
@pytest.mark.parametrize("ended_by", ["publisher", "operator"])
async def test_a_crash_after_each_step_is_mended(city: City, target: int, ended_by: str) -> None:
    steps = 0
    while True:
        async with office(city, WANG) as desk:
            start = (await row_of(desk, DINING)).quantity
            died = await dies(city, steps, target)
            quantity = (await row_of(desk, DINING)).quantity
            assert await left_of(desk, DINING) + CLAIMED <= quantity, "units are in two places"
            if ended_by == "publisher":
                await as_publisher(city)
            else:  # the very same call again
                await edit_budget(desk, DINING, start, target, "a test")
            row = await row_of(desk, DINING)
            assert row.quantity in ((start, target) if ended_by == "publisher" else (target,)), steps
            assert await left_of(desk, DINING) == row.quantity - CLAIMED
            assert await pending(city) == 0
            if row.quantity != start:
                assert isinstance(await edit_budget(desk, DINING, target, start, "back"), Edited)
        if not died:
            break
        steps += 1
    assert steps >= 3


async def test_a_crash_of_an_edit_that_must_be_refused(city: City) -> None:
    """More is out than the books know: units taken back go back to their shards, whenever the crash comes."""
    for n in range(100, 120):
        assert (await city.claim(MALL, person(n))).status == 200
    steps = 0
    while True:
        async with mortal_office(city, steps) as desk:
            try:
                answer = await edit_budget(desk, MALL, 40, 10, "a test")
                assert isinstance(answer, Refusal) and answer.rule == "BELOW_ISSUED"
                died = False
            except Crash:
                died = True
        async with office(city, WANG) as desk:
            assert await left_of(desk, MALL) <= 20
            await as_publisher(city)
            assert ((await row_of(desk, MALL)).quantity, await left_of(desk, MALL)) == (40, 20)
            assert await pending(city) == 0
        if not died:
            break
        steps += 1
    assert steps >= 4


async def as_publisher(city: City) -> None:
    """What a claim worker does once a second."""
    async with city.database.connection("hanquan_issuer") as conn, published_alone(conn, 1):
        await keep_up(conn, StockStore(city.valkey.client, GateLimits()), 2, 1, city.clock.now())


async def pending(city: City) -> int:
    count: int = await city.fetchval("SELECT count(*) FROM stock_edit WHERE state = 'PENDING'")
    return count


@pytest.mark.parametrize(("target", "steps"), [(160, 0), (60, 0), (60, 1), (60, 2), (60, 3), (60, 4)])
async def test_a_crash_and_then_a_shard_loses_all(city: City, target: int, steps: int) -> None:
    """What the edit gave or took of the other shard is in the books before the lost one is dealt its part again."""
    async with office(city, WANG) as desk:
        start = (await row_of(desk, DINING)).quantity
        await dies_alone(city, steps, start, target)
        await publisher(city).refresh()
        row = await row_of(desk, DINING)
        assert row.quantity in (start, target)
        assert await left_of(desk, DINING) == row.quantity - CLAIMED
        assert await pending(city) == 0
        if row.quantity != start:
            assert isinstance(await edit_budget(desk, DINING, target, start, "back"), Edited)


async def dies_alone(city: City, steps: int, current: int, target: int) -> None:
    """An edit that ends after so many steps, and all that shard 1 holds with it."""
    async with mortal_office(city, steps) as desk:
        with suppress(Crash):
            await edit_budget(desk, DINING, current, target, "a test")
        keys = [key async for key in city.valkey.client.scan_iter(match="{s1}:*")]
        await city.valkey.client.delete(*keys)


def publisher(city: City) -> Publisher:
    """A claim worker's publisher, called step by step."""
    store, signals = StockStore(city.valkey.client, GateLimits()), SignalWriter(city.valkey.client)
    desk = ClaimDesk(store, city.codes, city.clock, signals, 2)
    return Publisher(city.database.pool, store, desk, city.clock)
