"""POST /v1/redemptions:offline: each item judged alone, by the rules of its own moment, on its own business day."""

import json
from collections.abc import AsyncIterator
from datetime import date, datetime, timedelta
from typing import Any

import pytest
import pytest_asyncio

from kernel.clock import rfc3339
from kernel.errors import Code
from redemption.settlement.expire import expire_over
from redemption.wire import OFFLINE_ITEMS_MAX
from tests import stores
from tests.city import City, Reply, assert_problem, open_city, unchanged
from tests.city_plan import BILL, FACE, NOON, a_campaign, a_round, a_stock
from tests.tilling import BUCKETS, assert_audited, at, moved, moving, voucher, vouchers

pytestmark = pytest.mark.asyncio(loop_scope="module")

SHOP = "NOODLES"
ENDS = NOON + timedelta(days=7)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def city(cluster: stores.Cluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[City]:
    stocks = a_stock("dining", quantity=99), a_stock("mall", category_id="mall")
    plan = a_campaign("restoring", a_round("now", NOON, *stocks))
    async with open_city(cluster, tmp_path_factory.mktemp("offline"), campaigns=[plan]) as made:
        made.clock.move_to(NOON + timedelta(hours=1))
        yield made


def item(city: City, code: str, taken_at: datetime | None = None, **more: object) -> dict[str, object]:
    """One redemption as an offline till kept it; taken a minute ago."""
    return {
        "use_request_no": city.number("use"),
        "voucher_code": code,
        "order_no": city.number("order"),
        "bill_fen": BILL,
        "taken_at": rfc3339(taken_at or city.clock.now() - timedelta(minutes=1)),
    } | more


def told(reply: Reply) -> list[str]:
    """For each item OK, OK again, or its problem's rule or code."""
    assert reply.status == 200, reply
    return [_word(result) for result in reply.json["results"]]


def _word(result: dict[str, Any]) -> str:
    if result["status"] == 200:
        assert "problem" not in result
        return "OK again" if result.get("replayed") else "OK"
    problem = result["problem"]
    assert (problem["status"], bool(problem["words"])) == (result["status"], True)
    return str(problem.get("rule") or problem["code"])


async def booked_on(city: City, code: str) -> date:
    """The business day of a voucher's redemption."""
    query = "SELECT booked_on FROM redemption WHERE voucher_id = $1"
    day: date = await city.fetchval(query, city.codes.decode(code))
    return day


# ---------------------------------------------------------------- judged alone


async def test_a_redemption_taken_offline_in_full_words(city: City) -> None:
    code = await voucher(city)
    sent = item(city, code, city.clock.now() - timedelta(minutes=40))
    async with moving(city, ISSUED=-FACE, PAYABLE=FACE):
        reply = await city.upload(SHOP, [sent])
    assert reply.json == {
        "results": [
            {
                "status": 200,
                "redemption": {
                    "use_request_no": sent["use_request_no"],
                    "order_no": sent["order_no"],
                    "voucher_code": code,
                    "stock_id": "dining",
                    "state": "USED",
                    "bill_fen": BILL,
                    "discount_fen": FACE,
                    "to_pay_fen": BILL - FACE,
                    "subsidy_fen": FACE,
                    "redeemed_at": sent["taken_at"],
                },
            }
        ]
    }
    row = await city.database.pool.fetchrow("SELECT * FROM offline_use WHERE voucher_id = $1", city.codes.decode(code))
    assert row is not None
    assert (row["attempt"], row["uploaded_at"] > datetime.fromisoformat(str(sent["taken_at"]))) == (1, True)
    online = await voucher(city)
    await city.redeem(SHOP, online)
    assert await city.fetchval("SELECT count(*) FROM offline_use") == 1, "what was taken online is no such use"


async def test_each_item_is_judged_alone_and_all_are_replayed(city: City) -> None:
    good, twice, used, held, again = await vouchers(city, 5)
    mall = await voucher(city, "mall")
    await city.redeem("DUMPLINGS", used)
    await city.hold("DUMPLINGS", held)
    same = item(city, again)
    items = [
        item(city, good),
        item(city, twice),
        item(city, twice),
        item(city, used),
        item(city, mall),
        item(city, held),
        same,
        same,
        same | {"bill_fen": BILL + 1},
        item(city, good[:-1] + ("0" if good[-1] != "0" else "1")),
        item(city, await voucher(city), order_no=same["order_no"]),
    ]
    async with moving(city, ISSUED=-3 * FACE, PAYABLE=3 * FACE):
        words = told(await city.upload(SHOP, items))
    refused = [Code.USED_BY_ANOTHER_ORDER, Code.USED_BY_ANOTHER_ORDER, "CATEGORY", Code.LOCKED_BY_ANOTHER_ORDER]
    rest = [Code.IDEMPOTENCY_MISMATCH, Code.RESOURCE_NOT_EXISTS, "ONE_VOUCHER_PER_PAYMENT"]
    assert words == ["OK", "OK", *refused, "OK", "OK again", *rest]
    async with unchanged(city):
        replayed = told(await city.upload(SHOP, [one for one in items if one is not items[9]]))
    expected = ["OK again", "OK again", *refused, "OK again", "OK again", *rest]
    assert replayed == [word for word in expected if word != Code.RESOURCE_NOT_EXISTS]


async def test_a_malformed_item_is_named_and_the_rest_is_taken(city: City) -> None:
    code = await voucher(city)
    whole = item(city, code)
    flaws: list[object] = [
        {},
        "text",
        None,
        whole | {"taken_at": "2020-04-23T12:00:00"},
        whole | {"taken_at": 5},
        whole | {"bill_fen": 0},
        whole | {"more": 1},
        {name: value for name, value in whole.items() if name != "taken_at"},
    ]
    async with unchanged(city):
        reply = await city.upload(SHOP, flaws)
    assert told(reply) == [Code.PARAM_ERROR] * len(flaws)
    assert [result["problem"]["pointer"] for result in reply.json["results"]] == [
        f"redemptions[{place}]" for place in range(len(flaws))
    ]
    assert told(await city.upload(SHOP, [*flaws, whole]))[-1] == "OK"


async def test_two_hundred_items_and_no_more(city: City) -> None:
    codes = await vouchers(city, 1)
    many = [item(city, codes[0]) for _ in range(OFFLINE_ITEMS_MAX)]
    async with unchanged(city):
        for items in ([], [*many, item(city, codes[0])]):
            assert_problem(await city.upload(SHOP, items), Code.PARAM_ERROR)
        not_a_list = await city.call(city.redemption, SHOP, "POST", "/v1/redemptions:offline", {"redemptions": {}})
        assert_problem(not_a_list, Code.PARAM_ERROR)
        huge = json.dumps({"redemptions": [many[0] | {"voucher_code": "A" * 140_000}]}).encode()
        too_large = await city.call(city.redemption, SHOP, "POST", "/v1/redemptions:offline", huge)
        assert_problem(too_large, Code.BODY_TOO_LARGE)
    assert sorted(set(told(await city.upload(SHOP, many)))) == ["OK", Code.USED_BY_ANOTHER_ORDER]


async def test_what_is_not_known_can_be_sent_again(city: City) -> None:
    """The store is away for the bookings; nobody is told yes."""
    items = [item(city, code) for code in await vouchers(city, 3)]
    await city.database.pool.execute("ALTER FUNCTION redeem_batch RENAME TO redeem_batch_away")
    try:
        assert told(await city.upload(SHOP, items)) == [Code.SYSTEM_BUSY] * 3
    finally:
        await city.database.pool.execute("ALTER FUNCTION redeem_batch_away RENAME TO redeem_batch")
    assert told(await city.upload(SHOP, items)) == ["OK"] * 3


# ---------------------------------------------------------------- when it was taken


@pytest.mark.parametrize(
    ("ago", "word"),
    [
        (timedelta(minutes=-6), "OFFLINE_FROM_FUTURE"),
        (timedelta(minutes=-4), "OK"),
        (timedelta(hours=71, minutes=59), "OK"),
        (timedelta(hours=72, minutes=1), "OFFLINE_TOO_OLD"),
    ],
)
async def test_from_three_days_ago_until_now(city: City, ago: timedelta, word: str) -> None:
    code = await voucher(city)
    with at(city, NOON + timedelta(days=4)):
        sent = item(city, code, city.clock.now() - ago)
        reply = await city.upload(SHOP, [sent])
        assert told(reply) == [word]
        if word == "OK":
            told_at = datetime.fromisoformat(reply.json["results"][0]["redemption"]["redeemed_at"])
            assert told_at <= city.clock.now(), "a clock that is ahead books nothing in the future"
        else:
            async with unchanged(city):
                assert told(await city.upload(SHOP, [sent])) == [word]


@pytest.mark.parametrize(
    ("ahead", "word"),
    [
        (timedelta(minutes=4), "OK"),
        (timedelta(minutes=6), "OFFLINE_BEFORE_CLAIM"),
    ],
)
async def test_not_before_the_claim(city: City, ahead: timedelta, word: str) -> None:
    """A till's clock may be five minutes behind; what it took is booked no earlier than the claim."""
    code = await voucher(city)
    claimed_at = await city.fetchval("SELECT claimed_at FROM voucher WHERE voucher_id = $1", city.codes.decode(code))
    sent = item(city, code, claimed_at - ahead)
    with moved(city, days=1):
        if word == "OK":
            reply = await city.upload(SHOP, [sent])
            assert told(reply) == [word]
            assert datetime.fromisoformat(reply.json["results"][0]["redemption"]["redeemed_at"]) == claimed_at
        else:
            async with unchanged(city):
                assert told(await city.upload(SHOP, [sent])) == [word]


async def test_a_replay_is_told_what_was_done_however_late_it_comes(city: City) -> None:
    code = await voucher(city)
    sent = item(city, code)
    first = (await city.upload(SHOP, [sent])).json["results"][0]
    with moved(city, days=5):
        async with unchanged(city):
            [again] = (await city.upload(SHOP, [sent])).json["results"]
    assert again == first | {"replayed": True}


async def test_the_rules_are_those_of_the_moment_it_was_taken(city: City) -> None:
    [good, late, low] = await vouchers(city, 3)
    with at(city, ENDS + timedelta(hours=2)):
        assert (await city.redeem(SHOP, good)).rule == "EXPIRED"
        items = [
            item(city, good, ENDS - timedelta(seconds=1)),
            item(city, late, ENDS),
            item(city, low, ENDS - timedelta(hours=1), bill_fen=5_999),
        ]
        assert told(await city.upload(SHOP, items)) == ["OK", "EXPIRED", "TRANSACTION_MINIMUM"]


# ---------------------------------------------------------------- business days (last: they close)


async def test_it_is_booked_on_its_own_day_while_that_is_open(city: City) -> None:
    before, after = await vouchers(city, 2)
    taken_at = NOON + timedelta(hours=11)
    with at(city, NOON + timedelta(days=1, hours=9)):
        assert told(await city.upload(SHOP, [item(city, before, taken_at)])) == ["OK"]
        assert await booked_on(city, before) == NOON.date()
        for bucket in range(BUCKETS):
            query = "SELECT close_day($1::smallint, $2, $3)"
            assert await city.fetchval(query, bucket, NOON.date() + timedelta(days=1), city.clock.now())
        assert told(await city.upload(SHOP, [item(city, after, taken_at)])) == ["OK"]
        assert await booked_on(city, after) == NOON.date() + timedelta(days=2), "the first day that is open"
    statement = await city.get(SHOP, f"/v1/statements/{NOON.date() + timedelta(days=2)}")
    assert [entry["occurred_at"] for entry in statement.json["entries"]][-1] == rfc3339(taken_at)
    await assert_audited(city)


async def test_a_voucher_whose_money_has_gone_back_cannot_be_used_any_more(city: City) -> None:
    code = await voucher(city)
    with at(city, ENDS + timedelta(hours=2)):
        async with city.database.connection("hanquan_finance") as conn:
            await expire_over(conn, city.clock.now(), timedelta(hours=1))  # sooner than it should
        async with unchanged(city, ignoring=["request_number"]):  # the bucket's lock decides, after numbers are bound
            sent = item(city, code, ENDS - timedelta(hours=1))
            assert told(await city.upload(SHOP, [sent])) == [Code.USED_BY_ANOTHER_ORDER]
    await assert_audited(city)
