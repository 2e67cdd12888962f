"""Processes and stores are killed, stopped and brought back while claims go on.

Clients keep a log of what they asked and what they were told. Afterwards everything they do not know is
asked again, and `Log.settle` holds what is written against what was said. It must find the controls guilty.
"""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from random import Random
from time import monotonic

import aiohttp
import pytest

from kernel.errors import Code
from redemption.checkout import DEADLINE_S
from stack.child import Child
from tests import stores
from tests.city import City, Reply, open_city
from tests.city_plan import NOON, a_campaign, a_round, a_stock, person

QUANTITY = 20_000
CITY = a_campaign("storm", a_round("noon", NOON, a_stock("storm", quantity=QUANTITY)))
KILLS = 20
STREAM = "{s0}:log"


@asynccontextmanager
async def storm(
    cluster: stores.Cluster, folder: Path, valkey_settings: Mapping[str, str] | None = None
) -> AsyncIterator[City]:
    """A city with one large stock."""
    async with open_city(cluster, folder, campaigns=[CITY], valkey_settings=valkey_settings) as city:
        yield city


class Log:
    """What the clients asked and what they were told."""

    def __init__(self, city: City) -> None:
        self._city = city
        self._asked = 0
        self._stopping = False
        self.won: dict[int, str] = {}
        self.unknown: list[int] = []
        self.slowest_s = 0.0

    async def ask(self, citizen: int) -> None:
        """One claim; the answer, or that it is not known, is written down."""
        started = monotonic()
        try:
            reply = await self._city.claim("storm", person(citizen), number=f"storm-{citizen:06}")
        except aiohttp.ClientError:
            self.unknown.append(citizen)
            return
        self.slowest_s = max(self.slowest_s, monotonic() - started)
        if reply.status == 200:
            self.won[citizen] = reply.json["voucher_code"]
        else:
            assert reply.code == Code.SYSTEM_BUSY, reply
            assert reply.json["retry"] == "SAFE"
            self.unknown.append(citizen)
            await asyncio.sleep(0.02)

    async def _ask_until_known(self) -> None:
        """A connection that broke may be found out only now: SYSTEM_BUSY is an answer still."""
        for _ in range(50):
            unknown, self.unknown = self.unknown, []
            for citizen in unknown:
                await self.ask(citizen)
            if not self.unknown:
                return
        raise AssertionError(f"{len(self.unknown)} are not known")

    @asynccontextmanager
    async def claims_go_on(self, clients: int = 4) -> AsyncIterator[None]:
        """Clients claim, each for one citizen after the other, as long as the block lasts."""

        async def client() -> None:
            while not self._stopping:
                self._asked += 1
                await self.ask(self._asked)

        self._stopping = False
        tasks = [asyncio.create_task(client()) for _ in range(clients)]
        try:
            yield
        finally:
            self._stopping = True
            await asyncio.gather(*tasks)

    async def settle(self) -> None:
        """Asks what is not known, drains, and compares: every win once, with the code that was told."""
        await self._ask_until_known()
        assert len(self.won) == self._asked
        told = dict(self.won)
        self.unknown = Random(5).sample(sorted(told), min(40, len(told)))
        await self._ask_until_known()
        assert self.won == told, "a replay brings another code"
        await self._city.drain()
        rows = await self._city.database.pool.fetch("SELECT voucher_id, out_request_no FROM voucher")
        written = {row["out_request_no"]: self._city.codes.encode(row["voucher_id"]) for row in rows}
        assert len(written) == len(rows), "one number, two vouchers"
        assert written == {f"storm-{citizen:06}": code for citizen, code in self.won.items()}, "lost or changed wins"
        booked = await self._city.database.pool.fetchrow(
            "SELECT sum(items) AS items, sum(amount_fen) AS fen FROM transfer WHERE kind = 'ISSUE'"
        )
        assert booked is not None and tuple(booked) == (len(rows), 2_000 * len(rows))
        assert await self._city.valkey.client.xlen(STREAM) == 0


# ---------------------------------------------------------------- the drain is killed


