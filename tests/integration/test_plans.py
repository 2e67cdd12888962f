"""Connections keep the plans that they make while a round's tables are empty; these must not be kept when they fill.

The worst case is a database that was vacuumed and analyzed between the opening of a round and its first sale: then
PostgreSQL knows that the tables are empty, and believes that to read any index of them costs the same.
"""

import asyncio
from collections import Counter
from pathlib import Path

from tests import stores, verbs
from tests.city import City, open_city
from tests.city_plan import person

VOUCHERS, AT_ONCE = 1_000, 100
READ_MAX = 1_000
"""Index entries that the requests for one voucher may read, on average, once there are five hundred redemptions. Plans
for empty tables read some four thousand, and more with each redemption; those for these tables two hundred."""

_ALONE = """
SELECT format('ALTER TABLE %s SET (autovacuum_enabled = off)', i.inhrelid::regclass)
  FROM pg_inherits i WHERE i.inhparent IN (SELECT to_regclass(t) FROM round_tables() t)
"""
_READ = """
SELECT i.indexrelname, i.idx_tup_read FROM pg_stat_user_indexes i JOIN pg_inherits h ON h.inhrelid = i.relid
 WHERE i.schemaname = 'public'
"""


async def test_plans_for_empty_tables_are_not_kept(cluster: stores.Cluster, tmp_path: Path) -> None:
    reads = await _reads_of_a_voucher(cluster, tmp_path)
    assert reads.total() < READ_MAX, reads.most_common(8)


async def test_control_without_analyze_young_they_are(cluster: stores.Cluster, tmp_path: Path) -> None:
    reads = await _reads_of_a_voucher(
        cluster, tmp_path, "CREATE OR REPLACE FUNCTION analyze_young() RETURNS integer LANGUAGE sql AS 'SELECT 0'"
    )
    assert reads.total() > READ_MAX


async def _reads_of_a_voucher(cluster: stores.Cluster, folder: Path, *changes: str) -> Counter[str]:
    """By index, for the second half of the vouchers."""
    async with open_city(cluster, folder, buckets=1) as city:
        for statement in (*changes, *[row[0] for row in await city.database.pool.fetch(_ALONE)], "VACUUM ANALYZE"):
            await city.database.pool.execute(statement)
        codes = await city.claim_many("dining", [person(n) for n in range(VOUCHERS)])
        await _spend(city, codes[::2])
        before = await _settled(city)
        await _spend(city, codes[1::2])
        after = await _settled(city)
    return Counter({name: 2 * (read - before[name]) // VOUCHERS for name, read in after.items()})


async def _spend(city: City, codes: list[str]) -> None:
    for first in range(0, len(codes), AT_ONCE):
        some = enumerate(codes[first : first + AT_ONCE])
        await asyncio.gather(*((verbs.plain if n % 10 else verbs.life)(city, code, f"plan-{code}") for n, code in some))


async def _settled(city: City) -> dict[str, int]:
    """Connections tell what they read a second later, and by then the checkout has had its plans made anew."""
    await asyncio.sleep(2.2)
    return {name: read for name, read in await city.database.pool.fetch(_READ)}
