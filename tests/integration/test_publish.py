"""Rounds in Valkey: brought there in time, held back and let go, and rebuilt when the store lost them."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Sequence
from typing import Any

import asyncpg
import msgspec
import pytest

from antifraud.gate import GateLimits, SignalWriter
from issuer.carry import Load
from issuer.catalogue import Catalogue
from issuer.claim import ClaimDesk
from issuer.drain import Drain
from issuer.publish import Publisher
from issuer.rounds import deal, unpublished_round
from issuer.stock import StockStore
from kernel.errors import Broken, Code
from kernel.postgres import Connection
from stack.child import Child
from tests import stores
from tests.city import City, Reply, open_city
from tests.city_plan import NOON, a_campaign, a_round, a_stock, person

QUANTITY = 40
CITY = a_campaign("small", a_round("noon", NOON, a_stock("small", quantity=QUANTITY), a_stock("other")))
ROUND, STOCK = "{s0}:round:1", "{s0}:stock:1"


@pytest.fixture
async def city(cluster: stores.Cluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[City]:
    async with open_city(cluster, tmp_path_factory.mktemp("publish"), campaigns=[CITY]) as made:
        yield made


async def until(city: City, stock_id: str, code: Code | None, who: int, within_s: float = 30) -> Reply:
    """Asks, each time for somebody else, until the answer is this one."""
    for turn in range(int(within_s * 20)):
        reply = await city.claim(stock_id, person(who + turn))
        if reply.code == code:
            return reply
        await asyncio.sleep(0.05)
    raise AssertionError(f"{stock_id} never answered {code}, but {reply}")


async def lose_everything(city: City) -> Child:
    """Valkey is killed, its folder deleted, and an empty one started in its place."""
    city.valkey.child.kill()
    shutil.rmtree(city.valkey.server.data)
    await city.valkey.server.prepare()
    child = Child(city.valkey.server.program())
    await child.ready()
    await city.valkey.client.connection_pool.disconnect()  # the test's own; the services find out by themselves
    return child


@pytest.fixture
async def reborn(city: City) -> AsyncIterator[list[Child]]:
    """Children to be ended with the test."""
    children: list[Child] = []
    yield children
    for child in children:
        child.kill()


async def claim_all(city: City, people: Sequence[int], prefix: str) -> dict[int, Reply]:
    """One claim for each, under a number of its own."""
    return {n: await city.claim("small", person(n), number=f"{prefix}-{n:04}") for n in people}


async def store(city: City) -> tuple[StockStore, Publisher]:
    """A publisher of its own over the city's stores."""
    stock_store = StockStore(city.valkey.client, GateLimits())
    catalogue = await Catalogue.read(city.database.pool)
    desk = ClaimDesk(stock_store, city.codes, city.clock, SignalWriter(city.valkey.client), catalogue.shards)
    return stock_store, Publisher(city.database.pool, stock_store, desk, city.clock)


# ---------------------------------------------------------------- published, paused


async def test_many_workers_publish_a_round_once(city: City) -> None:
    await city.claim("small", person(1))
    await asyncio.gather(*(city.new_issuer() for _ in range(4)))
    assert await city.valkey.client.hget(STOCK, "left") == str(QUANTITY - 1).encode()
    assert (await city.claim("small", person(1))).code == Code.USER_ALREADY_CLAIMED


async def test_a_stock_is_paused_and_let_go_while_the_round_runs(city: City) -> None:
    won = await city.claim("small", person(1), number="before-1")
    await city.database.pool.execute("UPDATE stock SET state = 'PAUSED' WHERE stock_id = 'small'")
    await until(city, "small", Code.PAUSED, 100)
    assert (await city.claim("other", person(2))).status == 200
    assert (await city.claim("small", person(1), number="before-1")).body == won.body
    await city.database.pool.execute("UPDATE stock SET state = 'SCHEDULED' WHERE stock_id = 'small'")
    await until(city, "small", None, 200)


async def test_a_lone_pause_is_no_round(city: City) -> None:
    """A pause that comes while the store loses the round leaves a field behind; the round is still published."""
    stock_store, publisher = await store(city)
    await city.valkey.client.delete(ROUND, STOCK)
    await stock_store.set_states(0, {1: "PAUSED"})
    assert not await stock_store.is_published(0, 1)
    assert await stock_store.stocks(0, [1]) == {}
    assert (await city.claim("small", person(1))).code == Code.SYSTEM_BUSY
    await publisher.refresh()
    assert (await city.claim("small", person(1))).status == 200


# ---------------------------------------------------------------- lost and rebuilt


async def test_a_store_that_lost_all_is_rebuilt_while_the_service_runs(city: City, reborn: list[Child]) -> None:
    won = await claim_all(city, range(15), "first")
    await city.drain()
    reborn.append(await lose_everything(city))
    waiting = await city.claim("small", person(99), number="waiting-1")
    assert waiting.code in (None, Code.SYSTEM_BUSY)
    await until(city, "other", None, 500)
    # Who has won hears the same again, byte by byte; and nobody gets a second one.
    again = await claim_all(city, range(15), "first")
    assert {n: reply.body for n, reply in again.items()} == {n: reply.body for n, reply in won.items()}
    for n in range(15):
        assert (await city.claim("small", person(n))).code == Code.USER_ALREADY_CLAIMED
    # The rest of the stock is given out, and not one more.
    rest = await claim_all(city, range(1_000, 1_040), "second")
    codes = {reply.json["voucher_code"] for reply in (*won.values(), *rest.values()) if reply.status == 200}
    codes |= {waiting.json["voucher_code"]} if waiting.status == 200 else set()
    assert len(codes) == QUANTITY
    await city.drain()
    assert await issued(city) == QUANTITY


