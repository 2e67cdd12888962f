"""Unused vouchers give their money back, once, and it leaves RETURNED only as often as it should."""

from collections.abc import AsyncIterator
from datetime import timedelta

import asyncpg
import pytest

from redemption.settlement.expire import EXPIRY_GRACE, Expired, Returned, ReturnTo, expire_over, return_unused
from redemption.settlement.refusals import Refused, Why
from redemption.settlement.settle import close_day
from tests import stores
from tests.town import CAMPAIGN_NO, DAY, FACE_FEN, FUND_FEN, VALID_DAYS, Town, assert_books, at, build, contents, later

END = at(later(VALID_DAYS))
AFTER = END + EXPIRY_GRACE + timedelta(seconds=1)


@pytest.fixture
async def town(database: stores.Database) -> AsyncIterator[Town]:
    """A town in which nothing was sold yet; its connection is finance's own where it matters."""
    async with database.connection() as conn:
        yield await build(conn)


async def test_unused_vouchers_of_all_buckets_expire_once(town: Town, database: stores.Database) -> None:
    one = town.merchants[0]
    await town.sell(one, DAY, 3)
    await town.issue(4)
    await town.issue(2, bucket=1)
    await town.issue(5, stock_no=2)
    async with database.connection("hanquan_finance") as conn:
        assert await expire_over(conn, END + timedelta(hours=72, minutes=59)) == []
        expired = await expire_over(conn, AFTER)
        assert expired == [
            Expired(stock_id="RESTORE-1", voucher_count=6), Expired(stock_id="RETURN-1", voucher_count=5)
        ]  # fmt: skip
        before = await contents(town.conn)
        assert await expire_over(conn, AFTER + timedelta(days=1)) == []
    assert await contents(town.conn) == before
    assert (await town.balance("RETURNED"), await town.balance("ISSUED")) == (11 * FACE_FEN, 0)
    await assert_books(town.conn)


async def test_a_voucher_that_a_refund_gave_back_expires_too(town: Town) -> None:
    sales = await town.sell(town.merchants[0], DAY, 3)
    lost = await town.sell(town.merchants[0], DAY, 2, stock_no=2)
    await town.refund(sales[:2], at(DAY, 15))
    await town.refund(lost[:1], at(DAY, 15))
    assert await town.balance("RETURNED") == FACE_FEN
    assert await expire_over(town.conn, AFTER) == [Expired(stock_id="RESTORE-1", voucher_count=2)]
    assert (await town.balance("RETURNED"), await town.balance("ISSUED")) == (3 * FACE_FEN, 0)
    await assert_books(town.conn)


async def test_a_refund_after_expiry_goes_to_returned_and_leaves_nothing_behind(town: Town) -> None:
    sales = await town.sell(town.merchants[0], DAY, 3)
    await town.issue(1)
    await expire_over(town.conn, AFTER)
    assert await town.refund(sales[:1], AFTER + timedelta(hours=1)) == ["REFUNDED"]
    assert (await town.balance("RETURNED"), await town.balance("ISSUED")) == (2 * FACE_FEN, 0)
    assert await expire_over(town.conn, AFTER + timedelta(days=1)) == []
    await close_day(town.conn, later(VALID_DAYS), at(later(VALID_DAYS + 1)))
    assert (await town.balance("RETURNED"), await town.balance("ISSUED")) == (2 * FACE_FEN, 0)
    await assert_books(town.conn)


async def test_a_refund_between_the_end_and_expiry_does_not_bring_the_voucher_back(town: Town) -> None:
    sales = await town.sell(town.merchants[0], DAY, 1)
    assert await town.refund(sales, END + timedelta(minutes=5)) == ["REFUNDED"]
    assert await expire_over(town.conn, AFTER) == []
    assert (await town.balance("RETURNED"), await town.balance("ISSUED")) == (FACE_FEN, 0)
    await assert_books(town.conn)


async def test_an_expired_voucher_cannot_be_used(town: Town) -> None:
    (voucher,) = await town.issue(1)
    await expire_over(town.conn, AFTER)
    (late,) = await town.redeem([voucher], town.merchants[0], AFTER)
    assert late.outcome == "EXPIRED"
    await assert_books(town.conn)


async def test_a_stock_that_can_still_be_used_never_expires(town: Town) -> None:
    await town.issue(1)
    for moment in (END, END - timedelta(days=1)):
        with pytest.raises(asyncpg.PostgresError, match="is valid until"):
            await town.conn.execute("SELECT expire_stock(0::smallint, 1, $1)", moment)


async def test_unused_money_returns_once_for_each_reference(town: Town, database: stores.Database) -> None:
    await town.issue(10)
    await expire_over(town.conn, AFTER)
    async with database.connection("hanquan_finance") as conn:
        args = (CAMPAIGN_NO, ReturnTo.CITY_FUND, 12_000, "li.wei", "end of April", AFTER)
        first = await return_unused(conn, *args)
        assert first == Returned(reference="end of April", to=ReturnTo.CITY_FUND, amount_fen=12_000, replayed=False)
        before = await contents(town.conn)
        again = await return_unused(conn, *args)
        assert isinstance(again, Returned)
        assert again.replayed
        for to, amount_fen, reference, why in (
            (ReturnTo.BUDGET, 12_000, "end of April", Why.REFERENCE_USED),
            (ReturnTo.CITY_FUND, 11_999, "end of April", Why.REFERENCE_USED),
            (ReturnTo.BUDGET, 8_001, "May", Why.NOT_ENOUGH),
            (ReturnTo.BUDGET, 0, "May", Why.NOT_ENOUGH),
            (ReturnTo.BUDGET, 1, "", Why.BAD_REFERENCE),
        ):
            refused = await return_unused(conn, CAMPAIGN_NO, to, amount_fen, "li.wei", reference, AFTER)
            assert isinstance(refused, Refused)
            assert refused.why is why
        assert await contents(town.conn) == before
        await return_unused(conn, CAMPAIGN_NO, ReturnTo.BUDGET, 8_000, "li.wei", "next round", AFTER)
    assert await town.balance("CITY_FUND") == FUND_FEN - 12_000
    assert await town.balance("BUDGET") == FUND_FEN - 20_000 + 8_000
    assert await town.balance("RETURNED") == 0
    await assert_books(town.conn)
