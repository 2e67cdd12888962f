"""Batches and their lines as they stand now. Read only."""

from collections.abc import Sequence
from datetime import date, datetime
from typing import Any, TypeVar

import msgspec
from asyncpg import Record

import sql
from kernel.errors import Broken
from kernel.postgres import Connection
from redemption.settlement.refusals import Refused, Why

BATCHES_MAX = 1_000

Row = TypeVar("Row", bound=msgspec.Struct)

_queries = sql.load("settlement")


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """One batch. `state`: PROPOSED, REJECTED (turned down), APPROVED, EXPORTED or ANSWERED (every line).

    `line_count` and `amount_fen` are what the bank is to pay; held lines are counted apart.
    """

    batch_no: int
    batch_id: str
    campaign_id: str
    day: date
    state: str
    proposed_by: str
    proposed_at: datetime
    decided_by: str | None
    decided_at: datetime | None
    why: str
    line_count: int
    amount_fen: int
    held_count: int
    held_fen: int
    paid_count: int
    paid_fen: int
    rejected_count: int
    rejected_fen: int


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """What one merchant is owed in a batch.

    amount_fen = opening_fen - settled_fen + voided_fen + redeemed_fen - refunded_fen, and
    carried_fen = opening_fen - settled_fen + voided_fen; the columns of settlement_line say what each is.
    `state`: PROPOSED, HELD (`held_code`, `reason`), DROPPED, SETTLING, PAID or REJECTED (`reason`: the bank's).
    """

    batch_no: int
    batch_id: str
    day: date
    line_no: int
    merchant_no: int
    merchant_id: str
    opening_fen: int
    settled_fen: int
    voided_fen: int
    carried_fen: int
    redeemed_count: int
    redeemed_fen: int
    refunded_count: int
    refunded_fen: int
    amount_fen: int
    payee_name: str
    payee_account: str
    payee_bank: str
    state: str
    held_code: str
    reason: str
    bank_reference: str
    bank_booked_on: date | None
    approved_at: datetime | None
    answered_at: datetime | None


async def get_batch(conn: Connection, batch_no: int) -> Batch | Refused:
    """One batch. UNKNOWN_BATCH if there is none."""
    row = await conn.fetchrow(_queries["batch_state"], batch_no)
    return Refused(Why.UNKNOWN_BATCH, f"there is no batch {batch_no}") if row is None else fill(Batch, row)


async def list_batches(conn: Connection, campaign_no: int, limit: int = 50) -> list[Batch]:
    """Batches of a campaign, the newest first; up to 1,000."""
    rows = await conn.fetch(_queries["batch_states"], campaign_no, min(limit, BATCHES_MAX))
    return [fill(Batch, row) for row in rows]


async def get_lines(conn: Connection, batch_no: int) -> list[Line]:
    """All lines of a batch, in order; an unknown batch has none."""
    return fill_all(Line, await conn.fetch(_queries["line_states"], batch_no))


async def find_campaign(conn: Connection, campaign_id: str) -> int | Refused:
    """The number of a campaign. UNKNOWN_CAMPAIGN if there is none."""
    campaign_no: int | None = await conn.fetchval(_queries["campaign_no"], campaign_id)
    return Refused(Why.UNKNOWN_CAMPAIGN, f"there is no campaign {campaign_id}") if campaign_no is None else campaign_no


async def fetch_one(conn: Connection, query: str, *arguments: object) -> Record:
    """The row of a query that always has one. Raises Broken if it has none."""
    row = await conn.fetchrow(query, *arguments)
    if row is None:
        raise Broken("a query that always answers has no answer")
    return row


def fill(kind: type[Row], row: Any) -> Row:
    """A struct from the columns of a row that have its fields' names."""
    return kind(**{field: row[field] for field in kind.__struct_fields__})


def fill_all(kind: type[Row], rows: Sequence[Any]) -> list[Row]:
    """A struct for each row."""
    return [fill(kind, row) for row in rows]
