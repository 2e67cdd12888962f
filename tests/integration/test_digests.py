"""Shops and keys are many and change seldom: they are read again only when a digest says that they changed."""

from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from typing import Any

import pytest
import pytest_asyncio

import sql
from kernel.key_rows import KeyRows
from kernel.keyring import Keyring
from redemption.catalogue import Catalogue
from tests import stores
from tests.city import City, open_city
from tests.city_plan import NOON

pytestmark = pytest.mark.asyncio(loop_scope="module")

KEYS = sql.load("keys")["api_keys"]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def city(cluster: stores.Cluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[City]:
    async with open_city(cluster, tmp_path_factory.mktemp("digests")) as made:
        yield made


class Watched(KeyRows):
    """Counts how often the keys are read; breaks once when told to."""

    reads = 0
    breaks = False

    async def rows(self) -> Sequence[Any]:
        self.reads += 1
        if self.breaks:
            self.breaks = False
            raise OSError("the line broke")
        return await super().rows()


async def test_keys_are_read_when_they_changed(city: City) -> None:
    rows = Watched(city.database.pool, KEYS, sql.digest_of(KEYS))
    keyring = Keyring(rows.rows, bytes(range(32)), city.clock, read_digest=rows.digest)
    for _ in range(3):
        await keyring.reload()
    assert rows.reads == 1
    for change in (
        "UPDATE api_key SET not_after = not_after + interval '1 second' WHERE holder_id = 'NOODLES'",
        "UPDATE partner SET claims_per_s_max = 7 WHERE partner_id = 'wechat'",
        "UPDATE terminal SET suspended = true",
        "UPDATE terminal SET suspended = false",
    ):
        before = rows.reads
        await city.database.pool.execute(change)
        await keyring.reload()
        await keyring.reload()
        assert rows.reads == before + 1, change


async def test_keys_that_could_not_be_read_are_read_again(city: City) -> None:
    rows = Watched(city.database.pool, KEYS, sql.digest_of(KEYS))
    keyring = Keyring(rows.rows, bytes(range(32)), city.clock, read_digest=rows.digest)
    rows.breaks = True
    with pytest.raises(OSError, match="line"):
        await keyring.reload()
    await keyring.reload()
    assert rows.reads == 2


async def test_shops_are_read_when_they_changed(city: City) -> None:
    pool = city.database.pool
    first = (await Catalogue.read(pool, NOON)).shops
    assert (await Catalogue.read(pool, NOON, first)).shops is first
    until = NOON + timedelta(minutes=1)
    await pool.execute("UPDATE merchant SET suspended = true, suspended_until = $1 WHERE merchant_id = 'HOTPOT'", until)
    assert (await Catalogue.read(pool, NOON, first, look=False)).shops is first
    shut = (await Catalogue.read(pool, NOON, first)).shops
    assert {shop.merchant_id for shop in shut.merchants.values() if shop.suspended} == {"HOTPOT", "BANNED"}
    again = (await Catalogue.read(pool, until, shut)).shops  # nothing was written: its time is over
    assert {shop.merchant_id for shop in again.merchants.values() if shop.suspended} == {"BANNED"}


async def test_a_digest_is_of_rows_not_of_their_order(city: City) -> None:
    async def digest(query: str) -> object:
        return await city.database.pool.fetchval(sql.digest_of(query))

    ways = ["VALUES (1, 'a'), (2, 'b')", "VALUES (2, 'b'), (1, 'a')"]
    others = [
        "VALUES (1, 'b'), (2, 'a')",
        "VALUES (1, 'a')",
        "VALUES (1, 'a'), (2, 'b'), (2, 'b')",
        "VALUES (1, NULL), (2, 'b')",
    ]
    assert len({await digest(way) for way in ways}) == 1
    assert len({await digest(each) for each in [ways[0], *others]}) == 5
