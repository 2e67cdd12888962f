"""On Citus: every transaction of a till is one node's. Runs where HANQUAN_CITUS_DSN is given (docs/citus.md).

The DSN is a superuser's, of a fresh database on a coordinator that knows its workers; the nodes trust each other and
are set as QUIET says. The city stays there: every run wants a fresh database.
"""

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import NamedTuple
from urllib.parse import quote, urlencode, urlsplit

import asyncpg
import pytest
import pytest_asyncio

import sql
from kernel.errors import Code
from kernel.ids import unpack_voucher_id
from kernel.partitions import bucket_of
from sql.migrate import ROLES, ensure_roles, migrate
from stack.binaries import postgres_program
from tests import stores
from tests.city import City, open_city
from tests.city_plan import FACE, NOON, person
from tests.town import assert_books
from tests.verbs import life, plain, subscribe

DSN = os.environ.get("HANQUAN_CITUS_DSN", "")
PLANS = {
    "plan_cache_mode": "force_custom_plan",
    "enable_seqscan": "on",
    "enable_hashjoin": "on",
    "enable_mergejoin": "on",
}
QUIET = {
    "citus.enable_stat_counters": "on",
    "citus.distributed_deadlock_detection_factor": "-1",
    "citus.recover_2pc_interval": "-1",
}
"""What each node must be set to, so that it counts, and counts nothing but what it was asked."""
BUCKETS = 8
PEOPLE = iter(range(10_000))
pytestmark = [
    pytest.mark.citus,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(not DSN, reason="HANQUAN_CITUS_DSN names no Citus coordinator"),
]


# ---------------------------------------------------------------- a city on several nodes


class CitusDatabase(stores.Database):
    """The coordinator. Tills plan each statement anew, with its values: Citus sees by them where it belongs."""

    def dsn(self, role: str | None = None) -> str:
        if role is None:
            return DSN
        parts = urlsplit(DSN)
        user = f"{role}:{quote(stores.PASSWORD, safe='')}"
        return f"postgresql://{user}@{parts.hostname}:{parts.port}{parts.path}?{urlencode(PLANS)}"


