"""Which buckets did each transaction touch? Each bucket's rows lie in tables of their own, and each statement is asked.

    async with split_database(cluster, folder, buckets=4) as database:     # the schema, cut by bucket
        watch = Watch()
        monkeypatch.setattr(asyncpg, "create_pool", watch.create_pool)      # every pool opened from here on
        async with open_city(..., database=database) as city:
            await split_rounds(database)
            ... drive the services ...
        assert watch.guilty("redemption") == []

In the copy of the schema that is made here each table with a column `bucket` is partitioned by it, so that the tables
a statement scanned or wrote (PostgreSQL counts that, wherever it happens: in a function, a trigger, a foreign key)
are the buckets it touched. A scan that finds nothing counts; a partition that was pruned does not. It is what a
database that is spread over machines by bucket would see.
"""

import re
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import asyncpg

import sql
from kernel.postgres import Pool
from sql.migrate import MIGRATIONS, migrate
from tests import stores

Answer = TypeVar("Answer")

_CREATE_TABLE = re.compile(
    r"^(CREATE TABLE \w+ \(\n(?:(?!\)).*\n)*?    bucket +smallint\b(?:(?!\)).*\n)*?\))(?=;)", re.M
)

_LEAVES = """
SELECT format('CREATE TABLE %I PARTITION OF %s FOR VALUES IN (%s)', p.relname || '_b' || b, p.oid::regclass, b)
  FROM pg_class p JOIN pg_partitioned_table t ON t.partrelid = p.oid AND t.partstrat = 'l'
 CROSS JOIN generate_series(0, $1 - 1) AS b
 WHERE NOT EXISTS (SELECT FROM pg_inherits i WHERE i.inhparent = p.oid)
"""

# Children of partitions that are referenced come off first: a foreign key holds what it points at.
_ROUNDS = """
SELECT p.relname AS parent, c.relname AS part, pg_get_expr(c.relpartbound, c.oid) AS bounds
  FROM pg_inherits i JOIN pg_class p ON p.oid = i.inhparent JOIN pg_class c ON c.oid = i.inhrelid
  JOIN pg_partitioned_table t ON t.partrelid = p.oid AND t.partstrat = 'r'
 WHERE c.relkind = 'r' AND EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attname = 'bucket')
 ORDER BY EXISTS (SELECT FROM pg_constraint k WHERE k.contype = 'f' AND k.confrelid = p.oid), c.relname
"""

_WATCHER = """
CREATE SCHEMA watch;
GRANT USAGE ON SCHEMA watch TO PUBLIC;
CREATE TABLE watch.leaf (relation oid, name text, bucket smallint);
-- What this connection scanned and wrote, and which buckets it locked, since its counters were last carried away.
-- They are never carried away inside a transaction, so that two looks in one transaction can be compared.
CREATE FUNCTION watch.counters() RETURNS TABLE (name text, bucket smallint, count bigint)
    LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog AS $$
    SELECT l.name, l.bucket, sum(pg_stat_get_xact_numscans(l.relation) + pg_stat_get_xact_tuples_inserted(l.relation)
           + pg_stat_get_xact_tuples_updated(l.relation) + pg_stat_get_xact_tuples_deleted(l.relation))::bigint
      FROM watch.leaf l GROUP BY l.name, l.bucket
     UNION ALL
    SELECT 'lock_bucket', k.objid::bigint::smallint, count(*) FROM pg_locks k
     WHERE k.pid = pg_backend_pid() AND k.locktype = 'advisory' AND k.classid = 4817 AND k.objsubid = 2 GROUP BY k.objid
$$;
"""

_WATCH_LEAVES = """
WITH leaf AS (
    SELECT c.oid, p.relname AS name, (regexp_match(pg_get_expr(c.relpartbound, c.oid), '(\\d+)'))[1]::smallint AS bucket
      FROM pg_class c JOIN pg_inherits i ON i.inhrelid = c.oid JOIN pg_class p ON p.oid = i.inhparent
      JOIN pg_partitioned_table t ON t.partrelid = p.oid AND t.partstrat = 'l' WHERE c.relkind = 'r'
)
INSERT INTO watch.leaf
SELECT l.oid, l.name, l.bucket FROM leaf l
 UNION ALL SELECT x.indexrelid, l.name, l.bucket FROM leaf l JOIN pg_index x ON x.indrelid = l.oid
"""

_NOT_SPLIT = """
SELECT c.relname FROM pg_class c
 WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r' AND NOT c.relispartition
   AND EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attname = 'bucket')
"""

_KEY_WITH_BUCKET = """
ALTER TABLE voucher DROP CONSTRAINT voucher_pkey;
ALTER TABLE voucher ADD PRIMARY KEY (bucket, voucher_id);
"""

# ---------------------------------------------------------------- a schema cut by bucket


@asynccontextmanager
async def split_database(made: stores.Cluster, folder: Path, buckets: int) -> AsyncIterator[stores.Database]:
    """A database with the newest schema in which every table with a bucket has one partition a bucket.

    That this can be made at all proves half of the rule: every key of such a table has the bucket in it. But the
    voucher's, which sql/citus.sql puts there, and so does this.
    """
    async with stores.database(made, template="template0") as database:
        async with database.connection() as conn:
            await migrate(conn, _migrations_by_bucket(folder))
            assert not await conn.fetch(_NOT_SPLIT), "a table with a bucket was not split"
            await conn.execute(_KEY_WITH_BUCKET)
            await _run_all(conn, await conn.fetch(_LEAVES, buckets))
            await conn.execute(_WATCHER)
        yield database


