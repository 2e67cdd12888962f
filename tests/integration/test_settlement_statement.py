"""A merchant's statement adds up, and closes where the ledger stands."""

from collections.abc import AsyncIterator

import msgspec
import pytest

from kernel.codes import CodeBook
from redemption.settlement.refusals import Refused, Why
from redemption.settlement.settle import close_day
from redemption.settlement.statement import Statement, statement
from tests import stores
from tests.settling import answered, approved
from tests.town import DAY, FACE_FEN, Town, at, build, later

CODES = CodeBook({1: bytes(range(16))})


@pytest.fixture
async def town(database: stores.Database) -> AsyncIterator[Town]:
    """A town in which nothing was sold yet."""
    async with database.connection() as conn:
        yield await build(conn)


async def told(town: Town, merchant_no: int, day: int, **page: int) -> Statement:
    answer = await statement(town.conn, merchant_no, later(day), CODES, **page)
    assert isinstance(answer, Statement)
    moved = answer.redeemed_fen - answer.refunded_fen - answer.settled_fen + answer.voided_fen
    assert answer.closing_fen == answer.opening_fen + moved
    return answer


async def test_days_follow_on_each_other_and_end_where_the_ledger_is(town: Town) -> None:
    one = town.merchants[0]
    sales = await town.sell(one, DAY, 4)
    await town.sell(one, DAY, 1, stock_no=3)  # another campaign's voucher is the same merchant's money
    await answered(town, await approved(town), rejected=(1,))  # approved and sent back on the next day
    await town.refund(sales[:1], at(later(1), 18))
    await town.sell(one, later(1), 2, bucket=1)
    await approved(town, later(1))  # approved on day 2
    days = [await told(town, one, day) for day in range(4)]
    assert [day.opening_fen for day in days] == [0, 10_000, 12_000, 2_000]
    assert [day.closing_fen for day in days] == [10_000, 12_000, 2_000, 2_000]
    assert [(day.settled_fen, day.voided_fen) for day in days] == [(0, 0), (8_000, 8_000), (10_000, 0), (0, 0)]
    owed = await town.balance("PAYABLE", one) + await town.balance("PAYABLE", one, campaign_no=2)
    assert days[-1].closing_fen == owed


async def test_it_is_the_same_before_and_after_the_day_is_closed(town: Town) -> None:
    one = town.merchants[0]
    await town.sell(one, DAY, 2)
    await town.sell(one, DAY, 1, bucket=1)
    await town.sell(one, later(1), 1, bucket=1)
    before = [await told(town, one, day) for day in range(3)]
    await town.conn.fetchval("SELECT close_day(1::smallint, $1, $2)", DAY, at(later(1)))  # half of the buckets
    assert [await told(town, one, day) for day in range(3)] == before
    await close_day(town.conn, later(1), at(later(2)))
    assert [await told(town, one, day) for day in range(3)] == before


async def test_entries_never_show_a_code(town: Town) -> None:
    one = town.merchants[0]
    (sale,) = await town.sell(one, DAY)
    await town.refund([sale], at(DAY, 15))
    answer = await told(town, one, 0)
    code = CODES.encode(sale.voucher_id)
    redeemed, refunded = answer.entries
    assert (redeemed.kind, redeemed.subsidy_fen, redeemed.code_tail) == ("REDEEM", FACE_FEN, code[-6:])
    assert (refunded.kind, refunded.subsidy_fen, refunded.refund_request_no[:4]) == ("REFUND", -FACE_FEN, "REF-")
    assert redeemed.occurred_at == "2020-04-20T12:00:00+08:00"
    text = msgspec.json.encode(answer).decode()
    assert code not in text
    assert code[:20] not in text


async def test_lines_say_how_they_stand(town: Town) -> None:
    one, two, _ = town.merchants
    await town.sell(one, DAY, 2)
    await town.sell(two, DAY, 2)
    await town.hold(two, "papers are missing")
    await answered(town, await approved(town))
    (paid,) = (await told(town, one, 0)).settlement
    (held,) = (await told(town, two, 0)).settlement
    assert (paid.state, paid.amount_fen, paid.bank_reference) == ("PAID", 4_000, "B1")
    assert (held.state, held.reason) == ("HELD", "papers are missing")
    assert (await told(town, two, 1)).settled_fen == 0


async def test_it_comes_in_pages(town: Town) -> None:
    one = town.merchants[0]
    await town.sell(one, DAY, 5)
    whole = await told(town, one, 0)
    first = await told(town, one, 0, limit=3)
    rest = await told(town, one, 0, limit=3, offset=first.next_offset or 0)
    assert (first.next_offset, rest.next_offset, whole.next_offset) == (3, None, None)
    assert first.entries + rest.entries == whole.entries
    assert first.redeemed_count == whole.redeemed_count == 5


async def test_the_checkout_service_may_read_it(town: Town, database: stores.Database) -> None:
    await town.sell(town.merchants[0], DAY)
    await answered(town, await approved(town))
    async with database.connection("hanquan_redemption") as conn:
        answer = await statement(conn, town.merchants[0], later(1), CODES)
        assert isinstance(answer, Statement)
        assert answer.settled_fen == FACE_FEN
        unknown = await statement(conn, 99, DAY, CODES)
        assert unknown == Refused(Why.UNKNOWN_MERCHANT, "there is no merchant 99")