async def test_the_drain_is_killed_again_and_again(
    cluster: stores.Cluster, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """SIGKILL at random moments of the real process, while it works: each voucher once, and it catches up."""
    random = Random(3)
    async with storm(cluster, tmp_path_factory.mktemp("kill")) as city:
        log = Log(city)
        drained = [0]
        async with log.claims_go_on():
            # Starting takes a second: the next one starts while this one is still to be killed.
            child, _ = city.process("issuer.drain", "hanquan_issuer")
            for _ in range(KILLS):
                following, _ = city.process("issuer.drain", "hanquan_issuer")
                await _until_more_is_drained(city, drained)
                await asyncio.sleep(random.uniform(0, 0.05))
                assert child.kill() == -signal.SIGKILL
                child = following
            child.kill()
        assert drained[-1] > 0
        await log.settle()


async def _until_more_is_drained(city: City, drained: list[int]) -> None:
    for _ in range(3_000):
        count = await city.fetchval("SELECT count(*) FROM transfer WHERE kind = 'ISSUE'")
        if count > drained[-1]:
            drained.append(count)
            return
        await asyncio.sleep(0.02)
    raise AssertionError("nobody drains")


# ---------------------------------------------------------------- Valkey is killed


async def _kill_valkey_under_load(city: City, log: Log, children: list[Child]) -> None:
    async with log.claims_go_on():
        for _ in range(3):
            await asyncio.sleep(0.3)
            children[-1].kill()
            await asyncio.sleep(0.1)
            children.append(Child(city.valkey.server.program()))
            await children[-1].ready()
        await asyncio.sleep(0.3)
    await city.valkey.client.connection_pool.disconnect()


@contextmanager
def ended_with_the_test(city: City) -> Iterator[list[Child]]:
    """Valkeys, one after the other."""
    children = [city.valkey.child]
    try:
        yield children
    finally:
        for child in children:
            child.kill()


async def test_valkey_is_killed_and_no_win_is_lost(
    cluster: stores.Cluster, tmp_path_factory: pytest.TempPathFactory
) -> None:
    async with storm(cluster, tmp_path_factory.mktemp("valkey")) as city:
        log = Log(city)
        with ended_with_the_test(city) as children:
            await _kill_valkey_under_load(city, log, children)
            assert log.unknown, "it was never away"
            await log.settle()


async def test_control_without_a_log_on_disk_wins_are_lost(
    cluster: stores.Cluster, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """(A kill does not test the fsync itself, because the page cache survives it.)"""
    async with storm(cluster, tmp_path_factory.mktemp("valkey"), {"appendonly": "no"}) as city:
        log = Log(city)
        with ended_with_the_test(city) as children:
            await _kill_valkey_under_load(city, log, children)
            with pytest.raises(AssertionError, match=r"another code|lost or changed"):
                await log.settle()


# ---------------------------------------------------------------- PostgreSQL stops answering


@contextmanager
def stopped(cluster: stores.Cluster) -> Iterator[None]:
    """PostgreSQL with all its processes stands still inside the block."""
    pids = _family(cluster.child.pid)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in reversed(pids):
            os.kill(pid, signal.SIGCONT)


def _family(pid: int) -> Sequence[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    return [pid, *(each for child in children for each in _family(int(child)))]


async def test_postgresql_stands_still(cluster: stores.Cluster, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Claims go on, tills are told in time to come again, and everything is carried over afterwards."""
    async with storm(cluster, tmp_path_factory.mktemp("still")) as city:
        log = Log(city)
        await log.ask(0)
        log.won.clear()
        await city.drain()
        code = city.codes.encode(await city.fetchval("SELECT voucher_id FROM voucher"))
        child, _ = city.process("issuer.drain", "hanquan_issuer")
        await child.ready()
        try:
            with stopped(cluster):
                async with log.claims_go_on(2):
                    replies = await asyncio.gather(
                        *(_late(_till(city, code, n), n) for n in range(6)),
                        _late(city.call(city.redemption, "NOODLES", "GET", "/v1/redemptions/still-0000")),
                        _late(city.call(city.issuer, "wechat", "GET", f"/v1/vouchers/{code}")),
                    )
                assert len(log.won) > 20, "claims went on"
                assert not log.unknown
                assert log.slowest_s < 5
            for reply, waited_s in replies:
                assert reply.code == Code.SYSTEM_BUSY
                assert reply.headers["Retry-After"] == "1"
                assert waited_s < DEADLINE_S * 1.1 + 5
            again = await _till(city, code, 0)
            assert again.status == 200, again
            assert await city.fetchval("SELECT count(*) FROM redemption") == 1
            await _until_the_log_is_empty(city)
        finally:
            child.kill()
        log.won[0] = code
        log._asked += 1
        await log.settle()


async def _till(city: City, code: str, n: int) -> Reply:
    return await city.redeem("NOODLES", code, number=f"still-{n:04}", order=f"still-{n:04}")


async def _late(asking: Awaitable[Reply], turn: int = 0) -> tuple[Reply, float]:
    """One request, a moment after the other; its answer and how long it waited."""
    await asyncio.sleep(turn * 0.2)
    started = monotonic()
    return await asking, monotonic() - started


async def _until_the_log_is_empty(city: City) -> None:
    for _ in range(1_200):
        if await city.valkey.client.xlen(STREAM) == 0:
            return
        await asyncio.sleep(0.05)
    raise AssertionError("the drain did not come back")
