"""Settlement from the close of a day to the bank's answer, with real books."""

from collections.abc import AsyncIterator

import pytest

from redemption.settlement.batch import Batch, list_batches
from redemption.settlement.export import Format, export
from redemption.settlement.refusals import Refused, Why
from redemption.settlement.settle import propose, reject
from tests import stores
from tests.settling import MORNING, PAYER, answered, approved, approved_again, exported, lines_of, proposed
from tests.town import CAMPAIGN_NO, DAY, FACE_FEN, Town, assert_books, at, build, later


@pytest.fixture
async def town(database: stores.Database) -> AsyncIterator[Town]:
    """A town in which nothing was sold yet; its connection is the superuser's."""
    async with database.connection() as conn:
        yield await build(conn)


async def test_a_day_is_proposed_approved_exported_and_paid(town: Town) -> None:
    one, two, _ = town.merchants
    await town.sell(one, DAY, 3)
    await town.sell(one, DAY, 2, bucket=1)
    sales = await town.sell(two, DAY, 4, bucket=1)
    assert await town.refund(sales[:1], at(DAY, 13)) == ["REFUNDED"]

    batch = await proposed(town)
    assert (batch.state, batch.line_count, batch.amount_fen) == ("PROPOSED", 2, 8 * FACE_FEN)
    line = (await lines_of(town, batch))[two]
    assert (line.opening_fen, line.redeemed_fen, line.refunded_fen, line.amount_fen) == (0, 8_000, 2_000, 6_000)
    assert (line.payee_account, line.payee_bank) == ("62220200000002", "汉口银行")
    assert await town.balance("PAYABLE") == 8 * FACE_FEN

    batch = await approved_again(town, batch)
    assert await town.balance("PAYABLE") == 0
    assert await town.balance("SETTLING", one) == 10_000

    outcome = await answered(town, batch)
    assert (outcome.paid_count, outcome.paid_fen, outcome.batch.state) == (2, 16_000, "ANSWERED")
    assert (await town.balance("SETTLING"), await town.balance("PAID")) == (0, 16_000)
    await assert_books(town.conn)


async def test_what_tills_move_after_the_day_does_not_count(town: Town) -> None:
    one, two, three = town.merchants
    sales = await town.sell(one, DAY, 3)
    await town.sell(two, later(1), 5)
    batch = await proposed(town)
    await town.refund(sales[:1], at(later(1), 10))  # of a closed day: in the tail until tomorrow
    await town.sell(three, DAY)  # a till that was offline over midnight
    batch = await approved_again(town, batch)
    assert (batch.line_count, batch.amount_fen) == (1, 3 * FACE_FEN)
    assert await town.balance("PAYABLE", one) == -FACE_FEN
    await assert_books(town.conn)

    second = await approved(town, later(1))
    lines = await lines_of(town, second)
    assert {no: line.amount_fen for no, line in lines.items()} == {two: 5 * FACE_FEN, three: FACE_FEN}
    assert lines[three].redeemed_fen == FACE_FEN
    await assert_books(town.conn)


async def test_a_debt_is_carried_and_netted(town: Town) -> None:
    one = town.merchants[0]
    sales = await town.sell(one, DAY, 4)
    await answered(town, await approved(town))
    assert await town.refund(sales[:3], at(later(1))) == ["REFUNDED"] * 3
    await town.sell(one, later(1), 1, bucket=1)
    assert await propose(town.conn, CAMPAIGN_NO, later(1), "li.wei", at(later(2))) == Refused(
        Why.NOTHING_TO_PAY, "no merchant is owed anything that may be paid (0 held)"
    )
    await town.sell(one, later(2), 5, bucket=1)
    batch = await approved(town, later(2))
    line = (await lines_of(town, batch))[one]
    # Three refunds and six sales since the batch before; four sales were settled by it.
    assert (line.opening_fen, line.settled_fen, line.carried_fen) == (8_000, 8_000, 0)
    assert (line.redeemed_fen, line.refunded_fen, line.amount_fen) == (12_000, 6_000, 6_000)
    # Bucket 0 owes and bucket 1 is owed; the line is their sum, and both are even afterwards.
    shares = await town.conn.fetch(
        "SELECT bucket, amount_fen FROM settlement_share WHERE batch_no = $1", batch.batch_no
    )
    assert {row["bucket"]: row["amount_fen"] for row in shares} == {0: -6_000, 1: 12_000}
    even = await town.conn.fetch("SELECT balance_fen FROM balance WHERE kind = 'PAYABLE' AND merchant_no = $1", one)
    assert {row["balance_fen"] for row in even} == {0}
    await assert_books(town.conn)
    await answered(town, batch, rejected=(1,))
    back = await town.conn.fetch(
        "SELECT bucket, balance_fen FROM balance WHERE kind = 'PAYABLE' AND merchant_no = $1", one
    )
    assert {row["bucket"]: row["balance_fen"] for row in back} == {0: -6_000, 1: 12_000}
    await assert_books(town.conn)


