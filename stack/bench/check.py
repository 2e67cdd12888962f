"""Was the run right? Every win that was told is in PostgreSQL, once, and no voucher too many."""

import asyncio
from collections.abc import Sequence
from time import monotonic

import sql
from issuer.keys import log_key
from stack.bench.drainer import Carried, Carry
from stack.bench.phases import Tell
from stack.bench.presign import Ground, ids_of
from stack.bench.world import World
from stack.errors import StackError

STALLED_AFTER_S = 30.0
LOOK_EVERY_S = 0.1

_queries = sql.load("bench")


async def carry_over(world: World, tell: Tell) -> None:
    """Drains the log until it is empty. No drain of another process may run."""
    tell(f"carrying wins into PostgreSQL, {await world.valkey.xlen(log_key(0)):,} log entries")
    drainer = await world.helper("drainer", role="hanquan_issuer")
    await drainer.ask(Carry(kind="drain", round_no=0), Carried)


async def carried_over(world: World) -> None:
    """Waits until the drain that runs has emptied the log. StackError when it stands still."""
    left, since = -1, monotonic()
    while now_left := int(await world.valkey.xlen(log_key(0))):
        if now_left != left:
            left, since = now_left, monotonic()
        if monotonic() - since > STALLED_AFTER_S:
            raise StackError(f"the drain stands still (log: {world.log('drain')})")
        await asyncio.sleep(LOOK_EVERY_S)


async def wrongs(world: World, told: Sequence[tuple[Ground, int]]) -> list[str]:
    """What does not add up between the wins that were told and the vouchers that are there; the log is empty."""
    found = [] if (await world.durability()).lasts else ["the stores answer before it lasts"]
    async with world.connection() as conn:
        for ground, wins in told:
            row = await conn.fetchrow(_queries["issued"], *ids_of(ground.round_no), timeout=600)
            assert row is not None
            found += _compare(ground, wins, row["vouchers"], row["people"])
    return found


def _compare(ground: Ground, wins: int, vouchers: int, people: int) -> list[str]:
    found = []
    if vouchers > ground.quantity:
        found.append(f"{ground.stock_id}: oversold by {vouchers - ground.quantity:,}")
    if vouchers != wins:
        found.append(f"{ground.stock_id}: {wins:,} wins were told, {vouchers:,} vouchers are there")
    if people != vouchers:
        found.append(f"{ground.stock_id}: {vouchers:,} vouchers went to {people:,} people")
    return found
