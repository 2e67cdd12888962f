"""Tills go on while the day is closed and the batch is drawn up: nothing is lost between two days.

The control takes the bucket's lock away and must lose money.
"""

import asyncio
import itertools
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import date, timedelta
from typing import Any

import pytest

from kernel.postgres import Connection
from redemption.settlement.answer import Answered, answer
from redemption.settlement.answer_csv import write_answer
from redemption.settlement.batch import Batch
from redemption.settlement.refusals import Refused, Why
from redemption.settlement.settle import approve, close_day, propose, reject
from tests import stores
from tests.settling import MORNING, approved, exported, proposed, told
from tests.town import CAMPAIGN_NO, DAY, FACE_FEN, Sale, Town, assert_books, at, build, contents, later

BUCKETS = 2
TILLS = 4
BATCHES = 25

NO_LOCK = "CREATE OR REPLACE FUNCTION lock_bucket(p_bucket smallint) RETURNS void LANGUAGE sql AS 'SELECT'"

LOST = """
SELECT count(*) FROM (
    SELECT bucket, merchant_no, booked_on AS day, sum(subsidy_fen) AS fen FROM redemption
     WHERE booked_on <= (SELECT max(c.day) FROM day_close c WHERE c.bucket = redemption.bucket) GROUP BY 1, 2, 3) r
  FULL JOIN (SELECT bucket, merchant_no, day, sum(redeemed_fen) AS fen FROM merchant_day WHERE redeemed_fen > 0
              GROUP BY 1, 2, 3) m USING (bucket, merchant_no, day)
 WHERE r.fen IS DISTINCT FROM m.fen
"""


@pytest.fixture
async def town(database: stores.Database) -> AsyncIterator[Town]:
    """A town in which nothing was sold yet."""
    async with database.connection() as conn:
        yield await build(conn, buckets=BUCKETS)


async def is_waiting(conn: Connection) -> bool:
    """Whether some connection waits for a lock that another holds."""
    return bool(await conn.fetchval("SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND locktype = 'advisory')"))


async def overlap(database: stores.Database, town: Town) -> tuple[bool, bool]:
    """A till is about to commit a sale of DAY while DAY is closed. Whether the close waited, and lost the sale."""
    (voucher,) = await town.issue()
    async with database.connection() as till, database.connection() as finance:
        transaction = till.transaction()
        await transaction.start()
        await town.redeem([voucher], 1, at(DAY, 23, 59), conn=till)
        closing = asyncio.ensure_future(close_day(finance, DAY, MORNING))
        while not (waited := await is_waiting(town.conn)) and not closing.done():
            await asyncio.sleep(0.005)
        await transaction.commit()
        await closing
    return waited, bool(await town.conn.fetchval(LOST))


async def test_without_the_bucket_lock_a_sale_is_lost(town: Town, database: stores.Database) -> None:
    await town.conn.execute(NO_LOCK)
    assert await overlap(database, town) == (False, True)
    with pytest.raises(AssertionError):
        await assert_books(town.conn)


async def test_with_it_the_close_waits_and_takes_the_sale_along(town: Town, database: stores.Database) -> None:
    assert await overlap(database, town) == (True, False)
    await assert_books(town.conn)
    assert (await proposed(town)).amount_fen == FACE_FEN


async def one_till(town: Town, conn: Connection, bucket: int, vouchers: list[int], seed: int) -> None:
    """Redeems its vouchers by threes and refunds some of what it sold, with the clock around midnight."""
    rng = random.Random(seed)
    sold: list[Sale] = []
    while vouchers:
        batch, vouchers = vouchers[:3], vouchers[3:]
        moment = at(DAY, 23, 58) if rng.random() < 0.8 else at(later(1), 0, 5)
        merchant = rng.choice(town.merchants)
        sold += await town.redeem(batch, merchant, moment, bucket=bucket, conn=conn)
        if rng.random() < 0.5:
            back = [sold.pop(rng.randrange(len(sold)))]
            assert await town.refund(back, moment, conn=conn) == ["REFUNDED"]


async def closer(conn: Connection) -> list[Batch]:
    """Settles the day as soon as it may, and the next one, while tills are at work."""
    batches = []
    for day in (DAY, later(1)):
        await asyncio.sleep(0.05)
        moment = at(later(2), 9)
        batch = await propose(conn, CAMPAIGN_NO, day, "li.wei", moment)
        if isinstance(batch, Batch):
            decided = await approve(conn, batch.batch_no, "zhang.min", moment)
            assert isinstance(decided, Batch)
            batches.append(decided)
    return batches


async def rush(town: Town, database: stores.Database) -> list[Batch]:
    """All tills and the finance office at once."""
    async with AsyncExitStack() as stack:
        conns = [await stack.enter_async_context(database.connection()) for _ in range(TILLS + 1)]
        tills = []
        for number, conn in enumerate(conns[1:]):
            bucket = number % BUCKETS
            vouchers = await town.issue(BATCHES * 3, bucket=bucket)
            tills.append(one_till(town, conn, bucket, vouchers, number))
        closing = asyncio.create_task(closer(conns[0]))
        await asyncio.gather(*tills)
        return await closing


