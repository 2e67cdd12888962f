"""What a campaign file may say about the till: what is stacked, where vouchers are good and how long, caps on use."""

from collections.abc import Iterable
from datetime import datetime
from typing import TypeAlias

import msgspec

from issuer.campaign import kinds
from issuer.campaign.complaints import Code
from issuer.campaign.extras import SHORT_ID
from issuer.campaign.kinds import one_of, whole
from issuer.campaign.model import Offer, RedeemCap, RefundPolicy, Scope
from issuer.campaign.table import Table, Written
from kernel.clock import end_of_day

DAYS_MAX = 366
SCOPES_MAX = 64
DISTRICTS_MAX = 100
MERCHANTS_MAX = 10_000
CAPS_MAX = 4
"""Each period, per partner and over all of them."""

REFUND_POLICY = one_of("RESTORE", "RETURN_TO_BUDGET", "PAID_SHARE")

_OFFER = ("minimum_spend_times", "vouchers_per_payment", "refund_policy", "stacks_with", "till_code")
_OTHERS = ("shop", "platform")

Scopes: TypeAlias = tuple[Written[Scope], ...]
Caps: TypeAlias = tuple[Written[RedeemCap], ...]


class Validity(msgspec.Struct, frozen=True, kw_only=True):
    """How long vouchers are good, for all rounds; all None where every round must say it itself.

    days           from the opening of the round on, that day being the first
    days_claimed   from the claim on, that day being the first, and never after `until`
    """

    days: int | None = None
    days_claimed: int | None = None
    until: datetime | None = None

    def ends(self, opens_at: datetime, closes_at: datetime) -> datetime | None:
        """The last moment for any voucher of a round; None when nothing is said."""
        if self.days is not None:
            return end_of_day(opens_at, self.days)
        last = None if self.days_claimed is None else end_of_day(closes_at, self.days_claimed)
        return min((end for end in (last, self.until) if end is not None), default=None)


def offer(top: Table) -> Offer:
    """The rules at the till, with stand-ins for what cannot be read."""
    times = payment = policy = code = None
    table = top.table("offer", what="offer", known=_OFFER)
    if table is not None:
        times = table.read("minimum_spend_times", whole(1, 100))
        payment = table.read("vouchers_per_payment", one_of("1"))
        policy = table.read("refund_policy", REFUND_POLICY)
        code = table.read("till_code", one_of("ANY", "ROTATING"), required=False)
    return Offer(
        minimum_spend_times=times or 1,
        vouchers_per_payment=int(payment or 1),
        refund_policy=RefundPolicy(policy or "RESTORE"),
        stacks_with=_stacks_with(table),
        till_code=code or "ANY",
    )


def _stacks_with(table: Table | None) -> tuple[str, ...]:
    everybody = tuple(other.upper() for other in _OTHERS)
    if table is None or not table.has("stacks_with"):
        return everybody
    stacking = table.table("stacks_with", what="stacks_with", known=_OTHERS)
    if stacking is None:
        return everybody
    return tuple(other.upper() for other in _OTHERS if stacking.read(other, kinds.FLAG))


def validity(top: Table) -> Validity:
    """How long vouchers are good; one day as a stand-in."""
    if not top.has("validity"):
        return Validity()
    table = top.table("validity", what="validity", known=("days", "days_after_claim", "until"))
    if table is None:
        return Validity(days=1)
    if table.has("days") == (table.has("until") or table.has("days_after_claim")):
        words = 'validity needs one of "days: 7" (the day of opening is the first), "until: 2020-07-31" and'
        words += ' "days_after_claim: 7" (the day of the claim is the first), which may have an until as well'
        top.complain(Code.WRONG_SHAPE, "validity", words)
        return Validity(days=1)
    until = table.read("until", kinds.LAST_MOMENT, required=False)
    claimed = table.read("days_after_claim", whole(1, DAYS_MAX), required=False)
    days = table.read("days", whole(1, DAYS_MAX), required=False)
    if until is None and claimed is None:
        return Validity(days=days or 1)
    return Validity(days_claimed=claimed, until=until)


def scopes(top: Table) -> Iterable[Written[Scope]]:
    """The scopes that can be read."""
    if not top.has("scopes"):
        return
    for row in top.rows("scopes", what="scope", known=("id", "districts", "merchants"), most=SCOPES_MAX):
        scope_id = row.read("id", SHORT_ID)
        districts = row.values("districts", kinds.DISTRICT, most=DISTRICTS_MAX)
        merchant_ids = row.values("merchants", kinds.MERCHANT_ID, most=MERCHANTS_MAX)
        if not (row.has("districts") or row.has("merchants")):
            words = "a scope names districts, merchants or both; without a scope vouchers are good everywhere"
            row.complain(Code.MISSING_FIELD, "districts", words)
        if scope_id is not None:
            yield Written(Scope(scope_id=scope_id, districts=districts, merchant_ids=merchant_ids), row)


def redeem_caps(top: Table) -> Iterable[Written[RedeemCap]]:
    """The caps on what a person may use that can be read."""
    if not top.has("redeem_caps"):
        return
    for row in top.rows("redeem_caps", what="cap", known=("period", "face", "per_partner"), most=CAPS_MAX):
        period = row.read("period", one_of("month", "campaign"))
        face_fen_max = row.read("face", kinds.AMOUNT_FEN)
        is_per_partner = row.read("per_partner", kinds.FLAG, required=False) or False
        if period is not None and face_fen_max is not None:
            cap = RedeemCap(period=period.upper(), is_per_partner=is_per_partner, face_fen_max=face_fen_max)
            yield Written(cap, row)
