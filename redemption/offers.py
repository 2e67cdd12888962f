"""The rules of an offer: may this voucher pay part of this bill here and now, and how much?

Pure functions over data; nothing is asked of a store. What another till may change meanwhile (is the
voucher still unused?) is decided in PostgreSQL under the bucket's lock, see redeem_batch.
"""

from datetime import datetime

import msgspec

from kernel.clock import rfc3339
from kernel.errors import Code, Refusal
from kernel.money import format_yuan


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """What one stock's vouchers are good for. Times are aware UTC."""

    stock_no: int
    stock_id: str
    category: str
    face_value_fen: int
    funded_fen: int
    transaction_minimum_fen: int
    valid_from: datetime
    valid_until: datetime
    refund_policy: str


class Merchant(msgspec.Struct, frozen=True, kw_only=True):
    """What the rules ask of a merchant."""

    merchant_no: int
    merchant_id: str
    category: str
    suspended: bool


class Saving(msgspec.Struct, frozen=True):
    """What a voucher does to a bill."""

    discount_fen: int
    """Off the customer's bill."""
    subsidy_fen: int
    """Of that, what the fund pays the merchant; the rest the merchant bears."""


def judge(offer: Offer, merchant: Merchant, bill_fen: int, now: datetime) -> Saving | Refusal:
    """The saving, or the first rule that forbids it: shop, category, time, minimum, in this order."""
    if merchant.suspended:
        return _rule("MERCHANT_SUSPENDED", "this merchant is suspended from the campaign")
    if merchant.category != offer.category:
        return _rule("CATEGORY", f"the voucher is for {offer.category}, this shop is {merchant.category}")
    if now < offer.valid_from:
        return _rule("NOT_YET_VALID", f"the voucher is valid from {rfc3339(offer.valid_from)}")
    if now >= offer.valid_until:
        return _rule("EXPIRED", f"the voucher was valid until {rfc3339(offer.valid_until)}")
    if bill_fen < offer.transaction_minimum_fen:
        return _rule(
            "TRANSACTION_MINIMUM",
            f"the bill is {format_yuan(bill_fen)} yuan; this voucher needs at least "
            f"{format_yuan(offer.transaction_minimum_fen)} yuan",
        )
    return Saving(offer.face_value_fen, offer.funded_fen)


def _rule(rule: str, detail: str) -> Refusal:
    return Refusal(code=Code.RULE_LIMIT, rule=rule, detail=detail)
