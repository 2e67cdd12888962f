"""The drain, step by step: exactly once, in one transaction, whatever breaks between two steps."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256
from typing import Any

import asyncpg
import pytest

from antifraud.gate import SignalWriter
from issuer.drain import Drain
from issuer.keys import log_key
from kernel.errors import Broken
from kernel.ids import unpack_voucher_id
from kernel.partitions import bucket_of, partition_of, shard_of
from kernel.postgres import Connection
from kernel.tasks import running
from tests import stores
from tests.city import City, open_city, unchanged
from tests.city_plan import NOON, a_campaign, a_round, a_stock, person

LOG = log_key(0)


@pytest.fixture
async def city(cluster: stores.Cluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[City]:
    async with open_city(cluster, tmp_path_factory.mktemp("drain")) as made:
        yield made


async def win(city: City, count: int, start: int = 0, stock_id: str = "dining") -> dict[str, str]:
    """Claims, not drained; code by person."""
    people = [person(n) for n in range(start, start + count)]
    replies = await asyncio.gather(*(city.claim(stock_id, who) for who in people))
    return {who: reply.json["voucher_code"] for who, reply in zip(people, replies, strict=True)}


async def written(city: City) -> dict[str, str]:
    """Vouchers in PostgreSQL: code by person."""
    rows = await city.database.pool.fetch("SELECT voucher_id, replace(person::text, '-', '') AS person FROM voucher")
    return {row["person"]: city.codes.encode(row["voucher_id"]) for row in rows}


async def until_written(city: City, count: int) -> None:
    """Waits until so many vouchers are in PostgreSQL."""
    async with asyncio.timeout(30):
        while len(await written(city)) < count:
            await asyncio.sleep(0.05)


async def assert_booked(city: City) -> None:
    """The ISSUE transfers stand for the vouchers: each bucket and campaign, in number, money and by hash."""
    rows = await city.database.pool.fetch(
        """
        SELECT * FROM (SELECT bucket, campaign_no, sum(items) AS items, sum(amount_fen) AS fen
                         FROM transfer WHERE kind = 'ISSUE' GROUP BY bucket, campaign_no) AS booked
          FULL JOIN (SELECT bucket, campaign_no, count(*) AS vouchers, sum(funded_fen) AS funded_fen
                       FROM voucher JOIN stock USING (stock_no) JOIN round USING (round_no)
                      GROUP BY bucket, campaign_no) AS there USING (bucket, campaign_no)
        """
    )
    assert all((row["items"], row["fen"]) == (row["vouchers"], row["funded_fen"]) for row in rows), rows
    assert sum(row["vouchers"] for row in rows) == await city.fetchval("SELECT count(*) FROM voucher")
    issued = await city.fetchval("SELECT sum(balance_fen)::bigint FROM balance WHERE kind = 'ISSUED'")
    assert issued == sum(row["funded_fen"] for row in rows)


# ---------------------------------------------------------------- carried over


async def test_wins_become_vouchers_once_each_with_the_code_that_was_answered(city: City) -> None:
    won = await win(city, 50)
    won_other = await win(city, 20, stock_id="returning")
    assert await city.drain() == 70
    rows = await city.database.pool.fetch("SELECT * FROM voucher")
    assert {city.codes.encode(row["voucher_id"]) for row in rows} == {*won.values(), *won_other.values()}
    for row in rows:
        parts = unpack_voucher_id(row["voucher_id"])
        assert parts.partition == partition_of(row["person"].bytes)
        assert row["bucket"] == bucket_of(parts.partition, 2)
    assert {row["bucket"] for row in rows} == {0, 1}
    await assert_booked(city)
    async with unchanged(city):
        assert await city.drain() == 0


async def test_a_chunks_hash_names_its_vouchers(city: City) -> None:
    await win(city, 30)
    await city.drain()
    for row in await city.database.pool.fetch("SELECT bucket, items, items_hash FROM transfer WHERE kind = 'ISSUE'"):
        ids = await city.database.pool.fetch(
            "SELECT voucher_id FROM voucher WHERE bucket = $1 ORDER BY voucher_id", row["bucket"]
        )
        assert row["items"] == len(ids)
        assert row["items_hash"] == sha256(b"".join(each["voucher_id"].to_bytes(8) for each in ids)).digest()


async def test_the_log_is_cut_only_behind_the_position(city: City) -> None:
    await win(city, 5)
    await city.drain()
    valkey = city.valkey.client
    assert await valkey.xlen(LOG) == 0
    position = await city.fetchval("SELECT position FROM drain_position")
    assert position == (await valkey.xinfo_stream(LOG))["last-generated-id"].decode()
    await win(city, 5, start=5)
    assert await valkey.xlen(LOG) > 0
    assert await city.drain() == 5


async def test_a_long_log_is_drained_by_chunks(city: City) -> None:
    for n in range(70):  # one entry each
        await city.claim("dining", person(n))
    drain = city.drainer
    assert drain is not None
    async with city.database.connection("hanquan_issuer") as conn:
        assert [await drain.drain_once(conn) for _ in range(2)] == [64, 6]
    await assert_booked(city)


# ---------------------------------------------------------------- two at once


async def test_one_drain_leads_and_another_takes_over_when_it_goes(city: City) -> None:
    leaders = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND classid = 4818 AND granted"
    async with running((await city.new_drain()).run()):
        async with running((await city.new_drain()).run()):
            async with asyncio.timeout(30):
                while not await city.fetchval(leaders):
                    await asyncio.sleep(0.05)
            await asyncio.sleep(0.1)
            assert await city.fetchval(leaders) == 1
            won = await win(city, 10)
        won |= await win(city, 10, start=10)
        await until_written(city, 20)
    assert await written(city) == won
    await assert_booked(city)


async def test_two_that_both_think_they_lead_write_once(city: City) -> None:
    """No lock at all between them: the position and the keys decide, and the loser rolls back whole."""
    won = await win(city, 40)
    drains = [await city.new_drain() for _ in range(4)]

    async def drain(each: Drain) -> int | str:
        async with city.database.connection("hanquan_issuer") as conn:
            try:
                return await each.drain_once(conn)
            except (Broken, asyncpg.UniqueViolationError) as error:
                return type(error).__name__

    outcomes = await asyncio.gather(*(drain(each) for each in drains))
    assert sum(outcome for outcome in outcomes if isinstance(outcome, int)) == 40
    assert await written(city) == won
    await assert_booked(city)


async def test_a_drain_whose_position_was_moved_commits_nothing(city: City) -> None:
    await win(city, 3)
    drain = await city.new_drain()
    async with city.database.connection("hanquan_issuer") as conn:
        position = await drain._position(conn)
        await conn.execute("UPDATE drain_position SET position = '1-1'")

        async def stale(conn: Connection) -> str:
            return position

        drain._position = stale  # type: ignore[method-assign]
        async with unchanged(city):
            with pytest.raises(Broken):
                await drain.drain_once(conn)


async def test_no_entry_of_the_log_can_end_the_drain(city: City) -> None:
    """What cannot be read is told and waited for; the drain goes on as soon as it is mended."""
    poison = await city.valkey.client.xadd(LOG, {"w": b"nonsense"})
    async with running((await city.new_drain()).run()):
        won = await win(city, 5)
        await asyncio.sleep(0.3)
        assert await written(city) == {}
        await city.valkey.client.xdel(LOG, poison)
        await until_written(city, 5)
    assert await written(city) == won


# ---------------------------------------------------------------- stopped at every step


class Stopped(Exception):
    """The drain was stopped here, as a power cut would."""


class Fuse:
    """Burns once before and once after each call to a store; when it is burnt down the connection is cut."""

    def __init__(self, length: int, conn: "asyncpg.Connection[Any]") -> None:
        self._left, self._conn = length, conn

    def burn(self) -> None:
        if self._left == 0:
            self._conn.terminate()
            raise Stopped
        self._left -= 1


class Fused:
    """A store whose every call burns a fuse."""

    def __init__(self, real: Any, fuse: Fuse) -> None:
        self._real, self._fuse = real, fuse

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._real, name)

        async def burning(*args: Any, **options: Any) -> Any:
            self._fuse.burn()
            answer = await call(*args, **options)
            self._fuse.burn()
            return answer

        return burning

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        """Burns before and after BEGIN, and before and after COMMIT: in between its outcome is not known."""
        transaction = self._real.transaction()
        self._fuse.burn()
        await transaction.start()
        self._fuse.burn()
        yield
        self._fuse.burn()
        await transaction.commit()
        self._fuse.burn()


async def test_a_drain_stopped_at_any_step_leaves_each_voucher_once(city: City) -> None:
    """At each step in turn the connection is cut and the drain never goes on; the next one carries on."""
    won: dict[str, str] = {}
    valkey = city.valkey.client
    for length in range(200):
        won |= await win(city, 3, start=3 * length)
        conn = await asyncpg.connect(city.database.dsn("hanquan_issuer"))
        fuse = Fuse(length, conn)
        drain = Drain(city.database.pool, Fused(valkey, fuse), SignalWriter(valkey), city.clock, 0)  # type: ignore[arg-type]
        try:
            await drain.drain_once(Fused(conn, fuse))  # type: ignore[arg-type]
            await conn.close()
            break
        except Exception as error:  # Stopped, or what the driver says when reading ahead cuts it in mid-command
            assert conn.is_closed(), error
    assert 16 <= length < 40, f"{length} steps were tried"
    await city.drain()
    assert await written(city) == won
    await assert_booked(city)


# ---------------------------------------------------------------- over shards


async def test_one_number_for_two_people_on_two_shards_is_told(
    cluster: stores.Cluster, tmp_path_factory: pytest.TempPathFactory
) -> None:
    campaign = a_campaign("shards", a_round("noon", NOON, a_stock("shards", quantity=100)))
    folder = tmp_path_factory.mktemp("shards")
    async with open_city(cluster, folder, shards=2, campaigns=[campaign]) as city:
        people = [person(n) for n in range(50)]
        here = next(who for who in people if shard_of(partition_of(bytes.fromhex(who)), 2) == 0)
        there = next(who for who in people if shard_of(partition_of(bytes.fromhex(who)), 2) == 1)
        replies = [await city.claim("shards", who, number="clash-1") for who in (here, there)]
        assert [reply.status for reply in replies] == [200, 200]
        await city.claim("shards", people[-1], number="alone-1")
        for shard in (1, 0):
            drain = await city.new_drain(shard)
            async with city.database.connection("hanquan_issuer") as conn:
                await drain.drain_once(conn)
        [clash] = await city.database.pool.fetch("SELECT * FROM request_clash")
        ids = sorted(city.codes.decode(reply.json["voucher_code"]) or 0 for reply in replies)
        assert (clash["out_request_no"], [clash["first_voucher"], clash["second_voucher"]]) == ("clash-1", ids)
