"""The rules of an offer: may this voucher pay part of this bill here and now, how much, and who pays that?

Pure functions over data; nothing is asked of a store. What another till may change meanwhile (is the
voucher still unused? is the person below the caps?) is decided in PostgreSQL under the bucket's lock.
"""

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Literal, Self

import msgspec

from kernel.clock import ends_at, rfc3339
from kernel.errors import Code, Refusal
from kernel.money import BP_WHOLE, format_yuan, split_by_bp

RefundPolicy = Literal["RESTORE", "RETURN_TO_BUDGET", "PAID_SHARE"]
"""RESTORE: all at once and inside validity the voucher lives again, else as PAID_SHARE. RETURN_TO_BUDGET: the first
refund takes the whole subsidy back. PAID_SHARE: the subsidy goes back in proportion to the cash."""
Other = Literal["SHOP", "PLATFORM"]
"""Whose reduction may meet a voucher on one payment: the shop's own, or that of a platform."""
TillCode = Literal["ANY", "ROTATING"]
"""ROTATING: only the code that the phone shows anew each minute; a printed one is not enough."""

EVERY_OTHER: frozenset[Other] = frozenset(("SHOP", "PLATFORM"))


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """What one stock's vouchers are good for. Times are aware.

    valid_until              the last moment for every voucher of the stock; not included
    valid_days_after_claim   a voucher ends with so many days from its claim on, the day of the claim being the first,
                             if that is before valid_until; None: all end at valid_until
    category_zh, category_en what people call the category
    merchants, districts     where it is good; empty: everywhere
    stacks_with              whose reductions may be on the same payment
    """

    stock_no: int
    stock_id: str
    category: str
    face_value_fen: int
    funded_fen: int
    transaction_minimum_fen: int
    valid_from: datetime
    valid_until: datetime
    refund_policy: RefundPolicy
    category_zh: str = ""
    category_en: str = ""
    valid_days_after_claim: int | None = None
    merchants: frozenset[int] = frozenset()
    districts: frozenset[str] = frozenset()
    stacks_with: frozenset[Other] = EVERY_OTHER
    till_code: TillCode = "ANY"
    city_bp: int = BP_WHOLE
    platform_bp: int = 0
    merchant_bp: int = 0

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Self:
        """From a row whose columns have these names; lists become sets. Raises msgspec.ValidationError."""
        return msgspec.convert(row, cls)


class Merchant(msgspec.Struct, frozen=True, kw_only=True):
    """What the rules ask of a merchant."""

    merchant_no: int
    merchant_id: str
    category: str
    suspended: bool
    district: str = ""


class Saving(msgspec.Struct, frozen=True):
    """What a voucher does to a bill."""

    discount_fen: int
    """Off the customer's bill."""
    subsidy_fen: int
    """Of that, what the fund pays the merchant; the rest the merchant bears."""


class Split(msgspec.Struct, frozen=True):
    """Who pays an amount of face; the parts add up to it. The fund pays the first two."""

    city_fen: int
    platform_fen: int
    merchant_fen: int


class Shown(msgspec.Struct, frozen=True, kw_only=True):
    """One of several vouchers shown for a bill."""

    voucher_id: int
    offer: Offer
    claimed_at: datetime
    is_rotating: bool = True


class Verdict(msgspec.Struct, frozen=True):
    """What is said of one voucher that was shown."""

    voucher_id: int
    outcome: Saving | Refusal


def valid_until_of(offer: Offer, claimed_at: datetime) -> datetime:
    """From when on a voucher claimed then is no longer good."""
    return ends_at(offer.valid_until, offer.valid_days_after_claim, claimed_at)


def split(offer: Offer, face_fen: int) -> Split:
    """Who pays so much of the face: by shares, adding up to the fen.

    Whole fen first; those left over go one each to the largest remainders, of equal ones to city, platform, merchant
    in this order.
    """
    return Split(*split_by_bp(face_fen, (offer.city_bp, offer.platform_bp, offer.merchant_bp)))


def judge(
    offer: Offer,
    merchant: Merchant,
    bill_fen: int,
    now: datetime,
    *,
    claimed_at: datetime | None = None,
    other_offers: frozenset[Other] = frozenset(),
    is_rotating: bool = True,
) -> Saving | Refusal:
    """The saving, or the first rule that forbids it: shop, time, code, other offers, bill, in this order.

    What nobody at this till can mend comes first, what the next minute can mend comes last.

    bill_fen       what the customer owes once the shop's own reductions are off
    claimed_at     when the voucher was claimed; None: as early as can be
    other_offers   whose reductions are on this payment already
    is_rotating    the code shown was one that changes each minute, not the printed one
    """
    return (
        _shop(offer, merchant)
        or _time(offer, now, claimed_at or offer.valid_from)
        or _code(offer, is_rotating)
        or _stacking(offer, other_offers)
        or _bill(offer, bill_fen)
        or Saving(offer.face_value_fen, offer.funded_fen)
    )


