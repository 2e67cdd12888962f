"""The bucket rule: no transaction of a till touches two buckets. Proved by what PostgreSQL scanned, not by reading.

The city has four buckets, each in tables of its own (tests/bucket_watch.py), and every statement of the services is
watched while every verb of a till goes over HTTP. Controls show that a statement that forgets its bucket is found.
"""

import asyncio
import re
from collections.abc import AsyncIterator
from datetime import timedelta

import asyncpg
import pytest
import pytest_asyncio

import sql
from kernel.codes import CodeBook
from kernel.ids import unpack_voucher_id
from kernel.partitions import bucket_of
from tests import stores
from tests.bucket_watch import Watch, split_database, split_rounds
from tests.city import City, open_city
from tests.city_plan import NOON, person
from tests.verbs import life, plain, subscribe

pytestmark = pytest.mark.asyncio(loop_scope="module")

BUCKETS = 4
PEOPLE = iter(range(10_000))
TILLS = "redemption"
"""The name of the pool that tills are served from."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def watched(
    cluster: stores.Cluster, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[City, Watch]]:
    folder = tmp_path_factory.mktemp("buckets")
    watch = Watch()
    with pytest.MonkeyPatch.context() as patch:
        database = split_database(cluster, folder / "migrations", BUCKETS)
        patch.setattr(asyncpg, "create_pool", watch.create_pool)
        async with open_city(cluster, folder, buckets=BUCKETS, database=database) as city:
            await split_rounds(city.database)
            yield city, watch


@pytest.fixture
def city(watched: tuple[City, Watch]) -> City:
    return watched[0]


@pytest.fixture
def watch(watched: tuple[City, Watch]) -> Watch:
    """With nothing seen yet."""
    for seen in watched[1].transactions.values():
        seen.clear()
    return watched[1]


def bucket(codes: CodeBook, code: str) -> int:
    """Where a voucher lives."""
    voucher_id = codes.decode(code)
    assert voucher_id is not None
    return bucket_of(unpack_voucher_id(voucher_id).partition, BUCKETS)


async def vouchers(city: City, each: int, stock_id: str = "dining") -> list[list[str]]:
    """So many fresh vouchers in every bucket, by bucket."""
    codes = await city.claim_many(stock_id, [person(next(PEOPLE)) for _ in range(8 * BUCKETS * each)])
    by_bucket = [[code for code in codes if bucket(city.codes, code) == b][:each] for b in range(BUCKETS)]
    assert all(len(part) == each for part in by_bucket)
    return by_bucket


# ---------------------------------------------------------------- the rule


async def test_no_transaction_of_a_till_touches_two_buckets(city: City, watch: Watch) -> None:
    await subscribe(city)
    restoring, returning = await vouchers(city, 6), await vouchers(city, 6, "returning")
    lives = [
        (plain if n < 3 else life)(city, code, f"{stock}-{b}-{n}")
        for stock, parts in (("restoring", restoring), ("returning", returning))
        for b, codes in enumerate(parts)
        for n, code in enumerate(codes)
    ]
    await asyncio.gather(*lives)
    assert watch.guilty(TILLS) == []
    seen = {leaf for touch in watch.touches(TILLS) for leaf in touch.leaves}
    for table in (
        "voucher",
        "redemption",
        "refund",
        "hold",
        "hold_end",
        "request_number",
        "callback_event",
        "lock_bucket",
    ):
        assert {b for name, b in seen if name in (table, f"{table}_r2")} == set(range(BUCKETS)), table


async def test_a_refund_of_a_settled_sale_touches_one_bucket(city: City, watch: Watch) -> None:
    """The only one that looks at accounts: may the merchant owe that much?"""
    codes = [part[0] for part in await vouchers(city, 1)]
    for n, code in enumerate(codes):
        assert (await city.redeem("HOTPOT", code, number=f"settled-{n}")).status == 200
    async with city.database.connection("hanquan_finance") as conn:
        for b in range(BUCKETS):
            await conn.execute("SELECT close_day($1::smallint, $2::date, $3)", b, NOON.date(), NOON)
    city.clock.move_to(city.clock.now() + timedelta(days=1))
    for n in range(BUCKETS):
        assert (await city.refund("HOTPOT", f"settled-{n}")).status == 200
    assert watch.guilty(TILLS) == []
    seen = {leaf for touch in watch.touches(TILLS) for leaf in touch.leaves}
    assert {b for name, b in seen if name == "account"} == set(range(BUCKETS))


async def test_every_statement_of_the_checkout_was_watched(city: City, watch: Watch) -> None:
    """What no verb reaches would not be proved."""
    [[code], *_] = await vouchers(city, 1)
    await life(city, code, "all-of-them")
    queries = sql.load("checkout")
    of_a_bucket = {f"checkout.{name}" for name in queries if re.search("bucket|_batch", queries[name])}
    assert of_a_bucket - {touch.statement for touch in watch.touches(TILLS)} - {"checkout.city"} == set()
    assert watch.guilty(TILLS) == []


async def test_the_drain_is_no_till_and_what_it_touches_is_known(city: City, watch: Watch) -> None:
    """One transaction for the vouchers of all buckets; and what is issued leaves BUDGET, which lives in bucket 0."""
    assert city.drainer is not None
    await subscribe(city)
    await asyncio.gather(*(city.claim("dining", person(next(PEOPLE))) for _ in range(8 * BUCKETS)))
    pool = await watch.create_pool(
        city.database.dsn("hanquan_issuer"), min_size=1, max_size=1, server_settings={"application_name": "drain"}
    )
    async with pool.acquire() as conn:
        assert await city.drainer.drain_once(conn) == 8 * BUCKETS
    await pool.close()
    wide = {touch.statement for touch in watch.touches("drain") if len(touch.buckets) > 1}
    assert wide == {"COPY voucher", "callbacks.add_claimed", "drain.post_issue"}
    issues = [touch.leaves for touch in watch.touches("drain") if touch.statement == "drain.post_issue"]
    for n, leaves in enumerate(sorted(issues, key=lambda leaves: min(b for name, b in leaves if name == "transfer"))):
        assert leaves == {("transfer", n), ("account", n), ("account", 0)}


# ---------------------------------------------------------------- controls


async def test_control_a_statement_without_its_bucket_is_found(city: City, watch: Watch) -> None:
    """On the tills' own connections. It finds one row in one bucket, and looked for it in all of them."""
    [[code], *_] = await vouchers(city, 1)
    voucher_id = city.codes.decode(code)
    pool = await watch.create_pool(city.database.dsn("hanquan_redemption"), min_size=1, max_size=1)
    assert await pool.fetchval("SELECT count(*) FROM voucher WHERE voucher_id = $1 AND bucket = 0", voucher_id) == 1
    assert watch.guilty("") == []
    assert await pool.fetchval("SELECT count(*) FROM voucher WHERE voucher_id = $1", voucher_id) == 1
    [[touch]] = watch.guilty("")
    assert touch.buckets == set(range(BUCKETS))
    async with pool.acquire() as conn, conn.transaction():  # each of one bucket, together of two
        for b in (1, 2):
            await conn.execute("SELECT FROM request_number WHERE bucket = $1", b)
    assert len(watch.guilty("")) == 2
    await pool.close()


