"""Every "no" of the checkout that is not an offer's rule (offers.py) or a matter of codes (lockout.py)."""

from datetime import timedelta

from kernel.errors import Code, Refusal

OFFLINE_AGE_MAX = timedelta(hours=72)
"""How long after it was taken a redemption may be uploaded."""
SKEW_MAX = timedelta(minutes=5)
"""How far off ours an offline till's clock may be: as far as for a signature."""

USED = Refusal(code=Code.USED_BY_ANOTHER_ORDER, detail="the voucher cannot be used any more", pointer="voucher_code")
HELD = Refusal(
    code=Code.LOCKED_BY_ANOTHER_ORDER,
    detail="another payment holds the voucher; when that one is given up or runs out, it can be used",
    pointer="voucher_code",
)
CONFIRMING = Refusal(
    code=Code.CONFIRMING, detail="the voucher was claimed a moment ago; send the same request again", retry_after_s=1
)
LONG_OVER = Refusal(code=Code.RULE_LIMIT, rule="EXPIRED", detail="the voucher's round is long over")
ONE_A_PAYMENT = Refusal(
    code=Code.RULE_LIMIT,
    rule="ONE_VOUCHER_PER_PAYMENT",
    detail="this payment already used or held another voucher; one city voucher a payment",
    pointer="order_no",
)
CAP_MONTH = Refusal(
    code=Code.RULE_LIMIT, rule="REDEEM_CAP_MONTH", detail="the person has redeemed as much as a month allows"
)
CAP_CAMPAIGN = Refusal(
    code=Code.RULE_LIMIT, rule="REDEEM_CAP_CAMPAIGN", detail="the person has redeemed as much as the campaign allows"
)
NO_SUCH_REDEMPTION = Refusal(
    code=Code.RESOURCE_NOT_EXISTS, detail="you have no redemption under this number", pointer="use_request_no"
)
NO_SUCH_ORDER = Refusal(
    code=Code.RESOURCE_NOT_EXISTS, detail="you have no redemption or hold of this payment", pointer="order_no"
)
NO_SUCH_USE = Refusal(
    code=Code.RESOURCE_NOT_EXISTS, detail="you have no redemption or hold of this voucher", pointer="voucher_code"
)
NO_SUCH_HOLD = Refusal(
    code=Code.RESOURCE_NOT_EXISTS, detail="you have no hold under this number", pointer="hold_request_no"
)
HOLD_RUN_OUT = Refusal(
    code=Code.RULE_LIMIT, rule="HOLD_RUN_OUT", detail="the hold ran out; the voucher is free again and was not used"
)
HOLD_CANCELLED = Refusal(code=Code.RULE_LIMIT, rule="HOLD_CANCELLED", detail="the hold was cancelled")
HOLD_CONFIRMED = Refusal(
    code=Code.RULE_LIMIT, rule="HOLD_CONFIRMED", detail="the hold was confirmed under another number; refund it instead"
)
ALREADY_REFUNDED = Refusal(
    code=Code.RULE_LIMIT, rule="ALREADY_REFUNDED", detail="everything that was paid has been given back"
)
REFUND_DEBT = Refusal(
    code=Code.RULE_LIMIT,
    rule="REFUND_DEBT",
    detail="refunds of earlier days' sales would exceed what this merchant may owe; wait for the next settlement",
)


TOO_OLD = Refusal(
    code=Code.RULE_LIMIT,
    rule="OFFLINE_TOO_OLD",
    detail=f"taken more than {OFFLINE_AGE_MAX // timedelta(hours=1)} hours ago; it cannot be uploaded any more",
    pointer="taken_at",
)


BEFORE_CLAIM = Refusal(
    code=Code.RULE_LIMIT,
    rule="OFFLINE_BEFORE_CLAIM",
    detail="taken before the voucher was claimed; set the till's clock right",
    pointer="taken_at",
)


def mismatch(pointer: str) -> Refusal:
    """A number that stands for another request."""
    return Refusal(
        code=Code.IDEMPOTENCY_MISMATCH,
        detail="this number was used with another request; take a new number for a new request",
        pointer=pointer,
    )
