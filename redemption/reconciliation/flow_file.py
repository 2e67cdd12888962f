"""The flow file: one row for each redemption or refund of a partner's vouchers that one day pays.

    HANQUAN-FLOW,1,wepay,wuhan-2020,2020-04-20
    kind,merchant_id,use_request_no,refund_request_no,out_request_no,stock_id,voucher_state,bill_fen,subsidy_fen,occurred_at
    REDEEM,M0001,U2020042000001,,C2020041900001,DINING-R1-WEPAY,USED,6800,2000,2020-04-20T12:01:02+08:00
    REFUND,M0001,U2020042000001,R2020042000001,C2020041900001,DINING-R1-WEPAY,EFFECTIVE,6800,2000,2020-04-20T12:09:00+08:00
    TRAILER,2,4000

Which key do both sides share? The merchant and the number that its till gave the payment
(`use_request_no`; for a refund also `refund_request_no`): both are in every request and every answer,
and neither is used twice. The voucher is named by the partner's own claim number (`out_request_no`),
not by its code: a code that a refund gave back is money, so it has no place in a file that many people
handle; a keyed digest of it would need a key shared with every partner, and would change when the code
keys rotate. The claim number is known to both sides, secret to neither, and never changes.

`bill_fen`: what the customer's bill was, or what was refunded of it. `subsidy_fen`: what the city
pays for it or takes back; the trailer adds this column up. Both above zero; a refund may be of the one or the
other alone (a part whose subsidy is less than a fen, a voucher that paid the whole bill). `voucher_state` after the
event: USED, EFFECTIVE (a refund gave it back) or RETURNED (a refund did not). Times: RFC 3339 with offset.
"""

import re
from collections.abc import Iterable
from datetime import date, datetime
from typing import NamedTuple

from kernel.clock import rfc3339
from kernel.ids import REQUEST_NO
from redemption.settlement.refusals import Refused, Why
from redemption.settlement.sealed_csv import Form, Sealed, number, read_sealed, write_sealed

FLOW = Form(
    kind="HANQUAN-FLOW",
    head=("partner_id", "campaign_id", "day"),
    columns=(
        "kind", "merchant_id", "use_request_no", "refund_request_no", "out_request_no", "stock_id",
        "voucher_state", "bill_fen", "subsidy_fen", "occurred_at",
    ),
    amount="subsidy_fen",
    rows_max=1_000_000,
)  # fmt: skip

STATES = {"REDEEM": ("USED",), "REFUND": ("EFFECTIVE", "RETURNED")}

_NAME = re.compile(r"[A-Za-z0-9_-]{1,40}")


class FlowRow(NamedTuple):
    """One redemption (REDEEM, no `refund_request_no`) or refund (REFUND)."""

    kind: str
    merchant_id: str
    use_request_no: str
    refund_request_no: str
    out_request_no: str
    stock_id: str
    voucher_state: str
    bill_fen: int
    subsidy_fen: int
    occurred_at: datetime


class FlowFile(NamedTuple):
    """A file that is whole and readable. `lines`: the line of each row. A repeated row is a break, not an error."""

    partner_id: str
    campaign_id: str
    day: date
    rows: list[FlowRow]
    lines: list[int]
    amount_fen: int
    sha256: bytes


def write_flow_file(
    partner_id: str, campaign_id: str, day: date, rows: Iterable[FlowRow], *, for_spreadsheet: bool = False
) -> bytes:
    """The bytes of a flow file; its SHA-256 travels beside it."""
    cells = ((*row[:9], rfc3339(row.occurred_at)) for row in rows)
    return write_sealed(FLOW, (partner_id, campaign_id, day.isoformat()), cells, for_spreadsheet=for_spreadsheet)


def read_flow_file(data: bytes, expected_sha256: bytes | None) -> FlowFile | Refused:
    """A partner's file; with or without byte-order mark, LF or CRLF, plain or for spreadsheets.

    WRONG_HASH, WRONG_TRAILER_COUNT, WRONG_TRAILER_AMOUNT; BAD_FILE, naming the line, for the rest.
    `expected_sha256` is what the partner told beside the file; None trusts the trailer alone.
    """
    sealed = read_sealed(FLOW, data, expected_sha256)
    if isinstance(sealed, Refused):
        return sealed
    partner_id, campaign_id, day = sealed.head
    try:
        booked_on = date.fromisoformat(day)
    except ValueError:
        return Refused(Why.BAD_FILE, f"line 1: {day[:40]!r} is not a day such as 2020-04-20")
    rows = _read_rows(sealed)
    if isinstance(rows, Refused):
        return rows
    return FlowFile(partner_id, campaign_id, booked_on, rows, sealed.lines, sealed.amount_fen, sealed.sha256)


def _read_rows(sealed: Sealed) -> list[FlowRow] | Refused:
    rows = []
    for cells, line in zip(sealed.rows, sealed.lines, strict=True):
        try:
            rows.append(_read_row(cells))
        except ValueError as error:
            return Refused(Why.BAD_FILE, f"line {line}: {error}")
    return rows


def _read_row(cells: list[str]) -> FlowRow:
    kind, merchant_id, use_no, refund_no, out_no, stock_id, state, bill, subsidy, at = cells
    if kind not in STATES or state not in STATES[kind]:
        raise ValueError(f"{kind[:40]!r} with voucher_state {state[:40]!r} is no event")
    if (refund_no == "") != (kind == "REDEEM"):
        raise ValueError("a refund has a refund_request_no, a redemption has none")
    for name, text in (
        ("use_request_no", use_no),
        ("refund_request_no", refund_no or use_no),
        ("out_request_no", out_no),
    ):
        if REQUEST_NO.fullmatch(text) is None:
            raise ValueError(f"{name} {text[:40]!r} is no request number")
    for name, text in (("merchant_id", merchant_id), ("stock_id", stock_id)):
        if _NAME.fullmatch(text) is None:
            raise ValueError(f"{name} {text[:40]!r} is no such name")
    amounts = number(bill), number(subsidy)
    if amounts == (0, 0) or (0 in amounts and kind == "REDEEM"):
        raise ValueError("bill_fen and subsidy_fen are above zero")
    moment = datetime.fromisoformat(at)
    if moment.tzinfo is None:
        raise ValueError(f"occurred_at {at!r} has no offset")
    return FlowRow(kind, merchant_id, use_no, refund_no, out_no, stock_id, state, *amounts, moment)
