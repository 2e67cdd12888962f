"""Brings what shards hold of a round's stocks up to what the books say: states, and adjustments not yet applied.

Whoever calls these holds the lock of the round (4822), so that nobody writes what they read before another's change.
"""

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence

import structlog

import sql
from issuer.stock import StockOnShard, StockStore
from kernel.errors import StoreDown
from kernel.postgres import Connection

_queries = sql.load("stock_life")
log = structlog.get_logger()

Held = Mapping[int, StockOnShard]
"""What a shard holds, by stock number."""


async def apply_adjustments(conn: Connection, store: StockStore, shards: int, round_no: int) -> None:
    """Brings every shard that holds a round up to the books. Does nothing, at the price of two short queries and a
    look at each shard, when nothing is missing. A shard that does not hold a stock is passed over: it gets the newest
    numbers when it is published. One that is away keeps nobody from the others; then StoreDown is raised."""
    wanted = {row["stock_no"]: row["state"] for row in await conn.fetch(_queries["wanted_of_round"], round_no)}
    last: dict[int, dict[int, int]] = defaultdict(dict)
    for row in await conn.fetch(_queries["last_adjustments"], round_no):
        last[row["shard"]][row["stock_no"]] = row["adjust_no"]
    away: StoreDown | None = None
    for shard in range(shards):
        try:
            await _bring_up(conn, store, shard, wanted, last[shard])
        except StoreDown as error:
            away = error
    if away is not None:
        raise away


async def _bring_up(
    conn: Connection, store: StockStore, shard: int, wanted: Mapping[int, str], last: Mapping[int, int]
) -> None:
    held = await store.stocks(shard, list(wanted))
    await _show_states(store, shard, held, wanted)
    for stock_no, adjust_no in last.items():
        if stock_no in held and held[stock_no].adjusted < adjust_no:
            await _catch_up(conn, store, shard, stock_no, held[stock_no].adjusted)


async def _show_states(store: StockStore, shard: int, held: Held, wanted: Mapping[int, str]) -> None:
    states = {no: wanted[no] for no, stock in held.items() if stock.state != wanted[no]}
    if states:
        await store.set_states(shard, states)
        log.info("stock_states_shown", shard=shard, states=states)


async def _catch_up(conn: Connection, store: StockStore, shard: int, stock_no: int, adjusted: int) -> None:
    for row in await conn.fetch(_queries["adjustments_after"], stock_no, shard, adjusted):
        applied = await store.adjust(shard, stock_no, row["adjust_no"], row["applied"])
        words = {"stock_no": stock_no, "shard": shard, "adjust_no": row["adjust_no"], "applied": applied}
        if applied == row["applied"]:
            log.info("stock_adjusted", **words)
        else:  # a store that lost what it had acknowledged: units taken back were sold again
            log.error("stock_not_adjusted", wanted=row["applied"], **words)


async def show_states(store: StockStore, shards: int, states: Mapping[int, str]) -> None:
    """Tells every shard that holds these stocks at once how they stand. Each shard is told whatever becomes of the
    others; then the first failure is raised."""
    told = await asyncio.gather(*(_tell(store, shard, states) for shard in range(shards)), return_exceptions=True)
    for failure in told:
        if isinstance(failure, BaseException):
            raise failure


async def _tell(store: StockStore, shard: int, states: Mapping[int, str]) -> None:
    await _show_states(store, shard, await store.stocks(shard, list(states)), states)


async def held_by_shards(store: StockStore, shards: int, stock_nos: Sequence[int]) -> list[Held]:
    """What each shard holds of some stocks."""
    return [await store.stocks(shard, stock_nos) for shard in range(shards)]


def plan_of(left: Mapping[int, int], units: int) -> dict[int, int]:
    """What to take from each shard so that `units` come back and what stays is spread evenly: the richest give first.

    Less than `units` in all when there is less."""
    stays = max(0, sum(left.values()) - units)
    plan = {}
    for rank, (shard, have) in enumerate(sorted(left.items(), key=lambda item: item[1])):
        keeps = min(have, stays // (len(left) - rank))
        stays -= keeps
        if have > keeps:
            plan[shard] = have - keeps
    return plan
