"""Races at the till, over two checkout services. Each has an unsafe control that must lose."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence

import asyncpg
import pytest
import pytest_asyncio

from kernel.errors import Code
from tests import stores
from tests.city import City, Reply, open_city
from tests.city_plan import person

PEOPLE = iter(range(100_000))
TILLS = 100


@pytest_asyncio.fixture
async def city(cluster: stores.Cluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[City]:
    async with open_city(cluster, tmp_path_factory.mktemp("tills")) as made:
        yield made


async def vouchers(city: City, count: int, stock_id: str = "dining") -> list[str]:
    """Codes of fresh vouchers, drained."""
    return await city.claim_many(stock_id, [person(next(PEOPLE)) for _ in range(count)])


async def two(city: City) -> tuple[str, str]:
    """Two checkout services over one ledger."""
    return city.redemption, await city.new_redemption()


async def slow_commits(city: City) -> None:
    """Every booking takes a moment between its insert and its commit, so that a race is a race."""
    await city.database.pool.execute(
        """
        CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql
            AS $$ BEGIN PERFORM pg_sleep(0.02); RETURN NULL; END $$;
        CREATE TRIGGER dawdle AFTER INSERT ON redemption FOR EACH STATEMENT EXECUTE FUNCTION dawdle();
        CREATE TRIGGER dawdle AFTER INSERT ON refund FOR EACH STATEMENT EXECUTE FUNCTION dawdle();
        """
    )


async def without_lock(city: City) -> None:
    """No more turns: bookings of a bucket overlap."""
    await city.database.pool.execute(
        "CREATE OR REPLACE FUNCTION lock_bucket(p_bucket smallint) RETURNS void LANGUAGE sql AS 'SELECT NULL::void'"
    )


async def without_keys(city: City) -> None:
    """Nor does the table itself say that a voucher's use is one."""
    await city.database.pool.execute(
        """
        ALTER TABLE offline_use DROP CONSTRAINT offline_use_voucher_id_bucket_attempt_fkey;
        ALTER TABLE refund DROP CONSTRAINT refund_voucher_id_bucket_attempt_fkey;
        ALTER TABLE refund DROP CONSTRAINT refund_pkey;
        ALTER TABLE redemption DROP CONSTRAINT redemption_pkey;
        """
    )


async def double_uses(city: City) -> int:
    """Vouchers that were used more often than they were given out and given back."""
    count: int = await city.fetchval(
        """
        SELECT count(*) FROM (
            SELECT voucher_id FROM redemption r GROUP BY voucher_id
            HAVING count(*) > 1 + (SELECT count(*) FROM refund f
                                    WHERE f.voucher_id = r.voucher_id AND f.credit = 'ISSUED')
        ) AS doubled
        """
    )
    return count


async def double_refunds(city: City) -> int:
    """Redemptions of which the money was taken back more than once."""
    count: int = await city.fetchval(
        "SELECT count(*) FROM (SELECT FROM refund GROUP BY voucher_id, attempt HAVING count(*) > 1) AS doubled"
    )
    return count


def told(replies: Sequence[Reply]) -> Counter[str | None]:
    """How often each code was answered; None is success."""
    return Counter(reply.code for reply in replies)


# ---------------------------------------------------------------- one voucher, many tills


async def hammer(city: City, codes: Sequence[str], services: Sequence[str], each: int = 2) -> list[Reply]:
    """Every voucher at `each` tills at once, dealt over the services."""
    return await asyncio.gather(
        *(
            city.redeem("NOODLES" if n % 2 else "DUMPLINGS", code, service=services[n % len(services)])
            for code in codes
            for n in range(each)
        )
    )


async def test_one_voucher_and_a_hundred_tills(city: City) -> None:
    services = await two(city)
    [code] = await vouchers(city, 1)
    replies = await hammer(city, [code], services, TILLS)
    assert told(replies) == {None: 1, Code.USED_BY_ANOTHER_ORDER: TILLS - 1}
    [winner] = [reply.json for reply in replies if reply.status == 200]
    row = await city.database.pool.fetchrow("SELECT use_request_no, attempt FROM redemption")
    assert row is not None and tuple(row) == (winner["use_request_no"], 1)


async def test_many_vouchers_each_at_two_tills_at_once(city: City) -> None:
    services = await two(city)
    await slow_commits(city)
    codes = await vouchers(city, 20)
    replies = [reply for code in codes for reply in await hammer(city, [code], services)]
    assert told(replies) == {None: len(codes), Code.USED_BY_ANOTHER_ORDER: len(codes)}
    assert await double_uses(city) == 0


