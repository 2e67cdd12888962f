"""Real stores for tests: a database per test cut from a template, a Valkey per test."""

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import asyncpg
from redis.asyncio import Redis
from redis.exceptions import RedisError

from kernel.cluster import Cluster as KernelCluster
from kernel.postgres import Connection, Pool
from kernel.valkey import open_valkey
from sql.migrate import ROLES, ensure_roles, migrate
from stack.child import Child
from stack.postgres_server import NOT_DURABLE, PostgresServer
from stack.valkey_cluster import ValkeyCluster
from stack.valkey_server import ValkeyServer

TEMPLATE = "hanquan_template"
QUICK_FAILOVER = {"cluster-node-timeout": "1000"}
PASSWORD = "for tests: /@ must be quoted"

_numbers = itertools.count(1)


@dataclass(frozen=True)
class Cluster:
    """A PostgreSQL server for all tests of a worker; not durable, so that it is quick."""

    server: PostgresServer
    child: Child

    def dsn(self, role: str | None = None, database: str = "postgres") -> str:
        """DSN for a role, or for the superuser."""
        user = {} if role is None else {"user": role, "password": PASSWORD}
        return self.server.dsn(database=database, **user)


@dataclass(frozen=True)
class Database:
    """A database of one's own with the newest schema. `pool` is the superuser's."""

    name: str
    cluster: Cluster
    pool: Pool

    def dsn(self, role: str | None = None) -> str:
        """DSN for one of sql.migrate.ROLES, or for the superuser."""
        return self.cluster.dsn(role, self.name)

    @asynccontextmanager
    async def connection(self, role: str | None = None) -> AsyncIterator[Connection]:
        """A connection of its own as a role, closed at the end of the block."""
        connection = await asyncpg.connect(self.dsn(role))
        try:
            yield connection
        finally:
            await connection.close(timeout=5)


@dataclass(frozen=True)
class Valkey:
    """A Valkey of one's own with the real configuration. `client` is an open client."""

    server: ValkeyServer
    child: Child
    client: Redis

    @property
    def url(self) -> str:
        """URL with password."""
        return self.server.url


@dataclass(frozen=True)
class ValkeyNodes(Valkey):
    """A Valkey Cluster of one's own; `client` speaks to all of it, `server` and `child` are its first node's."""

    cluster: ValkeyCluster
    children: list[Child]

    @property
    def url(self) -> str:
        """URL of the cluster with password."""
        return self.cluster.url

    async def owner(self, key: str) -> int:
        """Which node serves a key now, from 0."""
        assert isinstance(self.client, KernelCluster)
        port = (await self.client.node_of(key)).connection_pool.connection_kwargs["port"]
        return [node.port for node in self.cluster.nodes].index(port)

    async def replica(self, node: int) -> int:
        """Who follows a node."""
        for other, server in enumerate(self.cluster.nodes):
            async with open_valkey(server.url) as client:
                role = await client.role()
            if role[0] == b"slave" and role[2] == self.cluster.nodes[node].port:
                return other
        raise AssertionError(f"nobody follows node {node}")

    async def taken_over(self, key: str, victim: int, within_s: float = 60.0) -> None:
        """Wait until another node serves a key."""
        async with asyncio.timeout(within_s):
            while await self.owner(key) == victim:
                with suppress(RedisError):
                    await self.client.exists(key)
                await asyncio.sleep(0.02)

    async def start(self, node: int) -> None:
        """Start a node that was killed."""
        self.children[node] = Child(self.cluster.nodes[node].program())
        await self.children[node].ready()


@asynccontextmanager
async def cluster(folder: Path) -> AsyncIterator[Cluster]:
    """Start a PostgreSQL server and make the template database."""
    server = PostgresServer(folder, password=PASSWORD, settings=NOT_DURABLE)
    await server.prepare(sync=False)
    child = Child(server.program())
    try:
        await child.ready()
        made = Cluster(server, child)
        await _make_template(made)
        yield made
    finally:
        await child.stop()


async def _make_template(made: Cluster) -> None:
    await command(made.dsn(), f"CREATE DATABASE {TEMPLATE}")
    connection = await asyncpg.connect(made.dsn(database=TEMPLATE))
    try:
        await ensure_roles(connection, dict.fromkeys(ROLES, PASSWORD))
        await migrate(connection)
    finally:
        await connection.close()


@asynccontextmanager
async def database(made: Cluster, template: str = TEMPLATE) -> AsyncIterator[Database]:
    """A fresh copy of the template, dropped at the end of the block."""
    name = f"test_{next(_numbers)}"
    await command(made.dsn(), f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY")  # five times cheaper
    try:
        pool = await asyncpg.create_pool(made.dsn(database=name), min_size=1, max_size=8)
        try:
            yield Database(name, made, pool)
        finally:
            pool.terminate()
    finally:
        await command(made.dsn(), f"DROP DATABASE {name} WITH (FORCE)")


async def command(dsn: str, text: str) -> None:
    """Run one statement outside any transaction."""
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(text)
    finally:
        await connection.close()


@asynccontextmanager
async def valkey(folder: Path, settings: Mapping[str, str] | None = None) -> AsyncIterator[Valkey]:
    """Start a Valkey in a folder; it is killed at the end of the block, the folder stays."""
    server = ValkeyServer(folder, password=os.urandom(8).hex(), settings=settings)
    await server.prepare()
    child = Child(server.program())
    try:
        await child.ready()
        client = open_valkey(server.url)
        yield Valkey(server, child, client)
        await client.aclose()
    finally:
        child.kill()


@asynccontextmanager
async def valkey_cluster(folder: Path, settings: Mapping[str, str] | None = None) -> AsyncIterator[ValkeyNodes]:
    """Start three primaries and three replicas in a folder; they are killed at the end of the block."""
    made = ValkeyCluster(folder, password=os.urandom(8).hex(), settings={**QUICK_FAILOVER, **(settings or {})})
    await made.prepare()
    children = [Child(program) for program in made.programs()]
    try:
        await asyncio.gather(*(child.ready() for child in children))
        await made.join()
        client = open_valkey(made.url)
        yield ValkeyNodes(made.nodes[0], children[0], client, made, children)
        await client.aclose()
    finally:
        for child in children:
            child.kill()
