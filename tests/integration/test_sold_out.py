"""Sold out, from memory: no store is asked once all is in the books; and it opens again at once when stock returns."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from time import perf_counter

import pytest

from issuer.claim import ClaimDesk
from issuer.handlers import DESK
from issuer.operator.budget import Edited, edit_budget
from kernel.errors import Code
from tests import stores
from tests.city import City, open_city
from tests.city_plan import NOON, a_campaign, a_pack, a_round, a_stock, person
from tests.offices import office, roomy

QUANTITY = 5
CITY = a_campaign(
    "small", roomy(a_round("noon", NOON, a_stock("small", quantity=QUANTITY), a_stock("other", quantity=50))), limit=9
)


@pytest.fixture
async def city(cluster: stores.Cluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[City]:
    async with open_city(cluster, tmp_path_factory.mktemp("soldout"), campaigns=[CITY]) as made:
        yield made


def desk_of(city: City) -> ClaimDesk:
    """The desk of the city's issuer."""
    return city.apps[city.issuer][DESK]


async def sell_out(city: City) -> dict[int, bytes]:
    """Everything is won, carried into the books, and known to the worker; who won, and with which answer."""
    won = {n: (await city.claim("small", person(n), number=f"won-{n:04}")).body for n in range(QUANTITY)}
    await city.drain()
    sold_out = desk_of(city)._sold_out
    assert sold_out is not None
    async with asyncio.timeout(30):
        while "small" not in sold_out._final:
            await asyncio.sleep(0.02)
    return won


async def test_a_store_that_stands_still_is_not_missed_by_who_comes_too_late(city: City) -> None:
    won = await sell_out(city)
    assert (await city.claim("other", person(90))).status == 200
    os.kill(city.valkey.child.pid, signal.SIGSTOP)
    try:
        started = perf_counter()
        late = [await city.claim("small", person(100 + n)) for n in range(20)]
        assert {reply.code for reply in late} == {Code.SOLD_OUT}
        assert perf_counter() - started < 10, "twenty would wait for a store longer"
        # What may be a retry is asked of the store all the same, and another stock, too.
        retry = asyncio.create_task(city.claim("small", person(0), number="won-0000"))
        other = asyncio.create_task(city.claim("other", person(91)))
        await asyncio.sleep(0.2)
        assert not retry.done()
        assert not other.done()
    finally:
        os.kill(city.valkey.child.pid, signal.SIGCONT)
    assert (await retry).body == won[0]
    assert (await other).status == 200


async def test_what_is_won_and_not_yet_in_the_books_is_no_reason_to_stop_asking(city: City) -> None:
    for n in range(QUANTITY):
        await city.claim("small", person(n))
    await desk_of(city).drained()
    await asyncio.sleep(1.2)  # longer than the worker takes to look again
    sold_out = desk_of(city)._sold_out
    assert sold_out is not None
    assert sold_out._final == {}
    assert (await city.claim("small", person(50))).code == Code.SOLD_OUT


async def test_stock_that_returns_is_there_at_once(city: City) -> None:
    won = await sell_out(city)
    assert (await city.claim("small", person(60))).code == Code.SOLD_OUT
    async with office(city) as desk:
        started = perf_counter()
        assert isinstance(await edit_budget(desk, "small", QUANTITY, QUANTITY + 3, "more"), Edited)
    async with asyncio.timeout(30):
        while (reply := await city.claim("small", person(60))).status != 200:
            assert reply.code == Code.SOLD_OUT
            await asyncio.sleep(0.01)
    assert perf_counter() - started < 5.0
    assert (await city.claim("small", person(0), number="won-0000")).body == won[0]
    more = [await city.claim("small", person(61 + n)) for n in range(3)]
    assert [reply.code for reply in more] == [None, None, Code.SOLD_OUT]


async def test_a_pack_is_sold_out_with_any_of_its_stocks(
    cluster: stores.Cluster, tmp_path_factory: pytest.TempPathFactory
) -> None:
    stocks = [a_stock("few_of_it", quantity=3), a_stock("many_of_it", category_id="mall", quantity=50)]
    plan = a_round("noon", NOON, *stocks, packs=(a_pack("both", {"few_of_it": 1, "many_of_it": 2}),))
    async with open_city(
        cluster, tmp_path_factory.mktemp("packs"), campaigns=[a_campaign("packs", plan, limit=9)]
    ) as city:
        won = [await city.claim("both", person(n), number=f"pack-{n:04}") for n in range(3)]
        assert [reply.status for reply in won] == [200] * 3
        await city.drain()
        sold_out = desk_of(city)._sold_out
        assert sold_out is not None
        async with asyncio.timeout(30):
            while not {"both", "few_of_it"} <= sold_out._final.keys():
                await asyncio.sleep(0.02)
        asked = sold_out.answered
        assert (await city.claim("both", person(9))).code == Code.SOLD_OUT
        assert sold_out.answered == asked + 1
        again = await city.claim("both", person(1), number="pack-0001")
        assert again.body == won[1].body
        assert (await city.claim("many_of_it", person(9))).status == 200
