"""A custodian in tests: a seat at the stores, as `./hanquan retention` and `./hanquan privacy` have it."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import datetime
from pathlib import Path

import msgspec
from redis.asyncio import Redis

from kernel.postgres import Connection
from stack.retention.desk import Custodian, queries
from tests import stores

WHO = "Zhao Min"


@asynccontextmanager
async def custodian(
    database: stores.Database, valkey: Redis, now: datetime, export_to: Path | None = None
) -> AsyncIterator[Custodian]:
    """A custodian with a connection of their own."""

    def owner() -> AbstractAsyncContextManager[Connection]:
        return database.connection()

    async with database.connection("hanquan_custodian") as conn:
        city = await conn.fetchrow(queries["city"])
        assert city is not None
        yield Custodian(
            conn=conn,
            owner=owner,
            valkey=valkey,
            buckets=city["buckets"],
            shards=city["shards"],
            by=WHO,
            now=now,
            keep_days={row["family"]: row["keep_days"] for row in await conn.fetch(queries["rules"])},
            export_to=export_to,
        )


def later(desk: Custodian, now: datetime) -> Custodian:
    """The same one at another time."""
    return msgspec.structs.replace(desk, now=now)


def ignore(done: int, total: int) -> None:
    """For whoever needs no progress."""