def best_of(
    shown: Iterable[Shown],
    merchant: Merchant,
    bill_fen: int,
    now: datetime,
    *,
    other_offers: frozenset[Other] = frozenset(),
) -> list[Verdict]:
    """One city voucher a payment: which of those shown, and why not the others. In whatever order they are shown.

    Of those that would pay, the one that saves the customer most; then the one that runs out first; then the one
    with the smallest number. It comes first; then those that would pay, too (NOT_CHOSEN), the next best first; then
    those that a rule forbids, by number. Empty only when nothing is shown.
    """
    by_id = {each.voucher_id: each for each in shown}
    may: list[tuple[Shown, Saving]] = []
    may_not: list[Verdict] = []
    for each in by_id.values():
        outcome = judge(
            each.offer,
            merchant,
            bill_fen,
            now,
            claimed_at=each.claimed_at,
            other_offers=other_offers,
            is_rotating=each.is_rotating,
        )
        if isinstance(outcome, Refusal):
            may_not.append(Verdict(each.voucher_id, outcome))
        else:
            may.append((each, outcome))
    may.sort(key=_preference)
    chosen = [Verdict(each.voucher_id, saving) for each, saving in may[:1]]
    passed_over = [Verdict(each.voucher_id, _not_chosen(*may[0])) for each, _ in may[1:]]
    return chosen + passed_over + sorted(may_not, key=lambda verdict: verdict.voucher_id)


def taken_back(
    policy: RefundPolicy,
    *,
    paid_fen: int,
    subsidy_fen: int,
    refunded_before_fen: int,
    subsidy_back_before_fen: int,
    refund_fen: int,
) -> int:
    """What the city takes back of a subsidy when so much cash goes back to the customer; may be 0 in a partial step.

    RETURN_TO_BUDGET: all that is left of it, with the first fen. RESTORE and PAID_SHARE: so that in all
    floor(subsidy x cash / paid) is back, and everything with the last fen. A voucher that paid the whole bill
    (paid_fen 0) goes back in one step of 0. ValueError when more cash goes back than was paid.
    """
    refunded_fen = refunded_before_fen + refund_fen
    if refund_fen < 0 or refunded_before_fen < 0 or refunded_fen > paid_fen:
        raise ValueError(f"{refunded_fen} fen cannot go back of {paid_fen} paid")
    if policy == "RETURN_TO_BUDGET" or refunded_fen == paid_fen:
        return subsidy_fen - subsidy_back_before_fen
    return max(0, subsidy_fen * refunded_fen // paid_fen - subsidy_back_before_fen)


# ---------------------------------------------------------------- the rules, each None when it allows


def _shop(offer: Offer, merchant: Merchant) -> Refusal | None:
    if merchant.suspended:
        return _rule("MERCHANT_SUSPENDED", "this merchant is suspended from the campaign")
    if merchant.category != offer.category:
        return _rule(
            "CATEGORY",
            f"the voucher is for {offer.category}, this shop is {merchant.category}",
            category_zh=offer.category_zh or offer.category,
            category_en=offer.category_en or offer.category,
        )
    if offer.districts and merchant.district not in offer.districts:
        where = ", ".join(sorted(offer.districts))
        return _rule("DISTRICT", f"the voucher is for shops in {where}", districts=where)
    if offer.merchants and merchant.merchant_no not in offer.merchants:
        return _rule("MERCHANT", "the voucher is for certain shops, and this is none of them")
    return None


def _time(offer: Offer, now: datetime, claimed_at: datetime) -> Refusal | None:
    if now < offer.valid_from:
        words = f"the voucher is valid from {rfc3339(offer.valid_from)}"
        return _rule("NOT_YET_VALID", words, valid_from_at=offer.valid_from)
    valid_until = valid_until_of(offer, claimed_at)
    if now >= valid_until:
        return _rule("EXPIRED", f"the voucher was valid until {rfc3339(valid_until)}", valid_until_at=valid_until)
    return None


def _code(offer: Offer, is_rotating: bool) -> Refusal | None:
    if offer.till_code == "ROTATING" and not is_rotating:
        return _rule("ROTATING_CODE", "this voucher needs the code that the phone shows anew each minute")
    return None


def _stacking(offer: Offer, other_offers: frozenset[Other]) -> Refusal | None:
    if against := sorted(other_offers - offer.stacks_with):
        return _rule("NOT_STACKABLE", f"the voucher does not go with a reduction of: {', '.join(against)}")
    return None


def _bill(offer: Offer, bill_fen: int) -> Refusal | None:
    minimum_fen = max(offer.transaction_minimum_fen, offer.face_value_fen)  # no change is given
    if bill_fen >= minimum_fen:
        return None
    return _rule(
        "TRANSACTION_MINIMUM",
        f"the bill is {format_yuan(bill_fen)} yuan; this voucher needs at least {format_yuan(minimum_fen)} yuan",
        bill_fen=bill_fen,
        minimum_fen=minimum_fen,
        missing_fen=minimum_fen - bill_fen,
    )


def _preference(payable: tuple[Shown, Saving]) -> tuple[int, datetime, int]:
    each, saving = payable
    return -saving.discount_fen, valid_until_of(each.offer, each.claimed_at), each.voucher_id


def _not_chosen(winner: Shown, saving: Saving) -> Refusal:
    return _rule(
        "NOT_CHOSEN",
        f"one city voucher a payment; another one of those shown saves {format_yuan(saving.discount_fen)} yuan and is "
        "taken: it saves more, or as much and runs out first",
        saves_fen=saving.discount_fen,
    )


def _rule(rule: str, detail: str, **facts: int | str | datetime) -> Refusal:
    return Refusal(code=Code.RULE_LIMIT, rule=rule, detail=detail, facts=facts or None)
