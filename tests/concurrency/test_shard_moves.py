"""A nearly empty stock on many shards, hammered from many processes: the last voucher can be claimed by anyone.

`fair` judges every run, as it does for one shard. The same judge finds the unsafe ways to move stock guilty.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from random import Random
from typing import Any

import pytest

from antifraud.gate import GateLimits
from issuer.moves import Fetched, Move, Moves, Wanted
from issuer.refill import UNSEEN_S
from issuer.stock import StockStore
from kernel.errors import Code
from kernel.partitions import partition_of, shard_of
from stack.audit.claim_store import read_stock_wins
from tests import stores
from tests.city import City, Reply, open_city
from tests.city_plan import NOON, a_campaign, a_round, a_stock, person
from tests.concurrency.test_stock_race import fair

SHARDS = 6
QUANTITY = 31
CITY = a_campaign("rush", a_round("noon", NOON, a_stock("rush", quantity=QUANTITY), a_stock("rest", quantity=500)))


@pytest.fixture
async def city(cluster: stores.Cluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[City]:
    async with open_city(cluster, tmp_path_factory.mktemp("moves"), campaigns=[CITY], shards=SHARDS) as made:
        yield made


async def left_of(city: City, stock_no: int = 1) -> int:
    """Units that are left anywhere, those on their way included."""
    store = StockStore(city.valkey.client, GateLimits())
    held = [await store.stocks(shard, [stock_no]) for shard in range(SHARDS)]
    on_the_way = [move.units for move in await store.moves.on_the_way(1, SHARDS) if move.stock_no == stock_no]
    return sum(stock[stock_no].left for stock in held) + sum(on_the_way)


def people_of(shard: int, count: int, start: int = 0) -> list[str]:
    """People who all live on one shard."""
    tokens = (person(n) for n in range(start, 1_000_000))
    return [token for token, _ in zip(_only(tokens, shard), range(count), strict=False)]


def _only(tokens: Any, shard: int) -> Any:
    return (token for token in tokens if shard_of(partition_of(bytes.fromhex(token)), SHARDS) == shard)


def crowd() -> list[str]:
    """Many people, nearly all of two shards: most of what they win must come from the others."""
    return people_of(3, 50) + people_of(4, 50) + [person(n) for n in range(20)]


# ---------------------------------------------------------------- the real thing


async def rush(city: City, services: Sequence[str], people: Sequence[str]) -> list[tuple[str, Reply]]:
    """Everybody clicks twice at once, each time under a new number and at another service."""

    async def click(citizen: int, turn: int) -> tuple[str, Reply]:
        who = people[citizen]
        service = services[(citizen + turn) % len(services)]
        return who, await city.claim("rush", who, number=f"click-{citizen:04}-{turn}", service=service)

    clicks = [(citizen, turn) for citizen in range(len(people)) for turn in range(2)]
    Random(7).shuffle(clicks)
    return await asyncio.gather(*(click(*each) for each in clicks))


async def test_the_last_vouchers_of_six_shards_from_three_processes(city: City) -> None:
    children = [city.process("issuer", "hanquan_issuer") for _ in range(2)]
    try:
        for child, _ in children:
            await child.ready()
        told = await rush(city, [city.issuer, *(url for _, url in children)], crowd())
    finally:
        for child, _ in children:
            child.kill()
    won = [(who, reply.json["voucher_code"]) for who, reply in told if reply.status == 200]
    fair(won, await left_of(city), QUANTITY)
    assert {reply.code for _, reply in told} == {None, Code.SOLD_OUT, Code.USER_ALREADY_CLAIMED}


async def test_people_of_one_shard_can_claim_all_there_is(city: City) -> None:
    people = people_of(3, QUANTITY + 5)
    replies = [await city.claim("rush", who) for who in people]
    assert [reply.code for reply in replies] == [None] * QUANTITY + [Code.SOLD_OUT] * 5
    assert await left_of(city) == 0
    # Wins and units agree in the audit's eyes, too, although all wins were on one shard.
    wins = await read_stock_wins(await _auditor(city), city.valkey.client)
    assert wins[1] == QUANTITY


async def _auditor(city: City) -> Any:
    return await city.stack.enter_async_context(city.database.connection("hanquan_auditor"))


@pytest.mark.parametrize("died_after", ["give", "take"])
async def test_a_move_that_nobody_finished_is_finished_by_the_next(city: City, died_after: str) -> None:
    """A worker dies between two steps: units are on their way, and no unit is lost or doubled."""
    moves = Moves(city.valkey.client)
    answer = await moves._give("{s0}", [1, 1, 3, 5])
    move = Move(0, 3, answer.decode())
    if died_after == "take":
        assert await moves._take("{s3}", [1, 0, move.seq, move.stock_no, move.units])
    assert move.units == 5
    assert await left_of(city) == QUANTITY
    # The same question is answered by the same move; and taking it twice is taking it once.
    assert await moves._give("{s0}", [1, 1, 3, 5]) == answer
    replies = [await city.claim("rush", who) for who in people_of(3, QUANTITY + 2)]
    assert Counter(reply.code for reply in replies) == {None: QUANTITY, Code.SOLD_OUT: 2}
    assert await moves.finish(1, move)
    assert await left_of(city) == 0


async def test_a_shard_that_cannot_be_seen_is_not_called_sold_out(city: City) -> None:
    """Its units may be the last ones: the answer is to come back, and it is true once the shard is there again."""
    people = people_of(3, QUANTITY + 3)
    wins = [await city.claim("rush", who) for who in people[:10]]
    assert {reply.status for reply in wins} == {200}
    valkey = city.valkey.client
    await valkey.rename("{s5}:stock:1", "{s5}:away")
    replies = [await city.claim("rush", who) for who in people]
    assert {reply.code for reply in replies[10:]} <= {None, Code.SYSTEM_BUSY}
    assert replies[-1].code == Code.SYSTEM_BUSY
    assert "Retry-After" in replies[-1].headers
    await valkey.rename("{s5}:away", "{s5}:stock:1")
    await asyncio.sleep(UNSEEN_S)
    again = [await city.claim("rush", who) for who in people]
    assert again[-1].code == Code.SOLD_OUT
    assert await left_of(city) == 0


# ---------------------------------------------------------------- unsafe controls


class Unrecorded(Moves):
    """Moves that are not recorded: taken away in one step, added in another, and nobody knows in between."""

    async def fetch(self, wanted: Wanted, taker: int, shards: int) -> Fetched:
        for giver in range(shards):
            left = int(await self._valkey.hget(f"{{s{giver}}}:stock:{wanted.stock_no}", "left") or 0)
            await asyncio.sleep(0.002)
            if giver != taker and left > 0:
                await self._valkey.hincrby(f"{{s{giver}}}:stock:{wanted.stock_no}", "left", -1)
                await asyncio.sleep(0.01)
                await self._valkey.hincrby(f"{{s{taker}}}:stock:{wanted.stock_no}", "left", 1)
                return Fetched.MOVED
        return Fetched.NOTHING


async def test_control_moves_that_are_not_recorded_are_found_guilty(
    city: City, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two workers look at one unit and both take it, or say sold out while one is on its way."""
    monkeypatch.setattr(Moves, "fetch", Unrecorded.fetch)
    services = [city.issuer, *[await city.new_issuer() for _ in range(3)]]
    told = await rush(city, services, crowd())
    won = [(who, reply.json["voucher_code"]) for who, reply in told if reply.status == 200]
    with pytest.raises(AssertionError, match=r"over-issued|yet|under-issued"):
        fair(won, await left_of(city), QUANTITY)


async def test_control_a_crash_between_two_steps_loses_units_when_nothing_remembers_them(city: City) -> None:
    """The same death as above, without the record of the move: the unit is gone."""
    await city.valkey.client.hincrby("{s0}:stock:1", "left", -5)
    replies = [await city.claim("rush", who) for who in people_of(3, QUANTITY + 2)]
    with pytest.raises(AssertionError, match=r"given, yet|under-issued"):
        won = [(str(n), reply.json["voucher_code"]) for n, reply in enumerate(replies) if reply.status == 200]
        fair(won, QUANTITY - len(won), QUANTITY)