async def issued(city: City) -> int:
    """Vouchers of the small stock in PostgreSQL."""
    count: int = await city.fetchval("SELECT count(*) FROM voucher WHERE stock_no = 1")
    return count


async def test_control_a_round_published_afresh_is_issued_twice(
    city: City, reborn: list[Child], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the rebuild: people get a second voucher, more are out than there are, and in the end the
    ledger refuses to book them."""
    won = await claim_all(city, range(15), "first")
    await city.drain()
    # Whoever comes first publishes: here somebody who does not ask PostgreSQL what was given away.
    monkeypatch.setattr(Publisher, "refresh", _nothing)
    reborn.append(await lose_everything(city))
    stock_store, _ = await store(city)
    catalogue = await Catalogue.read(city.database.pool)
    fresh = unpublished_round(catalogue, catalogue.rounds[1], city.clock.offset_ms())
    await stock_store.publish(0, msgspec.structs.replace(fresh, stocks=deal(catalogue.stocks_of(1), 0, {0: {}}, {})))
    await until(city, "other", None, 500)
    second = await city.claim("small", person(0), number="second-0")
    assert second.status == 200, "one person has two"
    more = await claim_all(city, range(1_000, 1_000 + QUANTITY - 1), "second")
    assert all(reply.status == 200 for reply in more.values())
    assert len(won) + 1 + len(more) > QUANTITY
    with pytest.raises(asyncpg.CheckViolationError, match="not_overdrawn"):
        await city.drain()
    assert second.json["voucher_code"] != won[0].json["voucher_code"]


async def _nothing(*_: object) -> None:
    """Stands in for a step that a control leaves out."""


async def test_a_lost_win_never_becomes_somebody_elses_voucher(city: City, reborn: list[Child]) -> None:
    """Wins that were not drained are lost with the store. Their codes are out; they must stay nobody's."""
    await claim_all(city, range(3), "first")
    await city.drain()
    lost = await claim_all(city, range(100, 110), "lost")
    reborn.append(await lose_everything(city))
    await until(city, "other", None, 500)
    rest = await claim_all(city, range(1_000, 1_040), "second")
    serials = [_serial(city, reply) for reply in lost.values()]
    fresh = [_serial(city, reply) for reply in rest.values() if reply.status == 200]
    assert len(fresh) >= QUANTITY - 3 - 10
    assert min(fresh) > max(serials)


def _serial(city: City, reply: Reply) -> int:
    voucher_id = city.codes.decode(reply.json["voucher_code"])
    assert voucher_id is not None
    return voucher_id & ((1 << 28) - 1)


async def test_the_new_log_is_drained_even_if_the_new_store_lives_in_the_past(city: City, reborn: list[Child]) -> None:
    await claim_all(city, range(3), "first")
    await city.drain()
    await city.database.pool.execute("UPDATE drain_position SET position = '9999999999999-7'")
    reborn.append(await lose_everything(city))
    await until(city, "other", None, 500)
    won = await claim_all(city, range(10, 13), "second")
    assert [reply.status for reply in won.values()] == [200] * 3
    await asyncio.wait_for(city.drain(), 60)
    assert await issued(city) == 6


class Held(Drain):
    """A drain that stands still between its inserts and its commit."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.reached, self.go = asyncio.Event(), asyncio.Event()

    async def _store(self, conn: Connection, catalogue: Catalogue, load: Load, last: str) -> None:
        self.reached.set()
        await self.go.wait()
        await super()._store(conn, catalogue, load, last)


async def _drain_across_a_loss(city: City, reborn: list[Child]) -> asyncio.Task[int]:
    """Ten wins are read by a drain; before it commits the store loses all and the round is rebuilt."""
    signals = SignalWriter(city.valkey.client)
    held = Held(city.database.pool, city.valkey.client, signals, city.clock, 0)
    await claim_all(city, range(10), "first")

    async def drain() -> int:
        async with city.database.connection("hanquan_issuer") as conn:
            return await held.drain_once(conn)

    task = asyncio.create_task(drain())
    await asyncio.wait_for(held.reached.wait(), 60)
    reborn.append(await lose_everything(city))
    _, publisher = await store(city)
    await publisher.refresh()
    held.go.set()
    await asyncio.wait([task], timeout=60)
    return task


async def test_a_drain_that_is_at_work_when_the_store_is_lost_commits_nothing(city: City, reborn: list[Child]) -> None:
    task = await _drain_across_a_loss(city, reborn)
    assert isinstance(task.exception(), Broken)
    await claim_all(city, range(1_000, 1_000 + QUANTITY + 5), "second")
    await city.drain()
    assert await issued(city) == QUANTITY


async def test_control_a_drain_that_is_not_stopped_over_issues(
    city: City, reborn: list[Child], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Publisher, "_forget_lost_log", _nothing)
    task = await _drain_across_a_loss(city, reborn)
    assert task.result() == 10
    await claim_all(city, range(1_000, 1_000 + QUANTITY + 5), "second")
    await city.drain()
    assert await issued(city) > QUANTITY
