"""What a merchant sees of one day: every redemption and refund, what it was owed before and after, and
how its settlement lines stand. The same rows that the ledger adds up, so the closing balance is the ledger's.
"""

from datetime import date, datetime, timedelta
from datetime import time as time_of_day

import msgspec

import sql
from kernel.clock import CITY_ZONE, rfc3339
from kernel.codes import CodeBook
from kernel.postgres import Connection
from redemption.settlement.batch import Line, fill, fill_all
from redemption.settlement.refusals import Refused, Why

CODE_TAIL_LENGTH = 6
ENTRIES_MAX = 1_000

_queries = sql.load("settlement")


class Entry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One redemption (REDEEM) or refund (REFUND, `subsidy_fen` below zero). `code_tail`: the code's last 6."""

    kind: str
    occurred_at: str
    code_tail: str
    bill_fen: int
    subsidy_fen: int
    use_request_no: str
    refund_request_no: str = ""
    order_no: str
    terminal_id: str | None = None


class SettledLine(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A line of this day's batch, or one that was approved or answered on this day."""

    batch_id: str
    line_no: int
    day: date
    carried_fen: int
    redeemed_fen: int
    refunded_fen: int
    amount_fen: int
    state: str
    held_code: str = ""
    reason: str = ""
    bank_reference: str = ""
    bank_booked_on: date | None = None


class Statement(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """closing_fen = opening_fen + redeemed_fen - refunded_fen - settled_fen + voided_fen; may be negative.

    `settled_fen` went into settlement on this day, `voided_fen` came back from the bank on it. Sums are of
    the whole day; `entries` is one page, and `next_offset` asks for the next.
    """

    merchant_id: str
    merchant_name: str
    day: date
    opening_fen: int
    redeemed_count: int
    redeemed_fen: int
    refunded_count: int
    refunded_fen: int
    settled_fen: int
    voided_fen: int
    closing_fen: int
    settlement: list[SettledLine]
    entries: list[Entry]
    next_offset: int | None = None


async def statement(
    conn: Connection, merchant_no: int, day: date, codes: CodeBook, *, offset: int = 0, limit: int = ENTRIES_MAX
) -> Statement | Refused:
    """One merchant's statement of one day, all campaigns together. UNKNOWN_MERCHANT.

    One snapshot: a sale booked meanwhile is in all of it or in none. `limit` up to 1,000. A day that is
    not closed yet can still grow.
    """
    begin, end = _bounds(day)
    async with conn.transaction(isolation="repeatable_read", readonly=True):
        merchant = await conn.fetchrow(_queries["merchant"], merchant_no)
        if merchant is None:
            return Refused(Why.UNKNOWN_MERCHANT, f"there is no merchant {merchant_no}")
        opening_fen = await conn.fetchval(_queries["merchant_opening"], merchant_no, day, begin)
        totals = await conn.fetchrow(_queries["merchant_day_totals"], merchant_no, day)
        lines = fill_all(Line, await conn.fetch(_queries["merchant_lines"], merchant_no, day, begin, end))
        limit = max(1, min(limit, ENTRIES_MAX))
        rows = await conn.fetch(_queries["merchant_day_entries"], merchant_no, day, limit, max(0, offset))
    settled_fen = sum(line.amount_fen for line in lines if _within(line.approved_at, begin, end) and line.state != "HELD")
    voided_fen = sum(
        line.amount_fen for line in lines if _within(line.answered_at, begin, end) and line.state == "REJECTED"
    )
    following = max(0, offset) + len(rows)
    return Statement(
        merchant_id=merchant["merchant_id"],
        merchant_name=merchant["name"],
        day=day,
        opening_fen=opening_fen,
        **totals,
        settled_fen=settled_fen,
        voided_fen=voided_fen,
        closing_fen=opening_fen + totals["redeemed_fen"] - totals["refunded_fen"] - settled_fen + voided_fen,
        settlement=[fill(SettledLine, _Columns(line)) for line in lines],
        entries=[_entry(row, codes) for row in rows],
        next_offset=following if following < totals["redeemed_count"] + totals["refunded_count"] else None,
    )


def _bounds(day: date) -> tuple[datetime, datetime]:
    begin = datetime.combine(day, time_of_day(), CITY_ZONE)
    return begin, datetime.combine(day + timedelta(days=1), time_of_day(), CITY_ZONE)


def _within(moment: datetime | None, begin: datetime, end: datetime) -> bool:
    return moment is not None and begin <= moment < end
