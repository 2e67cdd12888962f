"""Pages that change on disk, and a server that would not notice. A server of its own."""

import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg

from sql.migrate import ROLES, ensure_roles, migrate
from stack.audit import AuditReport, audit
from stack.binaries import postgres_program
from stack.child import Child
from stack.postgres_server import NOT_DURABLE, PostgresServer
from tests import stores
from tests.integration import audit_world

WORLD = "honest_world"
PAGE_BYTES = 8192


@asynccontextmanager
async def running(server: PostgresServer) -> AsyncIterator[stores.Cluster]:
    """The server, started and stopped, with its data left where they are."""
    child = Child(server.program())
    try:
        await child.ready()
        yield stores.Cluster(server, child)
    finally:
        await child.stop()


async def made_world(cluster: stores.Cluster) -> Path:
    """Make the honest world; the file of its redemptions of round two, below the data folder."""
    await stores.command(cluster.dsn(), f"CREATE DATABASE {WORLD}")
    connection = await asyncpg.connect(cluster.dsn(database=WORLD))
    await ensure_roles(connection, dict.fromkeys(ROLES, stores.PASSWORD))
    await migrate(connection)
    await connection.close()
    async with asyncpg.create_pool(cluster.dsn(database=WORLD), min_size=1, max_size=4) as pool:
        await audit_world.build(pool)
        return Path(await pool.fetchval("SELECT pg_relation_filepath('redemption_r2')"))


async def audited(cluster: stores.Cluster) -> AuditReport:
    connection = await asyncpg.connect(cluster.dsn("hanquan_auditor", WORLD))
    try:
        return await audit(connection)
    finally:
        await connection.close()


def flip_byte(file: Path) -> None:
    """Change one byte in the middle of the first row's page, as a failing disk would."""
    page = bytearray(file.read_bytes())
    page[PAGE_BYTES - 20] ^= 0xFF
    file.write_bytes(page)


def turn_checksums_off(data: Path) -> None:
    """As an administrator in a hurry might, while the server is down."""
    program = postgres_program("pg_checksums")
    subprocess.run([program, "--disable", "--no-sync", "-D", str(data)], check=True, capture_output=True)


async def test_damage_is_found_and_named(tmp_path: Path) -> None:
    server = PostgresServer(tmp_path, password=stores.PASSWORD, settings=NOT_DURABLE)
    await server.prepare(sync=False)
    async with running(server) as cluster:
        file = await made_world(cluster)
        assert (await audited(cluster)).broken == ()
    flip_byte(server.data / file)
    async with running(server) as cluster:
        report = await audited(cluster)
    told = {one.id: one.shown for one in report.statements if one.violations}
    assert any(f'invalid page in block 0 of relation "{file}"' in what for what in told["A3d"])
    assert "pages with a wrong checksum were read" in told["A7a"][0]
    # Statements that do not read the damaged file still stand.
    assert "A1b" not in told and "A7b" not in told
    flip_byte(server.data / file)

    turn_checksums_off(server.data)
    async with running(server) as cluster:
        report = await audited(cluster)
    assert {one.id: one.shown for one in report.statements if one.violations} == {"A7a": ("data_checksums is off",)}
