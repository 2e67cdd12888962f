"""Caps on what one person may use: a month at a partner, a campaign at all of them, and nobody gets around them."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from datetime import datetime, timedelta

import msgspec
import pytest
import pytest_asyncio

from issuer.campaign.model import Campaign, RedeemCap
from kernel.clock import CITY_ZONE, rfc3339
from kernel.errors import Code
from tests import stores
from tests.city import City, assert_problem, open_city, unchanged
from tests.city_plan import BILL, FACE, NOON, PAID, a_campaign, a_round, a_stock, person
from tests.tilling import assert_audited, at, moved, no_lock, replaced, slow_commits

pytestmark = pytest.mark.asyncio(loop_scope="module")

SHOP = "NOODLES"
PEOPLE = iter(range(10_000))
MAY = datetime(2020, 5, 1, tzinfo=CITY_ZONE)
OF_MONTH, OF_CAMPAIGN = "REDEEM_CAP_MONTH", "REDEEM_CAP_CAMPAIGN"


def a_plan(campaign_id: str, *caps: tuple[str, bool, int], policy: str = "RESTORE") -> Campaign:
    """A campaign with caps, whose vouchers are good for a month: one stock at each partner."""
    stocks = [a_stock(f"{campaign_id}_{name}", name, quantity=200) for name in ("wechat", "alipay")]
    month = msgspec.structs.replace(a_round("now", NOON, *stocks), valid_until=NOON + timedelta(days=30))
    made = a_campaign(campaign_id, month, limit=9, policy=policy)
    return msgspec.structs.replace(
        made,
        redeem_caps=tuple(RedeemCap(period=when, is_per_partner=apart, face_fen_max=fen) for when, apart, fen in caps),
    )


PLANS = (
    a_plan("both", ("MONTH", True, 2 * FACE), ("CAMPAIGN", False, 4 * FACE)),
    a_plan("tight", ("CAMPAIGN", False, FACE)),
    a_plan("odd", ("MONTH", False, 2 * FACE - 1), policy="PAID_SHARE"),
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def city(cluster: stores.Cluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[City]:
    async with open_city(cluster, tmp_path_factory.mktemp("caps"), campaigns=PLANS) as made:
        yield made


async def somebodys(city: City, campaign: str, count: int, partner: str = "wechat", token: str = "") -> list[str]:
    """Codes of so many vouchers of one person, by default of somebody new."""
    token = token or person(next(PEOPLE))
    return await city.claim_many(f"{campaign}_{partner}", [token] * count, signer=partner)


async def test_a_month_at_a_partner_and_a_campaign_at_all(city: City) -> None:
    token = person(next(PEOPLE))
    wechat, alipay = [await somebodys(city, "both", 3, name, token) for name in ("wechat", "alipay")]
    for code in (*wechat[:2], *alipay[:2]):
        assert (await city.redeem(SHOP, code)).status == 200, "up to the cap, and to the fen"
    async with unchanged(city):
        for third in (wechat[2], alipay[2]):
            assert_problem(await city.redeem("DUMPLINGS", third), Code.RULE_LIMIT, OF_MONTH)
            assert_problem(await city.hold("DUMPLINGS", third), Code.RULE_LIMIT, OF_MONTH)
        with at(city, MAY):
            assert_problem(await city.redeem(SHOP, wechat[2]), Code.RULE_LIMIT, OF_CAMPAIGN)
    [other] = await somebodys(city, "both", 1)
    assert (await city.redeem(SHOP, other)).status == 200, "somebody else's count is their own"


async def test_a_fen_too_little_is_too_little(city: City) -> None:
    one, two = await somebodys(city, "odd", 2)
    assert (await city.redeem(SHOP, one)).status == 200
    async with unchanged(city):
        assert_problem(await city.redeem(SHOP, two), Code.RULE_LIMIT, OF_MONTH)


async def test_a_month_ends_at_midnight_in_the_city(city: City) -> None:
    one, two, three = await somebodys(city, "both", 3)
    with at(city, MAY - timedelta(seconds=30)):
        assert [(await city.redeem(SHOP, code)).status for code in (one, two)] == [200, 200]
        async with unchanged(city):
            assert_problem(await city.redeem(SHOP, three), Code.RULE_LIMIT, OF_MONTH)
    with at(city, MAY):
        assert (await city.redeem(SHOP, three)).status == 200


async def test_what_was_taken_offline_counts_in_its_own_month(city: City) -> None:
    codes = await somebodys(city, "both", 4)
    with at(city, MAY - timedelta(hours=1)):
        assert [(await city.redeem(SHOP, code)).status for code in codes[:2]] == [200, 200]
    with at(city, MAY + timedelta(hours=1)):
        told = []
        for taken_at in (MAY - timedelta(minutes=5), MAY + timedelta(minutes=5)):
            number = city.number("off")
            sent = {"use_request_no": number, "voucher_code": codes[2], "order_no": number, "bill_fen": BILL}
            [result] = (await city.upload(SHOP, [sent | {"taken_at": rfc3339(taken_at)}])).json["results"]
            told.append(result.get("problem", {}).get("rule"))
    assert told == [OF_MONTH, None]


async def test_holds_count_while_they_live(city: City) -> None:
    one, two = await somebodys(city, "tight", 2)
    assert (await city.hold(SHOP, one, number="cap-hold-1", ttl_s=60)).status == 200
    async with unchanged(city):
        assert_problem(await city.redeem("DUMPLINGS", two), Code.RULE_LIMIT, OF_CAMPAIGN)
    assert (await city.cancel(SHOP, "cap-hold-1")).status == 200
    assert (await city.hold(SHOP, two, number="cap-hold-2", ttl_s=60)).status == 200
    with moved(city, seconds=59):
        assert_problem(await city.hold("DUMPLINGS", one), Code.RULE_LIMIT, OF_CAMPAIGN)
    with moved(city, seconds=60):
        assert (await city.hold("DUMPLINGS", one, number="cap-hold-3")).status == 200
        async with unchanged(city):
            assert_problem(await city.redeem(SHOP, two), Code.RULE_LIMIT, OF_CAMPAIGN)
        assert (await city.confirm("DUMPLINGS", "cap-hold-3")).status == 200, "a hold has its place already"
        async with unchanged(city):
            assert_problem(await city.redeem(SHOP, two), Code.RULE_LIMIT, OF_CAMPAIGN)


async def test_only_what_is_given_back_whole_makes_room(city: City) -> None:
    one, two = await somebodys(city, "odd", 2)
    assert (await city.redeem(SHOP, one, number="cap-use-1")).status == 200
    assert (await city.refund(SHOP, "cap-use-1", refund_fen=PAID - 1)).json["voucher_state"] == "USED"
    async with unchanged(city):
        assert_problem(await city.redeem(SHOP, two), Code.RULE_LIMIT, OF_MONTH)
    assert (await city.refund(SHOP, "cap-use-1", refund_fen=1)).json["voucher_state"] == "RETURNED"
    assert (await city.redeem(SHOP, two)).status == 200


async def test_a_voucher_that_lives_again_counts_again_when_it_is_used(city: City) -> None:
    one, two = await somebodys(city, "tight", 2)
    assert (await city.redeem(SHOP, one, number="cap-use-2")).status == 200
    assert (await city.refund(SHOP, "cap-use-2")).json["voucher_state"] == "EFFECTIVE"
    assert (await city.redeem(SHOP, one)).status == 200
    async with unchanged(city):
        assert_problem(await city.redeem(SHOP, two), Code.RULE_LIMIT, OF_CAMPAIGN)


async def test_the_books_are_right_after_all_that(city: City) -> None:
    await assert_audited(city)


# ---------------------------------------------------------------- at once


async def race(city: City, services: Sequence[str], people: int = 8) -> Counter[str | None]:
    """Both vouchers of each of some people at once, one redeemed and one redeemed or held; the cap is one."""
    pairs = [await somebodys(city, "tight", 2) for _ in range(people)]
    told = await asyncio.gather(*(both(city, services, n, pair) for n, pair in enumerate(pairs)))
    return sum(told, Counter())


async def both(city: City, services: Sequence[str], n: int, pair: Sequence[str]) -> Counter[str | None]:
    """What is told of two vouchers at two tills at once."""
    second = city.hold if n % 2 else city.redeem
    replies = await asyncio.gather(
        city.redeem(SHOP, pair[0], service=services[n % len(services)]),
        second("DUMPLINGS", pair[1], service=services[(n + 1) % len(services)]),
    )
    return Counter(reply.rule or reply.code for reply in replies)


async def test_two_vouchers_of_one_person_at_once_never_break_a_cap(city: City) -> None:
    await slow_commits(city, "person_use")
    services = city.redemption, await city.new_redemption()
    assert await race(city, services) == {None: 8, OF_CAMPAIGN: 8}
    assert await race(city, services[:1]) == {None: 8, OF_CAMPAIGN: 8}, "nor in one batch of one service"


async def test_control_where_nobody_looks_at_caps_they_are_broken(city: City) -> None:
    blind = """
        CREATE OR REPLACE FUNCTION cap_broken(
            p_bucket smallint, p_at timestamptz, p_day date, p_person uuid, p_stock_no integer)
            RETURNS till_outcome LANGUAGE sql STABLE AS 'SELECT NULL::till_outcome'
        """
    async with replaced(city, "cap_broken", blind):
        assert await race(city, [city.redemption]) == {None: 16}


async def test_control_without_the_lock_the_race_breaks_caps(city: City) -> None:
    async with no_lock(city):
        services = city.redemption, await city.new_redemption()
        for n in range(20):  # one pair after the other: services that batch would let one go first
            told = await both(city, services, n, await somebodys(city, "tight", 2))
            if told[None] > 1:
                return
    pytest.fail("the lock was off and nothing collided: the race was none")
