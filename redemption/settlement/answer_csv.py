"""The bank's answer as CSV: for each line of the order whether it was paid.

    HANQUAN-ANSWER,1,HQS0000000007,<SHA-256 of the order that is answered, hex>
    line_no,payee_account,amount_fen,result,booked_on,bank_reference,reason
    1,6222020000000001,12000,PAID,2020-04-21,B20200421-1,
    2,6222020000000002,8000,REJECTED,2020-04-21,B20200421-2,account closed
    TRAILER,2,20000

An answer may leave lines out; they stay in settlement until another file answers them.
"""

import re
from collections.abc import Iterable
from datetime import date
from typing import NamedTuple

from redemption.settlement.refusals import Refused, Why
from redemption.settlement.sealed_csv import Form, Sealed, number, read_sealed, write_sealed

ANSWER = Form(
    kind="HANQUAN-ANSWER",
    head=("batch_id", "order_sha256"),
    columns=("line_no", "payee_account", "amount_fen", "result", "booked_on", "bank_reference", "reason"),
    amount="amount_fen",
    rows_max=1_000_000,
)

RESULTS = ("PAID", "REJECTED")
TEXT_LENGTH_MAX = 140

_HASH = re.compile(r"[0-9a-f]{64}")


class AnswerRow(NamedTuple):
    """What the bank says of one line. `booked_on`: the bank's own day."""

    row_no: int
    line_no: int
    payee_account: str
    amount_fen: int
    result: str
    booked_on: date
    bank_reference: str
    reason: str


class BankAnswer(NamedTuple):
    """A file of the bank that could be read whole; whether it fits its batch is another question."""

    batch_id: str
    order_sha256: bytes
    rows: list[AnswerRow]
    amount_fen: int
    sha256: bytes


def write_answer(batch_id: str, order_sha256: bytes, rows: Iterable[AnswerRow]) -> bytes:
    """The file that a bank would send."""
    cells = ((r.line_no, r.payee_account, r.amount_fen, r.result, r.booked_on.isoformat(), *r[6:]) for r in rows)
    return write_sealed(ANSWER, (batch_id, order_sha256.hex()), cells)


def read_answer(data: bytes, expected_sha256: bytes | None = None) -> BankAnswer | Refused:
    """A file of the bank. WRONG_HASH, WRONG_TRAILER_COUNT, WRONG_TRAILER_AMOUNT or BAD_FILE."""
    sealed = read_sealed(ANSWER, data, expected_sha256)
    if isinstance(sealed, Refused):
        return sealed
    batch_id, order_sha256 = sealed.head
    if _HASH.fullmatch(order_sha256) is None:
        return Refused(Why.BAD_FILE, "line 1: the order's SHA-256 has 64 characters of 0-9 a-f")
    rows = _read_rows(sealed)
    if isinstance(rows, Refused):
        return rows
    return BankAnswer(batch_id, bytes.fromhex(order_sha256), rows, sealed.amount_fen, sealed.sha256)


def _read_rows(sealed: Sealed) -> list[AnswerRow] | Refused:
    rows = []
    for row_no, (cells, line) in enumerate(zip(sealed.rows, sealed.lines, strict=True), start=1):
        try:
            rows.append(_read_row(row_no, cells))
        except ValueError as error:
            return Refused(Why.BAD_FILE, f"line {line}: {error}")
    return rows


def _read_row(row_no: int, cells: list[str]) -> AnswerRow:
    line_no, account, amount_fen, result, booked_on, bank_reference, reason = cells
    if result not in RESULTS:
        raise ValueError(f"result is {' or '.join(RESULTS)}, not {result[:40]!r}")
    if result == "REJECTED" and not reason:
        raise ValueError("a rejected line needs a reason")
    if number(amount_fen) == 0:
        raise ValueError("amount_fen is above zero")
    if number(line_no) > 2**31 - 1:
        raise ValueError("there is no line with so high a number")
    texts = (account, bank_reference, reason)
    if max(map(len, texts)) > TEXT_LENGTH_MAX or any("\0" in text for text in texts):
        raise ValueError(f"a text has up to {TEXT_LENGTH_MAX} characters and no NUL")
    day = date.fromisoformat(booked_on)
    return AnswerRow(row_no, number(line_no), account, number(amount_fen), result, day, bank_reference, reason)