async def test_without_the_lock_the_key_still_holds(city: City) -> None:
    """The second guard: what the lock would have decided, the primary key decides, less politely."""
    services = await two(city)
    await slow_commits(city)
    await without_lock(city)
    codes = await vouchers(city, 6)
    replies = [reply for code in codes for reply in await hammer(city, [code], services)]
    assert set(told(replies)) <= {None, Code.USED_BY_ANOTHER_ORDER, Code.SYSTEM_BUSY}
    assert told(replies)[Code.SYSTEM_BUSY] > 0, "the lock was off and nothing collided: the race was none"
    assert told(replies)[None] == len(codes)
    assert await double_uses(city) == 0


async def test_control_without_lock_and_key_a_voucher_is_used_twice(city: City) -> None:
    services = await two(city)
    await slow_commits(city)
    await without_lock(city)
    await without_keys(city)
    codes = await vouchers(city, 20)
    replies = [reply for code in codes for reply in await hammer(city, [code], services)]
    assert told(replies)[None] > len(codes)
    assert await double_uses(city) > 0


# ---------------------------------------------------------------- one number, many connections


async def test_the_same_request_from_many_connections_is_one_redemption(city: City) -> None:
    services = await two(city)
    [code] = await vouchers(city, 1)
    replies = await asyncio.gather(
        *(city.redeem("NOODLES", code, number="same-1", order="same-1", service=services[n % 2]) for n in range(60))
    )
    assert told(replies) == {None: 60}
    assert len({reply.body for reply in replies}) == 1
    assert sum("Idempotent-Replayed" not in reply.headers for reply in replies) >= 1
    assert await city.fetchval("SELECT count(*) FROM redemption") == 1


async def test_one_number_with_many_bodies_is_bound_to_one_of_them(city: City) -> None:
    services = await two(city)
    codes = await vouchers(city, 40)

    async def ask(n: int) -> Reply:
        return await city.redeem("NOODLES", codes[n], number="bodies-1", order=f"bodies-{n}", service=services[n % 2])

    replies = await asyncio.gather(*(ask(n) for n in range(40)))
    assert told(replies) == {None: 1, Code.IDEMPOTENCY_MISMATCH: 39}
    again = [await ask(n) for n in range(40)]
    assert [reply.code for reply in again] == [reply.code for reply in replies]
    assert await city.fetchval("SELECT count(*) FROM redemption") == 1


async def test_two_vouchers_for_one_payment_at_once(city: City) -> None:
    """Many in one batch of one service, and two services against each other."""
    services = await two(city)
    for trial, spread in enumerate((1, 2, 2)):
        codes = await vouchers(city, 40)

        async def ask(n: int, trial: int = trial, spread: int = spread, codes: Sequence[str] = codes) -> Reply:
            number = f"payment-{trial}-{n:03}"
            return await city.redeem(
                "NOODLES", codes[n], number=number, order=f"payment-{trial}", service=services[n % spread]
            )

        replies = await asyncio.gather(*(ask(n) for n in range(40)))
        assert told(replies) == {None: 1, Code.RULE_LIMIT: 39}
        again = [await ask(n) for n in range(40)]  # and nobody changes their mind afterwards
        assert [reply.code for reply in again] == [reply.code for reply in replies]
    assert await city.fetchval("SELECT count(*) FROM redemption") == 3


async def test_control_without_lock_and_registers_key_a_payment_takes_two_vouchers(city: City) -> None:
    services = await two(city)
    await slow_commits(city)
    await without_lock(city)
    await city.database.pool.execute("ALTER TABLE request_number DROP CONSTRAINT request_number_pkey")
    codes = await vouchers(city, 30)
    replies: list[Reply] = []
    for n in range(0, len(codes), 2):
        order = f"pay-twice-{n}"
        pair = zip(codes[n : n + 2], services, strict=True)
        replies += await asyncio.gather(*(city.redeem("NOODLES", code, order=order, service=url) for code, url in pair))
    assert told(replies)[None] > len(codes) // 2


# ---------------------------------------------------------------- refunds


async def test_refunds_race_uses_and_each_voucher_lives_once(city: City) -> None:
    services = await two(city)
    await slow_commits(city)
    codes = await vouchers(city, 30)
    for n, code in enumerate(codes):
        assert (await city.redeem("NOODLES", code, number=f"used-{n:04}")).status == 200

    async def race(n: int, code: str) -> None:
        back, use = await asyncio.gather(
            city.refund("NOODLES", f"used-{n:04}", service=services[n % 2]),
            city.redeem("DUMPLINGS", code, service=services[1 - n % 2]),
        )
        assert back.status == 200
        assert use.code in (None, Code.USED_BY_ANOTHER_ORDER)

    await asyncio.gather(*(race(n, code) for n, code in enumerate(codes)))
    assert await double_uses(city) == 0
    assert await double_refunds(city) == 0


