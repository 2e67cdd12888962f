"""The storage of rounds that are over: packed, detached, unlinked; and the audit holds all the while."""

import asyncio
import csv
import hashlib
from collections.abc import AsyncIterator
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest

import sql
from kernel.clock import from_ms
from kernel.tasks import end as end_task
from redemption.settlement.answer import answer
from redemption.settlement.answer_csv import AnswerRow, write_answer
from redemption.settlement.batch import get_lines
from redemption.settlement.export import Format, export
from redemption.settlement.refusals import Refused
from stack.audit import AuditReport, Verdict, audit
from stack.retention import storage
from stack.retention.desk import Custodian, begin, end, rounds
from stack.retention.storage import Archive, Numbers, Pack, Unlink
from tests import stores
from tests.custodian import custodian, ignore, later
from tests.integration import audit_world as world

OVER = world.at(30, 4)
"""When the campaign's last voucher has run out."""
DAY = timedelta(days=1)
LEDGER = ("voucher", "redemption", "refund")


@pytest.fixture
async def desk(honest_city: stores.Database) -> AsyncIterator[Custodian]:
    """A custodian on the day after the campaign ended. The claim store is not asked for storage."""
    no_valkey: Any = None
    async with custodian(honest_city, no_valkey, OVER + DAY) as made:
        yield made


async def finish(database: stores.Database, desk: Custodian) -> None:
    """What comes before: unused vouchers booked as expired, days closed, the claim store has forgotten the rounds."""
    await expire(database)
    for bucket in range(world.BUCKETS):
        await database.pool.execute("SELECT close_day($1, $2, $3)", bucket, date(2020, 5, 1), OVER + DAY)
    await answer_the_bank(database)
    await forget(desk)


async def expire(database: stores.Database) -> None:
    for bucket in range(world.BUCKETS):
        for stock in world.STOCKS:
            await database.pool.execute("SELECT expire_stock($1, $2, $3)", bucket, stock.stock_no, OVER + DAY)


async def answer_the_bank(database: stores.Database) -> None:
    """The batch that was on its way is paid, unless it was before."""
    async with database.connection("hanquan_finance") as conn:
        batch_no = await conn.fetchval("SELECT max(batch_no) FROM settlement_batch")
        lines = [line for line in await get_lines(conn, batch_no) if line.state == "SETTLING"]
        if lines:
            order = await export(conn, batch_no, payer=world.PAYER, form=Format.CSV, by="wang", now=OVER)
            assert not isinstance(order, Refused)
            rows = [
                AnswerRow(
                    no, line.line_no, line.payee_account, line.amount_fen, "PAID", date(2020, 4, 30), f"b{no}", ""
                )
                for no, line in enumerate(lines, start=1)
            ]
            file = write_answer(order.batch_id, order.sha256, rows)
            assert not isinstance(await answer(conn, batch_no, file, by="li", now=OVER), Refused)


async def forget(desk: Custodian) -> None:
    for one in await rounds(desk):
        await begin(desk, one.round_no, "CLAIM_KEYS")
        await end(desk, one.round_no, "CLAIM_KEYS")


async def audited(database: stores.Database) -> AuditReport:
    async with database.connection("hanquan_auditor") as connection:
        return await audit(connection)


def broken(report: AuditReport) -> set[str]:
    return {one.id for one in report.statements if one.verdict is Verdict.BROKEN}


async def ledger(database: stores.Database, schema: str) -> dict[str, Any]:
    """Rows of the ledger by table, in words."""
    query = "SELECT md5(string_agg(t::text, '|' ORDER BY t::text)) FROM {}.{} t"
    return {table: await database.pool.fetchval(query.format(schema, table)) for table in LEDGER}


async def archive(desk: Custodian, now: datetime) -> None:
    for family in (Archive(), Numbers()):
        done = await family.apply(later(desk, now), ignore)
        assert (done.items, list(done.blocked)) == (2, []), done


