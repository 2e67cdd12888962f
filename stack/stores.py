"""The two stores of a stack: embedded in its data folder, or servers of one's own."""

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from urllib.parse import quote, urlsplit

import asyncpg

import sql
from kernel.valkey import is_cluster
from sql.migrate import Migration, MigrationRefused, ensure_roles, migrate, pending
from stack.child import Program
from stack.data_folder import DataFolder, Secrets
from stack.errors import StackError
from stack.postgres_server import MAINTENANCE_DATABASE, PostgresServer
from stack.valkey_cluster import ValkeyCluster
from stack.valkey_server import ValkeyServer

DATABASE = "hanquan"

_queries = sql.load("stack")


class Stores:
    """Where the stores are and how to reach them.

    HANQUAN_POSTGRES_DSN (an administrator's, naming an existing database) and
    HANQUAN_VALKEY_URL in `env` replace the embedded server of that kind. `cluster` embeds a Valkey
    Cluster; a folder that was made with one keeps it. StackError where that cannot be.
    """

    def __init__(
        self, folder: DataFolder, secrets: Secrets, env: Mapping[str, str] = os.environ, *, cluster: bool = False
    ) -> None:
        self._secrets = secrets
        self._own_dsn = env.get("HANQUAN_POSTGRES_DSN")
        self._own_valkey = env.get("HANQUAN_VALKEY_URL")
        if cluster and self._own_valkey:
            raise StackError("HANQUAN_VALKEY_URL names a server of your own; --cluster would start another")
        self._postgres = PostgresServer(
            folder.path, password=secrets.postgres_password, log=folder.logs / "postgres.log"
        )
        self._valkey = _embedded_valkey(folder, secrets.valkey_password, cluster)
        self.replicas_acked = replicas_acked(self.valkey_url, env)

    @property
    def valkey_url(self) -> str:
        """URL with password: never log it."""
        return self._own_valkey or self._valkey.url

    @property
    def places(self) -> dict[str, str]:
        """Where each server listens, by the name of its process; fit for eyes."""
        postgres = {"postgres": public(self.dsn())}
        if self._own_valkey or isinstance(self._valkey, ValkeyServer):
            return postgres | {"valkey": public(self.valkey_url)}
        return postgres | {node.name: public(node.url) for node in self._valkey.nodes}

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
        return [program for server in embedded for program in server.programs()]

    async def join(self) -> None:
        """Make the embedded Valkey nodes, which must run by now, one cluster. StackError when they do not."""
        if isinstance(self._valkey, ValkeyCluster) and not self._own_valkey:
            await self._valkey.join()

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


def _embedded_valkey(folder: DataFolder, password: str, cluster: bool) -> ValkeyServer | ValkeyCluster:
    if not cluster and not ValkeyCluster.was_in(folder.path):
        return ValkeyServer(folder.path, password=password, log=folder.logs / "valkey.log")
    if (folder.path / "valkey").exists():
        raise StackError(f"{folder.path} was made with one Valkey; start a cluster in another folder, with --data")
    return ValkeyCluster(folder.path, password=password, logs=folder.logs)


def replicas_acked(valkey_url: str, env: Mapping[str, str] = os.environ) -> int:
    """How many replicas must hold what is answered: as HANQUAN_VALKEY_REPLICAS says, else one on a cluster."""
    return int(env.get("HANQUAN_VALKEY_REPLICAS") or is_cluster(valkey_url))


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
