"""Every limit at its boundary, from outside: exactly reached it passes, one more is refused, and takes nothing."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from kernel.errors import Code
from tests import stores
from tests.city import PACE, City, Reply, assert_problem, open_city, unchanged
from tests.city_plan import NOON, RESTORING, a_campaign, a_round, a_stock, person
from tests.limits_plan import capped, everybody_rests, touring

pytestmark = pytest.mark.asyncio(loop_scope="module")

OTHER = a_campaign("other", a_round("noon", NOON, a_stock("other_dining", quantity=100)))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def city(cluster: stores.Cluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[City]:
    campaigns = [touring(), capped(), OTHER, RESTORING]
    async with open_city(cluster, tmp_path_factory.mktemp("limits"), campaigns=campaigns) as made:
        yield made


async def claim(city: City, offer_id: str, who: str, number: str | None = None) -> Reply:
    """A claim at the partner whose offer it is, by somebody whom the gate knows as rested."""
    await everybody_rests(city)
    signer = "alipay" if "_a_" in offer_id else "wechat"
    return await city.claim(offer_id, who, signer=signer, number=number)


async def won(city: City, who: str, *offer_ids: str) -> None:
    for offer_id in offer_ids:
        reply = await claim(city, offer_id, who)
        assert reply.status == 200, (offer_id, reply.body)


async def refused(city: City, offer_id: str, who: str, code: Code, rule: str | None = None) -> None:
    """It is refused, and nothing changes."""
    async with unchanged(city, ignoring=[PACE]):
        assert_problem(await claim(city, offer_id, who), code, rule)


# ---------------------------------------------------------------- claims in a round


async def test_as_many_as_a_partner_may_give_and_one_more(city: City) -> None:
    who = person(1)
    await won(city, who, "tour_dining", "tour_mall")
    await refused(city, "tour_dining", who, Code.USER_ALREADY_CLAIMED)
    await won(city, who, "tour_a_dining")


async def test_one_person_is_one_person_at_every_partner(city: City) -> None:
    """The token is the same, so the third claim at two partners is the last."""
    who = person(2)
    await won(city, who, "tour_dining", "tour_a_dining", "tour_a_dining")
    await refused(city, "tour_mall", who, Code.RULE_LIMIT, "PERSON_LIMIT")
    await won(city, person(3), "tour_mall")


async def test_another_round_and_another_campaign_count_for_themselves(city: City) -> None:
    who = person(2)
    await won(city, who, "other_dining")
    await refused(city, "other_dining", who, Code.USER_ALREADY_CLAIMED)


async def test_one_of_a_group_at_whatever_partner(city: City) -> None:
    who = person(4)
    await won(city, who, "tour_big")
    await refused(city, "tour_a_big", who, Code.RULE_LIMIT, "GROUP_LIMIT")
    await refused(city, "tour_grand", who, Code.RULE_LIMIT, "GROUP_LIMIT")
    await won(city, who, "tour_dining")  # not of the group
    other = person(5)
    await won(city, other, "tour_grand")  # a pack counts in its group
    await refused(city, "tour_big", other, Code.RULE_LIMIT, "GROUP_LIMIT")
    await refused(city, "tour_a_big", other, Code.RULE_LIMIT, "GROUP_LIMIT")


async def test_a_refusal_is_no_claim(city: City) -> None:
    """The number of a refused claim is free, and what was refused counts nowhere."""
    who, number = person(6), "refused-1"
    await won(city, who, "tour_big")
    assert_problem(await claim(city, "tour_grand", who, number), Code.RULE_LIMIT, "GROUP_LIMIT")
    reply = await claim(city, "tour_dining", who, number)
    assert (reply.status, reply.json["out_request_no"]) == (200, number)


async def test_a_replay_comes_before_every_limit(city: City) -> None:
    who = person(7)
    first = await claim(city, "tour_big", who, "replay-7")
    await won(city, who, "tour_dining")
    await refused(city, "tour_dining", who, Code.USER_ALREADY_CLAIMED)
    again = await claim(city, "tour_big", who, "replay-7")
    assert (again.body, again.headers["Idempotent-Replayed"]) == (first.body, "true")


# ---------------------------------------------------------------- money


async def test_the_cap_to_the_fen(city: City) -> None:
    who = person(20)
    await won(city, who, "cap_20", "cap_a_20")
    await refused(city, "cap_1001", who, Code.RULE_LIMIT, "FACE_LIMIT")  # 50.01 yuan
    await won(city, who, "cap_10")  # exactly 50.00
    await refused(city, "cap_10", who, Code.RULE_LIMIT, "FACE_LIMIT")


async def test_the_cap_is_the_campaigns_and_not_the_rounds(city: City) -> None:
    who = person(21)
    await won(city, who, "cap_two_20", "cap_20")
    await refused(city, "cap_two_20", who, Code.RULE_LIMIT, "FACE_LIMIT")
    await won(city, who, "cap_10")
    await won(city, who, "dining")  # another campaign has its own money


async def test_a_pack_counts_with_all_its_money(city: City) -> None:
    await refused(city, "cap_over", person(22), Code.RULE_LIMIT, "FACE_LIMIT")  # 50.01 yuan in one pack
    await won(city, person(22), "cap_whole")  # 50.00
    await refused(city, "cap_10", person(22), Code.RULE_LIMIT, "FACE_LIMIT")
    await won(city, person(23), "cap_two", "cap_20")  # 30 and 20
    await won(city, person(24), "cap_10", "cap_20")
    await refused(city, "cap_two", person(24), Code.RULE_LIMIT, "FACE_LIMIT")  # 30 and 30
    await won(city, person(24), "cap_20")


# ---------------------------------------------------------------- granted only


async def test_nobody_claims_what_the_city_grants(city: City) -> None:
    await refused(city, "tour_granted", person(30), Code.RULE_LIMIT, "GRANT_ONLY")
    await refused(city, "tour_welcome", person(30), Code.RULE_LIMIT, "GRANT_ONLY")
    reply = await city.claim("tour_granted", person(30), signer="alipay")
    assert_problem(reply, Code.RESOURCE_NOT_EXISTS)


# ---------------------------------------------------------------- in one batch


async def test_limits_hold_inside_one_batch(city: City) -> None:
    """All items reach the store in one call, which counts them one after the other."""
    who = person(40)
    wanted = ["tour_big", "tour_grand", "tour_dining", "tour_family", "tour_mall"]
    claims = [{"out_request_no": city.number(), "stock_id": each, "person_token": who} for each in wanted]
    reply = await city.call(city.issuer, "wechat", "POST", "/v1/claims:batch", {"claims": claims})
    outcomes = [(item.get("problem") or {"code": None})["code"] for item in reply.json["results"]]
    assert outcomes == [None, Code.RULE_LIMIT, None, Code.USER_ALREADY_CLAIMED, Code.USER_ALREADY_CLAIMED]
