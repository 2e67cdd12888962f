"""Operators at work while the city claims: quantities up and down, and a pause at full load."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import datetime, timedelta
from itertools import count

import pytest

from issuer.operator.budget import Edited, edit_budget
from issuer.operator.life import Moved, move_stock
from issuer.operator.store import Verb
from kernel.errors import Code
from kernel.tasks import end
from tests import stores
from tests.city import City, open_city
from tests.city_plan import NOON, a_campaign, a_round, a_stock, person
from tests.offices import WANG, drain_all, drains_of, office, roomy, row_of

START, LOW = 1_000, 300
UP, DOWN = 60, 20
BATCH = 10
HAMMERS = 2
STOCK = "raced"

Alter = Callable[[City], Awaitable[None]]


@asynccontextmanager
async def raced_city(cluster: stores.Cluster, folder: pytest.TempPathFactory, quantity: int) -> AsyncIterator[City]:
    campaign = a_campaign("race", roomy(a_round("noon", NOON, a_stock(STOCK, quantity=quantity))))
    async with open_city(cluster, folder.mktemp("race"), campaigns=[campaign], shards=2) as made:
        yield made


async def claim_batch(city: City, service: str, people: "count[int]") -> list[dict[str, object]]:
    """A batch of people who never asked before; the results."""
    claims = [
        {"out_request_no": f"race-{n:07}", "stock_id": STOCK, "person_token": person(n)}
        for n in (next(people) for _ in range(BATCH))
    ]
    reply = await city.call(service, "wechat", "POST", "/v1/claims:batch", {"claims": claims})
    results: list[dict[str, object]] = reply.json["results"]
    return results


# ---------------------------------------------------------------- quantities

IN_VAIN_MAX = 200
"""Batches, some 20 ms apart, without a win."""


async def hammer(city: City, people: "count[int]", stop: asyncio.Event) -> int:
    """Claims until it is told to stop and nothing is left, or nothing was had for long; how many it won."""
    won = in_vain = 0
    while True:
        results = await claim_batch(city, city.issuer, people)
        granted = sum(result["status"] == 200 for result in results)
        won, in_vain = won + granted, 0 if granted else in_vain + 1
        is_gone = all(code_of(result) == Code.SOLD_OUT for result in results)
        if stop.is_set() and (is_gone or in_vain > IN_VAIN_MAX):
            return won
        await asyncio.sleep(0.005 if granted else 0.02)


def code_of(result: dict[str, object]) -> object:
    """Why an item was refused; None when it was not. (A store that is too busy now has not sold out.)"""
    problem = result.get("problem")
    return problem["code"] if isinstance(problem, dict) else None


async def keep_drained(city: City) -> None:
    drains = await drains_of(city)
    while True:
        await drain_all(city, drains)
        await asyncio.sleep(0.05)


async def watch_books(city: City) -> None:
    """At no time is more in the books than the quantity."""
    while True:
        room = await city.fetchval("SELECT min(quantity - stock_issued_of(stock_no)) FROM stock")
        assert room >= 0, f"{-room} vouchers too many"
        await asyncio.sleep(0.005)


async def edits(city: City) -> None:
    """Up by much and down by some, again and again; what is refused changes nothing."""
    async with office(city, WANG) as desk:
        for step in (UP, -DOWN) * 6:
            quantity = (await row_of(desk, STOCK)).quantity
            answer = await edit_budget(desk, STOCK, quantity, quantity + step, "a test")
            assert isinstance(answer, Edited) or (answer.rule == "BELOW_ISSUED" and step < 0), answer
            wanted = quantity + (step if isinstance(answer, Edited) else 0)
            assert (await row_of(desk, STOCK)).quantity == wanted


async def books_first(city: City) -> None:
    """What must not be done: the quantity goes down, and nobody takes units back."""
    await city.database.pool.execute("UPDATE stock SET quantity = $1", LOW)


async def race(city: City, alter: Alter) -> tuple[int, int, int]:
    """Hammers while somebody alters the quantity. Granted, in the books, quantity."""
    people, stop = count(), asyncio.Event()
    async with asyncio.TaskGroup() as group:
        beside = [group.create_task(keep_drained(city))]
        if alter is edits:
            beside.append(group.create_task(watch_books(city)))
        hammers = [group.create_task(hammer(city, people, stop)) for _ in range(HAMMERS)]
        await alter(city)
        await asyncio.sleep(0.3)
        stop.set()
        won = sum([await one for one in hammers])
        for task in beside:
            await end(task)
    await drain_all(city)
    (row,) = await city.database.pool.fetch("SELECT stock_issued_of(stock_no) AS issued, quantity FROM stock")
    return won, row["issued"], row["quantity"]


async def test_edits_never_sell_too_many_and_leave_nothing_over(
    cluster: stores.Cluster, tmp_path_factory: pytest.TempPathFactory
) -> None:
    async with raced_city(cluster, tmp_path_factory, START) as city:
        won, issued, quantity = await race(city, edits)
        done = "SELECT count(*) FROM stock_edit WHERE state = 'DONE' AND target_quantity {} current_quantity"
        ups, downs = [await city.fetchval(done.format(sign)) for sign in "><"]
    assert won == issued == quantity == START + ups * UP - downs * DOWN
    assert (ups, downs > 0) == (6, True)


async def test_control_books_first_sells_too_many(
    cluster: stores.Cluster, tmp_path_factory: pytest.TempPathFactory
) -> None:
    async with raced_city(cluster, tmp_path_factory, START) as city:
        won, issued, quantity = await race(city, books_first)
    assert START >= won == issued > quantity == LOW  # a worker may hear of the books before all are gone


# ---------------------------------------------------------------- a pause


async def rush(city: City, service: str, people: "count[int]", won_at: list[datetime]) -> None:
    """Claims without end; when each was won, by the store's time."""
    while True:
        for result in await claim_batch(city, service, people):
            if isinstance(claim := result.get("claim"), dict):
                won_at.append(datetime.fromisoformat(claim["claimed_at"]))


async def test_a_pause_at_full_load_holds_from_the_moment_it_returns(
    cluster: stores.Cluster, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A worker of its own, as busy as it can be. A second is what is promised, five are room for a slow machine;
    there is no win at all after the pause has returned."""
    async with raced_city(cluster, tmp_path_factory, 20_000) as city:
        child, service = city.process("issuer", "hanquan_issuer")
        won_at: list[datetime] = []
        people = count()
        try:
            await child.ready()
            rushing = [asyncio.create_task(rush(city, service, people, won_at)) for _ in range(8)]
            async with asyncio.timeout(60):
                while len(won_at) <= 200:
                    await asyncio.sleep(0.05)
            asked_at = city.clock.now()
            async with office(city, WANG) as desk:
                assert isinstance(await move_stock(desk, STOCK, Verb.PAUSE), Moved)
            paused_at = city.clock.now()
            before = len(won_at)
            await asyncio.sleep(1.5)
            for task in rushing:
                task.cancel()
            with suppress(asyncio.CancelledError):
                await asyncio.gather(*rushing)
        finally:
            await child.stop()
    late = [moment for moment in won_at if moment > paused_at]
    assert before > 200, "the worker was not busy"
    assert paused_at - asked_at < timedelta(seconds=5)
    assert not late, f"{len(late)} wins up to {max(late) - paused_at} after the pause"
