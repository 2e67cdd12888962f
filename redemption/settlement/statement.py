"""What a merchant sees of one day: every redemption and refund, what it was owed before and after, and
how its settlement lines stand. The same rows that the ledger adds up, so the closing balance is the ledger's.
"""

from collections.abc import Sequence
from datetime import date, datetime, timedelta
from datetime import time as time_of_day

import msgspec
from asyncpg import Record

import sql
from kernel.clock import CITY_ZONE, rfc3339
from kernel.codes import CodeBook
from kernel.postgres import Connection
from redemption.settlement.batch import Line, fetch_one, fill_all
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
    offset, limit = max(0, offset), max(1, min(limit, ENTRIES_MAX))
    async with conn.transaction(isolation="repeatable_read", readonly=True):
        merchant = await conn.fetchrow(_queries["merchant"], merchant_no)
        if merchant is None:
            return Refused(Why.UNKNOWN_MERCHANT, f"there is no merchant {merchant_no}")
        opening_fen: int = await conn.fetchval(_queries["merchant_opening"], merchant_no, day, begin)
        totals = await fetch_one(conn, _queries["merchant_day_totals"], merchant_no, day)
        lines = await conn.fetch(_queries["merchant_lines"], merchant_no, day, begin, end)
        rows = await conn.fetch(_queries["merchant_day_entries"], merchant_no, day, limit, offset)
    settled_fen, voided_fen = _moved(fill_all(Line, lines), begin, end)
    following = offset + len(rows)
    return Statement(
        merchant_id=merchant["merchant_id"],
        merchant_name=merchant["name"],
        day=day,
        opening_fen=opening_fen,
        **totals,
        settled_fen=settled_fen,
        voided_fen=voided_fen,
        closing_fen=opening_fen + totals["redeemed_fen"] - totals["refunded_fen"] - settled_fen + voided_fen,
        settlement=fill_all(SettledLine, lines),
        entries=[_entry(row, codes) for row in rows],
        next_offset=following if following < totals["redeemed_count"] + totals["refunded_count"] else None,
    )


def _bounds(day: date) -> tuple[datetime, datetime]:
    begin, end = (datetime.combine(one, time_of_day(), CITY_ZONE) for one in (day, day + timedelta(days=1)))
    return begin, end


def _moved(lines: Sequence[Line], begin: datetime, end: datetime) -> tuple[int, int]:
    """What went into settlement between two moments, and what the bank sent back between them."""
    settled = (line for line in lines if line.state != "HELD" and _within(line.approved_at, begin, end))
    voided = (line for line in lines if line.state == "REJECTED" and _within(line.answered_at, begin, end))
    return sum(line.amount_fen for line in settled), sum(line.amount_fen for line in voided)


def _within(moment: datetime | None, begin: datetime, end: datetime) -> bool:
    return moment is not None and begin <= moment < end


def _entry(row: Record, codes: CodeBook) -> Entry:
    return Entry(
        kind=row["kind"],
        occurred_at=rfc3339(row["occurred_at"]),
        code_tail=codes.encode(row["voucher_id"])[-CODE_TAIL_LENGTH:],
        bill_fen=row["bill_fen"],
        subsidy_fen=row["subsidy_fen"],
        use_request_no=row["use_request_no"],
        refund_request_no=row["refund_request_no"],
        order_no=row["order_no"],
        terminal_id=row["terminal_id"],
    )
