"""What the database itself holds of settlement, whoever asks it."""

from collections.abc import AsyncIterator
from dataclasses import replace

import asyncpg
import pytest

from tests import stores
from tests.settling import answered, approved, approved_again, proposed
from tests.town import DAY, Town, assert_books, build


@pytest.fixture
async def town(database: stores.Database) -> AsyncIterator[Town]:
    """A town in which nothing was sold yet; its connection is the superuser's."""
    async with database.connection() as conn:
        yield await build(conn)


async def as_finance(database: stores.Database, statement: str, *arguments: object) -> None:
    async with database.connection("hanquan_finance") as conn:
        await conn.execute(statement, *arguments)


async def test_finance_can_do_its_work_with_its_own_rights(town: Town, database: stores.Database) -> None:
    for merchant in town.merchants:
        await town.sell(merchant, DAY, 2)
    async with database.connection("hanquan_finance") as conn:
        finance = replace(town, conn=conn)
        batch = await approved(finance)
        outcome = await answered(finance, batch, rejected=(2,))
    assert (outcome.paid_count, outcome.rejected_count) == (2, 1)
    await assert_books(town.conn)


@pytest.mark.parametrize("kind", ["SETTLE_HOLD", "SETTLE_POST", "SETTLE_VOID", "RETURN", "ISSUE", "FUND", "EXPIRE"])
async def test_finance_cannot_move_money_past_the_two_people(town: Town, database: stores.Database, kind: str) -> None:
    await town.sell(town.merchants[0], DAY)
    await proposed(town)
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await as_finance(
            database,
            "INSERT INTO transfer (bucket, campaign_no, merchant_no, kind, debit, credit, amount_fen, items, reference,"
            " booked_at)"
            f" VALUES (0, 1, 1, '{kind}', 'PAYABLE', 'SETTLING', 1, 1, 'mine', now())",
        )
    for table in ("settlement_decision", "settlement_answer", "settlement_line", "settlement_share", "account"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await as_finance(database, f"INSERT INTO {table} DEFAULT VALUES")


async def test_even_the_owner_cannot_approve_alone_or_twice(town: Town) -> None:
    await town.sell(town.merchants[0], DAY)
    batch = await proposed(town)
    insert = (
        "INSERT INTO settlement_decision (batch_no, campaign_no, proposed_by, decided_by, is_approved, decided_at)"
        " VALUES ($1, 1, $2, $3, true, now())"
    )
    with pytest.raises(asyncpg.CheckViolationError, match="two_people"):
        await town.conn.execute(insert, batch.batch_no, "li.wei", "LI.WEI")
    with pytest.raises(asyncpg.ForeignKeyViolationError):
        await town.conn.execute(insert, batch.batch_no, "somebody else", "li.wei")
    await approved_again(town, batch)
    with pytest.raises(asyncpg.UniqueViolationError):
        await town.conn.execute(insert, batch.batch_no, "li.wei", "zhang.min")


async def test_even_the_owner_cannot_open_a_second_undecided_batch(town: Town) -> None:
    await town.sell(town.merchants[0], DAY)
    batch = await proposed(town)
    insert = (
        "INSERT INTO settlement_batch (campaign_no, day, previous_batch_no, last_transfer_id, proposed_by, proposed_at)"
        " VALUES (1, $1, $2, 0, 'x', now())"
    )
    with pytest.raises(asyncpg.UniqueViolationError, match="one_undecided_batch"):
        await town.conn.execute(insert, DAY, None)
    with pytest.raises(asyncpg.ForeignKeyViolationError, match="previous_is_decided"):
        await town.conn.execute(insert, DAY, batch.batch_no)


TABLES = [
    "settlement_batch", "settlement_decision", "settlement_line", "settlement_share", "settlement_line_held",
    "settlement_export", "bank_file", "bank_row", "bank_import", "settlement_answer", "fund_return", "flow_file",
    "flow_row", "recon_run", "recon_run_flow", "recon_run_bank", "recon_break", "recon_closure",
]  # fmt: skip


@pytest.mark.parametrize("table", TABLES)
async def test_no_row_is_ever_changed(town: Town, table: str) -> None:
    triggers = await town.conn.fetch(
        "SELECT tgname FROM pg_trigger WHERE tgrelid = $1::text::regclass AND NOT tgisinternal ORDER BY 1", table
    )
    assert [row["tgname"] for row in triggers] == ["append_only", "append_only_truncate"]
    with pytest.raises(asyncpg.PostgresError, match="only ever added"):
        await town.conn.execute(f"TRUNCATE {table} CASCADE")
