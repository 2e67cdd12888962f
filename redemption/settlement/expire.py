"""Vouchers that nobody used, and where their money goes."""

from datetime import datetime, timedelta
from enum import StrEnum

import msgspec

import sql
from kernel.postgres import Connection
from redemption.refusals import OFFLINE_AGE_MAX
from redemption.settlement.batch import fetch_one
from redemption.settlement.refusals import Refused, Why, staff_name
from redemption.settlement.settle import as_refused

EXPIRY_GRACE = OFFLINE_AGE_MAX + timedelta(hours=1)
"""A till that took a voucher offline in its last minute has so long to upload it, and an hour to get it booked."""

_queries = sql.load("settlement")


class ReturnTo(StrEnum):
    """Where unused money goes: back to the city, or into the campaign's next round."""

    CITY_FUND = "CITY_FUND"
    BUDGET = "BUDGET"


class Expired(msgspec.Struct, frozen=True, kw_only=True):
    """One stock whose unused vouchers were taken back; of all buckets together."""

    stock_id: str
    voucher_count: int


class Returned(msgspec.Struct, frozen=True, kw_only=True):
    """A return of unused money. `replayed`: it was booked before, under the same reference."""

    reference: str
    to: ReturnTo
    amount_fen: int
    replayed: bool


async def expire_over(conn: Connection, now: datetime, grace: timedelta = EXPIRY_GRACE) -> list[Expired]:
    """Takes back the money of unused vouchers of every stock whose validity ended `grace` ago or earlier.

    ISSUED -> RETURNED, a transaction for each stock and bucket, each done once however often this runs.
    """
    counts: dict[str, int] = {}
    for row in await conn.fetch(_queries["stocks_over"], now - grace):
        taken = await conn.fetchval(_queries["expire_stock"], row["bucket"], row["stock_no"], now)
        counts[row["stock_id"]] = counts.get(row["stock_id"], 0) + taken
    return [Expired(stock_id=stock_id, voucher_count=count) for stock_id, count in counts.items() if count]


async def return_unused(
    conn: Connection, campaign_no: int, to: ReturnTo, amount_fen: int, by: str, reference: str, now: datetime
) -> Returned | Refused:
    """Moves money out of RETURNED, once for each reference. What tills refunded since the last closed day is
    not yet there to be moved.

    BAD_NAME, BAD_REFERENCE, NOT_ENOUGH, REFERENCE_USED (for another amount or place).
    """
    name = staff_name(by)
    if isinstance(name, Refused):
        return name
    if not (0 < len(reference) <= 80 and reference.isprintable()):
        return Refused(Why.BAD_REFERENCE, "a reference has 1 to 80 printable characters")
    if amount_fen <= 0:
        return Refused(Why.NOT_ENOUGH, "an amount above zero can be returned")
    row = await fetch_one(conn, _queries["return_unused"], campaign_no, to, amount_fen, reference, name, now)
    replayed = row["refusal"] == "REPLAYED"
    refused = None if replayed else as_refused(row["refusal"], row["detail"])
    return refused or Returned(reference=reference, to=to, amount_fen=amount_fen, replayed=replayed)
