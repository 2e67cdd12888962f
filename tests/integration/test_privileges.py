"""Who may do what to the books, tried out: every line is run as its role and rolled back."""

import asyncpg
import pytest

import sql
from kernel.postgres import Connection
from tests import stores

MONEY = (
    *("voucher", "voucher_r1", "redemption", "redemption_r2", "refund", "transfer", "day_close", "merchant_day"),
    *("merchant_hold", "campaign", "city", "settlement_line", "settlement_decision", "settlement_answer", "bank_row"),
)
NOT_MONEY = {
    "account",  # a checkpoint of what is on the tables of money
    "api_key",
    "business",
    "callback_event",
    "callback_expiry",
    "callback_key",
    "callback_subscription",
    "drain_position",
    "flag",
    "forger_listing",
    "merchant",
    "merchant_application",
    "merchant_paper",
    "operator",
    "partner",
    "person_block",
    "person_use",
    "request_clash",
    "request_number",
    "retention_rule",
    "retention_step",
    "round",
    "schema_migration",
    "signal_position",
    "stock",
    "stock_adjustment",
    "stock_edit",
    "stock_issued",
    "store",
    "terminal",
}


def transfer(kind: str, debit: str, credit: str, merchant_no: int = 0) -> str:
    """An INSERT of a transfer of one fen."""
    return (
        "INSERT INTO transfer (bucket, campaign_no, merchant_no, kind, debit, credit, amount_fen, items, reference,"
        f" booked_at) VALUES (0, 1, {merchant_no}, '{kind}', '{debit}', '{credit}', 1, 1, 'tried', now())"
    )


VOUCHER = "INSERT INTO voucher SELECT voucher_id + 9999, claimed_at, 1, person, 1, bucket, 'tried' FROM voucher LIMIT 1"
REDEMPTION = (
    "INSERT INTO redemption SELECT voucher_id, 1, 1, now(), stock_no, 1, 1, '2020-05-01', bucket, 9, 'tried', 'tried'"
    " FROM voucher LIMIT 1"
)
HOLD = "INSERT INTO merchant_hold (merchant_no, reason_code, reason, placed_at) VALUES (1, 'TRIED', 'tried', now())"
ISSUE = transfer("ISSUE", "BUDGET", "ISSUED")
FUND = transfer("FUND", "CITY_FUND", "BUDGET")
EXPIRE = transfer("EXPIRE", "ISSUED", "RETURNED")
SETTLE_HOLD = transfer("SETTLE_HOLD", "PAYABLE", "SETTLING", 1)
SETTLE_POST = transfer("SETTLE_POST", "SETTLING", "PAID", 1)
SETTLE_VOID = transfer("SETTLE_VOID", "SETTLING", "PAYABLE", 1)
SUSPEND = transfer("SUSPEND", "RETURNED", "SUSPENSE")

ISSUER, REDEMPTIONS, FINANCE = "hanquan_issuer", "hanquan_redemption", "hanquan_finance"
ANTIFRAUD, OPERATOR, AUDITOR = "hanquan_antifraud", "hanquan_operator", "hanquan_auditor"
ROLES = (ISSUER, REDEMPTIONS, FINANCE, ANTIFRAUD, OPERATOR, AUDITOR)

