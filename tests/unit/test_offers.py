"""The offer's rules: one verdict for every case, never more than the bill allows, and every fen of it accounted for."""

import random
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel.errors import Code, Refusal
from kernel.money import AMOUNT_FEN_MAX, BP_WHOLE
from redemption.offers import (
    EVERY_OTHER,
    Merchant,
    Offer,
    Other,
    RefundPolicy,
    Saving,
    Shown,
    Split,
    best_of,
    judge,
    split,
    taken_back,
    valid_until_of,
)

NOON = datetime(2020, 4, 23, 4, tzinfo=UTC)
WEEK = timedelta(days=7)
MOMENT = timedelta(microseconds=1)


def an_offer(face_value_fen: int = 2_000, minimum_fen: int = 6_000, funded_fen: int = 2_000, **more: Any) -> Offer:
    """Vouchers for dining, good for a week from noon."""
    said = {
        "stock_no": 1,
        "stock_id": "dining",
        "category": "dining",
        "face_value_fen": face_value_fen,
        "funded_fen": funded_fen,
        "transaction_minimum_fen": minimum_fen,
        "valid_from": NOON,
        "valid_until": NOON + WEEK,
        "refund_policy": "RESTORE",
    }
    return Offer.of(said | more)


def a_shop(category: str = "dining", suspended: bool = False, district: str = "wuchang") -> Merchant:
    """A merchant as the rules see it."""
    return Merchant(merchant_no=1, merchant_id="NOODLES", category=category, suspended=suspended, district=district)


def rule_of(verdict: Saving | Refusal) -> str | None:
    """The rule that forbids; None when nothing does."""
    return verdict.rule if isinstance(verdict, Refusal) else None


places: st.SearchStrategy[list[Any]] = st.lists(st.sampled_from(["wuchang", "hankou"]), max_size=2)
others: st.SearchStrategy[frozenset[Other]] = st.frozensets(st.sampled_from(sorted(EVERY_OTHER)))
moments = st.integers(-(10**6), 2 * 10**6).map(lambda seconds: NOON + timedelta(seconds=seconds))
bills = st.integers(1, AMOUNT_FEN_MAX)
policies: st.SearchStrategy[RefundPolicy] = st.sampled_from(["RESTORE", "RETURN_TO_BUDGET", "PAID_SHARE"])


@st.composite
def offers(draw: st.DrawFn, minimum_fen_max: int = 10**8) -> Offer:
    """Any offer that the schema lets pass."""
    minimum_fen = draw(st.integers(1, minimum_fen_max))
    face_value_fen = draw(st.integers(1, minimum_fen))
    cuts = sorted(draw(st.tuples(st.integers(0, BP_WHOLE), st.integers(0, BP_WHOLE))))
    return an_offer(
        face_value_fen,
        minimum_fen,
        draw(st.integers(1, face_value_fen)),
        valid_days_after_claim=draw(st.none() | st.integers(1, 366)),
        districts=draw(places),
        merchants=draw(st.lists(st.integers(1, 2), max_size=2)),
        stacks_with=list(draw(others)),
        till_code=draw(st.sampled_from(["ANY", "ROTATING"])),
        city_bp=cuts[0],
        platform_bp=cuts[1] - cuts[0],
        merchant_bp=BP_WHOLE - cuts[1],
    )


# ---------------------------------------------------------------- one voucher


@given(offers(), bills, moments, moments, others, st.booleans(), st.booleans(), st.sampled_from(["dining", "mall"]))
def test_a_saving_never_exceeds_what_the_bill_and_the_fund_allow(
    offer: Offer,
    bill_fen: int,
    claimed_at: datetime,
    now: datetime,
    other_offers: frozenset[Other],
    is_rotating: bool,
    suspended: bool,
    category: str,
) -> None:
    shop = a_shop(category, suspended)
    verdict = judge(
        offer, shop, bill_fen, now, claimed_at=claimed_at, other_offers=other_offers, is_rotating=is_rotating
    )
    may = (
        not suspended
        and category == offer.category
        and (not offer.districts or shop.district in offer.districts)
        and (not offer.merchants or shop.merchant_no in offer.merchants)
        and offer.valid_from <= now < valid_until_of(offer, claimed_at) <= offer.valid_until
        and (is_rotating or offer.till_code == "ANY")
        and other_offers <= offer.stacks_with
        and bill_fen >= offer.transaction_minimum_fen
    )
    if isinstance(verdict, Saving):
        assert may
        assert 0 < verdict.subsidy_fen <= verdict.discount_fen <= min(bill_fen, offer.face_value_fen)
    else:
        assert not may
        assert verdict.code is Code.RULE_LIMIT
        assert verdict.rule and verdict.detail


