"""Sold out, raised, and sold out again before a worker looks: those who won in between still find their vouchers."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from issuer.catalogue import Catalogue
from issuer.operator.budget import Edited, edit_budget
from issuer.soldout import SoldOut
from kernel.errors import Code
from tests import stores
from tests.city import City, open_city
from tests.city_plan import NOON, a_campaign, a_round, a_stock, person
from tests.offices import office, roomy

QUANTITY, MORE = 10, 4
CITY = a_campaign("small", roomy(a_round("noon", NOON, a_stock("small", quantity=QUANTITY))))


@pytest.fixture
async def city(cluster: stores.Cluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[City]:
    async with open_city(cluster, tmp_path_factory.mktemp("again"), campaigns=[CITY]) as made:
        yield made


async def win_all(city: City, start: int, how_many: int) -> list[str]:
    """So many people win, as soon as the service knows that there is something; their request numbers. All drained."""
    numbers = [f"won-{number:05}" for number in range(start, start + how_many)]
    async with asyncio.timeout(30):
        for at, number in enumerate(numbers):
            while (reply := await city.claim("small", person(start + at), number=number)).status != 200:
                assert reply.code == Code.SOLD_OUT
                await asyncio.sleep(0.1)
    await city.drain()
    return numbers


async def look(city: City, sold_out: SoldOut) -> None:
    """One look of a worker at the catalogue and at who won."""
    sold_out.see(await Catalogue.read(city.database.pool), city.clock.now())
    await sold_out.read()


async def may_win(city: City, sold_out: SoldOut, out_request_no: str) -> bool:
    """Whether a worker would ask the store for this request."""
    catalogue = await Catalogue.read(city.database.pool)
    return not sold_out.is_final(catalogue.offers["small"], out_request_no)


async def test_who_won_between_two_looks_of_a_worker_finds_the_voucher(city: City) -> None:
    """A worker that looks late sees sold out both times. What it knows of the winners is of the first time."""
    late = SoldOut(city.database.pool)
    first = await win_all(city, 0, QUANTITY)
    await look(city, late)
    assert not await may_win(city, late, "nobody-1")
    async with office(city) as desk:
        assert isinstance(await edit_budget(desk, "small", QUANTITY, QUANTITY + MORE, "more"), Edited)
    again = await win_all(city, 1_000, MORE)
    await look(city, late)
    assert all([await may_win(city, late, number) for number in [*first, *again]])
    assert not await may_win(city, late, "nobody-1")


async def test_a_catalogue_seen_while_the_winners_are_read_forgets_them(city: City) -> None:
    """The same, and the second time comes while the worker still reads who won the first."""
    late = SoldOut(city.database.pool)
    await win_all(city, 0, QUANTITY)
    late.see(await Catalogue.read(city.database.pool), city.clock.now())
    winners = late._winners

    async def slowly(*args: object) -> object:
        read = await winners(*args)  # type: ignore[arg-type]
        async with office(city) as desk:
            assert isinstance(await edit_budget(desk, "small", QUANTITY, QUANTITY + MORE, "more"), Edited)
        again.extend(await win_all(city, 1_000, MORE))
        late.see(await Catalogue.read(city.database.pool), city.clock.now())
        return read

    again: list[str] = []
    late._winners = slowly  # type: ignore[assignment,method-assign]
    await late.read()
    late._winners = winners  # type: ignore[method-assign]
    assert len(again) == MORE
    assert all([await may_win(city, late, number) for number in again])
    await look(city, late)
    assert all([await may_win(city, late, number) for number in again])