async def test_a_rush_over_two_closes_loses_nothing(town: Town, database: stores.Database) -> None:
    batches = await rush(town, database)
    await assert_books(town.conn)
    assert await town.conn.fetchval(LOST) == 0
    assert batches
    # Whatever came after the second close is settled next; then the merchants are even.
    await close_day(town.conn, later(2), at(later(3)))
    rest = await propose(town.conn, CAMPAIGN_NO, later(2), "li.wei", at(later(3)))
    if isinstance(rest, Batch):
        await approve(town.conn, rest.batch_no, "zhang.min", at(later(3)))
    await assert_books(town.conn)
    sold = await town.conn.fetchval(
        "SELECT (SELECT sum(subsidy_fen) FROM redemption) - (SELECT coalesce(sum(subsidy_fen), 0) FROM refund)"
    )
    assert await town.balance("PAYABLE") + await town.balance("SETTLING") == sold


async def test_the_rush_without_the_lock_breaks_the_books(town: Town, database: stores.Database) -> None:
    await town.conn.execute(NO_LOCK)
    # A till's transaction takes a moment longer, as on a disk that waits for its fsync.
    await town.conn.execute(
        "CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(0.02); RETURN NULL; END'"
    )
    await town.conn.execute(
        "CREATE TRIGGER dawdle AFTER INSERT ON redemption FOR EACH STATEMENT EXECUTE FUNCTION dawdle()"
    )
    await rush(town, database)
    with pytest.raises(AssertionError):
        await assert_books(town.conn)


# ---------------------------------------------------------------- two people, two windows


async def both(database: stores.Database, first: Any, second: Any) -> tuple[Any, Any]:
    """Two calls at the same moment, each on a connection of its own."""
    async with database.connection() as one, database.connection() as two:
        return await asyncio.gather(first(one), second(two))


def reasons(*outcomes: object) -> list[Why]:
    return [outcome.why for outcome in outcomes if isinstance(outcome, Refused)]


async def test_two_proposals_at_once_make_one_batch(town: Town, database: stores.Database) -> None:
    await town.sell(1, DAY, 3)

    async def go(conn: Connection) -> Batch | Refused:
        return await propose(conn, CAMPAIGN_NO, DAY, "li.wei", MORNING)

    assert reasons(*await both(database, go, go)) == [Why.UNDECIDED_BATCH]
    assert await town.conn.fetchval("SELECT count(*) FROM settlement_batch") == 1


async def test_approval_and_rejection_at_once_are_one_decision(town: Town, database: stores.Database) -> None:
    await town.sell(1, DAY, 3)
    batch = await proposed(town)
    outcomes = await both(
        database,
        lambda conn: approve(conn, batch.batch_no, "zhang.min", MORNING),
        lambda conn: reject(conn, batch.batch_no, "wang.fang", "no", MORNING),
    )
    assert reasons(*outcomes) == [Why.ALREADY_DECIDED]
    await assert_books(town.conn)
    settling = await town.balance("SETTLING")
    (decision,) = await town.conn.fetch("SELECT is_approved FROM settlement_decision")
    assert settling == (3 * FACE_FEN if decision["is_approved"] else 0)


async def test_one_answer_imported_twice_at_once_books_once(town: Town, database: stores.Database) -> None:
    await town.sell(1, DAY, 3)
    batch = await approved(town)
    order = await exported(town, batch)
    data = write_answer(batch.batch_id, order.sha256, await told(town, batch))

    async def go(conn: Connection) -> Answered | Refused:
        return await answer(conn, batch.batch_no, data, by="li.wei", now=MORNING)

    outcomes = await both(database, go, go)
    assert sorted(one.replayed for one in outcomes) == [False, True]
    assert await town.balance("PAID") == 3 * FACE_FEN
    await assert_books(town.conn)


async def test_a_batch_drawn_up_during_an_answer_counts_the_money_once(town: Town, database: stores.Database) -> None:
    await town.sell(1, DAY, 3)
    batch = await approved(town)
    order = await exported(town, batch)
    data = write_answer(batch.batch_id, order.sha256, await told(town, batch, rejected=(1,)))
    await town.sell(1, later(1), 1)
    outcomes = await both(
        database,
        lambda conn: answer(conn, batch.batch_no, data, by="li.wei", now=MORNING),
        lambda conn: propose(conn, CAMPAIGN_NO, later(1), "li.wei", at(later(2))),
    )
    assert isinstance(outcomes[1], Batch)
    assert outcomes[1].amount_fen in (FACE_FEN, 4 * FACE_FEN)
    await approve(town.conn, outcomes[1].batch_no, "zhang.min", at(later(2)))
    await assert_books(town.conn)
    assert await town.balance("PAYABLE") + await town.balance("SETTLING") == 4 * FACE_FEN


async def settle(conn: Connection, campaign_no: int, day: date) -> None:
    """A day of a campaign, proposed and approved the next morning."""
    moment = at(day + timedelta(days=1), 9)
    batch = await propose(conn, campaign_no, day, "li.wei", moment)
    assert isinstance(batch, Batch), batch
    assert isinstance(await approve(conn, batch.batch_no, "zhang.min", moment), Batch)


async def test_campaigns_closing_the_same_day_at_once_do_not_deadlock(town: Town, database: stores.Database) -> None:
    async with database.connection() as one, database.connection() as two:
        for day in map(later, range(6)):
            for stock_no, bucket in itertools.product((1, 3), range(BUCKETS)):
                await town.sell(1, day, 1, bucket=bucket, stock_no=stock_no)
            await asyncio.gather(settle(one, 1, day), settle(two, 2, day))
    await assert_books(town.conn)


async def test_the_comparison_of_contents_sees_a_row(town: Town) -> None:
    before = await contents(town.conn)
    await town.issue()
    assert await contents(town.conn) != before
