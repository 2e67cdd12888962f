"""The offer's rules: one verdict for every case, and never more than the bill allows."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel.errors import Code, Refusal
from redemption.offers import Merchant, Offer, Saving, judge

NOON = datetime(2020, 4, 23, 4, tzinfo=UTC)
WEEK = timedelta(days=7)


def an_offer(face_value_fen: int = 2_000, minimum_fen: int = 6_000, funded_fen: int = 2_000) -> Offer:
    """Vouchers for dining, good for a week from noon."""
    return Offer(
        stock_no=1,
        stock_id="dining",
        category="dining",
        face_value_fen=face_value_fen,
        funded_fen=funded_fen,
        transaction_minimum_fen=minimum_fen,
        valid_from=NOON,
        valid_until=NOON + WEEK,
        refund_policy="RESTORE",
    )


def a_shop(category: str = "dining", suspended: bool = False) -> Merchant:
    """A merchant as the rules see it."""
    return Merchant(merchant_no=1, merchant_id="NOODLES", category=category, suspended=suspended)


@st.composite
def offers(draw: st.DrawFn) -> Offer:
    """Any offer that the schema lets pass."""
    minimum_fen = draw(st.integers(1, 10**8))
    face_value_fen = draw(st.integers(1, minimum_fen))
    return an_offer(face_value_fen, minimum_fen, draw(st.integers(1, face_value_fen)))


moments = st.integers(-(10**6), 2 * 10**6).map(lambda seconds: NOON + timedelta(seconds=seconds))


@given(offers(), st.integers(1, 10**12), moments, st.booleans(), st.sampled_from(["dining", "mall"]))
def test_a_saving_never_exceeds_what_the_bill_and_the_fund_allow(
    offer: Offer, bill_fen: int, now: datetime, suspended: bool, category: str
) -> None:
    verdict = judge(offer, a_shop(category, suspended), bill_fen, now)
    may = not suspended and category == offer.category and offer.valid_from <= now < offer.valid_until
    may = may and bill_fen >= offer.transaction_minimum_fen
    assert isinstance(verdict, Saving) == may
    if isinstance(verdict, Saving):
        assert 0 < verdict.subsidy_fen <= verdict.discount_fen <= bill_fen
        assert verdict == Saving(offer.face_value_fen, offer.funded_fen)
    else:
        assert verdict.code is Code.RULE_LIMIT
        assert verdict.rule


@given(offers(), st.integers(1, 10**8))
def test_a_larger_bill_is_never_worse(offer: Offer, more_fen: int) -> None:
    assert isinstance(judge(offer, a_shop(), offer.transaction_minimum_fen, NOON), Saving)
    assert isinstance(judge(offer, a_shop(), offer.transaction_minimum_fen + more_fen, NOON), Saving)


@pytest.mark.parametrize(
    ("shop", "bill_fen", "now", "rule"),
    [
        (a_shop("mall", suspended=True), 1, NOON - WEEK, "MERCHANT_SUSPENDED"),
        (a_shop("mall"), 1, NOON - WEEK, "CATEGORY"),
        (a_shop(), 1, NOON - timedelta(microseconds=1), "NOT_YET_VALID"),
        (a_shop(), 1, NOON + WEEK, "EXPIRED"),
        (a_shop(), 5_999, NOON, "TRANSACTION_MINIMUM"),
        (a_shop(), 6_000, NOON, None),
        (a_shop(), 6_000, NOON + WEEK - timedelta(microseconds=1), None),
    ],
)
def test_the_first_rule_that_forbids_is_told(shop: Merchant, bill_fen: int, now: datetime, rule: str | None) -> None:
    verdict = judge(an_offer(), shop, bill_fen, now)
    assert (verdict.rule if isinstance(verdict, Refusal) else None) == rule
