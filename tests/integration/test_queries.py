"""Every named query prepares against the schema: tables, columns and types are right."""

from collections.abc import AsyncIterator

import asyncpg
import pytest
import pytest_asyncio

import sql
from tests import stores

QUERIES = [(file, name) for file in sql.names() for name in sql.load(file)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def schema(cluster: stores.Cluster) -> AsyncIterator[stores.Database]:
    """One database for all: preparing changes nothing."""
    async with stores.database(cluster) as made:
        yield made


def test_there_are_queries() -> None:
    assert len(QUERIES) > 5


@pytest.mark.parametrize(("file", "name"), QUERIES, ids=[".".join(pair) for pair in QUERIES])
async def test_query_prepares(schema: stores.Database, file: str, name: str) -> None:
    assert sql.load(file).purpose_of(name)
    async with schema.connection() as connection:
        await connection.prepare(sql.load(file)[name])


async def test_a_wrong_query_does_not_prepare(schema: stores.Database) -> None:
    async with schema.connection() as connection:
        with pytest.raises(asyncpg.UndefinedColumnError):
            await connection.prepare("SELECT no_such_column FROM schema_migration")