MATRIX = {
    VOUCHER: {ISSUER},
    ISSUE: {ISSUER},
    FUND: {OPERATOR},
    EXPIRE: set[str](),
    SETTLE_HOLD: set[str](),
    SETTLE_POST: set[str](),
    SETTLE_VOID: set[str](),
    SUSPEND: {FINANCE},
    REDEMPTION: {REDEMPTIONS},
    HOLD: {ANTIFRAUD},
    "INSERT INTO merchant_hold_release VALUES (1, 'zhao', 'cleared', now())": {FINANCE},
    "INSERT INTO day_close VALUES (0, '2020-06-01', now())": set[str](),
    "INSERT INTO account (bucket, campaign_no, merchant_no, kind) VALUES (0, 1, 9, 'PAYABLE')": set[str](),
    "INSERT INTO merchant_day VALUES (0, 1, 1, '2020-06-01', 0, 0, 0, 0, 0, 0)": set[str](),
    "UPDATE account SET credits_fen = credits_fen + 1": set[str](),
    "UPDATE redemption SET bill_fen = bill_fen + 1": set[str](),
    "UPDATE redemption_r2 SET bill_fen = bill_fen + 1": set[str](),
    "DELETE FROM refund": set[str](),
    "DELETE FROM request_number": set[str](),
    "UPDATE transfer SET amount_fen = amount_fen + 1": set[str](),
    "TRUNCATE voucher_r1": set[str](),
    "UPDATE stock SET quantity = quantity + 1": set[str](),
    "UPDATE stock SET state = 'PAUSED'": set[str](),
    "UPDATE merchant SET payee_account = '62229999999'": set[str](),
    "UPDATE merchant SET refund_debt_fen_max = 0": set[str](),
    "UPDATE merchant SET suspended = true": {OPERATOR},
    "UPDATE settlement_decision SET is_approved = true": set[str](),
    "INSERT INTO settlement_decision VALUES (4, 1, 'li', 'wang', true, '', now())": set[str](),
    "SELECT close_day(0::smallint, '2020-06-01', now())": {FINANCE},
    "SELECT expire_stock(0::smallint, 4, '2020-06-01')": {FINANCE},
    "SELECT open_round_storage(3::smallint)": {OPERATOR},
    "SELECT add_to_accounts('{0}', '{1}', '{0}', '{PAID}', '{0}', '{1}')": set[str](),
    "SELECT make_append_only('stock')": set[str](),
    "SELECT person FROM voucher LIMIT 1": {ISSUER, REDEMPTIONS, FINANCE, OPERATOR, AUDITOR},
    "SELECT * FROM balance LIMIT 1": {FINANCE, OPERATOR, AUDITOR},
    "SELECT * FROM request_number LIMIT 1": {REDEMPTIONS, AUDITOR},
    "SELECT key_material FROM api_key": {ISSUER, REDEMPTIONS, OPERATOR},
    "CREATE TABLE mine (n integer)": set[str](),
    "ALTER TABLE voucher DISABLE TRIGGER ALL": set[str](),
    "SET session_replication_role = replica": set[str](),
}


@pytest.mark.parametrize("role", ROLES)
async def test_role_may_do_its_work_and_no_more(honest_city: stores.Database, role: str) -> None:
    async with honest_city.connection(role) as connection:
        told = {statement: await allowed(connection, statement) for statement in MATRIX}
    assert told == {statement: role in roles for statement, roles in MATRIX.items()}


async def allowed(connection: Connection, statement: str) -> bool:
    """Whether the role may; what happens is rolled back. Other errors are no answer and are raised."""
    transaction = connection.transaction()
    await transaction.start()
    try:
        await connection.execute(statement)
    except asyncpg.InsufficientPrivilegeError:
        return False
    finally:
        await transaction.rollback()
    return True


@pytest.mark.parametrize("table", MONEY)
@pytest.mark.parametrize("verb", ["UPDATE {} SET {} = {}", "DELETE FROM {}", "TRUNCATE {} CASCADE"])
async def test_owner_is_stopped_by_triggers(honest_city: stores.Database, table: str, verb: str) -> None:
    async with honest_city.connection() as connection:
        column = await connection.fetchval(
            "SELECT attname FROM pg_attribute WHERE attrelid = $1::regclass AND attnum > 0 AND attgenerated = ''"
            " AND attidentity = '' AND NOT attisdropped ORDER BY attnum LIMIT 1",
            table,
        )
        before = await connection.fetchval(f"SELECT count(*) FROM {table}")
        with pytest.raises(asyncpg.PostgresError) as stopped:
            await connection.execute(verb.format(table, column, column))
        assert (stopped.value.sqlstate, before > 0) == ("HQ001", True)
        assert await connection.fetchval(f"SELECT count(*) FROM {table}") == before


async def test_every_table_is_money_or_known_not_to_be(database: stores.Database) -> None:
    """A new table must be put on one list or the other."""
    async with database.connection() as connection:
        tables = await connection.fetch(
            "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace"
            " AND relkind IN ('r', 'p') AND NOT relispartition"
        )
        guarded = await connection.fetch(
            "SELECT DISTINCT tgrelid::regclass::text AS name FROM pg_trigger t"
            " JOIN pg_class c ON c.oid = tgrelid"
            " WHERE tgname = 'append_only' AND NOT relispartition AND relnamespace = 'public'::regnamespace"
        )
        money = {row[0] for row in await connection.fetch(sql.load("audit").money_tables)}
    assert {row["name"] for row in guarded} == money
    assert {row["relname"] for row in tables} == money | NOT_MONEY
