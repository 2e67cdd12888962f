"""A till's numbers are unique over all buckets: one number at once with two vouchers of different buckets."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from itertools import count, permutations
from typing import NamedTuple

import pytest
import pytest_asyncio

from kernel.errors import Code
from kernel.ids import unpack_voucher_id
from kernel.partitions import bucket_of, bucket_of_key
from redemption.numbers import Scope, number_key
from tests import stores
from tests.city import City, Reply, open_city
from tests.city_plan import person

BUCKETS = 4
PEOPLE = count()
SHOP = "NOODLES"
EACH = 4
"""Pairs of vouchers for each two buckets, in both orders."""


@pytest_asyncio.fixture
async def city(cluster: stores.Cluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[City]:
    async with open_city(cluster, tmp_path_factory.mktemp("numbers"), buckets=BUCKETS) as made:
        yield made


class Pair(NamedTuple):
    """Two vouchers of two buckets for which one number is used."""

    number: str
    buckets: tuple[int, int]
    codes: tuple[str, str]

    def home(self, scope: Scope, merchant_no: int) -> int:
        """The bucket in which the number is told free or taken."""
        return bucket_of_key(number_key(scope, merchant_no, self.number).bytes, BUCKETS)


async def pairs(city: City) -> list[Pair]:
    """Fresh ones, for every two buckets."""
    codes = await city.claim_many("dining", [person(next(PEOPLE)) for _ in range(3 * EACH * 2 * BUCKETS**2)])
    by_bucket: list[list[str]] = [[] for _ in range(BUCKETS)]
    for code in codes:
        voucher_id = city.codes.decode(code)
        assert voucher_id is not None
        by_bucket[bucket_of(unpack_voucher_id(voucher_id).partition, BUCKETS)].append(code)
    both_ways = [buckets for buckets in permutations(range(BUCKETS), 2) for _ in range(EACH)]
    return [
        Pair(f"one-{n:05}", (one, other), (by_bucket[one].pop(), by_bucket[other].pop()))
        for n, (one, other) in enumerate(both_ways)
    ]


async def race(
    city: City, services: Sequence[str], raced: Sequence[Pair], *, by_order: bool
) -> list[tuple[Reply, Reply]]:
    """Every pair at once, at one service or at two: one request number, or one payment under two request numbers."""

    async def ask(n: int, side: int) -> Reply:
        pair = raced[n]
        own = f"{pair.number}-{side}"
        number, order = (own, pair.number) if by_order else (pair.number, own)
        service = services[(n + side * (n % 3 > 0)) % 2]
        return await city.redeem(SHOP, pair.codes[side], number=number, order=order, service=service)

    replies = await asyncio.gather(*(ask(n, side) for n in range(len(raced)) for side in (0, 1)))
    return list(zip(replies[::2], replies[1::2], strict=True))


async def assert_each_met_its_number_everywhere(city: City, raced: Sequence[Pair], scope: Scope) -> None:
    """Else the race would not say much: numbers at home with the first voucher, with the second, with neither."""
    merchant_no = await city.fetchval("SELECT merchant_no FROM merchant WHERE merchant_id = $1", SHOP)
    homes = {tuple(bucket == pair.home(scope, merchant_no) for bucket in pair.buckets) for pair in raced}
    assert homes == {(True, False), (False, True), (False, False)}


@pytest.mark.parametrize(("by_order", "refused"), [(False, Code.IDEMPOTENCY_MISMATCH), (True, Code.RULE_LIMIT)])
async def test_a_number_is_used_once_over_all_buckets(city: City, by_order: bool, refused: Code) -> None:
    services = city.redemption, await city.new_redemption()
    raced = await pairs(city)
    await assert_each_met_its_number_everywhere(city, raced, Scope.ORDER if by_order else Scope.USE)
    replies = await race(city, services, raced, by_order=by_order)
    assert [{reply.code for reply in pair} for pair in replies] == [{None, refused}] * len(raced)
    if by_order:
        assert {reply.rule for pair in replies for reply in pair} == {None, "ONE_VOUCHER_PER_PAYMENT"}
    again = await race(city, services[::-1], raced, by_order=by_order)
    assert [[reply.code for reply in pair] for pair in again] == [[reply.code for reply in pair] for pair in replies]
    assert await city.fetchval("SELECT count(*) FROM redemption") == len(raced)


@pytest.mark.parametrize("by_order", [False, True])
async def test_control_without_the_register_a_number_is_used_in_two_buckets(city: City, by_order: bool) -> None:
    """No turns and no key: then what a number is bound to is whatever each voucher's own bucket believes."""
    services = city.redemption, await city.new_redemption()
    await city.database.pool.execute(
        """
        ALTER TABLE request_number DROP CONSTRAINT request_number_pkey;
        CREATE OR REPLACE FUNCTION lock_bucket(p_bucket smallint) RETURNS void LANGUAGE sql AS 'SELECT NULL::void';
        CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql
            AS $$ BEGIN PERFORM pg_sleep(0.3); RETURN NULL; END $$;
        CREATE TRIGGER dawdle AFTER INSERT ON request_number FOR EACH STATEMENT EXECUTE FUNCTION dawdle();
        CREATE TRIGGER dawdle AFTER INSERT ON redemption FOR EACH STATEMENT EXECUTE FUNCTION dawdle();
        """
    )
    raced = await pairs(city)
    replies = await race(city, services, raced, by_order=by_order)
    assert sum(reply.status == 200 for pair in replies for reply in pair) > len(raced)