async def test_a_refund_beyond_the_debt_limit_is_refused(database: stores.Database) -> None:
    async with database.connection() as conn:
        town = await build(conn, debt_fen_max=FACE_FEN)
        sales = await town.sell(town.merchants[0], DAY, 3)
        await answered(town, await approved(town))
        assert await town.refund(sales, at(later(1))) == ["REFUNDED", "OVER_LIMIT", "OVER_LIMIT"]
        fresh = await town.sell(town.merchants[0], later(1), 2)
        assert await town.refund(fresh, at(later(1), 13)) == ["REFUNDED"] * 2
        assert await town.balance("PAYABLE", town.merchants[0]) == -FACE_FEN
        await assert_books(conn)


async def test_a_rejected_line_comes_again(town: Town) -> None:
    one, two, _ = town.merchants
    await town.sell(one, DAY, 2)
    await town.sell(two, DAY, 3)
    outcome = await answered(town, await approved(town), rejected=(1,))
    assert (outcome.paid_count, outcome.rejected_count, outcome.rejected_fen) == (1, 1, 4_000)
    assert await town.balance("PAYABLE", one) == 4_000
    again = await approved(town, later(1))
    line = (await lines_of(town, again))[one]
    assert (line.opening_fen, line.settled_fen, line.voided_fen, line.carried_fen) == (4_000, 4_000, 4_000, 4_000)
    assert (line.redeemed_fen, line.amount_fen) == (0, 4_000)
    await assert_books(town.conn)


async def test_a_held_merchant_stays_out_and_comes_again(town: Town) -> None:
    one, two, _ = town.merchants
    await town.sell(one, DAY, 2)
    await town.sell(two, DAY, 3)
    hold = await town.hold(one, "many refunds at night")
    batch = await approved(town)
    line = (await lines_of(town, batch))[one]
    assert (line.state, line.held_code, line.reason) == ("HELD", "TEST", "many refunds at night")
    assert (batch.line_count, batch.held_count, batch.held_fen) == (1, 1, 4_000)
    assert await town.balance("PAYABLE", one) == 4_000
    order = await exported(town, batch)
    assert b"M0001" not in order.data
    await answered(town, batch)

    refused = await propose(town.conn, CAMPAIGN_NO, later(1), "li.wei", at(later(2)))
    assert refused == Refused(Why.NOTHING_TO_PAY, "no merchant is owed anything that may be paid (1 held)")
    await town.release(hold)
    line = (await lines_of(town, await approved(town, later(2))))[one]
    assert (line.state, line.carried_fen, line.amount_fen) == ("SETTLING", 4_000, 4_000)
    await assert_books(town.conn)


async def test_a_hold_between_proposal_and_approval_keeps_the_line_out(town: Town) -> None:
    one, two, _ = town.merchants
    await town.sell(one, DAY, 2)
    await town.sell(two, DAY, 3)
    batch = await proposed(town)
    hold = await town.hold(one)
    batch = await approved_again(town, batch)
    await town.release(hold)  # too late for this batch
    assert (await lines_of(town, batch))[one].state == "HELD"
    assert await town.balance("PAYABLE", one) == 4_000
    assert (await exported(town, batch)).line_count == 1
    assert (await lines_of(town, await approved(town, later(1))))[one].amount_fen == 4_000
    await assert_books(town.conn)


