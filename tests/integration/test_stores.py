"""The stores that tests run on: fresh, apart, and reachable with each role."""

import time

import asyncpg
import pytest

from kernel.valkey import open_valkey
from sql.migrate import ROLES
from stack.child import Child
from tests import stores


async def test_each_database_is_fresh_and_its_own(cluster: stores.Cluster) -> None:
    async with stores.database(cluster) as one, stores.database(cluster) as other:
        await one.pool.execute("CREATE TABLE only_here ()")
        assert await other.pool.fetchval("SELECT to_regclass('only_here')") is None


@pytest.mark.parametrize("role", ROLES)
async def test_every_role_logs_in_and_is_no_superuser(database: stores.Database, role: str) -> None:
    async with database.connection(role) as connection:
        assert await connection.fetchval("SELECT current_user") == role
        assert await connection.fetchval("SELECT current_setting('is_superuser')") == "off"


async def test_a_wrong_password_is_refused(cluster: stores.Cluster) -> None:
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(cluster.server.dsn(user=ROLES[0], password="guessed"))


async def test_valkey_is_durable_before_it_answers(valkey: stores.Valkey) -> None:
    config = await valkey.client.config_get("append*", "maxmemory-policy", "save")
    assert config["appendonly"] == "yes"
    assert config["appendfsync"] == "always"
    assert config["maxmemory-policy"] == "noeviction"
    assert config["save"] == ""


async def test_valkey_keeps_what_it_acknowledged_when_killed(
    valkey: stores.Valkey,
) -> None:
    await valkey.client.set("acknowledged", "1")
    valkey.child.kill()
    again = Child(valkey.server.program())
    try:
        await again.ready()
        client = open_valkey(valkey.url)
        assert await client.get("acknowledged") == b"1"
        await client.aclose()
    finally:
        again.kill()


async def test_a_database_of_ones_own_takes_no_time(cluster: stores.Cluster) -> None:
    started = time.monotonic()
    async with stores.database(cluster):
        pass
    assert time.monotonic() - started < 10.0
