"""Operators in tests: a campaign with room in its budgets, and a seat at the stores of a city."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta

import msgspec

from antifraud.gate import GateLimits
from issuer.campaign.model import Round
from issuer.drain import Drain
from issuer.keys import log_key
from issuer.operator.office import Office
from issuer.operator.store import StockBook, StockRow
from issuer.stock import StockStore
from kernel.valkey import open_valkey
from tests.city import City
from tests.city_plan import FACE, NOON, a_campaign, a_round, a_stock

LI, WANG = "Li Na", "Wang Wei"
ROOM = 500
"""Vouchers that each round's budget would pay for beyond its stocks."""
QUANTITY = 100


def roomy(round_: Round, units: int = ROOM) -> Round:
    """A round whose budget is larger than its stocks."""
    return msgspec.structs.replace(round_, budget_fen=round_.budget_fen + units * FACE)


def a_life(first: datetime = NOON, quantity: int = QUANTITY) -> Sequence[Round]:
    """Two rounds of the same stocks a week apart, and in the first one that the second lacks."""
    dining = [a_stock(f"life_r{n}_dining", quantity=quantity) for n in (1, 2)]
    mall = [a_stock(f"life_r{n}_mall", category_id="mall", quantity=40) for n in (1, 2)]
    return (
        roomy(a_round("r1", first, dining[0], mall[0], a_stock("life_r1_alipay", "alipay", quantity=10))),
        roomy(a_round("r2", first + timedelta(days=8), dining[1], mall[1])),
    )


LIFE = a_campaign("life", *a_life(), limit=9)


@asynccontextmanager
async def office(city: City, by: str = LI) -> AsyncIterator[Office]:
    """An operator with a connection of their own."""
    valkey = open_valkey(city.valkey.url)
    try:
        async with city.database.connection("hanquan_operator") as conn:
            shards = await StockBook(conn).shards()
            store = StockStore(valkey, GateLimits())
            yield Office(conn=conn, store=store, shards=shards, by=by, now=city.clock.now())
    finally:
        await valkey.aclose()


async def row_of(desk: Office, stock_id: str) -> StockRow:
    """A stock as it stands in the books."""
    (row,) = await desk.book.stocks(desk.now, stock_id=stock_id)
    return row


async def left_of(desk: Office, stock_id: str) -> int:
    """What all shards have left of a stock."""
    row = await row_of(desk, stock_id)
    held = [await desk.store.stocks(shard, [row.stock_no]) for shard in range(desk.shards)]
    return sum(one[row.stock_no].left for one in held)


async def drains_of(city: City) -> list[Drain]:
    """A drain for every shard."""
    return [await city.new_drain(shard) for shard in range(await city.fetchval("SELECT shards FROM city"))]


async def drain_all(city: City, drains: Sequence[Drain] = ()) -> None:
    """Carries the wins of every shard into the books."""
    for shard, drain in enumerate(drains or await drains_of(city)):
        async with city.database.connection("hanquan_issuer") as conn:
            while await city.valkey.client.xlen(log_key(shard)):
                await drain.drain_once(conn)
