"""What tests of tills share: the clock for a while, numbers whose home is where one wants it, what the books hold."""

import itertools
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from datetime import datetime, timedelta

from kernel.ids import unpack_voucher_id
from kernel.partitions import bucket_of
from redemption.numbers import Scope, number
from stack.audit import Verdict, audit_city
from tests.city import City
from tests.city_plan import person

BUCKETS = 2
_people = itertools.count(1_000_000)
_numbers = itertools.count(1)


async def voucher(city: City, stock_id: str = "dining") -> str:
    """The code of a fresh voucher of somebody new, drained."""
    return (await vouchers(city, 1, stock_id))[0]


async def vouchers(city: City, count: int, stock_id: str = "dining") -> list[str]:
    """Codes of fresh vouchers, each of somebody new, drained."""
    return await city.claim_many(stock_id, [person(next(_people)) for _ in range(count)])


@contextmanager
def moved(city: City, **by: float) -> Iterator[None]:
    """The city's clock so much later inside the block."""
    before = city.clock.now()
    city.clock.move_to(before + timedelta(**by))
    try:
        yield
    finally:
        city.clock.move_to(before)


@contextmanager
def at(city: City, moment: datetime) -> Iterator[None]:
    """The city's clock at a moment inside the block."""
    with moved(city, seconds=(moment - city.clock.now()).total_seconds()):
        yield


def bucket_of_code(city: City, code: str) -> int:
    """Where a voucher lives."""
    voucher_id = city.codes.decode(code)
    assert voucher_id is not None
    return bucket_of(unpack_voucher_id(voucher_id).partition, BUCKETS)


async def fresh(city: City, scope: Scope, shop: str, code: str, *, is_here: bool) -> str:
    """A number of a shop nobody used, whose home is the voucher's bucket, or is not."""
    merchant_no = await city.fetchval("SELECT merchant_no FROM merchant WHERE merchant_id = $1", shop)
    bucket = bucket_of_code(city, code)
    for n in _numbers:
        text = f"{scope.lower()}-{n:07}"
        if (number(scope, merchant_no, text).home(BUCKETS) == bucket) == is_here:
            return text
    raise AssertionError


async def balances(city: City) -> dict[str, int]:
    """What the accounts hold, by kind, over all campaigns and buckets."""
    rows = await city.database.pool.fetch(
        "SELECT kind::text, sum(balance_fen)::bigint AS fen FROM balance GROUP BY kind"
    )
    return {row["kind"]: row["fen"] for row in rows}


@asynccontextmanager
async def moving(city: City, **fen: int) -> AsyncIterator[None]:
    """Just this much comes to (or goes from) each kind of account inside the block."""
    before = await balances(city)
    yield
    after = await balances(city)
    came = {kind: after.get(kind, 0) - before.get(kind, 0) for kind in before | after}
    assert {kind: amount for kind, amount in came.items() if amount} == {k: v for k, v in fen.items() if v}


async def assert_audited(city: City) -> None:
    """Every statement of the audit holds."""
    async with city.database.connection("hanquan_auditor") as conn:
        report = await audit_city(conn, city.valkey.client, drain_within_s=0)
    assert not {each.id: each.shown for each in report.statements if each.verdict is Verdict.BROKEN}


# ---------------------------------------------------------------- races


async def slow_commits(city: City, *tables: str) -> None:
    """Every booking takes a moment between its insert and its commit, so that a race is a race."""
    pool = city.database.pool
    await pool.execute(
        "CREATE OR REPLACE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql"
        " AS $$ BEGIN PERFORM pg_sleep(0.02); RETURN NULL; END $$"
    )
    for table in tables:
        await pool.execute(
            f"CREATE TRIGGER dawdle AFTER INSERT ON {table} FOR EACH STATEMENT EXECUTE FUNCTION dawdle()"
        )


@asynccontextmanager
async def replaced(city: City, function: str, by: str) -> AsyncIterator[None]:
    """A function of the ledger's replaced inside the block."""
    whole = await city.fetchval("SELECT pg_get_functiondef($1::regproc)", function)
    await city.database.pool.execute(by)
    try:
        yield
    finally:
        await city.database.pool.execute(whole)


def no_lock(city: City) -> AbstractAsyncContextManager[None]:
    """No more turns: bookings of a bucket overlap."""
    free = "CREATE OR REPLACE FUNCTION lock_bucket(p_bucket smallint) RETURNS void LANGUAGE sql AS 'SELECT NULL::void'"
    return replaced(city, "lock_bucket", free)


async def double_uses(city: City) -> int:
    """Vouchers that were used more often than they were given out and given back."""
    count: int = await city.fetchval(
        "SELECT count(*) FROM (SELECT voucher_id FROM redemption r GROUP BY voucher_id HAVING count(*) > 1 + (SELECT"
        " count(*) FROM refund f WHERE f.voucher_id = r.voucher_id AND f.credit = 'ISSUED')) AS doubled"
    )
    return count
