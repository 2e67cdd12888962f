"""Packs: several vouchers in one claim, all or none, the same again at every replay."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from issuer.keys import stock_key
from kernel.errors import Code
from tests import stores
from tests.city import PACE, City, assert_problem, open_city, unchanged
from tests.city_plan import person
from tests.limits_plan import PLENTY, SCARCE, touring

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def city(cluster: stores.Cluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[City]:
    campaigns = [touring(), touring("rush")]
    async with open_city(cluster, tmp_path_factory.mktemp("packs"), campaigns=campaigns) as made:
        yield made


async def left(city: City, stock_id: str) -> int:
    """What the store has of a stock."""
    stock_no = city.campaigns[stock_id.partition("_")[0]].stock_nos[stock_id]
    return int(await city.valkey.client.hget(stock_key(0, stock_no), "left") or 0)


async def test_a_pack_is_answered_with_all_its_vouchers(city: City) -> None:
    assert (await left(city, "tour_dining"), await left(city, "tour_mall")) == (PLENTY, PLENTY)
    reply = await city.claim("tour_family", person(1), number="pack-1")
    assert reply.status == 200, reply.body
    answer: dict[str, Any] = reply.json
    assert (answer["out_request_no"], answer["stock_id"]) == ("pack-1", "tour_family")
    assert (answer["state"], answer["face_value_fen"]) == ("EFFECTIVE", 9_000)
    assert "voucher_code" not in answer
    told = [(each["stock_id"], each["face_value_fen"], each["transaction_minimum_fen"]) for each in answer["vouchers"]]
    assert told == [("tour_dining", 2_000, 6_000)] * 2 + [("tour_mall", 5_000, 15_000)]
    codes = [each["voucher_code"] for each in answer["vouchers"]]
    assert len({city.codes.decode(code) for code in codes}) == 3
    assert {(each["valid_from"][:10], each["valid_until"][:10]) for each in answer["vouchers"]} == {
        ("2020-04-23", "2020-04-30")
    }
    assert (await left(city, "tour_dining"), await left(city, "tour_mall")) == (PLENTY - 2, PLENTY - 1)


async def test_a_replay_brings_the_same_codes_before_and_after_the_drain(city: City) -> None:
    first = await city.claim("tour_family", person(2), number="pack-2")
    again = await city.claim("tour_family", person(2), number="pack-2")
    await city.drain()
    before = await left(city, "tour_dining")
    late = await city.claim("tour_family", person(2), number="pack-2")
    assert first.body == again.body == late.body
    assert late.headers["Idempotent-Replayed"] == "true"
    assert await left(city, "tour_dining") == before
    assert_problem(await city.claim("tour_grand", person(2), number="pack-2"), Code.IDEMPOTENCY_MISMATCH)


async def test_a_pack_is_found_by_its_number_before_and_after_the_drain(city: City) -> None:
    reply = await city.claim("tour_family", person(4), number="pack-4")
    path = f"/v1/claims/pack-4?person_token={person(4)}"
    before = await city.call(city.issuer, "wechat", "GET", path)
    await city.drain()
    after = await city.call(city.issuer, "wechat", "GET", path)
    for found, state in ((before.json, "CONFIRMING"), (after.json, "EFFECTIVE")):
        assert (found["out_request_no"], found["stock_id"]) == ("pack-4", "tour_family")
        assert [each["voucher_code"] for each in found["vouchers"]] == [
            each["voucher_code"] for each in reply.json["vouchers"]
        ]
        assert {each["state"] for each in found["vouchers"]} == {state}


async def test_its_vouchers_are_in_the_books_each_with_its_money(city: City) -> None:
    await city.drain()
    before = await city.fetchval(ISSUED)
    reply = await city.claim("tour_family", person(3), number="pack-3")
    assert await city.drain() == 3
    rows = await city.database.pool.fetch(VOUCHERS, "pack-3")
    assert {(city.codes.encode(row["voucher_id"]), row["stock_id"]) for row in rows} == {
        (each["voucher_code"], each["stock_id"]) for each in reply.json["vouchers"]
    }
    assert {row["pack_id"] for row in rows} == {"tour_family"}
    assert await city.fetchval(ISSUED) - before == 9_000


ISSUED = "SELECT coalesce(sum(amount_fen), 0)::bigint FROM transfer WHERE kind = 'ISSUE'"
VOUCHERS = """
    SELECT voucher_id, stock_id, pack_id FROM voucher JOIN stock USING (stock_no) JOIN pack USING (pack_no)
     WHERE out_request_no = $1
"""


async def test_all_or_none(city: City) -> None:
    """Two packs take four of five; the fifth is no pack, and dining is untouched by the third."""
    for n in range(SCARCE // 2):
        assert (await city.claim("tour_rare", person(10 + n))).status == 200
    async with unchanged(city, ignoring=[PACE]):
        assert_problem(await city.claim("tour_rare", person(20)), Code.SOLD_OUT)
    assert await left(city, "tour_scarce") == 1
    assert (await city.claim("tour_scarce", person(20))).status == 200  # the last one by itself
    assert_problem(await city.claim("tour_scarce", person(21)), Code.SOLD_OUT)


async def test_the_last_packs_in_a_rush(city: City) -> None:
    """Packs and single vouchers out of one stock, at once, over two workers: nothing over, nothing half."""
    await city.drain()
    services = [city.issuer, await city.new_issuer()]
    wanted = [("rush_rare" if n % 2 else "rush_scarce", person(n)) for n in range(40)]
    replies = await asyncio.gather(
        *(city.claim(offer, who, service=services[n % 2]) for n, (offer, who) in enumerate(wanted))
    )
    codes = [
        each["voucher_code"]
        for reply in replies
        if reply.status == 200
        for each in (reply.json.get("vouchers") or [reply.json])
    ]
    taken = sum({"rush_rare": 2, "rush_scarce": 1}[reply.json["stock_id"]] for reply in replies if reply.status == 200)
    assert taken == SCARCE
    assert await left(city, "rush_scarce") == 0  # singles take what is left over
    assert len(set(codes)) == len(codes)
    assert {reply.code for reply in replies} == {None, Code.SOLD_OUT}
    assert await city.drain() == len(codes)


async def test_a_voucher_of_a_pack_is_used_alone_and_found_alone(city: City) -> None:
    reply = await city.claim("tour_family", person(5))
    await city.drain()
    first, second, _ = (each["voucher_code"] for each in reply.json["vouchers"])
    assert (await city.redeem("NOODLES", first)).status == 200
    states = {}
    for code in (first, second):
        found = await city.call(city.issuer, "wechat", "GET", f"/v1/vouchers/{code}")
        states[code] = found.json["state"]
    assert list(states.values()) == ["USED", "EFFECTIVE"]
    assert (await city.redeem("NOODLES", second)).status == 200


async def test_a_pack_is_the_partners_own(city: City) -> None:
    assert_problem(await city.claim("tour_family", person(1), signer="alipay"), Code.RESOURCE_NOT_EXISTS)