async def refund_twice(city: City, services: Sequence[str], count: int) -> Counter[str | None]:
    """Each of some redemptions refunded under two numbers at once."""
    codes = await vouchers(city, count)
    replies: list[Reply] = []
    for n, code in enumerate(codes):
        assert (await city.redeem("NOODLES", code, number=f"twice-{n:04}")).status == 200
        replies += await asyncio.gather(*(city.refund("NOODLES", f"twice-{n:04}", service=url) for url in services))
    return told(replies)


async def test_a_redemption_is_refunded_once(city: City) -> None:
    services = await two(city)
    await slow_commits(city)
    assert await refund_twice(city, services, 20) == {None: 20, Code.RULE_LIMIT: 20}
    assert await double_refunds(city) == 0


async def test_control_without_lock_and_key_money_is_taken_back_twice(city: City) -> None:
    services = await two(city)
    await slow_commits(city)
    await without_lock(city)
    await without_keys(city)
    assert (await refund_twice(city, services, 20))[None] > 20
    assert await double_refunds(city) > 0


async def test_the_same_refund_from_many_connections_is_one(city: City) -> None:
    services = await two(city)
    [code] = await vouchers(city, 1)
    await city.redeem("NOODLES", code, number="many-1")
    replies = await asyncio.gather(
        *(city.refund("NOODLES", "many-1", number="many-back-1", service=services[n % 2]) for n in range(40))
    )
    assert told(replies) == {None: 40}
    assert len({reply.body for reply in replies}) == 1
    assert await city.fetchval("SELECT count(*) FROM refund") == 1


# ---------------------------------------------------------------- a busy shop


async def deadlocks(city: City) -> int:
    """Deadlocks this database ever had."""
    await city.database.pool.execute("SELECT pg_stat_force_next_flush()")
    count: int = await city.fetchval("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
    return count


async def test_a_busy_shop_deadlocks_nobody(city: City) -> None:
    """Nine sales in ten at one shop, with refunds, drains and a day close among them."""
    services = await two(city)
    codes = await vouchers(city, 400)

    async def sell(n: int) -> list[Reply]:
        shop = ("DUMPLINGS", "HOTPOT")[n % 2] if n % 10 == 0 else "NOODLES"
        number, url = f"busy-{n:05}", services[n % 2]
        sold = await city.redeem(shop, codes[n], number=number, service=url)
        return [sold, await city.refund(shop, number, service=services[1 - n % 2])] if n % 4 == 0 else [sold]

    async def meanwhile() -> None:
        async with city.database.connection("hanquan_finance") as conn:
            for days in range(6):
                for bucket in (1, 0):
                    await conn.fetchval(
                        "SELECT close_day($1::smallint, date '2020-04-10' + $2::integer, now())", bucket, days
                    )
                await vouchers(city, 10, "returning")

    *replies, _ = await asyncio.gather(*(sell(n) for n in range(400)), meanwhile())
    answers = [reply for pair in replies if pair is not None for reply in pair]
    assert told(answers) == {None: 500}
    assert await deadlocks(city) == 0
    owed = await city.fetchval("SELECT sum(balance_fen) FROM balance WHERE kind = 'PAYABLE'")
    assert owed == 300 * 2_000


async def test_control_accounts_locked_in_any_order_deadlock(city: City) -> None:
    """The same two accounts by two writers, each in its own order: what sorting prevents, and what is counted."""
    pool = city.database.pool
    await pool.execute(
        "INSERT INTO account (bucket, campaign_no, merchant_no, kind)"
        " SELECT 0, 1, n, 'PAYABLE' FROM generate_series(1, 2) n"
    )

    async def write(order: Sequence[int]) -> None:
        async with city.database.connection() as conn, conn.transaction():
            await conn.execute("SET LOCAL deadlock_timeout = '50ms'")
            for merchant_no in order:
                await conn.execute("UPDATE account SET credits_fen = 1 WHERE merchant_no = $1", merchant_no)
                await asyncio.sleep(0.1)

    outcomes = await asyncio.gather(write([1, 2]), write([2, 1]), return_exceptions=True)
    assert sum(isinstance(outcome, asyncpg.DeadlockDetectedError) for outcome in outcomes) == 1
    await asyncio.sleep(0.1)
    assert await deadlocks(city) == 1