async def split_rounds(database: stores.Database) -> None:
    """Cuts the storage of each round by bucket, while it is empty. Nothing is watched before this."""
    buckets = await database.pool.fetchval("SELECT buckets FROM city")
    async with database.connection() as conn, conn.transaction():
        for parent, part, bounds in await conn.fetch(_ROUNDS):
            assert await conn.fetchval(f"SELECT count(*) FROM {part}") == 0
            await conn.execute(f"ALTER TABLE {parent} DETACH PARTITION {part}; DROP TABLE {part}")
            await conn.execute(f"CREATE TABLE {part} PARTITION OF {parent} {bounds} PARTITION BY LIST (bucket)")
        await _run_all(conn, await conn.fetch(_LEAVES, buckets))
        await conn.execute(_WATCH_LEAVES)


def _migrations_by_bucket(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for path in MIGRATIONS.glob("*.sql"):
        text = _CREATE_TABLE.sub(r"\1 PARTITION BY LIST (bucket)", path.read_text(encoding="utf-8"))
        (folder / path.name).write_text(text, encoding="utf-8")
    return folder


async def _run_all(conn: Any, statements: Iterable[Any]) -> None:
    for (statement,) in statements:
        await conn.execute(statement)


# ---------------------------------------------------------------- watching


class Touch(NamedTuple):
    """One statement, and the (table, bucket) that it touched."""

    statement: str
    leaves: frozenset[tuple[str, int]]

    @property
    def buckets(self) -> frozenset[int]:
        """The buckets among them."""
        return frozenset(bucket for _, bucket in self.leaves)


@dataclass
class Watch:
    """What was seen of all watched connections: by pool, its transactions, each a list of statements."""

    transactions: dict[str, list[list[Touch]]] = field(default_factory=lambda: defaultdict(list))

    def create_pool(self, *args: Any, **kwargs: Any) -> Pool:
        """asyncpg.create_pool, of connections that are watched."""
        name = kwargs.get("server_settings", {}).get("application_name", "")
        return _create_pool(*args, **kwargs, connection_class=_watched(self.transactions[name]))

    def guilty(self, pool: str) -> list[list[Touch]]:
        """Transactions that touched more than one bucket."""
        return [
            touches for touches in self.transactions[pool] if len({b for touch in touches for b in touch.buckets}) > 1
        ]

    def touches(self, pool: str) -> list[Touch]:
        """Every statement there was."""
        return [touch for touches in self.transactions[pool] for touch in touches]


_create_pool = asyncpg.create_pool
_NAMES = {text: f"{file}.{name}" for file in sql.names() for name, text in sql.load(file)._statements.items()}
_COUNTERS = "SELECT name, bucket, count FROM watch.counters()"


def _watched(seen: list[list[Touch]]) -> type[asyncpg.Connection]:
    class Watched(asyncpg.Connection):
        """Looks at the counters before and after each statement, in the statement's own transaction."""

        async def _look(self) -> dict[tuple[str, int], int]:
            rows = await super().fetch(_COUNTERS)
            return {(name, bucket): count for name, bucket, count in rows}

        async def _watch(self, statement: str, act: Callable[[], Awaitable[Answer]]) -> Answer:
            if self.is_in_transaction():
                touch, answer = await self._compare(statement, act)
                seen[-1].append(touch)
                return answer
            await super().execute("BEGIN")
            try:
                touch, answer = await self._compare(statement, act)
            except BaseException:
                await super().execute("ROLLBACK")
                raise
            await super().execute("COMMIT")
            seen.append([touch])
            return answer

        async def _compare(self, statement: str, act: Callable[[], Awaitable[Answer]]) -> tuple[Touch, Answer]:
            before = await self._look()
            answer = await act()
            after = await self._look()
            leaves = frozenset(leaf for leaf, count in after.items() if count > before.get(leaf, 0))
            return Touch(_NAMES.get(statement, statement), leaves), answer

        async def execute(self, query: str, *args: Any, **kwargs: Any) -> str:
            act = super().execute
            if query.startswith("BEGIN") and not self.is_in_transaction():
                seen.append([])
            if query.startswith(("BEGIN", "COMMIT", "ROLLBACK", "SAVEPOINT", "RELEASE")):
                return await act(query, *args, **kwargs)
            return await self._watch(query, lambda: act(query, *args, **kwargs))

        async def executemany(self, command: str, args: Any, **kwargs: Any) -> None:
            act = super().executemany
            return await self._watch(command, lambda: act(command, args, **kwargs))

        async def fetch(self, query: str, *args: Any, **kwargs: Any) -> Any:
            act = super().fetch
            return await self._watch(query, lambda: act(query, *args, **kwargs))

        async def fetchrow(self, query: str, *args: Any, **kwargs: Any) -> Any:
            act = super().fetchrow
            return await self._watch(query, lambda: act(query, *args, **kwargs))

        async def fetchval(self, query: str, *args: Any, **kwargs: Any) -> Any:
            act = super().fetchval
            return await self._watch(query, lambda: act(query, *args, **kwargs))

        async def copy_to_table(self, table_name: str, **kwargs: Any) -> str:
            act = super().copy_to_table
            return await self._watch(f"COPY {table_name}", lambda: act(table_name, **kwargs))

        async def prepare(self, *args: Any, **kwargs: Any) -> Any:
            raise AssertionError("a prepared statement is not watched")

        def cursor(self, *args: Any, **kwargs: Any) -> Any:
            raise AssertionError("a cursor is not watched")

    return Watched