async def test_control_a_function_that_forgets_its_bucket_is_found_over_http(city: City, watch: Watch) -> None:
    """Three functions deep, and it changes no answer."""
    [[code], *_] = await vouchers(city, 1)
    good = await city.fetchval("SELECT pg_get_functiondef('first_open_day'::regproc)")
    bad = good.replace(" WHERE bucket = p_bucket", "")
    assert bad != good
    await city.database.pool.execute(bad)
    try:
        assert (await city.redeem("NOODLES", code)).status == 200
    finally:
        await city.database.pool.execute(good)
    assert "checkout.redeem" in {touch.statement for touches in watch.guilty(TILLS) for touch in touches}


async def test_vouchers_of_two_buckets_in_one_call_reach_one_bucket_only(city: City, watch: Watch) -> None:
    """A caller that mixed buckets up would be told that the other voucher is not there; it could not reach it."""
    [[here], [there], *_] = await vouchers(city, 1)
    ids = [city.codes.decode(code) for code in (here, there)]
    pool = await watch.create_pool(city.database.dsn("hanquan_redemption"), min_size=1, max_size=1)
    states = await pool.fetch(sql.load("checkout").hold_states, 0, ids, [1, 1], ["mixed-1", "mixed-2"])
    assert [row["person"] is not None for row in states] == [True, False]
    assert watch.guilty("") == []
    await pool.close()
