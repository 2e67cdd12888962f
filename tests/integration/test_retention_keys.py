"""What Valkey and the lists beside the ledger hold of people goes when its time is over, and nothing before that."""

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime, timedelta

import pytest

from antifraud.gate import block_person, digest_person, shard_tag
from antifraud.signals import STREAM
from issuer import keys
from kernel.clock import SystemClock, to_ms
from kernel.errors import Code
from stack.audit import Verdict, audit_city
from stack.errors import StackError
from stack.retention.claim_keys import ClaimKeys, remove_keys
from stack.retention.desk import Custodian, Family
from stack.retention.gate import Signals, Verdicts
from stack.retention.rows import Callbacks, Cases
from stack.retention.run import look, set_rule
from tests import stores
from tests.city import City, open_city
from tests.city_plan import FACE, NOON, a_campaign, a_round, a_stock, person
from tests.custodian import custodian, ignore, later

CITY = a_campaign("one", a_round("noon", NOON, a_stock("dining", quantity=500)), face_limit_fen=10 * FACE)
DAY = timedelta(days=1)


@pytest.fixture
async def city(cluster: stores.Cluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[City]:
    async with open_city(cluster, tmp_path_factory.mktemp("retention"), campaigns=[CITY]) as made:
        yield made


@pytest.fixture
async def desk(city: City) -> AsyncIterator[Custodian]:
    """A custodian two days after the round closed; what people won in it is kept for one."""
    async with custodian(city.database, city.valkey.client, NOON + 2 * DAY) as made:
        await set_rule(made, "claim_keys", 1, made.now)
    async with custodian(city.database, city.valkey.client, NOON + 2 * DAY) as made:
        yield made


@pytest.fixture
async def small(database: stores.Database, valkey: stores.Valkey) -> AsyncIterator[Custodian]:
    """A custodian of a city in which nothing happened."""
    await database.pool.execute("INSERT INTO city (buckets, shards) VALUES (2, 1)")
    await database.pool.execute("INSERT INTO partner (partner_id, name_zh, name_en) VALUES ('wechat', 'w', 'w')")
    async with custodian(database, valkey.client, NOON) as made:
        yield made


async def time_passes(city: City, moment: datetime) -> None:
    """For everybody: the services, and the claim store, which keeps its own distance to the system's clock."""
    city.clock.move_to(moment)
    await city.valkey.client.hset(keys.round_key(0, 1), "offset_ms", str(city.clock.offset_ms()))


async def of_people(city: City) -> set[bytes]:
    """Keys of who won what."""
    found = [key async for key in city.valkey.client.scan_iter(count=1_000)]
    return {key for key in found if key.split(b":")[1] in (b"who", b"req", b"cap", b"capped")}


async def broken(city: City) -> set[str]:
    async with city.database.connection("hanquan_auditor") as conn:
        report = await audit_city(conn, city.valkey.client, drain_within_s=0)
    return {one.id for one in report.statements if one.verdict is Verdict.BROKEN}


async def test_the_claim_store_forgets_a_round_that_is_over_and_in_the_books(city: City, desk: Custodian) -> None:
    first = await city.claim("dining", person(1), number="claim-number-1")
    assert (first.status, (await city.claim("dining", person(2))).status) == (200, 200)
    await time_passes(city, desk.now)
    assert (await city.claim("dining", person(1), number="claim-number-1")).json == first.json

    # Not all of it is in the books: refused.
    held = await of_people(city)
    for said in ((await ClaimKeys().look(desk)).blocked, (await ClaimKeys().apply(desk, ignore)).blocked):
        assert len(said) == 1 and "the drain has not read the log of shard 0" in said[0], said
    assert await of_people(city) == held

    await city.drain()
    done = await ClaimKeys().apply(desk, ignore)
    assert (done.items, list(done.blocked), await of_people(city)) == (1, [], set())
    assert await city.valkey.client.exists(keys.round_key(0, 1), keys.stock_key(0, 1)) == 2
    for number in ("claim-number-1", "claim-number-2"):  # an old number, and a new one
        reply = await city.claim("dining", person(1), number=number)
        assert (reply.status, reply.code) == (409, Code.ENDED)
    found = await city.call(city.issuer, "wechat", "GET", f"/v1/claims/claim-number-1?person_token={person(1)}")
    assert found.json["voucher_code"] == first.json["voucher_code"]
    assert not await broken(city)
    assert (await ClaimKeys().look(desk)).items == 0

    # A rebuild does not bring it back.
    await lose_everything(city)
    assert await of_people(city) == set()
    assert (await city.claim("dining", person(1), number="claim-number-1")).code == Code.ENDED
    assert not await broken(city)
    # Control: without the note of it the rebuild would.
    await city.database.pool.execute("DELETE FROM retention_step")
    await lose_everything(city)
    assert len(await of_people(city)) == len(held)


async def lose_everything(city: City) -> None:
    """Valkey loses all it has; the claim service brings the round back."""
    await city.valkey.client.flushall()
    async with asyncio.timeout(15):
        while not await city.valkey.client.exists(keys.round_key(0, 1)):
            await asyncio.sleep(0.02)


async def test_forgetting_a_round_that_is_open_gives_a_person_two(city: City, desk: Custodian) -> None:
    """Control: what the check of the window is there for."""
    assert (await city.claim("dining", person(1))).status == 200
    assert (await ClaimKeys().look(later(desk, NOON))).due == 0
    await remove_keys(desk, 1, ignore)
    assert (await city.claim("dining", person(1))).status == 200
    await city.drain()
    assert "A2a" in await broken(city)


async def test_the_gate_and_its_signals_age(small: Custodian) -> None:
    client, desk = small.valkey, small
    for number, until in ((1, desk.now - DAY), (2, desk.now + DAY)):
        await block_person(client, shard_tag(0), digest_person(bytes.fromhex(person(number))), "B", to_ms(until))
    await client.delete(STREAM)
    now_ms = SystemClock().now_ms()
    for age_days in (40, 20, 0):
        await client.xadd(STREAM, {"b": b"x"}, id=f"{now_ms - age_days * 86_400_000}-0")
    assert [(await family.look(desk)).due for family in (Verdicts(), Signals())] == [1, 1]
    assert [(await family.apply(desk, ignore)).items for family in (Verdicts(), Signals())] == [1, 1]
    assert [(await family.look(desk)).items for family in (Verdicts(), Signals())] == [1, 2]


ROWS = """
INSERT INTO flag (subject_kind, subject, detector, family, points, reason, seen_from, opened_at,
                  closed_at, closed_by, outcome)
SELECT kind, $2 || n, 'TEMPO' || n, 'tempo', 10, '{}', $1::timestamptz, $1::timestamptz - age,
       CASE WHEN is_closed THEN $1::timestamptz - age END,
       CASE WHEN is_closed THEN 'li' END, CASE WHEN is_closed THEN 'CLEARED' END
  FROM (VALUES (1, 'person', '200 days'::interval, true), (2, 'person', '200 days', false),
               (3, 'person', '100 days', true), (4, 'merchant', '900 days', true)) AS f(n, kind, age, is_closed)
"""
BLOCKS = """
INSERT INTO person_block (person, points, reason, seen_from, placed_at, expires_at)
SELECT gen_random_uuid(), 95, '[]', $1::timestamptz, $1::timestamptz - age, $1::timestamptz - age + interval '30 days'
  FROM (VALUES ('300 days'::interval), ('200 days'), ('1 day')) AS b(age)
"""
CALLBACKS = """
INSERT INTO callback_event (bucket, voucher_id, attempt, kind, partner_no, happened_at, next_at, delivered_at, died_at)
SELECT n % 2, n, 0, 'CLAIMED', 1, $1::timestamptz, CASE n % 3 WHEN 0 THEN $1::timestamptz END,
       CASE n % 3 WHEN 1 THEN $1::timestamptz - age END, CASE n % 3 WHEN 2 THEN $1::timestamptz - age END
  FROM generate_series(1, 300) AS n CROSS JOIN LATERAL (SELECT n * interval '1 day' AS age) a
"""


async def test_rows_beside_the_ledger_age(
    database: stores.Database, small: Custodian, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk, pool = small, database.pool
    monkeypatch.setattr("stack.retention.rows.PAGE", 7)
    await pool.execute(ROWS, desk.now, "f")
    await pool.execute(BLOCKS, desk.now)
    await pool.execute(CALLBACKS, desk.now)
    families: tuple[Family, ...] = (Cases(), Callbacks())
    due = [(await family.look(desk)).due for family in families]
    assert due == [2 + 1, 90 + 70]
    done = [await family.apply(desk, ignore) for family in families]
    assert [one.items for one in done] == due
    assert [(await family.look(desk)).due for family in families] == [0, 0]
    assert await pool.fetchval("SELECT count(*) FROM flag") == 2
    assert await pool.fetchval("SELECT count(*) FROM person_block") == 2
    assert await pool.fetchval("SELECT count(*) FROM callback_event WHERE next_at IS NOT NULL") == 100
    assert await pool.fetchval("SELECT count(*) FROM callback_event") == 300 - sum(due[1:])


async def test_rules_are_data_with_a_least(database: stores.Database, small: Custodian) -> None:
    desk = small
    await set_rule(desk, "cases", 31, desk.now)
    assert await database.pool.fetchval("SELECT changed_by FROM retention_rule WHERE family = 'cases'") == "Zhao Min"
    with pytest.raises(StackError, match="cases is kept 31 to 36500 days"):
        await set_rule(desk, "cases", 30, desk.now)
    with pytest.raises(StackError, match="there is no family casses; there are callbacks, cases"):
        await set_rule(desk, "casses", 40, desk.now)
    lines = await look(desk)
    assert len({line.family for line in lines}) == len(lines) >= 10
