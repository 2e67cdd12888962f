"""POST /v1/claims and its neighbours, from outside: every outcome, and every way to be turned away."""

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from itertools import count
from typing import Any

import pytest
import pytest_asyncio

from antifraud.gate import block_person, digest_person, shard_tag
from issuer.record import request_key
from kernel.errors import Code
from stack.faults.books import read_entries
from tests import stores
from tests.city import PACE, City, Reply, assert_problem, open_city, unchanged
from tests.city_plan import FACE, FEW, MINIMUM, NOON, person
from tests.hostile import (
    WITHIN_THE_WINDOW,
    Ask,
    add_bad_keys,
    changed,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

CLAIM = Ask(
    "issuer",
    "wechat",
    "POST",
    "/v1/claims",
    {"out_request_no": "hostile-1", "stock_id": "dining", "person_token": person(0), "device_token": person(1)},
)
BATCH = Ask("issuer", "wechat", "POST", "/v1/claims:batch", {"claims": [dict(CLAIM.body or {})]})
FIND = Ask("issuer", "wechat", "GET", f"/v1/claims/no-such-1?person_token={person(0)}")
SHOW = Ask("issuer", "alipay", "GET", "/v1/vouchers/0123456789ABCDEFGHJKMNPQRS")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def city(cluster: stores.Cluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[City]:
    async with open_city(cluster, tmp_path_factory.mktemp("claims")) as made:
        await add_bad_keys(made, "wechat", "alipay")
        yield made


# ---------------------------------------------------------------- granted


async def test_a_claim_is_granted_in_full_words(city: City) -> None:
    reply = await city.claim("dining", person(10), number="granted-1")
    assert reply.status == 200
    assert "Idempotent-Replayed" not in reply.headers
    claimed_at = datetime.fromisoformat(reply.json["claimed_at"])
    assert abs((claimed_at - city.clock.now()).total_seconds()) < 60
    assert reply.json == {
        "out_request_no": "granted-1",
        "stock_id": "dining",
        "voucher_code": reply.json["voucher_code"],
        "state": "EFFECTIVE",
        "face_value_fen": FACE,
        "transaction_minimum_fen": MINIMUM,
        "claimed_at": reply.json["claimed_at"],
        "valid_from": "2020-04-23T12:00:00+08:00",
        "valid_until": "2020-04-30T12:00:00+08:00",
    }
    assert city.codes.decode(reply.json["voucher_code"]) is not None


async def test_the_same_request_brings_the_same_bytes_before_and_after_the_drain(city: City) -> None:
    first = await city.claim("dining", person(11), number="replay-1", device=person(1))
    async with unchanged(city):
        again = [await city.claim("dining", person(11), number="replay-1") for _ in range(9)]
    await city.drain()
    async with unchanged(city):
        again.append(await city.claim("dining", person(11), number="replay-1"))
    assert {reply.body for reply in again} == {first.body}
    assert {reply.headers["Idempotent-Replayed"] for reply in again} == {"true"}


async def test_a_replay_is_answered_whatever_has_happened_since(city: City) -> None:
    """The round is over, the stock paused, the person blocked: who has won has won."""
    first = await city.claim("dining", person(12), number="replay-2")
    valkey, digest = city.valkey.client, digest_person(bytes.fromhex(person(12)))
    await block_person(valkey, shard_tag(0), digest)
    was: dict[Any, Any] = await valkey.hgetall("{s0}:round:2")
    await valkey.hset(
        "{s0}:round:2", mapping=was | {"closes_ms": "1"} | {name: "1" for name in was if b"paused" in name}
    )
    again = await city.claim("dining", person(12), number="replay-2")
    other = await city.claim("dining", person(12))
    await valkey.hset("{s0}:round:2", mapping=was)
    assert again.body == first.body
    assert other.code == Code.ENDED


@pytest.mark.parametrize("signer", ["wechat", "alipay"])
async def test_both_kinds_of_key_sign(city: City, signer: str) -> None:
    stock_id = "dining" if signer == "wechat" else "alipay_dining"
    reply = await city.claim(stock_id, person(13), signer=signer)
    assert reply.status == 200


@pytest.mark.parametrize("name", WITHIN_THE_WINDOW)
async def test_clocks_may_differ_by_minutes(city: City, name: str) -> None:
    assert (await WITHIN_THE_WINDOW[name](city, FIND)).status == 404


async def test_one_person_may_have_one_from_each_partner_and_two_where_the_round_says_so(city: City) -> None:
    assert (await city.claim("dining", person(14))).status == 200
    assert (await city.claim("alipay_dining", person(14), signer="alipay")).status == 200
    for status in (200, 200, 409):
        assert (await city.claim("returning", person(14))).status == status


# ---------------------------------------------------------------- refused


async def test_other_uses_of_a_number_are_mismatches(city: City) -> None:
    first = await city.claim("dining", person(20), number="mismatch-1")
    async with unchanged(city):
        for stock_id, token in (("mall", person(20)), ("dining", person(21)), ("few_left", person(21))):
            reply = await city.claim(stock_id, token, number="mismatch-1")
            assert_problem(reply, Code.IDEMPOTENCY_MISMATCH)
            assert reply.json["pointer"] == "out_request_no"
            assert first.json["voucher_code"] not in reply.body.decode()


async def test_another_partner_may_use_the_same_number(city: City) -> None:
    ours = await city.claim("dining", person(22), number="shared-no")
    theirs = await city.claim("alipay_dining", person(22), number="shared-no", signer="alipay")
    assert (ours.status, theirs.status) == (200, 200)
    assert ours.json["voucher_code"] != theirs.json["voucher_code"]


async def test_a_second_voucher_of_a_round_is_refused(city: City) -> None:
    await city.claim("dining", person(23))
    async with unchanged(city, ignoring=[PACE]):
        assert_problem(await city.claim("dining", person(23)), Code.USER_ALREADY_CLAIMED)
        assert_problem(await city.claim("mall", person(23)), Code.USER_ALREADY_CLAIMED)
        # Who has one hears so even where nothing is left: the person is checked before the stock.


async def test_a_stock_runs_out_and_clicks_eat_nothing(city: City) -> None:
    people = [person(100 + number) for number in range(FEW + 1)]
    for token in people[:FEW]:
        assert (await city.claim("few_left", token)).status == 200
        assert (await city.claim("few_left", token)).code == Code.USER_ALREADY_CLAIMED
    async with unchanged(city, ignoring=[PACE]):
        for _ in range(3):
            assert_problem(await city.claim("few_left", people[-1]), Code.SOLD_OUT)
    assert (await city.claim("dining", people[-1])).status == 200


@pytest.mark.parametrize(("stock_id", "opens_in"), [("soon", timedelta(minutes=5)), ("tomorrow", timedelta(days=1))])
async def test_a_round_that_has_not_opened_says_when(city: City, stock_id: str, opens_in: timedelta) -> None:
    """Whether the store holds it already or not."""
    async with unchanged(city):
        reply = await city.claim(stock_id, person(24))
    assert_problem(reply, Code.NOT_STARTED)
    wait_s = (NOON + opens_in - city.clock.now()).total_seconds()
    assert abs(int(reply.headers["Retry-After"]) - wait_s) < 30
    assert reply.json["retry_after_s"] == int(reply.headers["Retry-After"])
    assert (NOON + opens_in).isoformat() in reply.json["detail"]


@pytest.mark.parametrize("stock_id", ["yesterday", "past"])
async def test_a_round_that_is_over_says_so(city: City, stock_id: str) -> None:
    """Whether its vouchers are still good or not."""
    async with unchanged(city):
        assert_problem(await city.claim(stock_id, person(24)), Code.ENDED)


async def test_a_stock_that_is_paused_says_so(city: City) -> None:
    async with unchanged(city):
        reply = await city.claim("paused", person(24))
    assert_problem(reply, Code.PAUSED)
    assert reply.headers["Retry-After"] == "5"


async def test_a_blocked_person_is_refused_until_the_block_ends(city: City) -> None:
    digest = digest_person(bytes.fromhex(person(25)))
    await block_person(city.valkey.client, shard_tag(0), digest, until_ms=city.clock.now_ms() + 1_000)
    async with unchanged(city):
        assert_problem(await city.claim("dining", person(25)), Code.REQUEST_BLOCKED)
    await asyncio.sleep(1.1)
    assert (await city.claim("dining", person(25))).status == 200


async def test_who_tries_too_often_waits_and_is_served_again(city: City) -> None:
    for number in range(FEW):  # whatever other tests left of it
        await city.claim("few_left", person(260 + number))
    replies = [await city.claim("few_left", person(26)) for _ in range(8)]
    assert [reply.code for reply in replies[:5]] == [Code.SOLD_OUT] * 5
    for reply in replies[5:]:
        assert_problem(reply, Code.FREQUENCY_LIMITED)
        assert reply.headers["Retry-After"] == "2"
    async with unchanged(city):  # a refused try takes no token
        await city.claim("dining", person(26))
    assert (await city.claim("dining", person(27))).status == 200  # nobody else waits for them
    await asyncio.sleep(2.1)
    assert (await city.claim("dining", person(26))).status == 200


async def test_a_household_shares_a_phone_and_a_farm_does_not(city: City) -> None:
    phone = person(9_999)
    for number in range(4):
        assert (await city.claim("dining", person(200 + number), device=phone)).status == 200
    async with unchanged(city):
        reply = await city.claim("dining", person(204), device=phone)
    assert_problem(reply, Code.RULE_LIMIT, "DEVICE_LIMIT")
    assert (await city.claim("mall", person(200), device=phone)).code == Code.USER_ALREADY_CLAIMED
    assert (await city.claim("returning", person(200), device=phone)).status == 200  # one of the family
    assert (await city.claim("dining", person(204))).status == 200  # the person is not to blame


# ---------------------------------------------------------------- another partner's


async def test_what_is_another_partners_is_as_if_it_were_not(city: City) -> None:
    mine = await city.claim("dining", person(30), number="secret-1")
    code = mine.json["voucher_code"]
    await city.drain()
    find = f"/v1/claims/secret-1?person_token={person(30)}"
    async with unchanged(city):
        stock = [await city.claim(name, person(31), signer="alipay") for name in ("dining", "no_such_stock", "")]
        found = [await city.call(city.issuer, "alipay", "GET", path) for path in (find, FIND.path)]
        codes = [await city.call(city.issuer, "alipay", "GET", f"/v1/vouchers/{c}") for c in (code, code[::-1])]
    for alike in (stock, found, codes):
        assert len({_without_chance(reply) for reply in alike}) == 1
        assert_problem(alike[0], Code.RESOURCE_NOT_EXISTS)
    assert (await city.call(city.issuer, "wechat", "GET", find)).status == 200


def _without_chance(reply: Reply) -> str:
    return str({name: value for name, value in reply.json.items() if name not in ("request_id", "server_time")})


# ---------------------------------------------------------------- found again


async def test_a_claim_is_found_by_its_number_before_and_after_the_drain(city: City) -> None:
    granted = (await city.claim("dining", person(40), number="find-1")).json
    path = f"/v1/claims/find-1?person_token={person(40)}"
    before = (await city.call(city.issuer, "wechat", "GET", path)).json
    assert before == granted | {"state": "CONFIRMING"}
    await city.drain()
    assert (await city.call(city.issuer, "wechat", "GET", path)).json == granted


async def test_a_voucher_is_found_by_its_code_before_and_after_the_drain(city: City) -> None:
    granted = (await city.claim("dining", person(41), number="find-2")).json
    path = f"/v1/vouchers/{granted['voucher_code']}"
    before = [(await city.call(city.issuer, signer, "GET", path)).json for signer in ("wechat", "alipay")]
    # Nobody can tell yet whose it is; whoever knows the code hears that it is real, and nothing else.
    assert before == [{"voucher_code": granted["voucher_code"], "state": "CONFIRMING"}] * 2
    await city.drain()
    assert (await city.call(city.issuer, "wechat", "GET", path)).json == granted
    typed = f"/v1/vouchers/{granted['voucher_code'].lower()[:13]}-{granted['voucher_code'].lower()[13:]}"
    assert (await city.call(city.issuer, "wechat", "GET", typed)).json == granted


async def test_states_follow_the_voucher(city: City) -> None:
    code = (await city.claim_many("dining", [person(42)]))[0]
    path = f"/v1/vouchers/{code}"

    async def state() -> Any:
        return (await city.call(city.issuer, "wechat", "GET", path)).json["state"]

    assert await state() == "EFFECTIVE"
    use = await city.redeem("NOODLES", code, number="use-state-1")
    assert (use.status, await state()) == (200, "USED")
    assert (await city.refund("NOODLES", "use-state-1")).status == 200
    assert await state() == "EFFECTIVE"
    code = (await city.claim_many("returning", [person(42)]))[0]
    path = f"/v1/vouchers/{code}"
    await city.redeem("NOODLES", code, number="use-state-2")
    await city.refund("NOODLES", "use-state-2")
    assert await state() == "RETURNED"


@pytest.mark.parametrize(
    "path",
    [
        "/v1/claims/no-such-1",
        "/v1/claims/no-such-1?person_token=",
        f"/v1/claims/no-such-1?person_token={person(1)}0",
        f"/v1/claims/no-such-1?person_token={person(1)}%0A",
        f"/v1/claims/short?person_token={person(1)}",
        f"/v1/claims/no%20such%201?person_token={person(1)}",
        f"/v1/claims/no-such-1%0A?person_token={person(1)}",
    ],
)
async def test_a_search_that_is_malformed_is_refused(city: City, path: str) -> None:
    async with unchanged(city):
        assert_problem(await city.call(city.issuer, "wechat", "GET", path), Code.PARAM_ERROR)


@pytest.mark.parametrize("code", ["0", "0" * 26, "%F0%9F%8E%AB", "A" * 2_000, "'%20OR%201=1", "7" * 26])
async def test_codes_that_never_were_are_not_found(city: City, code: str) -> None:
    async with unchanged(city):
        reply = await city.call(city.issuer, "wechat", "GET", f"/v1/vouchers/{code}")
        assert_problem(reply, Code.RESOURCE_NOT_EXISTS)


# ---------------------------------------------------------------- batches


def _items(reply: Reply) -> list[tuple[int, str | None]]:
    return [(item["status"], (item.get("problem") or {}).get("code")) for item in reply.json["results"]]


async def test_a_batch_judges_each_item_in_its_place(city: City) -> None:
    def item(number: str, token: str, stock_id: str = "dining") -> dict[str, object]:
        return {"out_request_no": number, "stock_id": stock_id, "person_token": token}

    claims: list[object] = [
        item("batch-0001", person(300)),
        item("batch-0002", person(301), "no_such_stock"),
        item("batch-0003", person(302)) | {"surprise": 1},
        item("batch-0001", person(300)),
        item("batch-0001", person(303)),
        item("batch-0004", person(300)),
        "nonsense",
        item("batch-0005", person(304), "paused"),
        item("batch-0006", person(305), "alipay_dining"),
        item("batch-0007", "not a token"),
        item("batch-0008", person(306)),
    ]
    reply = await city.call(city.issuer, "wechat", "POST", "/v1/claims:batch", {"claims": claims})
    assert reply.status == 200
    assert _items(reply) == [
        (200, None),
        (404, "RESOURCE_NOT_EXISTS"),
        (400, "PARAM_ERROR"),
        (200, None),
        (422, "IDEMPOTENCY_MISMATCH"),
        (409, "USER_ALREADY_CLAIMED"),
        (400, "PARAM_ERROR"),
        (409, "PAUSED"),
        (404, "RESOURCE_NOT_EXISTS"),
        (400, "PARAM_ERROR"),
        (200, None),
    ]
    results = reply.json["results"]
    assert results[3]["claim"] == results[0]["claim"]
    assert [bool(item.get("replayed")) for item in results] == [n == 3 for n in range(len(results))]
    assert {item["problem"]["retry"] for item in results if "problem" in item} == {"NEVER", "AFTER_CHANGE", "SAFE"}
    single = await city.claim("dining", person(300), number="batch-0001")
    assert single.json == results[0]["claim"]


async def test_a_number_twice_in_a_batch_is_judged_twice(city: City) -> None:
    """In the order asked: the same again is a replay, something else is a mismatch, whichever comes first."""
    first = {"out_request_no": "twice-0001", "stock_id": "mall", "person_token": person(320)}
    other = first | {"person_token": person(321)}
    elsewhere = first | {"stock_id": "dining"}
    reply = await city.call(
        city.issuer, "wechat", "POST", "/v1/claims:batch", {"claims": [first, first, other, elsewhere, first]}
    )
    assert _items(reply) == [(200, None), (200, None), *[(422, "IDEMPOTENCY_MISMATCH")] * 2, (200, None)]
    results = reply.json["results"]
    assert [bool(item.get("replayed")) for item in results] == [False, True, False, False, True]
    assert results[0]["claim"] == results[1]["claim"] == results[4]["claim"]
    async with unchanged(city, ignoring=[PACE]):
        again = await city.call(city.issuer, "wechat", "POST", "/v1/claims:batch", {"claims": [other, first]})
    assert _items(again) == [(422, "IDEMPOTENCY_MISMATCH"), (200, None)]


@pytest.mark.parametrize("bad", [{"person_token": "0" * 31}, {"stock_id": 7}, {"surprise": 1}, {"out_request_no": "x"}])
async def test_an_item_that_cannot_be_read_is_named(city: City, bad: dict[str, object]) -> None:
    good = {"out_request_no": "named-0001", "stock_id": "mall", "person_token": person(330)}
    reply = await city.call(city.issuer, "wechat", "POST", "/v1/claims:batch", {"claims": [good, good | bad, 7]})
    assert _items(reply) == [(200, None), (400, "PARAM_ERROR"), (400, "PARAM_ERROR")]
    [field] = bad
    pointers = [item["problem"]["pointer"] for item in reply.json["results"][1:]]
    assert pointers == ["claims[1]" if field == "surprise" else f"claims[1].{field}", "claims[2]"]


async def test_a_token_of_the_wrong_form_is_named(city: City) -> None:
    for token in ("0" * 31, "G" * 32, person(1).upper()):
        reply = await changed(person_token=token)(city, CLAIM)
        assert_problem(reply, Code.PARAM_ERROR)
        assert reply.json["pointer"] == "person_token"


@pytest.mark.parametrize("minutes", [-6, 6])
async def test_a_clock_six_minutes_off_hears_the_servers_time(city: City, minutes: int) -> None:
    now_s = int(city.clock.now().timestamp())
    async with unchanged(city):
        reply = await CLAIM.send(city, sign={"timestamp_s": now_s + 60 * minutes})
    assert_problem(reply, Code.SIGN_ERROR)
    told_s = int(reply.json["detail"].rpartition(" ")[2])
    assert abs(told_s - now_s) <= 60
    assert abs(datetime.fromisoformat(reply.json["server_time"]).timestamp() - now_s) <= 60
    assert (await CLAIM.send(city, sign={"timestamp_s": told_s})).status == 200


@pytest.mark.parametrize(
    ("name", "claims"),
    [
        ("none", []),
        ("one too many", [{}] * 1_001),
        ("no list", {}),
        ("text", "x"),
        ("null", None),
    ],
)
async def test_a_batch_of_a_wrong_size_is_refused(city: City, name: str, claims: object) -> None:
    async with unchanged(city):
        reply = await changed(claims=claims)(city, BATCH)
        assert_problem(reply, Code.PARAM_ERROR)
        assert reply.json["pointer"] == "claims"


async def test_a_batch_of_one_is_fine(city: City) -> None:
    reply = await city.call(
        city.issuer,
        "wechat",
        "POST",
        "/v1/claims:batch",
        {"claims": [{"out_request_no": "only-one", "stock_id": "dining", "person_token": person(310)}]},
    )
    assert _items(reply) == [(200, None)]


async def test_a_batch_of_a_thousand_is_answered_in_order_and_again(city: City) -> None:
    claims = [
        {"out_request_no": f"thousand-{n:04}", "stock_id": "mall", "person_token": person(1_000 + n)}
        for n in range(1_000)
    ]
    reply = await city.call(city.issuer, "wechat", "POST", "/v1/claims:batch", {"claims": claims})
    results = [item["claim"] for item in reply.json["results"]]
    assert [item["out_request_no"] for item in results] == [item["out_request_no"] for item in claims]
    assert len({item["voucher_code"] for item in results}) == 1_000
    assert await city.drain() >= 1_000
    async with unchanged(city):
        again = await city.call(city.issuer, "wechat", "POST", "/v1/claims:batch", {"claims": claims})
    assert [item["claim"] for item in again.json["results"]] == results
    assert all(item["replayed"] for item in again.json["results"])


async def test_numbers_that_share_a_key_are_two_numbers(city: City) -> None:
    """The books keep four bytes of a number's hash: among a hundred thousand claims some two are alike."""
    async with city.database.connection("hanquan_auditor") as conn:
        partner_no = await conn.fetchval("SELECT partner_no FROM partner WHERE partner_id = 'wechat'")
    first, second = _alike(partner_no)
    codes = [
        (await city.claim("dining", person(at), number=number)).json["voucher_code"]
        for at, number in ((90, first), (91, second))
    ]
    await city.drain()
    for at, number, code in ((90, first, codes[0]), (91, second, codes[1])):
        path = f"/v1/claims/{number}?person_token={person(at)}"
        assert (await city.call(city.issuer, "wechat", "GET", path)).json["voucher_code"] == code
        async with city.database.connection("hanquan_auditor") as conn:
            entries = await read_entries(conn, "wechat", [number], city.codes)
            assert [(entry.number, entry.code) for entry in entries] == [(number, code)]
            assert not await conn.fetchval("SELECT count(*) FROM request_clash WHERE out_request_no = $1", number)


def _alike(partner_no: int) -> tuple[str, str]:
    seen: dict[int, str] = {}
    for number in map("alike-{:08}".format, count()):
        if (other := seen.setdefault(request_key(partner_no, number), number)) != number:
            return other, number
    raise AssertionError
