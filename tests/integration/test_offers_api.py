"""Offers through the services: vouchers that end with days from their claim, and why not, in words."""

from collections.abc import AsyncIterator
from datetime import datetime, timedelta

import msgspec
import pytest
import pytest_asyncio

from issuer.campaign.model import Campaign, Scope
from kernel.clock import CITY_ZONE, ends_at
from kernel.errors import Code
from stack.audit import audit_city
from tests import stores
from tests.city import City, Reply, assert_problem, open_city
from tests.city_plan import NOON, a_campaign, a_pack, a_round, a_stock, person

pytestmark = pytest.mark.asyncio(loop_scope="module")

OWN_END, LAST_END = "2020-04-24T23:59:59+08:00", NOON + timedelta(days=7)


def running_out() -> Campaign:
    """Vouchers that are good for two days, some of them in Hankou only."""
    scoped = msgspec.structs.replace(a_stock("scoped", category_id="mall"), scope_id="hankou")
    grab = a_round("now", NOON, a_stock("dining", quantity=50), scoped, packs=[a_pack("family", {"dining": 2})])
    campaign = a_campaign("days", msgspec.structs.replace(grab, valid_days=2), limit=9)
    return msgspec.structs.replace(campaign, scopes=(Scope(scope_id="hankou", districts=("hankou",)),))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def city(cluster: stores.Cluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[City]:
    async with open_city(cluster, tmp_path_factory.mktemp("offers"), campaigns=[running_out()]) as made:
        yield made


async def test_a_claim_tells_the_vouchers_own_end_every_time(city: City) -> None:
    first, again = [await city.claim("dining", person(1), number="claim-0001") for _ in range(2)]
    path = f"/v1/claims/claim-0001?person_token={person(1)}"
    before = await city.call(city.issuer, "wechat", "GET", path)
    await city.drain()
    after = await city.call(city.issuer, "wechat", "GET", path)
    assert first.body == again.body
    assert {reply.json["valid_until"] for reply in (first, before, after)} == {OWN_END}
    assert first.json["valid_from"] == "2020-04-23T12:00:00+08:00"
    assert first.json["claimed_at"][:16] == "2020-04-23T12:00"


async def test_so_does_a_pack(city: City) -> None:
    reply = await city.claim("family", person(2))
    assert [each["valid_until"] for each in reply.json["vouchers"]] == [OWN_END] * 2


async def test_a_till_says_why_not_in_words(city: City) -> None:
    [code] = await city.claim_many("scoped", [person(3)])
    refused = await city.redeem("EMPORIUM", code)
    assert_problem(refused, Code.RULE_LIMIT, "DISTRICT")
    assert refused.json["words"] == {
        "cashier_zh": "此券仅限以下区域的商户使用：hankou。",
        "cashier_en": "This voucher is only for shops in: hankou.",
        "citizen_zh": "此券仅限以下区域的商户使用：hankou。",
        "citizen_en": "This voucher is only good in shops in: hankou.",
    }


async def test_what_a_till_takes_is_decided_by_its_store(city: City) -> None:
    """The merchant is of the wrong kind and in no district of the scope; its store is neither."""
    here, there = await city.claim_many("scoped", [person(7), person(8)])
    assert_problem(await city.redeem("HOTPOT", here), Code.RULE_LIMIT, "CATEGORY")
    await city.database.pool.execute(_STORE, "HOTPOT", NOON)
    while (reply := await city.redeem("HOTPOT", here)).status != 200:
        assert_problem(reply, Code.RULE_LIMIT, "CATEGORY")  # the checkout has not heard of it
    assert (await city.quote("HOTPOT", [there])).json["vouchers"][0]["is_best"]
    [dining] = await city.claim_many("dining", [person(9)])
    assert_problem(await city.redeem("HOTPOT", dining), Code.RULE_LIMIT, "CATEGORY")
    async with city.database.connection("hanquan_auditor") as conn:
        assert (await audit_city(conn, city.valkey.client)).broken == ()


_STORE = """
WITH made AS (
    INSERT INTO store (merchant_no, store_id, name, district, address, category, added_by, added_at)
    SELECT merchant_no, 'S01', 'Hankou', 'hankou', '1 Bund', 'mall', 'Li Na', $2 FROM merchant WHERE merchant_id = $1
    RETURNING merchant_no, store_no
)
UPDATE terminal t SET store_no = m.store_no FROM made m WHERE t.merchant_no = m.merchant_no
"""


async def test_whatever_is_refused_has_words(city: City) -> None:
    body = {"use_request_no": "use-0001"}
    for reply in (
        await city.call(city.redemption, "NOODLES", "POST", "/v1/redemptions", body),
        await city.call(city.redemption, "NOODLES", "POST", "/v1/redemptions", body, sign={"timestamp_s": 1}),
        await city.send(city.redemption, "GET", "/nowhere", None),
    ):
        assert set(reply.json["words"]) == {"cashier_zh", "cashier_en", "citizen_zh", "citizen_en"}
    platform = await city.claim("no_such_stock", person(4))
    assert "words" not in platform.json  # machines have codes


async def test_a_voucher_ends_with_its_own_last_day(city: City) -> None:
    """The clock goes on from here: the last story of this city."""
    early, late = await city.claim_many("dining", [person(5), person(6)])
    last_second = datetime(2020, 4, 24, 23, 59, 58, tzinfo=CITY_ZONE)

    async def state(code: str) -> str:
        reply = await city.call(city.issuer, "wechat", "GET", f"/v1/vouchers/{code}")
        return str(reply.json["state"])

    async def redeem_at(moment: datetime, code: str) -> Reply:
        city.clock.move_to(moment)
        return await city.redeem("NOODLES", code)

    assert (await redeem_at(last_second - timedelta(seconds=30), early)).status == 200
    assert await state(late) == "EFFECTIVE"
    refused = await redeem_at(last_second + timedelta(seconds=1), late)
    assert_problem(refused, Code.RULE_LIMIT, "EXPIRED")
    assert refused.json["words"]["citizen_zh"] == "您的券已于 2020年4月24日 23:59 到期，不能再使用。"
    assert await state(late) == "EXPIRED"


async def test_the_books_and_the_till_agree_when_a_voucher_ends(city: City) -> None:
    claims = [NOON + timedelta(minutes=minutes) for minutes in range(-2_000, 12_000, 97)]
    for valid_days in (None, 1, 2, 7, 366):
        rows = await city.database.pool.fetch(
            "SELECT voucher_end($1, $2::smallint, claimed_at) AS ends_at FROM unnest($3::timestamptz[]) AS claimed_at",
            LAST_END,
            valid_days,
            claims,
        )
        assert [row["ends_at"] for row in rows] == [ends_at(LAST_END, valid_days, claimed_at) for claimed_at in claims]
