"""A shard loses all it held, in the middle of moves and of drains, and is dealt its part again: every unit of a stock
can still be won, and none is won twice.

A shard that is restored starts with no memory of its own. What others remember of it (the numbers of its moves) and
what a drain still holds of its old log must not be taken for news, or units vanish or double.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import asyncpg
import msgspec
import pytest
import pytest_asyncio

from antifraud.gate import GateLimits, SignalWriter
from issuer import keys
from issuer.claim import ClaimDesk
from issuer.drain import Drain
from issuer.moves import Move, Moves
from issuer.publish import Publisher
from issuer.stock import PublishedRound, StockStore
from kernel.errors import Broken, Code, StoreDown
from kernel.partitions import partition_of, shard_of
from kernel.postgres import Pool, open_pool
from stack.audit.claim_store import read_stock_wins
from tests import stores
from tests.city import City, open_city
from tests.city_plan import NOON, a_campaign, a_round, a_stock, person
from tests.offices import drain_all

SHARDS = 2
QUANTITY = 40
PART = QUANTITY // SHARDS
STOCKS = 12
NAMES = [f"rush_{number:02}" for number in range(1, STOCKS + 1)]
CITY = a_campaign("rush", a_round("noon", NOON, *(a_stock(name, quantity=QUANTITY) for name in NAMES)))
TWO_ROUNDS = a_campaign(
    "twice",
    a_round("one", NOON, a_stock("rush_01", quantity=QUANTITY)),
    a_round("two", NOON, a_stock("other", quantity=QUANTITY)),
)
REFRESH = Publisher.refresh
END_WORKERS = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = 'dying'"

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def city(cluster: stores.Cluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[City]:
    async with open_city(cluster, tmp_path_factory.mktemp("loss"), campaigns=[CITY], shards=SHARDS) as made:
        yield made


@dataclass(frozen=True)
class Rush:
    """One stock of a city on two shards, and the people who want it."""

    city: City
    stock_no: int

    def people(self, shard: int, how_many: int, start: int = 0) -> list[str]:
        """People who all live on one shard, whom no other test knows."""
        found: list[str] = []
        for number in count(self.stock_no * 1_000_000 + start):
            if len(found) == how_many:
                break
            if shard_of(partition_of(bytes.fromhex(person(number))), SHARDS) == shard:
                found.append(person(number))
        return found

    async def won_by(self, people: Sequence[str]) -> int:
        """How many of them win; the others are told SOLD_OUT and nothing else."""
        codes = [(await self.city.claim(NAMES[self.stock_no - 1], who)).code for who in people]
        assert set(codes) <= {None, Code.SOLD_OUT}
        return codes.count(None)

    async def won_by_late_comers(self) -> int:
        """How many still win when as many come on each shard as there ever were units."""
        return await self.won_by([who for shard in range(SHARDS) for who in self.people(shard, QUANTITY, 500_000)])

    async def is_all_won(self, won: int) -> None:
        """So many were won; the rest can be, and not one more. The books, the shards and the audit agree."""
        assert won + await self.won_by_late_comers() == QUANTITY
        store = StockStore(self.city.valkey.client, GateLimits())
        held = [await store.stocks(shard, [self.stock_no]) for shard in range(SHARDS)]
        assert [stock[self.stock_no].left for stock in held] == [0] * SHARDS
        assert await store.moves.on_the_way(1, SHARDS) == []
        await drain_all(self.city)
        issued = await self.city.fetchval("SELECT count(*) FROM voucher WHERE stock_no = $1", self.stock_no)
        async with self.city.database.connection("hanquan_auditor") as conn:
            wins = await read_stock_wins(conn, self.city.valkey.client)
        assert issued == wins[self.stock_no] == QUANTITY

    async def given(self, giver: int, taker: int, units: int) -> Move:
        """Units on their way; the worker that asked for them died."""
        args = [1, self.stock_no, taker, units]
        answer: bytes = await Moves(self.city.valkey.client)._give(keys.tag(giver), args)
        return Move(giver, taker, answer.decode())


_stock_nos = count(1)


@pytest.fixture
def rush(city: City) -> Rush:
    """A stock of the city that nobody touched."""
    return Rush(city, next(_stock_nos))


async def lose(city: City, shard: int) -> None:
    """A shard forgets everything at once."""
    held = [key async for key in city.valkey.client.scan_iter(match=f"{keys.tag(shard)}:*", count=1_000)]
    await city.valkey.client.delete(*held)


async def publish_now(city: City, pool: Pool | None = None) -> None:
    """One look at what is published, by a publisher of its own."""
    store, signals = StockStore(city.valkey.client, GateLimits()), SignalWriter(city.valkey.client)
    desk = ClaimDesk(store, city.codes, city.clock, signals, SHARDS)
    await REFRESH(Publisher(pool or city.database.pool, store, desk, city.clock))


async def is_published(city: City, shard: int) -> None:
    """Returns once a shard is back, whoever brings it."""
    async with asyncio.timeout(60):
        while not await city.valkey.client.exists(keys.round_key(shard, 1)):
            await publish_now(city)


async def lost_and_dealt_again(city: City, shard: int) -> None:
    """A shard loses all and is brought back."""
    await lose(city, shard)
    await is_published(city, shard)


# ---------------------------------------------------------------- moves


@pytest.mark.parametrize("lost", [0, 1], ids=["giver", "taker"])
async def test_a_shard_that_moved_units_is_lost_and_goes_on_moving(rush: Rush, lost: int) -> None:
    """The numbers of moves go on where they were. Began they again at one, the other shard would take each move for
    one that it has had, and its units would be nowhere."""
    won = await rush.won_by(rush.people(1, PART + 7))
    assert won == PART + 7, "seven came from the other shard"
    await drain_all(rush.city)
    await lost_and_dealt_again(rush.city, lost)
    won += await rush.won_by(rush.people(1, QUANTITY, 100_000))  # the same way as before, to the last unit
    await rush.is_all_won(won)


async def test_a_taker_is_lost_after_it_took_and_before_the_giver_heard(rush: Rush) -> None:
    """The worker died between take and given. The units are in the books as wins, and still on their way for the
    giver: they must not be counted twice, nor arrive twice."""
    move = await rush.given(0, 1, 10)
    taken = [1, 0, move.seq, move.stock_no, move.units]
    assert await Moves(rush.city.valkey.client)._take(keys.tag(1), taken)
    won = await rush.won_by(rush.people(1, PART + move.units))
    assert won == PART + move.units
    await drain_all(rush.city)
    await lost_and_dealt_again(rush.city, 1)
    await rush.is_all_won(won)


@pytest.mark.parametrize("lost", [0, 1], ids=["giver", "taker"])
async def test_a_move_under_way_when_one_end_is_lost_never_arrives(rush: Rush, lost: int) -> None:
    """Its units are dealt again with the rest. A worker that was slow brings the move to its end all the same."""
    move = await rush.given(0, 1, 10)
    await lost_and_dealt_again(rush.city, lost)
    for _ in range(2):
        await Moves(rush.city.valkey.client).finish(1, move)
    await rush.is_all_won(0)


async def test_both_shards_are_lost_after_they_moved_units(rush: Rush) -> None:
    won = await rush.won_by(rush.people(1, PART + 7))
    await rush.given(0, 1, 3)
    await drain_all(rush.city)
    await lose(rush.city, 0)
    await lost_and_dealt_again(rush.city, 1)
    await is_published(rush.city, 0)
    await rush.is_all_won(won)


async def test_control_a_shard_that_begins_its_moves_anew_loses_units(
    rush: Rush, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dealt the same part, without the numbers: what it gives never arrives."""
    real = StockStore.publish

    async def without_numbers(self: StockStore, shard: int, round_: PublishedRound) -> bool:
        return await real(self, shard, msgspec.structs.replace(round_, moves={}))

    monkeypatch.setattr(StockStore, "publish", without_numbers)
    won = await rush.won_by(rush.people(1, PART + 7))
    await drain_all(rush.city)
    await lost_and_dealt_again(rush.city, 0)
    won += await rush.won_by(rush.people(1, QUANTITY, 100_000))
    assert won + await rush.won_by_late_comers() < QUANTITY