@given(offers(), st.integers(1, 10**8))
def test_a_larger_bill_is_never_worse(offer: Offer, more_fen: int) -> None:
    at_least = rule_of(judge(offer, a_shop(), offer.transaction_minimum_fen, NOON, claimed_at=NOON))
    assert at_least == rule_of(judge(offer, a_shop(), offer.transaction_minimum_fen + more_fen, NOON, claimed_at=NOON))
    assert at_least in (None, "DISTRICT", "MERCHANT")


@given(st.integers(1, 10**8), bills)
def test_no_change_is_given_even_if_the_minimum_is_below_the_face(face_value_fen: int, bill_fen: int) -> None:
    verdict = judge(an_offer(face_value_fen, 1, face_value_fen), a_shop(), bill_fen, NOON, claimed_at=NOON)
    assert rule_of(verdict) == (None if bill_fen >= face_value_fen else "TRANSACTION_MINIMUM")


FORBIDDEN = an_offer(
    districts=["hankou"], merchants=[2], till_code="ROTATING", stacks_with=[], valid_days_after_claim=2
)
"""Every rule forbids it; each of the cases mends one thing more."""


@pytest.mark.parametrize(
    ("offer", "shop", "now", "is_rotating", "other", "bill_fen", "rule"),
    [
        (FORBIDDEN, a_shop("mall", True), NOON - MOMENT, False, EVERY_OTHER, 1, "MERCHANT_SUSPENDED"),
        (FORBIDDEN, a_shop("mall"), NOON - MOMENT, False, EVERY_OTHER, 1, "CATEGORY"),
        (FORBIDDEN, a_shop(), NOON - MOMENT, False, EVERY_OTHER, 1, "DISTRICT"),
        (FORBIDDEN, a_shop(district="hankou"), NOON - MOMENT, False, EVERY_OTHER, 1, "MERCHANT"),
    ],
)
def test_the_shop_is_looked_at_first(
    offer: Offer,
    shop: Merchant,
    now: datetime,
    is_rotating: bool,
    other: frozenset[Other],
    bill_fen: int,
    rule: str,
) -> None:
    verdict = judge(offer, shop, bill_fen, now, claimed_at=NOON, other_offers=other, is_rotating=is_rotating)
    assert rule_of(verdict) == rule


IN_ORDER = an_offer(till_code="ROTATING", stacks_with=["SHOP"], valid_days_after_claim=2)


@pytest.mark.parametrize(
    ("now", "is_rotating", "other", "bill_fen", "rule"),
    [
        (NOON - MOMENT, False, EVERY_OTHER, 5_999, "NOT_YET_VALID"),
        (NOON + timedelta(days=2), False, EVERY_OTHER, 5_999, "EXPIRED"),
        (NOON, False, EVERY_OTHER, 5_999, "ROTATING_CODE"),
        (NOON, True, EVERY_OTHER, 5_999, "NOT_STACKABLE"),
        (NOON, True, frozenset({"SHOP"}), 5_999, "TRANSACTION_MINIMUM"),
        (NOON, True, frozenset({"SHOP"}), 6_000, None),
    ],
)
def test_the_first_rule_that_forbids_is_told(
    now: datetime, is_rotating: bool, other: frozenset[Other], bill_fen: int, rule: str | None
) -> None:
    verdict = judge(IN_ORDER, a_shop(), bill_fen, now, claimed_at=NOON, other_offers=other, is_rotating=is_rotating)
    assert rule_of(verdict) == rule


