"""Migrations lead to schema.sql, run once, and refuse what does not fit."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

import sql
from kernel.postgres import Connection
from sql.migrate import MIGRATIONS, MigrationRefused, ensure_roles, migrate, pending, read_migrations
from stack.binaries import postgres_program
from stack.child import run_once
from tests import stores

EMPTY = "template0"


@pytest.fixture
async def empty(cluster: stores.Cluster) -> AsyncIterator[stores.Database]:
    """A database without a schema; the roles exist."""
    async with stores.database(cluster, template=EMPTY) as made:
        yield made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two small migrations of the test's own."""
    (tmp_path / "0001_first.sql").write_text("CREATE TABLE first (id int);\n")
    (tmp_path / "0002_second.sql").write_text("CREATE TABLE second (id int);\n")
    return tmp_path


async def dump(database: stores.Database) -> list[str]:
    """The schema as pg_dump tells it, without what differs from dump to dump."""
    text = await run_once(
        (
            *(str(postgres_program("pg_dump")), "--schema-only", "--no-owner"),
            *("--exclude-table=schema_migration", f"--dbname={database.dsn()}"),
        ),
        env={"PATH": os.environ["PATH"]},
        folder=Path.cwd(),
    )
    return [line for line in text.splitlines() if line and not line.startswith(("--", "\\"))]


async def test_migrations_lead_to_schema_sql(database: stores.Database, empty: stores.Database) -> None:
    async with empty.connection() as connection:
        await connection.execute(sql.schema())
    assert await dump(database) == await dump(empty)


async def test_the_comparison_sees_a_difference(database: stores.Database) -> None:
    before = await dump(database)
    await database.pool.execute("CREATE TABLE one_more (id int)")
    changed = await dump(database)
    assert before != changed
    await database.pool.execute("GRANT SELECT ON one_more TO hanquan_auditor")
    assert changed != await dump(database)


async def test_a_second_run_finds_nothing_to_do(database: stores.Database) -> None:
    async with database.connection() as connection:
        assert await migrate(connection) == []
        assert await pending(connection) == []


async def test_new_migrations_are_applied_in_order(empty: stores.Database, folder: Path) -> None:
    async with empty.connection() as connection:
        assert [one.name for one in await migrate(connection, folder)] == ["first", "second"]
        (folder / "0003_third.sql").write_text("ALTER TABLE second ADD name text;\n")
        assert [one.name for one in await pending(connection, folder)] == ["third"]
        assert [one.name for one in await migrate(connection, folder)] == ["third"]


async def test_rounds_that_are_open_already_are_vacuumed_as_new_ones(empty: stores.Database, tmp_path: Path) -> None:
    for file in MIGRATIONS.glob("*.sql"):
        if file.name < "0017":
            (tmp_path / file.name).write_text(file.read_text())
    async with empty.connection() as connection:
        await migrate(connection, tmp_path)
        await connection.execute("SELECT open_round_storage(1::smallint)")
        assert set(await _options(connection)) == {None}
        await migrate(connection)
        await connection.execute("SELECT open_round_storage(2::smallint)")
        options = await _options(connection)
    assert len(options) == 12
    assert {tuple(each or ()) for each in options} == {
        ("autovacuum_vacuum_insert_scale_factor=1", "autovacuum_analyze_scale_factor=1")
    }


async def _options(connection: Connection) -> list[list[str] | None]:
    rows = await connection.fetch(
        "SELECT c.reloptions FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE c.relkind = 'r'"
    )
    return [row[0] for row in rows]


async def test_a_changed_migration_is_refused(empty: stores.Database, folder: Path) -> None:
    async with empty.connection() as connection:
        await migrate(connection, folder)
        (folder / "0001_first.sql").write_text("CREATE TABLE first (id bigint);\n")
        with pytest.raises(MigrationRefused, match="0001_first was changed"):
            await migrate(connection, folder)


async def test_a_newer_database_is_refused(empty: stores.Database, folder: Path) -> None:
    async with empty.connection() as connection:
        await migrate(connection, folder)
        (folder / "0002_second.sql").unlink()
        with pytest.raises(MigrationRefused, match="newer than this program"):
            await migrate(connection, folder)


@pytest.mark.parametrize("name", ["2_short.sql", "0003-dash.sql", "0002_second_again.sql"])
def test_odd_files_are_refused(folder: Path, name: str) -> None:
    (folder / name).write_text("SELECT 1;\n")
    with pytest.raises(MigrationRefused):
        read_migrations(folder)


async def test_a_migration_squeezed_in_later_is_refused(empty: stores.Database, folder: Path) -> None:
    (folder / "0002_second.sql").rename(folder / "0003_second.sql")
    async with empty.connection() as connection:
        await migrate(connection, folder)
        (folder / "0002_late.sql").write_text("SELECT 1;\n")
        with pytest.raises(MigrationRefused, match="must get the highest number"):
            await migrate(connection, folder)


async def test_a_failing_migration_leaves_the_one_before(empty: stores.Database, folder: Path) -> None:
    (folder / "0002_second.sql").write_text("CREATE TABLE second (id int); SELECT 1 / 0;\n")
    async with empty.connection() as connection:
        with pytest.raises(MigrationRefused, match="0002_second failed and was undone: division by zero"):
            await migrate(connection, folder)
        assert await connection.fetchval("SELECT to_regclass('first')") == "first"
        assert await connection.fetchval("SELECT to_regclass('second')") is None
        assert [one.name for one in await pending(connection, folder)] == ["second"]


async def test_two_migrators_at_once_do_not_clash(empty: stores.Database) -> None:
    async def run() -> int:
        async with empty.connection() as connection:
            return len(await migrate(connection))

    applied = await asyncio.gather(*(run() for _ in range(4)))
    assert sorted(applied) == [0, 0, 0, len(list(MIGRATIONS.glob("*.sql")))]


async def test_roles_can_be_ensured_again_and_get_their_passwords(
    empty: stores.Database,
) -> None:
    role = "hanquan_auditor"
    password = "it's \\ 100% new"
    async with empty.connection() as connection:
        await ensure_roles(connection, {role: password})
    reached = await asyncpg.connect(empty.cluster.server.dsn(role, password, empty.name))
    await reached.close()
    async with empty.connection() as connection:
        await ensure_roles(connection, {role: stores.PASSWORD})
        with pytest.raises(ValueError, match="not our roles"):
            await ensure_roles(connection, {"postgres": "mine now"})
