"""Brings a database to the newest schema: forward only, each migration in one transaction.

``sql/migrations/NNNN_name.sql`` are applied in the order of their numbers, and never edited once
applied. The table ``schema_migration`` says what a database has seen.
"""

import hashlib
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import asyncpg

import sql
from kernel.postgres import Connection

MIGRATIONS = sql.FOLDER / "migrations"
ROLES = (
    "hanquan_issuer",
    "hanquan_redemption",
    "hanquan_finance",
    "hanquan_antifraud",
    "hanquan_operator",
    "hanquan_custodian",
    "hanquan_auditor",
)

_FILE_NAME = re.compile(r"(?P<version>\d{4})_(?P<name>[a-z0-9_]+)\.sql")
_queries = sql.load("migrate")


class MigrationRefused(Exception):
    """The database does not take the migration files; the message says which and why."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One file of sql/migrations."""

    version: int
    name: str
    text: str
    checksum_sha256: str


def read_migrations(folder: Path = MIGRATIONS) -> list[Migration]:
    """All migrations of a folder in order. Raises MigrationRefused for an odd or doubled number."""
    migrations = [_read(path) for path in sorted(folder.glob("*.sql"))]
    for one, following in pairwise(migrations):
        if one.version == following.version:
            raise MigrationRefused(f"two migrations are numbered {one.version:04}: {one.name} and {following.name}")
    return migrations


def _read(path: Path) -> Migration:
    match = _FILE_NAME.fullmatch(path.name)
    if match is None:
        raise MigrationRefused(f"{path.name} is not named like 0001_what_it_does.sql")
    content = path.read_bytes()
    return Migration(
        version=int(match["version"]),
        name=match["name"],
        text=content.decode("utf-8"),
        checksum_sha256=hashlib.sha256(content).hexdigest(),
    )


async def migrate(connection: Connection, folder: Path = MIGRATIONS) -> list[Migration]:
    """Apply what the database has not seen yet, and return it (an empty list: nothing to do).

    Two migrators at once are safe: the second waits, then finds nothing to do. A migration
    that fails leaves the database as the one before it left it. Raises MigrationRefused when
    an applied file was changed since, when the database is newer than the files, or when a
    migration fails.
    The connection must belong to a role that may create tables and grant.
    """
    migrations = read_migrations(folder)
    async with _alone(connection):
        await connection.execute(_queries.create_journal)
        fresh = await _not_applied(connection, migrations)
        for migration in fresh:
            await _apply(connection, migration)
    return fresh


async def pending(connection: Connection, folder: Path = MIGRATIONS) -> list[Migration]:
    """What `migrate` would apply. Same refusals; makes the journal table if it is missing."""
    async with _alone(connection):
        await connection.execute(_queries.create_journal)
        return await _not_applied(connection, read_migrations(folder))


async def ensure_roles(connection: Connection, passwords: Mapping[str, str]) -> None:
    """Create the login roles that are missing and set the given passwords (role -> password).

    Roles are cluster-wide: call it as superuser, before `migrate`. Running it again is safe.
    """
    if unknown := set(passwords) - set(ROLES):
        raise ValueError(f"not our roles: {sorted(unknown)}")
    async with _alone(connection), connection.transaction():
        await connection.execute((sql.FOLDER / "roles.sql").read_text(encoding="utf-8"))
        for role in sorted(passwords):
            statement = await connection.fetchval(_queries.alter_password, role, passwords[role])
            await connection.execute(statement)


@asynccontextmanager
async def _alone(connection: Connection) -> AsyncIterator[None]:
    await connection.execute(_queries.lock)
    try:
        yield
    finally:
        if not connection.is_closed():
            await connection.execute(_queries.unlock)


async def _not_applied(connection: Connection, migrations: Sequence[Migration]) -> list[Migration]:
    applied = await connection.fetch(_queries.select_applied)
    if len(applied) > len(migrations):
        raise MigrationRefused(
            f"this database is at migration {applied[-1]['version']:04}, newer than this program,"
            f" which knows {len(migrations)} of its {len(applied)}; run the newer program"
        )
    for row, migration in zip(applied, migrations, strict=False):
        if row["version"] != migration.version:
            raise MigrationRefused(
                f"this database has {row['version']:04}_{row['name']} where this program has"
                f" {migration.version:04}_{migration.name}; a new migration must get the highest number"
            )
        if row["checksum_sha256"] != migration.checksum_sha256:
            raise MigrationRefused(
                f"migration {migration.version:04}_{migration.name} was changed after this"
                " database applied it; put the file back and add a new migration instead"
            )
    return list(migrations[len(applied) :])


async def _apply(connection: Connection, migration: Migration) -> None:
    name = f"{migration.version:04}_{migration.name}"
    try:
        async with connection.transaction():
            await connection.execute(migration.text)
            await connection.execute(
                _queries.insert_applied, migration.version, migration.name, migration.checksum_sha256
            )
    except asyncpg.PostgresError as error:
        raise MigrationRefused(f"migration {name} failed and was undone: {error}") from error
