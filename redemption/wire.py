"""What tills send and what they are told, field by field (docs/api.md)."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated

import msgspec

from kernel.ids import RequestNo
from kernel.money import AMOUNT_FEN_MAX
from redemption.offers import Other

HOLD_TTL_S_MIN, HOLD_TTL_S_MAX = 10, 3_600
OFFLINE_ITEMS_MAX = 200
QUOTE_CODES_MAX = 10

Code = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
BillFen = Annotated[int, msgspec.Meta(ge=1, le=AMOUNT_FEN_MAX)]
CashFen = Annotated[int, msgspec.Meta(ge=0, le=AMOUNT_FEN_MAX)]
HoldTtl = Annotated[int, msgspec.Meta(ge=HOLD_TTL_S_MIN, le=HOLD_TTL_S_MAX)]
Others = Annotated[frozenset[Other], msgspec.Meta(max_length=2)]
Moment = Annotated[datetime, msgspec.Meta(tz=True)]
NOTHING: frozenset[Other] = frozenset()


class RedeemRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One redemption as a till sends it.

    order_no      the shop's payment; one voucher a payment
    bill_fen      what the customer owes, the shop's own reductions taken off
    other_offers  whose reductions are on this payment; evidence for the rules, no part of the request's identity
    """

    use_request_no: RequestNo
    voucher_code: Code
    order_no: RequestNo
    bill_fen: BillFen
    other_offers: Others = NOTHING


class OfflineRedemption(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One redemption that a till took without us, at `taken_at`."""

    use_request_no: RequestNo
    voucher_code: Code
    order_no: RequestNo
    bill_fen: BillFen
    taken_at: Moment
    other_offers: Others = NOTHING


class OfflineUpload(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Redemptions taken offline, each judged on its own."""

    redemptions: Annotated[Sequence[msgspec.Raw], msgspec.Meta(min_length=1, max_length=OFFLINE_ITEMS_MAX)]


class HoldRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Keep a voucher for a payment, for so long."""

    hold_request_no: RequestNo
    voucher_code: Code
    order_no: RequestNo
    bill_fen: BillFen
    hold_ttl_s: HoldTtl
    other_offers: Others = NOTHING


class ConfirmRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Make a hold a redemption, which then goes by `use_request_no`."""

    use_request_no: RequestNo
    hold_request_no: RequestNo


class CancelRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Give a hold up."""

    cancel_request_no: RequestNo
    hold_request_no: RequestNo


class QuoteRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What would these vouchers do to a bill here and now?"""

    voucher_codes: Annotated[Sequence[Code], msgspec.Meta(min_length=1, max_length=QUOTE_CODES_MAX)]
    bill_fen: BillFen
    other_offers: Others = NOTHING


class RefundRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One refund: which redemption, and the cash given back; all of it, or a part."""

    refund_request_no: RequestNo
    use_request_no: RequestNo
    refund_fen: CashFen


class RedeemAnswer(msgspec.Struct, frozen=True):
    """A redemption as the till is told, every time it asks."""

    use_request_no: str
    order_no: str
    voucher_code: str
    stock_id: str
    state: str
    bill_fen: int
    discount_fen: int
    to_pay_fen: int
    subsidy_fen: int
    redeemed_at: str


class HoldAnswer(msgspec.Struct, frozen=True):
    """A hold as the till is told, every time it asks."""

    hold_request_no: str
    order_no: str
    voucher_code: str
    stock_id: str
    state: str
    bill_fen: int
    discount_fen: int
    to_pay_fen: int
    held_at: str
    expires_at: str


class CancelAnswer(msgspec.Struct, frozen=True):
    """A hold that is no more. `state`: CANCELLED, or RUN_OUT when time had ended it before."""

    cancel_request_no: str
    hold_request_no: str
    state: str
    ended_at: str


class RefundAnswer(msgspec.Struct, frozen=True):
    """A refund as the till is told, every time it asks.

    voucher_state  EFFECTIVE: it can be used again; RETURNED: it is lost, and its subsidy with it; USED: some of the
                   subsidy stays with the shop
    subsidy_fen    what this refund took back of the subsidy
    """

    refund_request_no: str
    use_request_no: str
    refund_fen: int
    voucher_state: str
    subsidy_fen: int
    refunded_at: str


class Done(msgspec.Struct, frozen=True):
    """An answer, and whether it was given before."""

    answer: RedeemAnswer | HoldAnswer | CancelAnswer | RefundAnswer
    replayed: bool
