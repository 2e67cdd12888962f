"""Draws up a batch and decides about it. Two people: the database itself refuses one for both."""

from datetime import date, datetime

import sql
from kernel.clock import business_day
from kernel.errors import Broken
from kernel.postgres import Connection
from redemption.settlement.batch import Batch, fetch_one, get_batch
from redemption.settlement.refusals import Refused, Why, staff_name

_queries = sql.load("settlement")


async def propose(conn: Connection, campaign_no: int, day: date, by: str, now: datetime) -> Batch | Refused:
    """Closes `day`, and any open day before it, in every bucket; then draws up the campaign's batch.

    One line for each merchant that is owed something at the close of `day`; what tills moved later does
    not count. Each bucket is closed in a transaction of its own, so that tills wait for one bucket's
    fold and never for the batch; the batch is one more. A day stays closed when the batch is refused:
    BAD_NAME, DAY_NOT_OVER (nothing closed); DAY_NOT_EXACT, UNDECIDED_BATCH, NOTHING_TO_PAY, LEDGER_MISMATCH.
    """
    name = staff_name(by)
    if isinstance(name, Refused):
        return name
    if day >= business_day(now):
        return Refused(Why.DAY_NOT_OVER, f"{day} can be settled once it is over in the city")
    await close_day(conn, day, now)
    row = await fetch_one(conn, _queries["propose"], campaign_no, day, name, now)
    refused = as_refused(row["refusal"], row["detail"])
    return refused or await _standing(conn, row["batch_no"])


async def close_day(conn: Connection, day: date, now: datetime) -> None:
    """Closes `day`, and any open day before it, in every bucket, one transaction a bucket.

    `conn` must not be in a transaction: it would keep every bucket's lock until its end, and a till that
    holds one bucket and a fold that waits for it could block each other.
    """
    if conn.is_in_transaction():
        raise Broken("days are closed bucket by bucket, outside any transaction")
    for row in await conn.fetch(_queries["buckets"]):
        await conn.execute(_queries["close_day"], row["bucket"], day, now)


async def approve(conn: Connection, batch_no: int, by: str, now: datetime) -> Batch | Refused:
    """Takes every line that no hold keeps out from PAYABLE to SETTLING. One transaction, whole or not at all.

    A merchant held since the proposal stays out too, with its money where it was. BAD_NAME, UNKNOWN_BATCH,
    ALREADY_DECIDED, SAME_PERSON.
    """
    return await _decide(conn, batch_no, by, "", now, is_approved=True)


async def reject(conn: Connection, batch_no: int, by: str, why: str, now: datetime) -> Batch | Refused:
    """Turns a batch down; no money moves, and the next batch can be drawn up. Its proposer may do it too.

    BAD_NAME, NO_REASON, UNKNOWN_BATCH, ALREADY_DECIDED.
    """
    reason = why.strip()
    if not 0 < len(reason) <= 500:
        return Refused(Why.NO_REASON, "say why, in 1 to 500 characters")
    return await _decide(conn, batch_no, by, reason, now, is_approved=False)


async def _decide(
    conn: Connection, batch_no: int, by: str, why: str, now: datetime, *, is_approved: bool
) -> Batch | Refused:
    name = staff_name(by)
    if isinstance(name, Refused):
        return name
    row = await fetch_one(conn, _queries["decide"], batch_no, is_approved, name, why, now)
    return as_refused(row["refusal"], row["detail"]) or await _standing(conn, batch_no)


async def _standing(conn: Connection, batch_no: int) -> Batch:
    batch = await get_batch(conn, batch_no)
    if isinstance(batch, Refused):
        raise Broken(f"batch {batch_no} was just written and is not there")
    return batch


def as_refused(refusal: str | None, detail: str | None) -> Refused | None:
    """What a function of the database refused, if it did. An unknown reason is a fault (ValueError)."""
    return None if refusal is None else Refused(Why(refusal), detail or "")
