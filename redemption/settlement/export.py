"""Makes the order to the bank from an approved batch."""

import hashlib
from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

import msgspec

import sql
from kernel.errors import Broken
from kernel.postgres import Connection
from redemption.settlement.batch import Batch, Line, get_batch, get_lines
from redemption.settlement.order_csv import write_order
from redemption.settlement.pain001 import write_pain001
from redemption.settlement.refusals import Refused, Why, staff_name

_queries = sql.load("settlement")


class Format(StrEnum):
    """How the order is written. CSV_SPREADSHEET: with a byte-order mark and all ids as text."""

    CSV = "csv"
    CSV_SPREADSHEET = "csv-spreadsheet"
    PAIN001 = "pain.001.001.09"

    @property
    def suffix(self) -> str:
        return "xml" if self is Format.PAIN001 else "csv"


class Payer(NamedTuple):
    """The city's account that the bank takes the money from."""

    name: str
    account: str
    bank: str


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """A file for the bank. `sha256` is recorded: an answer must name it."""

    batch_id: str
    file_name: str
    data: bytes
    sha256: bytes
    line_count: int
    amount_fen: int


async def export(
    conn: Connection, batch_no: int, *, payer: Payer, form: Format, by: str, now: datetime
) -> Order | Refused:
    """The bank file of an approved batch: its payable lines, never a held one. Made again, it is the same
    byte for byte, whatever happened to the lines since.

    BAD_NAME, UNKNOWN_BATCH, NOT_APPROVED, NOTHING_TO_PAY (every line is held), EXPORT_DIFFERS.
    """
    name = staff_name(by)
    if isinstance(name, Refused):
        return name
    batch = await get_batch(conn, batch_no)
    if isinstance(batch, Refused):
        return batch
    if batch.state in ("PROPOSED", "REJECTED"):
        return Refused(Why.NOT_APPROVED, f"batch {batch_no} is {batch.state.lower()}")
    lines = [line for line in await get_lines(conn, batch_no) if line.state != "HELD"]
    if not lines:
        return Refused(Why.NOTHING_TO_PAY, f"all {batch.held_count} lines of batch {batch_no} are held")
    order = _order(batch, lines, payer, form)
    await conn.execute(_queries["record_export"], batch_no, form, order.sha256, name, now)
    if await conn.fetchval(_queries["recorded_hash"], batch_no, form) != order.sha256:
        return Refused(Why.EXPORT_DIFFERS, f"the {form} file of batch {batch_no} was made before with another payer")
    return order


def _order(batch: Batch, lines: Sequence[Line], payer: Payer, form: Format) -> Order:
    data = _write(batch, lines, payer, form)
    return Order(
        batch_id=batch.batch_id,
        file_name=f"{batch.batch_id}.{form.suffix}",
        data=data,
        sha256=hashlib.sha256(data).digest(),
        line_count=len(lines),
        amount_fen=sum(line.amount_fen for line in lines),
    )


def _write(batch: Batch, lines: Sequence[Line], payer: Payer, form: Format) -> bytes:
    if form is Format.PAIN001:
        if batch.decided_at is None:
            raise Broken(f"batch {batch.batch_no} is approved without a date")
        return write_pain001(batch, lines, payer, batch.decided_at)
    return write_order(batch, lines, payer, for_spreadsheet=form is Format.CSV_SPREADSHEET)