# ---------------------------------------------------------------- how long it is good


def test_days_from_the_claim_end_with_the_citys_day() -> None:
    offer = an_offer(valid_days_after_claim=2)
    before_midnight, midnight = datetime(2020, 4, 23, 15, 59, 59, tzinfo=UTC), datetime(2020, 4, 23, 16, tzinfo=UTC)
    assert valid_until_of(offer, NOON) == datetime(2020, 4, 24, 15, 59, 59, tzinfo=UTC)
    assert valid_until_of(offer, before_midnight) == datetime(2020, 4, 24, 15, 59, 59, tzinfo=UTC)
    assert valid_until_of(offer, midnight) == datetime(2020, 4, 25, 15, 59, 59, tzinfo=UTC)


@given(st.integers(1, 366), moments)
def test_nothing_outlives_its_stock(days: int, claimed_at: datetime) -> None:
    ends_at = valid_until_of(an_offer(valid_days_after_claim=days), claimed_at)
    assert ends_at == min(NOON + WEEK, ends_at)
    assert ends_at == NOON + WEEK or timedelta() <= ends_at - claimed_at <= timedelta(days=days)
    assert valid_until_of(an_offer(), claimed_at) == NOON + WEEK


# ---------------------------------------------------------------- several vouchers


extras: st.SearchStrategy[dict[str, Any]] = st.sampled_from(
    [{}, {"valid_days_after_claim": 1}, {"valid_days_after_claim": 3}, {"category": "mall"}, {"till_code": "ROTATING"}]
)


@st.composite
def shown_offers(draw: st.DrawFn) -> list[Shown]:
    """Some vouchers as a customer shows them; faces are few, so that they are often equal."""
    ids = draw(st.lists(st.integers(1, 2**48), unique=True, max_size=6))
    return [
        Shown(
            voucher_id=voucher_id,
            offer=draw(
                st.sampled_from([an_offer(face, 3 * face, face, **draw(extras)) for face in (500, 1_000, 2_000)])
            ),
            claimed_at=NOON + timedelta(days=draw(st.integers(0, 3))),
            is_rotating=draw(st.booleans()),
        )
        for voucher_id in ids
    ]


@given(shown_offers(), st.integers(1, 8_000), st.randoms(use_true_random=False))
def test_one_voucher_is_chosen_whatever_the_order(shown: list[Shown], bill_fen: int, luck: random.Random) -> None:
    told = best_of(shown, a_shop(), bill_fen, NOON)
    mixed = [*shown, *shown[:1]]  # and one of them twice
    luck.shuffle(mixed)
    assert best_of(mixed, a_shop(), bill_fen, NOON) == told
    assert sorted(verdict.voucher_id for verdict in told) == sorted(each.voucher_id for each in shown)
    alone = {
        each.voucher_id: judge(
            each.offer, a_shop(), bill_fen, NOON, claimed_at=each.claimed_at, is_rotating=each.is_rotating
        )
        for each in shown
    }
    savings = [verdict.outcome for verdict in told if isinstance(verdict.outcome, Saving)]
    payable = [saving for saving in alone.values() if isinstance(saving, Saving)]
    assert len(savings) == min(1, len(payable))
    if savings:
        assert isinstance(told[0].outcome, Saving)
        assert savings[0].discount_fen == max(saving.discount_fen for saving in payable) <= bill_fen
    for verdict in told:
        expected = rule_of(alone[verdict.voucher_id])
        if verdict.voucher_id != told[0].voucher_id:
            assert rule_of(verdict.outcome) == (expected or "NOT_CHOSEN")


def shown_as(voucher_id: int, face: int, days: int | None = None) -> Shown:
    """A voucher claimed at noon."""
    offer = an_offer(face, 3 * face, face, valid_days_after_claim=days)
    return Shown(voucher_id=voucher_id, offer=offer, claimed_at=NOON)