# ---------------------------------------------------------------- the drain


class Held(Drain):
    """A drain that stands still before it writes what it read."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.reached, self.go = asyncio.Event(), asyncio.Event()

    async def _store(self, *args: Any) -> None:
        self.reached.set()
        await self.go.wait()
        await super()._store(*args)


@contextlib.asynccontextmanager
async def drain_at_work(rush: Rush, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Callable[[], Awaitable[int]]]:
    """Ten wins of shard 0 were read by a drain, which stands still; nobody publishes but the test. A function that
    lets the drain go on, and answers how many wins it carried over."""
    city = rush.city
    monkeypatch.setattr(Publisher, "refresh", _nothing)
    assert await rush.won_by(rush.people(0, 10)) == 10
    held = Held(city.database.pool, city.valkey.client, SignalWriter(city.valkey.client), city.clock, 0)

    async def drain() -> int:
        async with city.database.connection("hanquan_issuer") as conn:
            return await held.drain_once(conn)

    async def go_on() -> int:
        held.go.set()
        return await asyncio.wait_for(task, 60)

    task = asyncio.create_task(drain())
    try:
        await asyncio.wait_for(held.reached.wait(), 60)
        yield go_on
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _nothing(*_: object) -> None:
    """Stands in for the city's own publisher."""