async def test_a_hold_released_before_approval_still_keeps_the_line_out(town: Town) -> None:
    await town.sell(town.merchants[0], DAY, 2)
    await town.sell(town.merchants[1], DAY, 2)
    hold = await town.hold(town.merchants[0])
    batch = await proposed(town)
    await town.release(hold)
    batch = await approved_again(town, batch)
    assert (batch.line_count, batch.held_count) == (1, 1)


async def test_all_lines_held_leaves_nothing_to_export(town: Town) -> None:
    await town.sell(town.merchants[0], DAY)
    batch = await proposed(town)
    await town.hold(town.merchants[0])
    batch = await approved_again(town, batch)
    assert (batch.state, batch.line_count, batch.held_count) == ("ANSWERED", 0, 1)
    refused = await export(town.conn, batch.batch_no, payer=PAYER, form=Format.CSV, by="x", now=MORNING)
    assert isinstance(refused, Refused)
    assert refused.why is Why.NOTHING_TO_PAY


async def test_an_unanswered_line_does_not_stop_the_next_batch(town: Town) -> None:
    one = town.merchants[0]
    await town.sell(one, DAY, 2)
    first = await approved(town)
    await town.sell(one, later(1), 3)
    second = await approved(town, later(1))
    assert await town.balance("SETTLING", one) == 10_000
    await answered(town, second)
    await answered(town, first, rejected=(1,))
    assert (await town.balance("PAID"), await town.balance("PAYABLE", one)) == (6_000, 4_000)
    third = await approved(town, later(2))
    line = (await lines_of(town, third))[one]
    assert (line.opening_fen, line.settled_fen, line.voided_fen, line.amount_fen) == (6_000, 6_000, 4_000, 4_000)
    await assert_books(town.conn)


async def test_a_rejected_batch_moves_nothing_and_its_days_come_again(town: Town) -> None:
    one = town.merchants[0]
    await town.sell(one, DAY, 2)
    batch = await proposed(town)
    turned_down = await reject(town.conn, batch.batch_no, "li.wei", "wrong bank", MORNING)
    assert isinstance(turned_down, Batch)
    assert (turned_down.state, turned_down.why) == ("REJECTED", "wrong bank")
    await town.sell(one, later(1), 1)
    line = (await lines_of(town, await approved(town, later(1))))[one]
    assert (line.opening_fen, line.redeemed_fen, line.amount_fen) == (0, 6_000, 6_000)
    assert [one.state for one in await list_batches(town.conn, CAMPAIGN_NO)] == ["APPROVED", "REJECTED"]


async def test_campaigns_settle_apart_but_close_days_together(town: Town) -> None:
    one = town.merchants[0]
    await town.sell(one, DAY, 2)
    await town.sell(one, DAY, 3, stock_no=3)
    first = await proposed(town)
    other = await proposed(town, campaign_no=2)
    assert (first.amount_fen, other.amount_fen) == (4_000, 6_000)
    await town.sell(one, later(1), 1, stock_no=3)
    await approved_again(town, other)
    await proposed(town, later(1), campaign_no=2)
    # The other campaign closed tomorrow; today can no longer be settled under its own name.
    await approved_again(town, first)
    await assert_books(town.conn)
    refused = await propose(town.conn, CAMPAIGN_NO, DAY, "li.wei", at(later(2)))
    assert refused == Refused(Why.DAY_NOT_EXACT, "the last closed day is 2020-04-21, not 2020-04-20 in every bucket")


async def test_earlier_open_days_are_closed_too(town: Town) -> None:
    one = town.merchants[0]
    for day in range(3):
        await town.sell(one, later(day), 1, bucket=day % 2)
    batch = await approved(town, later(2))
    line = (await lines_of(town, batch))[one]
    assert (line.redeemed_count, line.redeemed_fen, line.amount_fen) == (3, 6_000, 6_000)
    days = await town.conn.fetch("SELECT DISTINCT day FROM merchant_day ORDER BY day")
    assert [row["day"] for row in days] == [DAY, later(1), later(2)]
