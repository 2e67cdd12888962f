"""An operator at work: what every use case needs, and the words for a refusal."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime

import msgspec

import sql
from issuer.operator.store import Outcome, StockBook
from issuer.stock import StockStore
from kernel.errors import Code, Refusal
from kernel.postgres import Connection

LOCK_WAIT_S = 10.0
"""A round whose store is being rebuilt from the books is locked for as long as that takes; whoever waits gives up."""
WHY_LENGTH_MAX = 500

_queries = sql.load("stock_life")

_CODES = {
    "UNKNOWN_STOCK": Code.RESOURCE_NOT_EXISTS,
    "STATE_CONFLICT": Code.STATE_CONFLICT,
    "NOT_SUBMITTED": Code.STATE_CONFLICT,
    "NOT_ENDED": Code.STATE_CONFLICT,
    "ENDED": Code.STATE_CONFLICT,
    "PENDING_EDIT": Code.STATE_CONFLICT,
    "STALE": Code.STALE_VALUE,
    "OTHER_ROUND": Code.PARAM_ERROR,
}
"""Outcomes that have a code of their own; the others are rules."""


class Office(msgspec.Struct, frozen=True, kw_only=True):
    """One operator's call. `by` is who signs it; `now` in campaign time. The connection is theirs alone."""

    conn: Connection
    store: StockStore
    shards: int
    by: str
    now: datetime

    @property
    def book(self) -> StockBook:
        """The books."""
        return StockBook(self.conn)


def refused(outcome: Outcome) -> Refusal:
    """What the books refused, in the codes of our interfaces."""
    code = _CODES.get(outcome.name)
    return Refusal(code=code or Code.RULE_LIMIT, detail=outcome.detail, rule=None if code else outcome.name)


def no_such(what: str) -> Refusal:
    """There is nothing of that name."""
    return Refusal(code=Code.RESOURCE_NOT_EXISTS, detail=f"there is no {what}")


@asynccontextmanager
async def published_alone(conn: Connection, *round_nos: int, waits: bool = True) -> AsyncIterator[bool]:
    """Nobody else changes what is published of these rounds: no publisher, no other operator. Whether it is so, for
    one that does not wait.

    Raises TimeoutError after LOCK_WAIT_S. The lock is the connection's: it goes when the connection does.
    """
    taken: list[int] = []
    try:
        for round_no in sorted(set(round_nos)):
            if waits:
                await conn.execute(_queries["lock_publishing"], round_no, timeout=LOCK_WAIT_S)
            elif not await conn.fetchval(_queries["try_publishing"], round_no):
                break
            taken.append(round_no)
        yield len(taken) == len(set(round_nos))
    finally:
        for round_no in taken if not conn.is_closed() else ():
            await conn.execute(_queries["unlock_publishing"], round_no)
