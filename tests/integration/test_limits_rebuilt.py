"""After the store lost everything, limits, packs and money stand again as the books say; and stages come on time."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
import pytest_asyncio

from issuer.campaign.load import LoadedCampaign, load
from issuer.keys import round_key
from kernel.errors import Code
from tests import stores
from tests.city import City, Reply, assert_problem, open_city
from tests.city_plan import a_campaign, a_round, a_stock, person
from tests.limits_plan import capped, everybody_rests, touring

pytestmark = pytest.mark.asyncio(loop_scope="module")

PUBLISHED_WITHIN_S = 60
WON = {
    1: ["tour_family", "tour_dining", "tour_a_dining"],
    2: ["tour_grand"],
    3: ["cap_two", "cap_two_20"],
    4: ["tour_rare"],
    5: ["tour_rare"],
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def city(cluster: stores.Cluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[City]:
    campaigns = [touring(), capped()]
    async with open_city(cluster, tmp_path_factory.mktemp("rebuilt"), campaigns=campaigns) as made:
        yield made


async def claim(city: City, offer_id: str, who: int, number: str | None = None) -> Reply:
    await everybody_rests(city)
    return await city.claim(offer_id, person(who), signer="alipay" if "_a_" in offer_id else "wechat", number=number)


async def published(city: City, *round_nos: int) -> None:
    """Returns once the store holds these rounds."""
    async with asyncio.timeout(PUBLISHED_WITHIN_S):
        for round_no in round_nos:
            while not await city.valkey.client.exists(round_key(0, round_no)):
                await asyncio.sleep(0.02)


async def test_limits_hold_after_the_store_lost_its_data(city: City) -> None:
    won = {
        (who, offer_id): await claim(city, offer_id, who, f"won-{who}-{offer_id}")
        for who, offer_ids in WON.items()
        for offer_id in offer_ids
    }
    assert {reply.status for reply in won.values()} == {200}
    assert await city.drain() == 3 + 1 + 1 + 2 + 2 + 1 + 3 + 3
    await city.valkey.client.flushall()
    await published(city, *(no for campaign in city.campaigns.values() for no in campaign.round_nos.values()))

    for (who, offer_id), before in won.items():  # each answer again, codes and all
        assert (await claim(city, offer_id, who, f"won-{who}-{offer_id}")).body == before.body
    assert_problem(await claim(city, "tour_mall", 1), Code.USER_ALREADY_CLAIMED)
    assert_problem(await claim(city, "tour_a_dining", 1), Code.RULE_LIMIT, "PERSON_LIMIT")
    assert_problem(await claim(city, "tour_a_big", 2), Code.RULE_LIMIT, "GROUP_LIMIT")
    assert_problem(await claim(city, "cap_10", 3), Code.RULE_LIMIT, "FACE_LIMIT")  # 50 yuan over two rounds
    assert_problem(await claim(city, "tour_dining", 6, "won-1-tour_family"), Code.IDEMPOTENCY_MISMATCH)
    assert_problem(await claim(city, "tour_rare", 6), Code.SOLD_OUT)  # one of five is left, a pack takes two
    assert (await claim(city, "tour_scarce", 6)).status == 200
    assert (await claim(city, "tour_a_big", 6)).status == 200


async def load_staged(city: City, name: str, *, after_s: int) -> LoadedCampaign:
    """A round that opened ten seconds ago: half of four at once, all of it `after_s` seconds from now."""
    opens_at = city.clock.now() - timedelta(seconds=10)
    round_ = a_round("noon", opens_at, a_stock(name, quantity=4), stages=[(0, 5_000), (10 + after_s, 10_000)])
    async with city.database.connection("hanquan_operator") as conn:
        answer = await load(conn, a_campaign(name, round_), "", now=city.clock.now())
    assert isinstance(answer, LoadedCampaign)
    await city.database.pool.execute("NOTIFY hanquan_stock")  # the publisher need not wait for its second
    await published(city, *answer.round_nos.values())
    return answer


async def test_what_is_not_released_yet_comes_when_it_was_promised(city: City) -> None:
    await load_staged(city, "staged", after_s=6)
    async with asyncio.timeout(PUBLISHED_WITHIN_S):
        while (first := await claim(city, "staged", 20)).code in (Code.RESOURCE_NOT_EXISTS, Code.SYSTEM_BUSY):
            await asyncio.sleep(0.02)
    second, third = await claim(city, "staged", 21), await claim(city, "staged", 22, "patient-1")
    assert (first.status, second.status) == (200, 200)
    assert_problem(third, Code.SOLD_OUT)
    wait_s = third.json["retry_after_s"]
    assert 1 <= wait_s <= 6
    assert third.headers["Retry-After"] == str(wait_s)
    await asyncio.sleep(wait_s)
    assert (await claim(city, "staged", 22, "patient-1")).status == 200
    assert (await claim(city, "staged", 23)).status == 200
    last = await claim(city, "staged", 24)
    assert_problem(last, Code.SOLD_OUT)
    assert "retry_after_s" not in last.json