async def test_a_round_is_packed_and_detached_and_everything_still_adds_up(
    honest_city: stores.Database, desk: Custodian, tmp_path: Path
) -> None:
    await finish(honest_city, desk)
    before, examined = await ledger(honest_city, "public"), await audited(honest_city)
    assert not broken(examined)
    packed = await Pack().apply(desk, ignore)
    assert packed.items == 2 * await honest_city.pool.fetchval("SELECT count(*) FROM round_tables()")
    assert (await Pack().look(desk)).due == 0

    due = later(desk, OVER + 181 * DAY)
    exporting = custodian(honest_city, desk.valkey, due.now, tmp_path / "files")
    async with exporting as one:
        assert (await Archive().apply(one, ignore)).items == 2
    assert (await Numbers().apply(due, ignore)).items == 2

    assert await ledger(honest_city, "archive") == before == await ledger(honest_city, "books")
    assert set((await ledger(honest_city, "public")).values()) == {None}
    assert not await honest_city.pool.fetchval("SELECT count(*) FROM request_number")
    after = await audited(honest_city)
    assert not broken(after)
    counted = [{one.id: one.examined for one in report.statements} for report in (examined, after)]
    assert counted[0] == counted[1]  # nothing is left out, guards of the archive included
    check_files(tmp_path / "files", await honest_city.pool.fetchval("SELECT count(*) FROM archive.voucher"))
    digest = hashlib.sha256((tmp_path / "files" / "SHA256SUMS_r1").read_bytes()).digest()
    query = "SELECT sha256, done_by FROM retention_step WHERE round_no = 1 AND step = 'ARCHIVE'"
    assert tuple(await honest_city.pool.fetchrow(query) or ()) == (digest, "Zhao Min")


def check_files(folder: Path, vouchers: int) -> None:
    """Files as the sums beside them say, readable by their owner only, with every voucher."""
    count = 0
    for number in (1, 2):
        for line in (folder / f"SHA256SUMS_r{number}").read_text().splitlines():
            digest, name = line.split("  ")
            data = (folder / name).read_bytes()
            assert hashlib.sha256(data).hexdigest() == digest
            assert (folder / name).stat().st_mode & 0o77 == 0
            count += sum(name.startswith("voucher_") for _ in csv.DictReader(data.decode().splitlines()))
    assert count == vouchers > 0


async def test_tills_go_on_while_a_round_is_detached(honest_city: stores.Database, desk: Custodian) -> None:
    await finish(honest_city, desk)
    served = 0

    async def till() -> None:
        nonlocal served
        async with honest_city.connection("hanquan_redemption") as conn:
            while True:
                async with conn.transaction():
                    await conn.fetchval("SELECT pg_advisory_xact_lock_shared(4817, 0)")
                    for table in LEDGER:
                        await conn.fetchval(f"SELECT count(*) FROM {table} WHERE voucher_id > 0")
                served += 1

    tills = [asyncio.create_task(till()) for _ in range(3)]
    await archive(desk, OVER + 181 * DAY)
    before = served
    async with asyncio.timeout(10):
        while served < before + 10:
            await asyncio.sleep(0.01)
    assert not any(task.done() for task in tills)
    for task in tills:
        await end_task(task)


async def test_the_archive_is_guarded_and_a_lie_in_it_is_found(honest_city: stores.Database, desk: Custodian) -> None:
    await finish(honest_city, desk)
    await archive(desk, OVER + 181 * DAY)
    for statement in ("UPDATE archive.redemption SET bill_fen = 1", "DELETE FROM archive.voucher_r1"):
        with pytest.raises(asyncpg.PostgresError) as stopped:
            await honest_city.pool.execute(statement)
        assert stopped.value.sqlstate == "HQ001"
    with pytest.raises(asyncpg.PostgresError, match="only ever added"):
        await honest_city.pool.execute("TRUNCATE archive.refund_r1")

    # Control: an audit that did not read the archive would miss most of the money.
    async with honest_city.connection() as conn:
        assert await conn.fetch(sql.load("audit").a4b_balances, 5)
        async with conn.transaction():
            await conn.execute("SELECT read_books()")
            assert not await conn.fetch(sql.load("audit").a4b_balances, 5)
    await honest_city.pool.execute(
        "ALTER TABLE archive.redemption DISABLE TRIGGER ALL;UPDATE archive.redemption SET subsidy_fen = subsidy_fen + 1"
    )
    assert {"A4b", "A4c", "A7b"} <= broken(await audited(honest_city))


