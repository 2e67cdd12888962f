"""POST /v1/redemptions from the till's side: every outcome, and every way to be turned away."""

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
import pytest_asyncio

from kernel.errors import Code
from redemption import lockout
from redemption.handlers import TILL_BYTES_MAX
from tests import stores
from tests.city import City, Reply, assert_problem, open_city, unchanged
from tests.city_plan import BILL, FACE, FUNDED, MINIMUM, NOON, person
from tests.hostile import (
    BAD_AMOUNTS,
    BAD_NUMBERS,
    FORGERIES,
    MALFORMED,
    WITHIN_THE_WINDOW,
    WRONG_DOORS,
    Ask,
    Flaw,
    add_bad_keys,
    bad_values,
    too_large,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

PEOPLE = iter(range(10_000))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def city(cluster: stores.Cluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[City]:
    with pytest.MonkeyPatch.context() as patch:  # wrong codes are looked at here, not how many of them lock a till
        patch.setattr(lockout, "LIMITS", lockout.LIMITS._replace(terminal=1_000, merchant=1_000, strict=1_000))
        async with open_city(cluster, tmp_path_factory.mktemp("checkout")) as made:
            await add_bad_keys(made, "NOODLES")
            yield made


async def voucher(city: City, stock_id: str = "dining") -> str:
    """The code of a fresh voucher, drained."""
    return (await city.claim_many(stock_id, [person(next(PEOPLE))]))[0]


def ask(code: str, number: str = "hostile-1") -> Ask:
    """A good redemption of a voucher."""
    body = {"use_request_no": number, "voucher_code": code, "order_no": number, "bill_fen": BILL}
    return Ask("redemption", "NOODLES", "POST", "/v1/redemptions", body)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def good(city: City) -> Ask:
    """A good redemption that the hostile ones are made from."""
    return ask(await voucher(city))


# ---------------------------------------------------------------- redeemed


@pytest.mark.parametrize(("stock_id", "policy"), [("dining", "RESTORE"), ("returning", "RETURN_TO_BUDGET")])
async def test_a_redemption_in_full_words(city: City, stock_id: str, policy: str) -> None:
    code = await voucher(city, stock_id)
    reply = await city.redeem("NOODLES", code, number=f"full-{stock_id}", order=f"order-{stock_id}")
    assert reply.status == 200
    assert reply.json == {
        "use_request_no": f"full-{stock_id}",
        "order_no": f"order-{stock_id}",
        "voucher_code": code,
        "stock_id": stock_id,
        "state": "USED",
        "bill_fen": BILL,
        "discount_fen": FACE,
        "to_pay_fen": BILL - FACE,
        "subsidy_fen": FUNDED[policy],
        "redeemed_at": reply.json["redeemed_at"],
    }
    found = await city.call(city.redemption, "NOODLES", "GET", f"/v1/redemptions/full-{stock_id}")
    assert found.json == {
        name: value for name, value in reply.json.items() if name not in ("stock_id", "discount_fen", "to_pay_fen")
    }


async def test_the_same_request_brings_the_same_bytes(city: City) -> None:
    code = await voucher(city)
    first = await city.redeem("NOODLES", code, number="replay-1", order="replay-1")
    async with unchanged(city):
        again = [await city.redeem("NOODLES", code, number="replay-1", order="replay-1") for _ in range(3)]
        typed = await city.redeem("NOODLES", f" {code.lower()[:4]}-{code[4:]} ", number="replay-1", order="replay-1")
    assert {reply.body for reply in [*again, typed]} == {first.body}
    assert {reply.headers["Idempotent-Replayed"] for reply in again} == {"true"}
    assert "Idempotent-Replayed" not in first.headers


async def test_a_replay_is_answered_after_the_voucher_has_run_out_and_the_shop_is_suspended(city: City) -> None:
    code = await voucher(city)
    first = await city.redeem("HOTPOT", code, number="replay-2", order="replay-2")
    await city.database.pool.execute("UPDATE merchant SET suspended = true WHERE merchant_id = 'HOTPOT'")
    try:
        late = await city.new_redemption()
        city.clock.move_to(NOON + timedelta(days=8))
        async with unchanged(city):
            again = await city.redeem("HOTPOT", code, number="replay-2", order="replay-2", service=late)
    finally:
        city.clock.move_to(NOON + timedelta(seconds=60))
        await city.database.pool.execute("UPDATE merchant SET suspended = false WHERE merchant_id = 'HOTPOT'")
    assert again.body == first.body


async def test_a_bill_of_just_the_minimum_is_enough(city: City) -> None:
    reply = await city.redeem("NOODLES", await voucher(city), bill_fen=MINIMUM)
    assert (reply.status, reply.json["to_pay_fen"]) == (200, MINIMUM - FACE)


@pytest.mark.parametrize("name", WITHIN_THE_WINDOW)
async def test_clocks_may_differ_by_minutes(city: City, name: str) -> None:
    assert (await WITHIN_THE_WINDOW[name](city, ask(await voucher(city), city.number("window")))).status == 200


# ---------------------------------------------------------------- the offer's rules


async def test_a_bill_below_the_minimum_is_refused_and_leaves_the_number_free(city: City) -> None:
    code = await voucher(city)
    async with unchanged(city):
        reply = await city.redeem("NOODLES", code, number="minimum-1", order="minimum-1", bill_fen=MINIMUM - 1)
    assert_problem(reply, Code.RULE_LIMIT, "TRANSACTION_MINIMUM")
    assert "59.99" in reply.json["detail"] and "60.00" in reply.json["detail"]
    assert (await city.redeem("NOODLES", code, number="minimum-1", order="minimum-1")).status == 200


@pytest.mark.parametrize(
    ("shop", "stock_id", "rule"),
    [
        ("EMPORIUM", "dining", "CATEGORY"),
        ("NOODLES", "mall", "CATEGORY"),
        ("BANNED", "dining", "MERCHANT_SUSPENDED"),
    ],
)
async def test_a_shop_that_may_not_is_refused(city: City, shop: str, stock_id: str, rule: str) -> None:
    code = await voucher(city, stock_id)
    async with unchanged(city):
        assert_problem(await city.redeem(shop, code), Code.RULE_LIMIT, rule)


@pytest.mark.parametrize(
    ("moment", "rule"),
    [
        (NOON - timedelta(seconds=2), "NOT_YET_VALID"),
        (NOON, None),
        (NOON + timedelta(days=7) - timedelta(seconds=2), None),
        (NOON + timedelta(days=7), "EXPIRED"),
        (NOON + timedelta(days=99), "EXPIRED"),
    ],
)
async def test_a_voucher_has_its_time(city: City, moment: object, rule: str | None) -> None:
    code = await voucher(city)
    try:
        city.clock.move_to(moment)  # type: ignore[arg-type]
        if rule is None:
            assert (await city.redeem("NOODLES", code)).status == 200
        else:
            async with unchanged(city):
                assert_problem(await city.redeem("NOODLES", code), Code.RULE_LIMIT, rule)
    finally:
        city.clock.move_to(NOON + timedelta(seconds=60))


async def test_one_voucher_a_payment(city: City) -> None:
    first, second = await voucher(city), await voucher(city)
    assert (await city.redeem("NOODLES", first, order="payment-1")).status == 200
    async with unchanged(city):
        reply = await city.redeem("NOODLES", second, order="payment-1")
        assert_problem(reply, Code.RULE_LIMIT, "ONE_VOUCHER_PER_PAYMENT")
    assert reply.json["pointer"] == "order_no"
    assert (await city.redeem("DUMPLINGS", second, order="payment-1")).status == 200  # another shop's payment


# ---------------------------------------------------------------- numbers and states


async def test_other_uses_of_a_number_are_mismatches(city: City) -> None:
    code, other = await voucher(city), await voucher(city)
    assert (await city.redeem("NOODLES", code, number="mismatch-1", order="mismatch-1")).status == 200
    async with unchanged(city):
        for changed in (
            await city.redeem("NOODLES", code, number="mismatch-1", order="mismatch-1", bill_fen=BILL + 1),
            await city.redeem("NOODLES", code, number="mismatch-1", order="mismatch-2"),
            await city.redeem("NOODLES", other, number="mismatch-1", order="mismatch-1"),
        ):
            assert_problem(changed, Code.IDEMPOTENCY_MISMATCH)
            assert changed.json["pointer"] == "use_request_no"
    assert (await city.redeem("DUMPLINGS", other, number="mismatch-1", order="mismatch-1")).status == 200


async def test_a_used_voucher_is_used_for_everybody(city: City) -> None:
    code = await voucher(city)
    await city.redeem("NOODLES", code)
    async with unchanged(city):
        for shop in ("NOODLES", "DUMPLINGS"):
            reply = await city.redeem(shop, code)
            assert_problem(reply, Code.USED_BY_ANOTHER_ORDER)
            assert "NOODLES" not in reply.body.decode()


async def test_a_voucher_that_is_not_drained_yet_is_being_confirmed(city: City) -> None:
    code = (await city.claim("dining", person(next(PEOPLE)))).json["voucher_code"]
    async with unchanged(city):
        reply = await city.redeem("NOODLES", code, number="early-bird", order="early-bird")
    assert_problem(reply, Code.CONFIRMING)
    assert reply.headers["Retry-After"] == "1"
    await city.drain()
    assert (await city.redeem("NOODLES", code, number="early-bird", order="early-bird")).status == 200


async def test_a_code_with_any_one_letter_wrong_never_was(city: City) -> None:
    code = await voucher(city)
    typos = [code[:at] + ("7" if code[at] != "7" else "8") + code[at + 1 :] for at in range(len(code))]
    typos += [next(code[:n] + code[n + 1] + code[n] + code[n + 2 :] for n in range(25) if code[n] != code[n + 1])]
    async with unchanged(city):
        for typo in typos:
            assert_problem(await city.redeem("NOODLES", typo), Code.RESOURCE_NOT_EXISTS)
    assert (await city.redeem("NOODLES", code)).status == 200


@pytest.mark.parametrize("code", ["0", "0" * 26, "Z" * 26, "🎫" * 26, "' OR 1=1 --", "\x00" * 26, " " * 64, "-" * 26])
async def test_codes_that_never_were_answer_alike(city: City, code: str) -> None:
    async with unchanged(city):
        reply = await city.redeem("NOODLES", code)
    assert_problem(reply, Code.RESOURCE_NOT_EXISTS)
    assert reply.json["detail"].startswith("there is no such voucher; check the code for a typing error")


async def test_a_till_that_is_suspended_is_turned_away_and_its_shops_other_tills_are_not(city: City) -> None:
    code = await voucher(city)
    await city.database.pool.execute(
        "UPDATE terminal SET suspended = true WHERE merchant_no = "
        "(SELECT merchant_no FROM merchant WHERE merchant_id = 'DUMPLINGS')"
    )
    service = await city.new_redemption()  # one that has read the keys since
    async with unchanged(city):
        assert_problem(await city.redeem("DUMPLINGS", code, service=service), Code.SIGN_ERROR)
    assert (await city.redeem("NOODLES", code, service=service)).status == 200


# ---------------------------------------------------------------- another shop's


async def test_another_shops_redemption_is_as_if_it_were_not(city: City) -> None:
    await city.redeem("NOODLES", await voucher(city), number="private-1", order="private-1")
    async with unchanged(city):
        found = [
            await city.call(city.redemption, shop, "GET", f"/v1/redemptions/{number}")
            for shop, number in (("HOTPOT", "private-1"), ("HOTPOT", "no-such-1"), ("NOODLES", "no-such-1"))
        ]
    assert len({_without_chance(reply) for reply in found}) == 1
    assert_problem(found[0], Code.RESOURCE_NOT_EXISTS)


def _without_chance(reply: Reply) -> str:
    return str({name: value for name, value in reply.json.items() if name not in ("request_id", "server_time")})


@pytest.mark.parametrize("number", ["short", "a" * 41, "abc%20def", "abcdef%0A", "abc%2Fdef"])
async def test_a_search_that_is_malformed_is_refused(city: City, number: str) -> None:
    async with unchanged(city):
        reply = await city.call(city.redemption, "NOODLES", "GET", f"/v1/redemptions/{number}")
        assert_problem(reply, Code.PARAM_ERROR)


# ---------------------------------------------------------------- turned away


BAD_CODES = {"empty": "", "too long": "0" * 65, "a number": 1, "null": None, "a list": []}
BAD_REDEMPTIONS: dict[str, Flaw] = {
    **MALFORMED,
    **bad_values("use_request_no", BAD_NUMBERS),
    **bad_values("order_no", BAD_NUMBERS),
    **bad_values("bill_fen", BAD_AMOUNTS),
    **bad_values("voucher_code", BAD_CODES),
}


@pytest.mark.parametrize("name", FORGERIES)
async def test_a_forgery_is_turned_away(city: City, good: Ask, name: str) -> None:
    async with unchanged(city):
        assert_problem(await FORGERIES[name](city, good), Code.SIGN_ERROR)
        find = Ask("redemption", "NOODLES", "GET", "/v1/redemptions/hostile-1")
        assert_problem(await FORGERIES[name](city, find), Code.SIGN_ERROR)


@pytest.mark.parametrize("name", BAD_REDEMPTIONS)
async def test_a_malformed_redemption_is_turned_away(city: City, good: Ask, name: str) -> None:
    async with unchanged(city):
        assert_problem(await BAD_REDEMPTIONS[name](city, good), Code.PARAM_ERROR)


@pytest.mark.parametrize("name", too_large(0))
async def test_a_body_that_is_too_large_is_turned_away(city: City, good: Ask, name: str) -> None:
    async with unchanged(city):
        assert_problem(await too_large(TILL_BYTES_MAX)[name](city, good), Code.BODY_TOO_LARGE)


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE"])
async def test_a_method_that_is_not_taken_is_refused(city: City, method: str) -> None:
    async with unchanged(city):
        reply = await city.call(city.redemption, "NOODLES", method, "/v1/redemptions", b"{}")
    assert_problem(reply, Code.METHOD_NOT_ALLOWED)
    assert reply.headers["Allow"] == "GET,HEAD,POST"


@pytest.mark.parametrize("pattern", WRONG_DOORS)
async def test_an_address_that_is_none_is_not_found(city: City, pattern: str) -> None:
    path = pattern.format(path="/v1/redemptions", upper="/V1/REDEMPTIONS")
    async with unchanged(city):
        assert_problem(await city.call(city.redemption, "NOODLES", "POST", path, {}), Code.RESOURCE_NOT_EXISTS)


async def test_the_good_request_is_good(city: City, good: Ask) -> None:
    """The control of all tables above: without a flaw the very same request is granted."""
    assert (await good.send(city)).status == 200
