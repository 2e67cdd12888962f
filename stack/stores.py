"""The two stores of a stack: embedded in its data folder, or servers of one's own."""

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from urllib.parse import quote, urlsplit

import asyncpg

import sql
from sql.migrate import Migration, MigrationRefused, ensure_roles, migrate, pending
from stack.child import Program
from stack.data_folder import DataFolder, Secrets
from stack.errors import StackError
from stack.postgres_server import MAINTENANCE_DATABASE, PostgresServer
from stack.valkey_server import ValkeyServer

DATABASE = "hanquan"

_queries = sql.load("stack")


class Stores:
    """Where the stores are and how to reach them.

    HANQUAN_POSTGRES_DSN (an administrator's, naming an existing database) and
    HANQUAN_VALKEY_URL in `env` replace the embedded server of that kind.
    """

    def __init__(self, folder: DataFolder, secrets: Secrets, env: Mapping[str, str] = os.environ) -> None:
        self._secrets = secrets
        self._own_dsn = env.get("HANQUAN_POSTGRES_DSN")
        self._own_valkey = env.get("HANQUAN_VALKEY_URL")
        self._postgres = PostgresServer(
            folder.path, password=secrets.postgres_password, log=folder.logs / "postgres.log"
        )
        self._valkey = ValkeyServer(folder.path, password=secrets.valkey_password, log=folder.logs / "valkey.log")

    @property
    def valkey_url(self) -> str:
        """URL with password: never log it."""
        return self._own_valkey or self._valkey.url

    def dsn(self, role: str | None = None) -> str:
        """DSN of the database for a role (None: the administrator), with password."""
        admin = self._own_dsn or self._postgres.dsn(database=DATABASE)
        if role is None:
            return admin
        return with_user(admin, role, self._secrets.role_passwords[role])

    async def prepare(self) -> list[Program]:
        """Make ready the embedded stores and return what to run: nothing for own servers."""
        embedded = [
            server for server, own in ((self._postgres, self._own_dsn), (self._valkey, self._own_valkey)) if not own
        ]
        await asyncio.gather(*(server.prepare() for server in embedded))
        return [server.program() for server in embedded]

    async def migrate(self) -> list[Migration]:
        """Make the database, its roles and its newest schema. Returns what was applied.

        Raises StackError when the database refuses.
        """
        if not self._own_dsn:
            await self._create_database()
        async with administrator(self.dsn()) as connection:
            await ensure_roles(connection, self._secrets.role_passwords)
            return await migrate(connection)

    async def pending(self) -> list[Migration]:
        """The migrations that `migrate` would apply."""
        async with administrator(self.dsn()) as connection:
            return await pending(connection)

    async def _create_database(self) -> None:
        maintenance = self._postgres.dsn(database=MAINTENANCE_DATABASE)
        async with administrator(maintenance) as connection:
            if not await connection.fetchval(_queries.database_exists, DATABASE):
                await connection.execute(_queries.create_database)


@asynccontextmanager
async def administrator(dsn: str) -> "AsyncIterator[asyncpg.Connection]":
    """A connection, closed at the end of the block. StackError for whatever the database says."""
    try:
        connection = await asyncpg.connect(dsn, timeout=10)
        try:
            yield connection
        finally:
            await connection.close()
    except MigrationRefused as error:
        raise StackError(str(error)) from error
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise StackError(f"PostgreSQL at {public(dsn)}: {str(error) or 'no answer'}") from error


def with_user(dsn: str, user: str, password: str) -> str:
    """The same DSN for another user."""
    parts = urlsplit(dsn)
    host = parts.netloc.rpartition("@")[2]
    login = f"{quote(user, safe='')}:{quote(password, safe='')}"
    return parts._replace(netloc=f"{login}@{host}").geturl()


def public(url: str) -> str:
    """A DSN or URL without user and password, fit for eyes and logs."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()