async def test_what_is_not_over_is_not_detached(
    honest_city: stores.Database, desk: Custodian, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "TRIES_MAX", 1)
    monkeypatch.setattr(storage, "RETRY_S", 0.0)
    assert (await Archive().look(later(desk, OVER + 179 * DAY))).due == 0
    due = later(desk, OVER + 181 * DAY)

    async def refused(reason: str) -> None:
        before = await ledger(honest_city, "public")
        for said in ((await Archive().look(due)).blocked, (await Archive().apply(due, ignore)).blocked):
            assert len(said) == 2, said
            assert all(reason in each for each in said), said
        assert await ledger(honest_city, "public") == before

    await refused("claim keys are still in the claim store")
    await forget(desk)
    await refused("not booked as expired")
    await expire(honest_city)
    await refused("the bank has not answered")
    await answer_the_bank(honest_city)
    await refused("a day of it is not closed")
    await finish(honest_city, desk)
    await honest_city.pool.execute(
        "INSERT INTO callback_event (bucket, voucher_id, attempt, kind, partner_no, happened_at, next_at)"
        " SELECT bucket, voucher_id, 0, 'CLAIMED', 1, now(), now()"
        " FROM (SELECT DISTINCT ON (voucher_id >> 38) * FROM voucher) v"
    )
    await refused("callbacks wait")
    await honest_city.pool.execute("UPDATE callback_event SET next_at = NULL, delivered_at = now()")
    async with honest_city.connection("hanquan_auditor") as reader, reader.transaction():
        await reader.execute("SELECT read_books()")
        assert len((await Archive().apply(due, ignore)).blocked) == 2  # an audit is reading
    async with honest_city.connection("hanquan_redemption") as till, till.transaction():
        await till.fetchval("SELECT count(*) FROM voucher")
        assert len((await Archive().apply(due, ignore)).blocked) == 2  # a till is reading
    await archive(due, due.now)
    row = await desk.conn.fetchrow("SELECT * FROM archive_round(1::smallint, 'Zhao Min', $1, NULL)", due.now)
    assert row is not None and row["refusal"] == "REPLAYED"


async def test_a_round_is_unlinked_from_people_and_everything_still_adds_up(
    honest_city: stores.Database, desk: Custodian
) -> None:
    await finish(honest_city, desk)
    await archive(desk, OVER + 181 * DAY)
    known = await honest_city.pool.fetch("SELECT DISTINCT person, out_request_no FROM archive.voucher")
    numbers = await honest_city.pool.fetch("SELECT use_request_no, order_no FROM archive.redemption")
    money = "SELECT sum(amount_fen), count(*) FROM books.posting"
    before, examined = tuple(await honest_city.pool.fetchrow(money) or ()), await audited(honest_city)

    assert (await Unlink().look(later(desk, OVER + 1094 * DAY))).due == 0
    assert (await Unlink().apply(later(desk, OVER + 1094 * DAY), ignore)).items == 0
    done = await Unlink().apply(later(desk, OVER + 1096 * DAY), ignore)
    assert (done.items, list(done.blocked)) == (2, [])

    text = ""
    for table in await honest_city.pool.fetch("SELECT round_tables()"):
        text += "\n".join(row[0] for row in await honest_city.pool.fetch(f"SELECT t::text FROM archive.{table[0]} t"))
    names = {str(value) for row in (*known, *numbers) for value in row}
    assert names
    assert not {name for name in names if name in text}
    assert not await honest_city.pool.fetchval("SELECT count(*) FROM archive.request_number")
    assert tuple(await honest_city.pool.fetchrow(money) or ()) == before
    after = await audited(honest_city)
    assert not broken(after)
    counted = [{one.id: one.examined for one in report.statements} for report in (examined, after)]
    assert {number for number in counted[0] if counted[0][number] != counted[1][number]} <= {"A1j", "A3j"}
    assert (await Unlink().apply(later(desk, OVER + 1097 * DAY), ignore)).items == 0


async def test_nobody_else_moves_rounds_and_the_custodian_changes_no_row(honest_city: stores.Database) -> None:
    verbs = (
        "SELECT archive_round(1::smallint, 'x', now(), NULL)",
        "SELECT unlink_round(1::smallint, 'x', now())",
        "SELECT begin_step(1::smallint, 'CLAIM_KEYS', '', 'x', now())",
        "SELECT * FROM person_rows('00000000-0000-0000-0000-000000000000', 0::smallint, '{}')",
        "DELETE FROM person_block",
        "UPDATE retention_rule SET keep_days = 5000",
    )
    for role in ("hanquan_issuer", "hanquan_redemption", "hanquan_finance", "hanquan_operator", "hanquan_auditor"):
        async with honest_city.connection(role) as conn:
            for verb in verbs:
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await conn.execute(verb)
    async with honest_city.connection("hanquan_custodian") as conn:
        for table in (*LEDGER, "transfer", "merchant_day", "account", "archive.voucher", "erasure", "retention_step"):
            for verb in (f"DELETE FROM {table}", f"TRUNCATE {table}"):
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await conn.execute(verb)
        with pytest.raises(asyncpg.PostgresError, match="cannot begin"):  # steps of the database itself
            await conn.execute("SELECT begin_step(1::smallint, 'UNLINK', '', 'x', $1)", from_ms(0))