def test_the_largest_saving_then_the_first_to_run_out_then_the_smallest_number_wins() -> None:
    ranking = [shown_as(9, 2_000), shown_as(8, 1_000, days=1), shown_as(6, 1_000, days=2), shown_as(7, 1_000, days=2)]
    for n in range(len(ranking)):
        told = best_of(reversed(ranking[n:]), a_shop(), 6_000, NOON)
        assert [verdict.voucher_id for verdict in told] == [each.voucher_id for each in ranking[n:]]
        assert [rule_of(verdict.outcome) for verdict in told] == [None, *["NOT_CHOSEN"] * (len(told) - 1)]


def test_a_voucher_that_does_not_fit_the_bill_stands_in_nobodys_way() -> None:
    chosen, other = best_of([shown_as(1, 2_000), shown_as(2, 1_000)], a_shop(), 5_999, NOON)
    assert chosen.voucher_id == 2
    assert rule_of(other.outcome) == "TRANSACTION_MINIMUM"
    assert best_of([], a_shop(), 5_999, NOON) == []


# ---------------------------------------------------------------- who pays


@given(offers(), st.integers(0, AMOUNT_FEN_MAX))
def test_a_split_adds_up_to_the_fen(offer: Offer, face_fen: int) -> None:
    parts = split(offer, face_fen)
    amounts = (parts.city_fen, parts.platform_fen, parts.merchant_fen)
    assert sum(amounts) == face_fen
    shares = (offer.city_bp, offer.platform_bp, offer.merchant_bp)
    for amount_fen, share_bp in zip(amounts, shares, strict=True):
        assert face_fen * share_bp // BP_WHOLE <= amount_fen <= face_fen * share_bp // BP_WHOLE + 1
        assert share_bp or not amount_fen


def test_fen_left_over_go_to_the_largest_remainders_city_first() -> None:
    thirds = an_offer(city_bp=3_333, platform_bp=3_333, merchant_bp=3_334)
    assert split(thirds, 100) == Split(33, 33, 34)
    halves = an_offer(city_bp=5_000, platform_bp=5_000, merchant_bp=0)
    assert split(halves, 1) == Split(1, 0, 0)


# ---------------------------------------------------------------- what goes back


@given(policies, st.integers(1, 10**9), st.integers(1, 10**7), st.lists(st.integers(1, 10**9), max_size=5))
def test_parts_taken_back_add_up_to_the_subsidy(
    policy: RefundPolicy, paid_fen: int, subsidy_fen: int, cuts: list[int]
) -> None:
    """Cash goes back in some steps; `cuts` are what is back after each of them."""
    refunded_fen = back_fen = 0
    for back_so_far_fen in sorted({*(cut for cut in cuts if cut < paid_fen), paid_fen}):
        step_fen = taken_back(
            policy,
            paid_fen=paid_fen,
            subsidy_fen=subsidy_fen,
            refunded_before_fen=refunded_fen,
            subsidy_back_before_fen=back_fen,
            refund_fen=back_so_far_fen - refunded_fen,
        )
        assert 0 <= step_fen <= subsidy_fen - back_fen
        refunded_fen, back_fen = back_so_far_fen, back_fen + step_fen
        in_proportion_fen = subsidy_fen * refunded_fen // paid_fen  # in whatever parts it came
        assert back_fen == (subsidy_fen if policy == "RETURN_TO_BUDGET" else in_proportion_fen)
    assert back_fen == subsidy_fen


@pytest.mark.parametrize("policy", ["RESTORE", "RETURN_TO_BUDGET", "PAID_SHARE"])
def test_a_bill_that_the_voucher_paid_alone_goes_back_in_one_step(policy: RefundPolicy) -> None:
    nothing: dict[str, int] = {"refunded_before_fen": 0, "subsidy_back_before_fen": 0}
    assert taken_back(policy, paid_fen=0, subsidy_fen=700, refund_fen=0, **nothing) == 700
    with pytest.raises(ValueError, match="1 fen cannot go back of 0 paid"):
        taken_back(policy, paid_fen=0, subsidy_fen=700, refund_fen=1, **nothing)
