"""The plan of `bench checkout`: no voucher twice, hot shops are hot, and bytes are counted once."""

from collections import Counter
from itertools import pairwise

import pytest

from kernel.ids import REQUEST_NO, unpack_voucher_id
from stack.bench.presign import Ground
from stack.bench.sales import Market, Sales, order_no, out_request_no, shops_of, sold, use_request_no, voucher_id
from stack.bench.storage import Life, Name, shown

GROUND = Ground(run_id="0a1b2c3d", stock_id="bench_r01_wechat_dining", round_no=7, quantity=3_000)


def market(vouchers: int, shops: int = 1_000) -> Market:
    return Market(
        ground=GROUND, stock_no=1, vouchers=vouchers, buckets=2, bill_fen=8_000, subsidy_fen=2_000, shops_file="",
        shops=shops,
    )  # fmt: skip


@pytest.mark.parametrize("vouchers", [1, 2, 1_000, 2_999])
def test_every_voucher_is_sold_once(vouchers: int) -> None:
    whole = market(vouchers)
    found = {sold(whole, place) for place in range(vouchers)}
    assert found == {voucher_id(GROUND, number) for number in range(vouchers)}
    assert {unpack_voucher_id(each).round_no for each in found} == {7}


def test_customers_of_one_moment_hold_vouchers_far_apart() -> None:
    serials = [unpack_voucher_id(sold(market(3_000_000), place)).serial for place in range(50)]
    assert min(abs(a - b) for a, b in pairwise(serials)) > 100_000


def test_hot_shops_draw_by_zipfs_law_and_the_others_alike() -> None:
    hot = Counter(shops_of(Sales(market=market(1), first=0, count=50_000, skewed=True)))
    even = Counter(shops_of(Sales(market=market(1), first=0, count=50_000)))
    assert hot[0] == pytest.approx(50_000 / 7.485, rel=0.05)  # the thousandth harmonic number
    assert hot[0] / hot[9] == pytest.approx(10, rel=0.2)
    assert max(even.values()) < 100


def test_numbers_are_as_long_as_told_and_fit_the_api() -> None:
    made = [out_request_no(GROUND, 2_999_999), use_request_no(market(1), 123_456), order_no(market(1), 0)]
    assert [len(number) for number in made] == [20, 18, 18]
    assert all(REQUEST_NO.fullmatch(number) for number in made)


def test_growth_is_counted_for_who_caused_it_and_packed_is_what_is_left_at_the_end() -> None:
    voucher, index, redemption = Name("voucher", False), Name("voucher_pkey", True), Name("redemption", False)
    before, issued = {voucher: 0, index: 8}, {voucher: 1_000, index: 408, redemption: 8}
    redeemed = {voucher: 1_000, index: 408, redemption: 508}
    stored = Life(before, issued, redeemed, {**redeemed, index: 308}).stored(10)
    told = {each.relation: (each.voucher, each.redemption, each.packed) for each in stored}
    assert told == {"voucher": (100, 0, 100), "redemption": (0.8, 50, 50.8), "voucher_pkey": (40, 0, 30)}
    assert [each.relation for each in stored] == ["voucher", "redemption", "voucher_pkey"]
    assert len(shown(stored)) == 3 and not shown(Life(redeemed, redeemed, redeemed, redeemed).stored(1))