@pytest.mark.parametrize("fate", ["reply lost", "connection ended"])
async def test_the_drain_is_sent_back_whatever_becomes_of_who_published(
    rush: Rush, monkeypatch: pytest.MonkeyPatch, fate: str
) -> None:
    """A round that is published stays published, whether or not its worker lives to commit anything, and nobody
    publishes it again. The drain must have been sent back to the start before: wins of its old log would come on top
    of the whole stock."""
    city, real = rush.city, StockStore.publish

    async def publish(self: StockStore, shard: int, round_: PublishedRound) -> bool:
        told = await real(self, shard, round_)
        if fate == "reply lost":
            raise StoreDown("the reply was lost")
        await city.database.pool.fetch(END_WORKERS)
        return told

    async with drain_at_work(rush, monkeypatch) as go_on:
        await lose(city, 0)
        pool = await open_pool(city.database.dsn("hanquan_issuer"), size=1, name="dying")
        with monkeypatch.context() as patch, contextlib.suppress(asyncpg.PostgresError, asyncpg.InterfaceError):
            patch.setattr(StockStore, "publish", publish)
            await publish_now(city, pool)
        pool.terminate()
        assert await city.valkey.client.exists(keys.round_key(0, 1))
        await publish_now(city)
        with pytest.raises(Broken):
            await go_on()
    await rush.is_all_won(0)


async def test_a_drain_that_commits_in_the_very_moment_is_sent_back_all_the_same(
    rush: Rush, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its wins are in the books before they are counted, and it does not pass over the new log: entries of a store
    whose clock is behind are numbered below the old ones."""
    real, carried = StockStore.has_log, list[int]()
    async with drain_at_work(rush, monkeypatch) as go_on:
        await lose(rush.city, 0)

        async def has_log(self: StockStore, shard: int) -> bool:
            answer = await real(self, shard)
            if not carried:
                carried.append(await go_on())
            return answer

        with monkeypatch.context() as patch:
            patch.setattr(StockStore, "has_log", has_log)
            await publish_now(rush.city)
    assert carried == [10]
    position: str = await rush.city.fetchval("SELECT position FROM drain_position WHERE shard = 0")
    assert int(position.split("-", maxsplit=1)[0]) == 0
    await rush.is_all_won(10)


async def test_the_drain_is_sent_back_however_many_rounds_are_brought_back(
    cluster: stores.Cluster, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each round sends the drain back. Its place must never read as it did when the drain looked, or it commits."""
    folder = tmp_path_factory.mktemp("twice")
    async with open_city(cluster, folder, campaigns=[TWO_ROUNDS], shards=SHARDS) as city:
        rush = Rush(city, 1)
        async with drain_at_work(rush, monkeypatch) as go_on:
            await lose(city, 0)
            await publish_now(city)
            assert await city.valkey.client.exists(keys.round_key(0, 1), keys.round_key(0, 2)) == 2
            with pytest.raises(Broken):
                await go_on()
        await rush.is_all_won(0)