def spread() -> None:
    """As docs/citus.md says."""
    file = str(sql.FOLDER / "citus.sql")
    how = [str(postgres_program("psql")), "-q", "-X", "-1", "-v", "ON_ERROR_STOP=1", "-f", file, DSN]
    done = subprocess.run(how, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@asynccontextmanager
async def spread_database(cluster: stores.Cluster) -> AsyncIterator[stores.Database]:
    """The newest schema, spread over the nodes by sql/citus.sql."""
    pool = await asyncpg.create_pool(DSN, min_size=1, max_size=8)
    try:
        async with pool.acquire() as conn:
            used = await conn.fetchval("SELECT to_regclass('public.schema_migration') IS NOT NULL")
            assert not used, "the database that HANQUAN_CITUS_DSN names was used before"
            await ensure_roles(conn, dict.fromkeys(ROLES, stores.PASSWORD))
            await migrate(conn)
        await asyncio.to_thread(spread)
        yield CitusDatabase("citus", cluster, pool)
    finally:
        await pool.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def city(cluster: stores.Cluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[City]:
    database = spread_database(cluster)
    async with open_city(cluster, tmp_path_factory.mktemp("citus"), buckets=BUCKETS, database=database) as made:
        yield made


class Counters(NamedTuple):
    """What a node did for others since it started: connections it opened or used again, statements by reach."""

    connections: int
    single: int
    multi: int


async def nodes(city: City) -> Mapping[int, asyncpg.Connection]:
    """A connection to each node, by its group; the coordinator's is 0."""
    parts = urlsplit(DSN)
    rows = await city.database.pool.fetch("SELECT groupid, nodename, nodeport FROM pg_dist_node ORDER BY groupid")
    who = f"{parts.username}:{parts.password or ''}"
    return {group: await asyncpg.connect(f"postgresql://{who}@{name}:{port}{parts.path}") for group, name, port in rows}


async def counters(node: asyncpg.Connection) -> Counters:
    """A node's counters of this database."""
    row = await node.fetchrow(
        "SELECT connection_establishment_succeeded + connection_reused, query_execution_single_shard,"
        " query_execution_multi_shard FROM citus_stat_counters WHERE name = current_database()"
    )
    return Counters(*(row or (0, 0, 0)))


def bucket(city: City, code: str) -> int:
    """Where a voucher lives."""
    voucher_id = city.codes.decode(code)
    assert voucher_id is not None
    return bucket_of(unpack_voucher_id(voucher_id).partition, BUCKETS)


async def vouchers(city: City, stock_id: str = "dining", each: int = 2) -> list[str]:
    """Fresh ones, so many in each bucket."""
    codes = await city.claim_many(stock_id, [person(next(PEOPLE)) for _ in range(8 * BUCKETS * each)])
    return [code for b in range(BUCKETS) for code in [code for code in codes if bucket(city, code) == b][:each]]


# ---------------------------------------------------------------- what it is for


async def test_tables_of_tills_lie_together_by_bucket(city: City) -> None:
    rows = await city.database.pool.fetch(
        "SELECT table_name::text, colocation_id, distribution_column FROM citus_tables"
        " WHERE citus_table_type = 'distributed'"
    )
    names = {row["table_name"] for row in rows}
    assert {"voucher", "redemption", "refund", "request_number", "callback_event"} <= names
    assert {(row["colocation_id"], row["distribution_column"]) for row in rows} == {
        (rows[0]["colocation_id"], "bucket")
    }
    spread = await city.fetchval(
        "SELECT count(DISTINCT p.groupid) FROM generate_series(0, $1 - 1) AS b"
        " JOIN pg_dist_placement p ON p.shardid = get_shard_id_for_distribution_column('voucher', b)",
        BUCKETS,
    )
    assert spread > 1, "all buckets lie on one node: nothing would be proved"


async def test_a_voucher_lives_through_every_verb(city: City) -> None:
    for stock_id in ("dining", "returning"):
        for n, code in enumerate(await vouchers(city, stock_id)):
            use = f"{stock_id}-{n:03}"
            assert (await city.redeem("NOODLES", code, number=use, order=use)).status == 200
            again = await city.redeem("NOODLES", code, number=use, order=use)
            assert (again.status, again.headers.get("Idempotent-Replayed")) == (200, "true")
            assert (await city.redeem("DUMPLINGS", code)).code == Code.USED_BY_ANOTHER_ORDER
            assert (await city.call(city.redemption, "NOODLES", "GET", f"/v1/redemptions/{use}")).status == 200
            if n % 2:
                assert (await city.refund("NOODLES", use, number=f"back-{use}")).status == 200
                assert (await city.refund("NOODLES", use)).code == Code.RULE_LIMIT
    async with city.database.connection() as conn:
        await assert_books(conn)


async def test_a_redemption_is_a_transaction_of_one_node(city: City) -> None:
    """The coordinator passes each step on to one node, and that node asks no other."""
    at = await nodes(city)
    for node in at.values():
        assert {name: await node.fetchval("SELECT current_setting($1)", name) for name in QUIET} == QUIET
    codes = await vouchers(city, each=3)
    await subscribe(city)
    before = {group: await counters(node) for group, node in at.items()}
    for n, code in enumerate(codes):
        if n % 3 == 0:
            assert (await city.redeem("NOODLES", code, number=f"single-{n:04}")).status == 200
            assert (await city.refund("NOODLES", f"single-{n:04}")).status == 200
        else:
            await (life if n % 3 == 1 else plain)(city, code, f"verbs-{n:03}{n % 2}")
    after = {group: await counters(node) for group, node in at.items()}
    for group in at:
        assert after[group].multi == before[group].multi, f"node {group} ran a statement over several shards"
        if group > 0:
            assert after[group].connections == before[group].connections, f"node {group} asked another"
    assert after[0].connections > before[0].connections, "nothing was counted"
    for node in at.values():
        await node.close()


async def test_control_a_statement_without_its_bucket_is_counted(city: City) -> None:
    at = await nodes(city)
    before = await counters(at[0])
    await city.fetchval("SELECT count(*) FROM redemption WHERE merchant_no = 1")
    assert (await counters(at[0])).multi > before.multi
    for node in at.values():
        await node.close()


async def test_a_number_is_used_once_over_all_nodes(city: City) -> None:
    codes = await vouchers(city)
    here, there = codes[: len(codes) // 2], codes[len(codes) // 2 :]  # of other buckets
    for n, pair in enumerate(zip(here, there, strict=True)):
        number, order = (None, f"pay-{n:04}") if n % 2 else (f"once-{n:04}", None)
        replies = await asyncio.gather(*(city.redeem("NOODLES", code, number=number, order=order) for code in pair))
        refused = Code.RULE_LIMIT if n % 2 else Code.IDEMPOTENCY_MISMATCH
        assert {reply.code for reply in replies} == {None, refused}


# ---------------------------------------------------------------- tills and offices


async def test_an_office_that_holds_a_bucket_keeps_its_tills_waiting(city: City) -> None:
    """The turn is taken on the bucket's node, whoever takes it."""
    codes = await vouchers(city)
    elsewhere = await city.new_redemption()  # one service takes its batches one by one
    assert (await city.redeem("NOODLES", codes[-1], service=elsewhere)).status == 200
    async with city.database.connection("hanquan_finance") as conn, conn.transaction():
        await conn.execute("SELECT lock_bucket(0::smallint)")
        waiting = asyncio.create_task(city.redeem("NOODLES", codes[0]))
        await asyncio.sleep(0.3)
        assert (await city.redeem("NOODLES", codes[-2], service=elsewhere)).status == 200
        assert not waiting.done(), waiting.result()
    assert (await waiting).status == 200


async def test_a_day_is_closed_and_what_is_over_expires(city: City) -> None:
    code, late, *_ = await vouchers(city)
    assert (await city.redeem("HOTPOT", code, number="closed-1")).status == 200
    async with city.database.connection("hanquan_finance") as conn:
        for b in range(BUCKETS):
            assert await conn.fetchval("SELECT close_day($1::smallint, $2::date, $3)", b, NOON.date(), NOON)
            assert not await conn.fetchval("SELECT close_day($1::smallint, $2::date, $3)", b, NOON.date(), NOON)
    async with city.database.connection() as conn:
        await assert_books(conn)
        folded = await conn.fetchval("SELECT sum(redeemed_fen) FROM merchant_day")
        assert folded == await conn.fetchval("SELECT sum(subsidy_fen) FROM redemption")
        assert await conn.fetchval("SELECT sum(credits_fen) FROM bucket_payable") == folded
    city.clock.move_to(city.clock.now() + timedelta(days=1))
    assert (await city.refund("HOTPOT", "closed-1")).status == 200  # a sale of a closed day: looks at what is owed
    before = await city.fetchval("SELECT sum(balance_fen)::bigint FROM balance WHERE kind = 'ISSUED'")
    async with city.database.connection("hanquan_finance") as conn:
        stock_no = city.campaigns["restoring"].stock_nos["dining"]
        over = [
            await conn.fetchval("SELECT expire_stock($1::smallint, $2, $3)", b, stock_no, NOON + timedelta(days=30))
            for b in range(BUCKETS)
        ]
    assert (
        await city.fetchval("SELECT sum(balance_fen)::bigint FROM balance WHERE kind = 'ISSUED'")
        == before - sum(over) * FACE
    )
    assert await city.fetchval("SELECT is_stock_expired($1::smallint, $2)", bucket(city, late), stock_no)
    async with city.database.connection() as conn:
        await assert_books(conn)
