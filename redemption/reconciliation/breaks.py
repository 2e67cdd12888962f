"""Breaks as they stand, and closing one by hand."""

from datetime import date, datetime

import msgspec

import sql
from kernel.clock import business_day
from kernel.postgres import Connection
from redemption.settlement.batch import fill_all
from redemption.settlement.refusals import Refused, Why, staff_name

BREAKS_MAX = 10_000

_queries = sql.load("reconciliation")


class Break(msgspec.Struct, frozen=True, kw_only=True):
    """One difference. `source`: PARTNER or BANK. `owner`: who must act, CITY, PARTNER or BANK.

    `ours_*` is None where we have nothing, `theirs_*` where they have nothing. `age_days` runs from the
    earlier of both days until the break was closed, or until today. `cause`: PERSON (`closed_by`, `why`)
    or GONE (a later run found no such difference any more); empty while open.
    """

    break_no: int
    run_no: int
    source: str
    kind: str
    owner: str
    partner_id: str
    day: date
    key: str
    ours_day: date | None
    ours_fen: int | None
    ours_says: str | None
    theirs_day: date | None
    theirs_fen: int | None
    theirs_says: str | None
    age_days: int
    is_open: bool
    cause: str
    closed_by: str
    why: str
    closed_at: datetime | None


class BreakTotal(msgspec.Struct, frozen=True, kw_only=True):
    """Open breaks of one source, kind and owner, with the money on each side."""

    source: str
    kind: str
    owner: str
    open_count: int
    ours_fen: int
    theirs_fen: int


async def list_breaks(
    conn: Connection,
    campaign_no: int,
    now: datetime,
    *,
    day: date | None = None,
    open_only: bool = True,
    limit: int = 1_000,
    offset: int = 0,
) -> list[Break]:
    """Breaks of a campaign, the oldest first; up to 10,000 at a time."""
    page = max(1, min(limit, BREAKS_MAX)), max(0, offset)
    return fill_all(Break, await conn.fetch(_queries["breaks"], campaign_no, day, open_only, business_day(now), *page))


async def total_breaks(conn: Connection, campaign_no: int, day: date | None = None) -> list[BreakTotal]:
    """Open breaks, counted."""
    return fill_all(BreakTotal, await conn.fetch(_queries["break_totals"], campaign_no, day))


async def close_break(conn: Connection, break_no: int, *, by: str, why: str, now: datetime) -> Refused | None:
    """Closes a break for good, with a name and a reason; it stays closed while runs find it unchanged.

    BAD_NAME, NO_REASON, UNKNOWN_BREAK, ALREADY_CLOSED.
    """
    name, reason = staff_name(by), why.strip()
    if isinstance(name, Refused):
        return name
    if not 0 < len(reason) <= 500:
        return Refused(Why.NO_REASON, "say why, in 1 to 500 characters")
    if not await conn.fetchval(_queries["break_exists"], break_no):
        return Refused(Why.UNKNOWN_BREAK, f"there is no break {break_no}")
    if await conn.fetchval(_queries["close_break"], break_no, name, reason, now) is None:
        return Refused(Why.ALREADY_CLOSED, f"break {break_no} is closed already")
    return None
