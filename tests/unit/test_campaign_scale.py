"""A round at another size: exactly as many vouchers as asked for, in the same proportions."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from issuer.campaign.apportion import apportion
from issuer.campaign.scale import scaled
from issuer.campaign.shipped import shipped_document
from tests.small_campaign import read

WUHAN = read(shipped_document("wuhan-2020").decode())

WEIGHTS = st.lists(st.integers(1, 10**6), min_size=1, max_size=40)


@settings(deadline=None)
@given(st.sampled_from([each.round_id for each in WUHAN.rounds]), st.integers(12, 10**8))
def test_scaled_hands_out_exactly_what_is_asked(round_id: str, vouchers: int) -> None:
    small = scaled(WUHAN, round_id, vouchers)
    (only,) = small.rounds
    original = WUHAN.round(round_id)
    assert only.quantity == vouchers
    assert all(stock.quantity >= 1 for stock in only.stocks)
    assert [stock.stock_id for stock in only.stocks] == [stock.stock_id for stock in original.stocks]
    assert small.fund_fen == only.budget_fen == only.exposure_fen
    assert (only.opens_at, only.valid_until) == (original.opens_at, original.valid_until)


def test_the_same_size_changes_nothing_but_the_fund() -> None:
    original = WUHAN.round("r14")
    assert scaled(WUHAN, "r14", original.quantity).rounds == (original,)


def test_one_voucher_a_stock_is_the_least() -> None:
    (only,) = scaled(WUHAN, "r01", 12).rounds
    assert {stock.quantity for stock in only.stocks} == {1}
    with pytest.raises(ValueError, match="12 parts"):
        scaled(WUHAN, "r01", 11)


def test_an_unknown_round() -> None:
    with pytest.raises(KeyError, match="no round r99"):
        scaled(WUHAN, "r99", 100)


@settings(deadline=None)
@given(WEIGHTS, st.integers(0, 10**9))
def test_apportioned_parts_add_up_and_stay_in_order(weights: list[int], more: int) -> None:
    total = len(weights) + more
    parts = apportion(total, weights)
    assert sum(parts) == total
    assert min(parts) >= 1
    for (weight, part), (other_weight, other_part) in zip(
        zip(weights, parts, strict=True), zip(weights[1:], parts[1:], strict=True), strict=False
    ):
        if weight > other_weight:
            assert part >= other_part


@settings(deadline=None)
@given(WEIGHTS, st.integers(0, 10**9))
def test_apportioned_parts_are_within_one_of_their_share(weights: list[int], more: int) -> None:
    """Unless some part had to be lifted to 1, which the others pay for."""
    total = len(weights) + more
    shares = [Fraction(total * weight, sum(weights)) for weight in weights]
    if min(shares) >= 1:
        for part, share in zip(apportion(total, weights), shares, strict=True):
            assert abs(part - share) < 1


@settings(deadline=None)
@given(WEIGHTS)
def test_the_total_of_the_weights_gives_the_weights(weights: list[int]) -> None:
    assert apportion(sum(weights), weights) == weights
