"""Move a stock through its life: draft, audit, scheduled (running while its round is open), paused, ended, closed."""

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any

import msgspec

from issuer import keys
from issuer.operator.budget import find
from issuer.operator.office import Office, no_such, published_alone, refused
from issuer.operator.shards import apply_adjustments, held_by_shards, show_states
from issuer.operator.store import Outcome, StockBook, StockRow, Verb
from kernel.errors import Code, Refusal
from kernel.postgres import Connection
from kernel.valkey import guard

SETTLE_WAIT_S = 0.5
"""How long a move waits for a publisher at work, to be sure that it does not write what it read before the move."""
DRAIN_WAIT_S = 5.0
DRAIN_LOOK_S = 0.1

STATE_ON_SHARDS = {"SCHEDULED": "RUN", "ENDED": "ENDED", "CLOSED": "ENDED"}
"""All others are held back."""


class Moved(msgspec.Struct, frozen=True, kw_only=True):
    """A stock that is where it should be. `replayed`: it was there before."""

    stock_id: str
    state: str
    replayed: bool


class CampaignMoved(msgspec.Struct, frozen=True, kw_only=True):
    """A campaign whose stocks were moved together, but for those that are over; `moved` now, the others before."""

    campaign_id: str
    state: str
    stocks: int
    moved: int


class StockDetail(msgspec.Struct, frozen=True, kw_only=True):
    """A stock with its history. `left`: what shards can still give out; None while none holds it."""

    stock: StockRow
    left: int | None
    moves: list[Mapping[str, Any]]
    edits: list[Mapping[str, Any]]


async def list_stocks(office: Office, campaign_id: str | None = None) -> list[StockRow]:
    """Every stock as it stands, or those of one campaign."""
    return await office.book.stocks(office.now, campaign_id)


async def show_stock(office: Office, stock_id: str) -> StockDetail | Refusal:
    """One stock with all that was done to it."""
    stock = await find(office, stock_id)
    if isinstance(stock, Refusal):
        return stock
    held = await held_by_shards(office.store, office.shards, [stock.stock_no])
    left = [one[stock.stock_no].left for one in held if stock.stock_no in one]
    moves, edits = await office.book.moves(stock.stock_no), await office.book.edits(stock.stock_no)
    return StockDetail(stock=stock, left=sum(left) if left else None, moves=moves, edits=edits)


async def move_stock(office: Office, stock_id: str, verb: Verb, why: str = "") -> Moved | Refusal:
    """Moves a stock: first in the books, then at once on every shard. When this returns nobody can claim from a stock
    that was paused or ended.

    STATE_CONFLICT when it cannot be done from here, RULE_LIMIT with SAME_PERSON or NO_REASON, SYSTEM_BUSY when wins
    are still on their way into the books of a stock to be closed. Raises StoreDown when a shard did not answer: the
    books are moved then, the publisher tells it, and the same call again answers the same."""
    stock = await find(office, stock_id)
    if isinstance(stock, Refusal):
        return stock
    if verb is Verb.CLOSE and stock.state == "ENDED" and not await is_drained(office, {stock.stock_no: "ENDED"}):
        return NOT_DRAINED
    moved = await office.book.move(stock.stock_no, verb, office.by, why, office.now)
    if moved.name not in ("MOVED", "REPLAYED"):
        return refused(moved)
    await _show(office, {stock.round_no}, {stock.stock_no: moved.value})
    state = (await office.book.stocks(office.now, stock_id=stock_id))[0].state
    return Moved(stock_id=stock_id, state=state, replayed=moved.name == "REPLAYED")


async def submit_campaign(conn: Connection, campaign_id: str, by: str, now: datetime) -> CampaignMoved | Refusal:
    """Submits every stock of a campaign for audit. One transaction, and part of the caller's if there is one."""
    return await _move_campaign(conn, campaign_id, Verb.SUBMIT, by, now)


async def approve_campaign(office: Office, campaign_id: str) -> CampaignMoved | Refusal:
    """Approves every stock of a campaign that waits for it: all, or none. Somebody else must have submitted them."""
    answer = await _move_campaign(office.conn, campaign_id, Verb.APPROVE, office.by, office.now)
    if isinstance(answer, CampaignMoved):
        rows = await office.book.stocks(office.now, campaign_id)
        await _show(office, {row.round_no for row in rows}, {})
    return answer


class _Undone(Exception):
    """Rolls back what was moved so far."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.detail)
        self.refusal = refusal


async def _move_campaign(
    conn: Connection, campaign_id: str, verb: Verb, by: str, now: datetime
) -> CampaignMoved | Refusal:
    book = StockBook(conn)
    every = await book.stocks(now, campaign_id)
    if not every:
        return no_such(f"campaign {campaign_id}")
    rows = [row for row in every if row.state not in ("ENDED", "CLOSED")]
    try:
        async with conn.transaction():
            outcomes = [await _move_one(book, row, verb, by, now) for row in rows]
    except _Undone as undone:
        return undone.refusal
    moved = sum(outcome.name == "MOVED" for outcome in outcomes)
    state = str(outcomes[0].value) if outcomes else "ENDED"
    return CampaignMoved(campaign_id=campaign_id, state=state, stocks=len(rows), moved=moved)


async def _move_one(book: StockBook, row: StockRow, verb: Verb, by: str, now: datetime) -> Outcome:
    outcome = await book.move(row.stock_no, verb, by, "", now)
    if outcome.name not in ("MOVED", "REPLAYED"):
        refusal = refused(outcome)
        raise _Undone(msgspec.structs.replace(refusal, detail=f"stock {row.stock_id}: {refusal.detail}"))
    return outcome


async def _show(office: Office, round_nos: set[int], states: Mapping[int, str]) -> None:
    """Tells the shards at once; and again when no publisher can be at work that read the books before the move."""
    on_shards = {no: STATE_ON_SHARDS.get(state, "PAUSED") for no, state in states.items()}
    await show_states(office.store, office.shards, on_shards)
    for round_no in round_nos:
        with suppress(TimeoutError):  # a round that is being rebuilt from the books: the publisher comes after it
            async with asyncio.timeout(SETTLE_WAIT_S), published_alone(office.conn, round_no):
                await apply_adjustments(office.conn, office.store, office.shards, round_no)


NOT_DRAINED = Refusal(
    code=Code.SYSTEM_BUSY, detail="wins are still on their way into the books", retry_after_s=int(DRAIN_WAIT_S)
)


async def is_drained(office: Office, states: Mapping[int, str]) -> bool:
    """Whether every win of stocks that are over is in the books; waits DRAIN_WAIT_S for it. The shards are told first
    that they are over, whatever their clocks say, so that no win comes after the look."""
    await show_states(office.store, office.shards, states)
    ends = {shard: end for shard in range(office.shards) if (end := await _log_end(office, shard))}
    with suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_WAIT_S):
            while await office.book.not_drained(ends):
                await asyncio.sleep(DRAIN_LOOK_S)
            return True
    return False


async def _log_end(office: Office, shard: int) -> str | None:
    """The newest entry of a shard's log; None when all of it was drained and cut."""
    newest = await guard(office.store.valkey.xrevrange(keys.log_key(shard), count=1))
    return newest[0][0].decode() if newest else None
