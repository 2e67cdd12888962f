"""Fixtures for every test: real stores, started from the wheels."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from kernel.slow_clients import raise_file_limit
from tests import stores

pytest_plugins = ["tests.watchdog"]

FILES = 8_000


def pytest_configure() -> None:
    """Some tests hold both ends of many connections."""
    raise_file_limit(FILES)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[stores.Cluster]:
    """One PostgreSQL server per worker, and in it the template database."""
    async with stores.cluster(tmp_path_factory.mktemp("cluster")) as running:
        yield running


@pytest.fixture
async def database(cluster: stores.Cluster) -> AsyncIterator[stores.Database]:
    """A database of the test's own with the newest schema: `.pool`, `.dsn(role)`."""
    async with stores.database(cluster) as made:
        yield made


@pytest.fixture
async def valkey(tmp_path: Path) -> AsyncIterator[stores.Valkey]:
    """A Valkey of the test's own with the real configuration: `.client`, `.url`."""
    async with stores.valkey(tmp_path) as running:
        yield running
