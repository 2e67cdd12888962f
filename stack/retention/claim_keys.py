"""Who won what in rounds that are over: some thirty bytes a win in the claim store.

They answer replays and hold people to their limits while a round is open. Afterwards the books know the same, and a
claim to a round that is over is refused by the round's window, which stays.
"""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack

from antifraud.gate import GateLimits
from issuer import keys
from issuer.operator.office import published_alone
from issuer.stock import StockStore
from kernel.valkey import guard
from stack.audit.claim_store import read_log_ends
from stack.retention.desk import Advance, Custodian, Done, Line, RoundRow, begin, end, queries, rounds

FAMILY, STEP, UNIT = "claim_keys", "CLAIM_KEYS", "rounds"
PAGE = 100
"""Buckets that one command removes."""


class ClaimKeys:
    """`{sN}:who`, `{sN}:req` and `{sN}:cap`. A round's window and stock stay: a few hundred bytes, nobody's name."""

    async def look(self, desk: Custodian) -> Line:
        closed = await _closed(desk)
        due = _due(desk, closed)
        return Line(
            family=FAMILY,
            where="Valkey {sN}:who, req, cap",
            rule=f"{desk.keep_days[FAMILY]} days after the round closed, once all of it is in the books",
            unit=UNIT,
            items=len(closed),
            oldest=min((one.closes_at for one in closed), default=None),
            due=len(due),
            blocked=[f"{one.name}: {why}" for one in due if (why := await blocked_by(desk, one))],
        )

    async def apply(self, desk: Custodian, advance: Advance) -> Done:
        removed, blocked = 0, list[str]()
        for one in _due(desk, await _closed(desk)):
            why = await self._forget(desk, one, advance)
            if why is None:
                removed += 1
            else:
                blocked.append(f"{one.name}: {why}")
        return Done(family=FAMILY, unit=UNIT, items=removed, blocked=blocked)

    async def _forget(self, desk: Custodian, round_: RoundRow, advance: Advance) -> str | None:
        """Alone with the round: nobody publishes it, or brings it back, meanwhile."""
        of_campaign = [one for one in await rounds(desk) if one.campaign_no == round_.campaign_no]
        async with AsyncExitStack() as exits:
            await exits.enter_async_context(published_alone(desk.conn, *(one.round_no for one in of_campaign)))
            why = await blocked_by(desk, round_)
            if why is None:
                await begin(desk, round_.round_no, STEP)
                removed = await remove_keys(desk, round_.round_no, advance)
                others = [one for one in of_campaign if one.round_no != round_.round_no]
                if round_.is_capped and all(STEP in one.done for one in others):
                    removed += await _remove_caps(desk, round_.campaign_no, advance)
                await end(desk, round_.round_no, STEP, items=removed)
        return why


async def blocked_by(desk: Custodian, round_: RoundRow) -> str | None:
    """Why the claim store must not forget a round yet: not all it knows of it is in the books."""
    ends = await read_log_ends(desk.conn, desk.valkey)
    behind = await desk.conn.fetch(queries["not_drained"], list(ends), list(ends.values()))
    if behind:
        return f"the drain has not read the log of shard {behind[0]['shard']} to its end"
    issued = {row["stock_no"]: row["issued"] for row in await desk.conn.fetch(queries["issued"], round_.round_no)}
    store = StockStore(desk.valkey, GateLimits())
    held = [await store.left(shard, round_.round_no, list(issued)) is not None for shard in range(desk.shards)]
    if all(held):
        wins = await _wins(store, desk.shards, list(issued))
        return next(
            (f"stock {no}: {wins[no]} wins, {issued[no]} in the books" for no in issued if wins[no] != issued[no]), None
        )
    if any(held) and desk.now < round_.campaign_ends_at:
        return f"shard {held.index(False)} has lost it, and is about to be given it back"
    return None


async def _wins(store: StockStore, shards: int, stock_nos: Sequence[int]) -> Mapping[int, int]:
    parts = [await store.stocks(shard, stock_nos) for shard in range(shards)]
    return {no: sum(part[no].allotted - part[no].left for part in parts if no in part) for no in stock_nos}


async def remove_keys(desk: Custodian, round_no: int, advance: Advance) -> int:
    """Removes what people won in a round from every shard; how many keys that were."""
    removed = 0
    for shard in range(desk.shards):
        buckets = await guard(desk.valkey.hget(keys.round_key(shard, round_no), "hash_buckets"))
        total = int(buckets or 0)
        for start in range(0, total, PAGE):
            page = range(start, min(start + PAGE, total))
            names = [name for bucket in page for name in keys.keys_of_bucket(shard, round_no, bucket)]
            removed += await _unlink(desk, names)
            advance(shard * total + page.stop, desk.shards * total)
    return removed


async def _remove_caps(desk: Custodian, campaign_no: int, advance: Advance) -> int:
    removed = 0
    for shard in range(desk.shards):
        for start in range(0, keys.CAP_BUCKETS, PAGE):
            page = range(start, min(start + PAGE, keys.CAP_BUCKETS))
            removed += await _unlink(desk, [keys.caps_of_bucket(shard, campaign_no, bucket) for bucket in page])
            advance(shard * keys.CAP_BUCKETS + page.stop, desk.shards * keys.CAP_BUCKETS)
        await _unlink(desk, [keys.capped_key(shard, campaign_no)])
    return removed


async def _unlink(desk: Custodian, names: Sequence[str]) -> int:
    removed = int(await guard(desk.valkey.unlink(*names)))
    await asyncio.sleep(0)  # claims of other rounds come first
    return removed


async def _closed(desk: Custodian) -> list[RoundRow]:
    return [one for one in await rounds(desk) if STEP not in one.done and one.closes_at <= desk.now]


def _due(desk: Custodian, closed: Sequence[RoundRow]) -> list[RoundRow]:
    return [one for one in closed if one.closes_at < desk.edge(FAMILY)]
