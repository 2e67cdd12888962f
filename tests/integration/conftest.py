"""Fixtures of the tests that start from a city with rows in it."""

from collections.abc import AsyncIterator

import asyncpg
import pytest
import pytest_asyncio

from tests import stores
from tests.integration import audit_world


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def honest_world(cluster: stores.Cluster) -> AsyncIterator[str]:
    """The name of a template database that holds the honest world of audit_world.py."""
    name = "honest_world"
    await stores.command(cluster.dsn(), f"CREATE DATABASE {name} TEMPLATE {stores.TEMPLATE}")
    async with asyncpg.create_pool(cluster.dsn(database=name), min_size=1, max_size=4) as pool:
        await audit_world.build(pool)
    yield name
    await stores.command(cluster.dsn(), f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
async def honest_city(cluster: stores.Cluster, honest_world: str) -> AsyncIterator[stores.Database]:
    """A copy of the honest world for one test, which may break it."""
    async with stores.database(cluster, honest_world) as made:
        yield made
