"""The ledger's functions where days, refunds and expiry meet."""

from collections.abc import AsyncIterator

import pytest

from redemption.settlement.settle import close_day
from tests import stores
from tests.settling import answered, approved
from tests.town import DAY, FACE_FEN, Town, assert_books, at, build, contents, later


@pytest.fixture
async def town(database: stores.Database) -> AsyncIterator[Town]:
    """A town whose merchants may owe the price of two vouchers."""
    async with database.connection() as conn:
        yield await build(conn, debt_fen_max=2 * FACE_FEN)


async def test_days_close_in_order_and_once(town: Town) -> None:
    await town.sell(1, later(2))
    close = "SELECT close_day(0::smallint, $1, $2)"
    assert await town.conn.fetchval(close, later(2), at(later(3)))
    before = await contents(town.conn)
    assert not await town.conn.fetchval(close, later(2), at(later(3)))
    assert not await town.conn.fetchval(close, DAY, at(later(3)))
    assert await contents(town.conn) == before


async def test_a_sale_or_refund_of_a_closed_day_is_booked_on_the_next(town: Town) -> None:
    (first,) = await town.sell(1, DAY)
    await close_day(town.conn, DAY, at(later(1)))
    await town.sell(1, DAY)
    await town.refund([first], at(DAY, 23))
    days = await town.conn.fetch("SELECT booked_on FROM redemption UNION ALL SELECT booked_on FROM refund")
    assert [row["booked_on"] for row in days] == [DAY, later(1), later(1)]
    await assert_books(town.conn)


async def test_an_empty_day_closes(town: Town) -> None:
    await close_day(town.conn, DAY, at(later(1)))
    assert await town.conn.fetchval("SELECT count(*) FROM day_close") == town.buckets
    assert await town.conn.fetchval("SELECT count(*) FROM merchant_day") == 0


async def test_a_voucher_sold_refunded_and_sold_again_on_three_days(town: Town) -> None:
    (sale,) = await town.sell(1, DAY)
    await close_day(town.conn, DAY, at(later(1)))
    await town.refund([sale], at(later(1)))
    (again,) = await town.redeem([sale.voucher_id], 2, at(later(1), 13))
    assert again.outcome == "DONE"
    await close_day(town.conn, later(1), at(later(2)))
    await town.refund([again], at(later(2)))
    await close_day(town.conn, later(2), at(later(3)))
    assert [await town.balance("PAYABLE", no) for no in (1, 2)] == [0, 0]
    assert await town.balance("ISSUED") == FACE_FEN
    await assert_books(town.conn)


async def test_refunds_sent_again_take_no_room_from_their_neighbours(town: Town) -> None:
    sales = await town.sell(1, DAY, 3)
    await answered(town, await approved(town))
    assert await town.refund(sales[:1], at(later(1)), numbers=["REFUND-1"]) == ["REFUNDED"]
    both = await town.refund(sales[:2], at(later(1)), numbers=["REFUND-1", "REFUND-2"])
    assert both == ["REPLAYED", "REFUNDED"]
    assert await town.refund(sales[2:], at(later(1)), numbers=["REFUND-3"]) == ["OVER_LIMIT"]
    await assert_books(town.conn)


async def test_what_a_merchant_is_owed_is_no_room_for_refunds_of_closed_days(town: Town) -> None:
    """A batch may be paying it out: refunded against it as well, the merchant would owe more than agreed."""
    sales = await town.sell(1, DAY, 4)
    await close_day(town.conn, DAY, at(later(1)))
    assert await town.refund(sales, at(later(1))) == ["REFUNDED", "REFUNDED", "OVER_LIMIT", "OVER_LIMIT"]
    await approved(town)
    assert await town.balance("PAYABLE", 1) == -2 * FACE_FEN
    await assert_books(town.conn)


async def test_the_debt_limit_counts_refunds_of_days_closed_since(town: Town) -> None:
    sales = await town.sell(1, DAY, 4)
    await answered(town, await approved(town))
    assert await town.refund(sales[:1], at(later(1))) == ["REFUNDED"]
    await close_day(town.conn, later(1), at(later(2)))
    assert await town.refund(sales[1:], at(later(2))) == ["REFUNDED", "OVER_LIMIT", "OVER_LIMIT"]
    await assert_books(town.conn)


async def test_expiry_of_a_stock_waits_for_no_other_bucket(town: Town, database: stores.Database) -> None:
    await town.issue(2)
    await town.issue(3, bucket=1)
    after = at(later(31))
    async with database.connection() as till:
        transaction = till.transaction()
        await transaction.start()
        await till.execute("SELECT lock_bucket(0::smallint)")
        assert await town.conn.fetchval("SELECT expire_stock(1::smallint, 1, $1)", after) == 3
        await transaction.rollback()
    assert await town.conn.fetchval("SELECT expire_stock(0::smallint, 1, $1)", after) == 2
    assert await town.conn.fetchval("SELECT expire_stock(0::smallint, 1, $1)", after) == 0
    await assert_books(town.conn)


@pytest.mark.parametrize("is_safe", [True, False])
async def test_closing_a_day_never_reads_all_accounts_for_each(database: stores.Database, is_safe: bool) -> None:
    """The control takes the setting away and must read them all, as a plan from an empty table does."""
    count = 200
    async with database.connection() as conn:
        town = await build(conn, buckets=1, merchants=count)
        for merchant in town.merchants:
            await town.sell(merchant, DAY)
        if not is_safe:
            settings = "smallint[], smallint[], integer[], account_kind[], bigint[], bigint[]"
            await conn.execute(f"ALTER FUNCTION add_to_accounts({settings}) RESET enable_seqscan")
        await conn.execute("VACUUM ANALYZE account")
        async with conn.transaction():
            await conn.execute("SELECT close_day(0::smallint, $1, $2)", DAY, at(later(1)))
            read = await conn.fetchval(
                "SELECT seq_tup_read FROM pg_stat_xact_user_tables WHERE relid = 'account'::regclass"
            )
        assert (read < count) is is_safe
