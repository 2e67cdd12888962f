"""A person's export is whole, an erasure leaves the ledger as it is, and docs/privacy.md names all that is stored."""

import asyncio
import json
import re
import sys
from collections.abc import AsyncIterator, Mapping
from datetime import timedelta
from pathlib import Path

import asyncpg
import msgspec
import pytest
import pytest_asyncio

from antifraud.gate import block_person, digest_person, shard_tag
from kernel.clock import to_ms
from stack.commands import privacy as privacy_command
from stack.commands import retention as retention_command
from stack.errors import StackError
from stack.privacy.erase import erase
from stack.privacy.export import export
from stack.privacy.holdings import households, person_of, signals
from stack.retention.desk import Custodian
from stack.running import Stack
from tests import stores
from tests.city import MASTER_KEY, City, open_city
from tests.city_plan import NOON, a_campaign, a_round, a_stock, person
from tests.custodian import WHO, custodian
from tests.log_scan import Known, leaks

ROOT = Path(__file__).parents[2]
CITY = a_campaign("one", a_round("noon", NOON, a_stock("dining", quantity=500)), limit=3)
ASKED, OTHER = person(1), person(2)
DEVICE = "d0" * 16
LEDGER = ("voucher", "redemption", "refund", "transfer", "merchant_day", "day_close", "account", "hold", "hold_end")
WHY = "asked for it by letter 12"
CASES = """
INSERT INTO flag (subject_kind, subject, detector, family, points, reason, seen_from, opened_at,
                  closed_at, closed_by, outcome)
VALUES ('person', $1::uuid::text, 'OPEN', 'tempo', 10, '{"code": "TEMPO"}', $2, $2, NULL, NULL, NULL),
       ('person', $1::uuid::text, 'SHUT', 'tempo', 10, '{"code": "TEMPO"}', $2, $2, $2, 'li', 'CLEARED')
"""
BLOCK = """
INSERT INTO person_block (person, points, reason, seen_from, placed_at, expires_at)
VALUES ($1::uuid, 95, '[]', $2::timestamptz, $2::timestamptz - interval '40 days', $2::timestamptz - interval '10 days')
"""
CALLBACKS = """
INSERT INTO callback_event (bucket, voucher_id, attempt, kind, partner_no, happened_at, next_at, delivered_at)
SELECT v.bucket, v.voucher_id, 0, k.kind::callback_kind, 1, $2::timestamptz,
       CASE k.kind WHEN 'USED' THEN $2::timestamptz END,
       CASE k.kind WHEN 'CLAIMED' THEN $2::timestamptz END
  FROM (SELECT * FROM voucher WHERE person = $1::uuid ORDER BY voucher_id LIMIT 1) v
 CROSS JOIN (VALUES ('CLAIMED'), ('USED')) AS k(kind)
"""

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def city(cluster: stores.Cluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[City]:
    """Two people who did the same: three claims, a use, a refund, on one device; one is flagged and was blocked."""
    async with open_city(cluster, tmp_path_factory.mktemp("privacy"), campaigns=[CITY]) as made:
        for token in (ASKED, OTHER):
            codes = []
            for _ in range(3):
                codes.append((await made.claim("dining", token, device=DEVICE)).json["voucher_code"])
            await made.drain()
            used = [await made.redeem("NOODLES", code) for code in codes[:2]]
            assert [reply.status for reply in used] == [200, 200]
            assert (await made.refund("NOODLES", used[0].json["use_request_no"])).status == 200
            await made.claim("dining", token)  # refused
        for query in (CASES, BLOCK, CALLBACKS):
            await made.database.pool.execute(query, ASKED, made.clock.now())
        digest = digest_person(bytes.fromhex(ASKED))
        await block_person(made.valkey.client, shard_tag(0), digest, "B", to_ms(made.clock.now() - timedelta(days=10)))
        async with asyncio.timeout(10):  # signals are written behind everybody's back
            async with custodian(made.database, made.valkey.client, made.clock.now()) as desk:
                while len(await signals(desk, person_of(ASKED, desk.buckets, desk.shards))) < 3:
                    await asyncio.sleep(0.1)
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def desk(city: City) -> AsyncIterator[Custodian]:
    """While claims are open."""
    async with custodian(city.database, city.valkey.client, city.clock.now()) as made:
        yield made


async def ledger(city: City) -> Mapping[str, str]:
    """A hash of every table of the ledger."""
    hashes = {}
    for table in LEDGER:
        if await city.fetchval("SELECT to_regclass($1)", table) is not None:
            query = f"SELECT md5(coalesce(string_agg(t::text, '|' ORDER BY t::text), '')) FROM {table} t"
            hashes[table] = await city.fetchval(query)
    return hashes


async def test_an_export_holds_everything_about_a_person_and_nothing_about_another(city: City, desk: Custodian) -> None:
    answer = await export(desk, ASKED)
    counted = {table: len(rows) for table, rows in answer.books.items()}
    expected = {"voucher": 3, "redemption": 2, "refund": 1, "flag": 2, "person_block": 1, "callback_event": 2}
    assert counted == expected
    assert {row["stock_id"] for row in answer.books["voucher"]} == {"dining"}
    assert {row["merchant_id"] for row in answer.books["redemption"]} == {"NOODLES"}
    memory = answer.memory
    assert [one["round"] for one in memory["remembered_claims"]] == ["one/noon"]
    assert [one.people for one in memory["households"]] == [2]
    assert memory["gate_verdict"].startswith("B@")
    assert {one["kind"] for one in memory["signals"]} == {"redeem", "refund"}
    text = msgspec.json.encode(answer).decode()
    others = [
        row[0]
        for row in await city.database.pool.fetch("SELECT voucher_id FROM voucher WHERE person = $1::uuid", OTHER)
    ]
    assert others and not any(str(number) in text for number in others)
    assert OTHER not in text


async def test_an_erasure_removes_what_may_go_and_leaves_the_ledger_as_it_is(city: City, desk: Custodian) -> None:
    before, books = await ledger(city), await city.state()
    dry = await erase(desk, ASKED, WHY, MASTER_KEY, is_dry_run=True)
    assert await city.state() == books

    done = await erase(desk, ASKED, WHY, MASTER_KEY)
    assert done.removed == dry.removed
    assert done.removed == {"households": 0, "gate_verdict": 1, "flag": 1, "person_block": 1, "callback_event": 1}
    assert await ledger(city) == before
    kept = {one.what: one.until for one in done.kept}
    assert set(kept) == {
        "vouchers, uses, refunds, holds",
        "open flags",
        "callbacks that wait",
        "remembered claims",
        "households",
        "signals",
    }
    assert kept["households"] and kept["remembered claims"] and kept["vouchers, uses, refunds, holds"]

    left = await export(desk, ASKED)
    assert [row["detector"] for row in left.books["flag"]] == ["OPEN"]
    assert [row["kind"] for row in left.books["callback_event"]] == ["USED"]
    assert "person_block" not in left.books and left.memory["gate_verdict"] is None
    assert len((await export(desk, OTHER)).books["voucher"]) == 3

    (erasure,) = await city.database.pool.fetch("SELECT * FROM erasure")
    row = dict(erasure)
    assert (row["asked_by"], row["why"], len(row["person_hash"])) == (WHO, WHY, 32)
    raw = bytes.fromhex(ASKED)
    assert not any(form in repr(row) for form in (ASKED, repr(raw)[2:-1], raw.hex()))
    again = await erase(desk, ASKED, WHY, MASTER_KEY)
    assert (len(again.earlier), sum(again.removed.values())) == (1, 0)
    assert not (await erase(desk, OTHER, WHY, MASTER_KEY, is_dry_run=True)).earlier


async def test_households_go_when_nothing_can_be_claimed_any_more(city: City) -> None:
    after = city.clock.now() + timedelta(days=40)
    async with custodian(city.database, city.valkey.client, after) as desk:
        mine, other = (person_of(token, desk.buckets, desk.shards) for token in (ASKED, OTHER))
        assert (await erase(desk, ASKED, WHY, MASTER_KEY)).removed["households"] == 1
        assert await households(desk, mine) == []
        assert [one.people for one in await households(desk, other)] == [1]


async def test_an_erasure_that_touched_the_ledger_would_be_found(city: City, desk: Custodian) -> None:
    """Controls: the custodian cannot, and the comparison sees one row less."""
    for table in await city.database.pool.fetch("SELECT round_tables() UNION ALL SELECT 'transfer'"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await desk.conn.execute(f"DELETE FROM {table[0]}")
    before = await ledger(city)
    async with city.database.connection() as conn:
        tried = conn.transaction()
        await tried.start()
        await conn.execute(
            "ALTER TABLE voucher DISABLE TRIGGER ALL; DELETE FROM voucher WHERE person = $1::uuid".replace(
                "$1", f"'{ASKED}'"
            )
        )
        changed = await conn.fetchval(
            "SELECT md5(coalesce(string_agg(t::text, '|' ORDER BY t::text), '')) FROM voucher t"
        )
        await tried.rollback()
    assert changed != before["voucher"]
    assert await ledger(city) == before


@pytest.mark.parametrize("why", ["call 13912345678", f"about {ASKED}", "", "x" * 501])
async def test_a_reason_that_names_somebody_is_refused(city: City, desk: Custodian, why: str) -> None:
    with pytest.raises(StackError, match="--why"):
        await erase(desk, ASKED, why, MASTER_KEY)


async def test_a_log_with_a_phone_number_is_found() -> None:
    """Control of the scan of logs, which other tests hold against what services wrote."""
    known = Known(tokens={ASKED})
    assert leaks(b'{"event": "refused", "text": "call 13912345678"}', known)
    assert leaks(f'{{"event": "refused", "who": "{ASKED}"}}'.encode(), known)
    assert not leaks(b'{"event": "refused", "request_id": "8f0c2a6b91d3e457"}', known)


async def test_whatever_is_stored_stands_in_the_documentation(city: City) -> None:
    """Every table of the books, and every family of keys that a city in use has."""
    text = (ROOT / "docs" / "privacy.md").read_text()
    tables = await city.database.pool.fetch(
        "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace"
        " AND relkind IN ('r', 'p') AND NOT relispartition"
    )
    missing = {row[0] for row in tables if f"`{row[0]}`" not in text}
    families = set()
    async for key in city.valkey.client.scan_iter(count=1_000):
        name = re.sub(r"[{]s\d+[}]", "{sN}", key.decode())
        families.add(":".join(name.split(":")[:2]))
    missing |= {name for name in families if f"`{name}`" not in text}
    assert not missing, missing
    assert "`no_such_table`" not in text


# ---------------------------------------------------------------- the commands


async def said(stack: Stack, *arguments: str, status: int = 0) -> str:
    """Runs a command in a process of its own; what it said."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "stack", *arguments, "--data", str(stack.folder.path)),
        cwd=ROOT,
        env={"PATH": "", "COLUMNS": "120", "PYTHONPATH": str(ROOT)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    text, _ = await process.communicate()
    assert process.returncode == status, text.decode()
    return text.decode()


async def test_the_commands_on_a_running_stack(tmp_path: Path) -> None:
    async with Stack(tmp_path / "data", services=()) as stack:
        conn = await asyncpg.connect(stack.dsn())
        await conn.execute("INSERT INTO city (buckets, shards) VALUES (2, 1)")
        await conn.close()
        texts = await asyncio.gather(
            said(stack, "privacy", "erase", "--person", ASKED, "--by", "Li Na", "--why", WHY),
            said(stack, "retention", "--apply", "--by", "Li Na", "--json"),
        )
        exported = await privacy_command._export(stack.folder.path, ASKED)
        with pytest.raises(StackError, match="cases is kept 31 to 36500 days"):
            await retention_command._set(stack.folder.path, "cases", 3, "Li Na")
    assert "erasure 1" in texts[0] and "signals" in texts[0]
    assert {one["family"] for one in json.loads(texts[1])} >= {"claim_keys", "signals", "round_storage", "person_link"}
    assert (exported.person_token, exported.books) == (ASKED, {})
    with pytest.raises(StackError, match="32 small hex digits"):
        privacy_command._token("13912345678")
