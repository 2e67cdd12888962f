"""One person, many clicks, every offer, several workers: no order of events gets anybody over a limit.

`assert_within_limits` judges every run by its winners. The same judge must find the unsafe control guilty.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from random import Random

import pytest
import pytest_asyncio

from antifraud.gate import GateLimits
from issuer.claim import ClaimDesk, ClaimRequest
from issuer.handlers import DESK
from issuer.stock import StockStore
from issuer.words import Told
from kernel.errors import Code
from kernel.valkey import open_valkey
from tests import stores
from tests.city import City, open_city
from tests.city_plan import person
from tests.limits_model import Offer, assert_within_limits, offers_of, refusal
from tests.limits_plan import capped, touring

CAMPAIGNS = [touring(), capped()]
OFFERS = [offer for offer in offers_of(CAMPAIGNS).values() if not offer.is_granted]
CLICKS = [offer for offer in OFFERS for _ in range(8)]
"""More of each offer than the limits allow of any."""
NO_PACE = GateLimits(pace_burst=1_000, pace_refill_ms=20)
"""The gate stops a clicking thumb before any limit does; here the limits stand alone."""


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def city(cluster: stores.Cluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[City]:
    async with open_city(cluster, tmp_path_factory.mktemp("race"), campaigns=CAMPAIGNS) as made:
        yield made


# ---------------------------------------------------------------- through the front door


async def test_clicks_of_many_people_over_two_workers(city: City) -> None:
    """With the gate: 25 people with twelve clicks each, for anything, at two workers at once."""
    await city.drain()
    services, random = [city.issuer, await city.new_issuer()], Random(3)

    async def click(citizen: int, turn: int) -> tuple[str, str, str | None]:
        offer, who = random.choice(OFFERS), person(citizen)
        service = services[(citizen + turn) % 2]
        reply = await city.claim(offer.offer_id, who, signer=offer.partner_id, service=service)
        return who, offer.offer_id, reply.code

    clicks = [(citizen, turn) for citizen in range(25) for turn in range(12)]
    random.shuffle(clicks)
    told = await asyncio.gather(*(click(*each) for each in clicks))
    won = [(who, offer_id) for who, offer_id, code in told if code is None]
    assert_within_limits(CAMPAIGNS, won)
    assert len(won) > 25
    assert {code for _, _, code in told} <= {
        *(None, Code.USER_ALREADY_CLAIMED, Code.RULE_LIMIT, Code.SOLD_OUT, Code.FREQUENCY_LIMITED)
    }
    vouchers = {offer.offer_id: sum(offer.parts.values()) for offer in OFFERS}
    assert await city.drain() == sum(vouchers[offer_id] for _, offer_id in won)


# ---------------------------------------------------------------- one person, with the gate out of the way


async def click_at_once(city: City, desks: Sequence[ClaimDesk], who: str) -> list[str]:
    """More than a hundred clicks of one person for anything, dealt out to several desks; the offers that were won."""
    clicks = Random(who).sample(CLICKS, len(CLICKS))
    partner_nos = {row["partner_id"]: row["partner_no"] for row in await city.database.pool.fetch("TABLE partner")}

    async def click(n: int, offer: Offer) -> str | None:
        request = ClaimRequest(out_request_no=f"{who[:8]}-{n:03}", stock_id=offer.offer_id, person_token=who)
        told = await desks[n % len(desks)].claim(partner_nos[offer.partner_id], request)
        return offer.offer_id if isinstance(told, Told) else None

    return [won for won in await asyncio.gather(*(click(n, offer) for n, offer in enumerate(clicks))) if won]


async def desk_without_pace(city: City) -> ClaimDesk:
    """A worker's desk over a connection of its own."""
    valkey = open_valkey(city.valkey.url)
    city.stack.push_async_callback(valkey.aclose)
    known = city.apps[city.issuer][DESK]
    desk = ClaimDesk(StockStore(valkey, NO_PACE), city.codes, city.clock, known._signals, shards=1)
    desk.catalogue = known.catalogue
    return desk


async def test_clicks_of_one_person_reach_the_limits_and_no_more(city: City) -> None:
    desks = [await desk_without_pace(city) for _ in range(3)]
    for citizen in range(6):
        who = person(100 + citizen)
        won = await click_at_once(city, desks, who)
        assert_within_limits(CAMPAIGNS, [(who, offer_id) for offer_id in won])
        # Whoever clicks that often on everything has all that the limits allow.
        had = [offer for offer_id in won for offer in OFFERS if offer.offer_id == offer_id]
        assert [offer.offer_id for offer in OFFERS if refusal(offer, had) is None] == [], won


# ---------------------------------------------------------------- the control


class TwoSteps:
    """Looks whether the limits allow it, then writes it down: right rules, two steps."""

    def __init__(self, city: City, lock: asyncio.Lock | None = None) -> None:
        self._valkey = city.valkey.client
        self._lock = lock
        self._offers = offers_of(CAMPAIGNS)

    async def claim(self, who: str, offer_id: str) -> bool:
        if self._lock is None:
            return await self._look_then_take(who, offer_id)
        async with self._lock:
            return await self._look_then_take(who, offer_id)

    async def _look_then_take(self, who: str, offer_id: str) -> bool:
        had = [
            self._offers[won if isinstance(won, str) else won.decode()]
            for won in await self._valkey.lrange(f"had:{who}", 0, -1)
        ]
        if refusal(self._offers[offer_id], had) is not None:
            return False
        await self._valkey.rpush(f"had:{who}", offer_id)
        return True


async def two_step_rush(city: City, lock: asyncio.Lock | None) -> list[tuple[str, str]]:
    await city.valkey.client.delete(f"had:{person(1)}")
    desk, random, at_once = TwoSteps(city, lock), Random(5), asyncio.Semaphore(8)

    async def click(offer_id: str) -> list[tuple[str, str]]:
        async with at_once:
            return [(person(1), offer_id)] if await desk.claim(person(1), offer_id) else []

    clicks = [click(offer.offer_id) for offer in random.sample(CLICKS, 100)]
    return [won for each in await asyncio.gather(*clicks) for won in each]


async def test_control_the_judge_finds_two_steps_guilty_and_one_innocent(city: City) -> None:
    with pytest.raises(AssertionError, match=r"too many|too much"):
        assert_within_limits(CAMPAIGNS, await two_step_rush(city, None))
    won = await two_step_rush(city, asyncio.Lock())
    assert_within_limits(CAMPAIGNS, won)
    assert won
