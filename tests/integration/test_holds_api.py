"""Holds over HTTP: kept, confirmed, cancelled, run out, and everything that is turned away on the way."""

from collections.abc import AsyncIterator, Sequence
from datetime import datetime, timedelta

import pytest
import pytest_asyncio

from kernel.errors import Code
from redemption.checkout import Attempt
from redemption.handlers import TILL
from redemption.numbers import Scope
from tests import stores
from tests.city import City, assert_problem, open_city, unchanged
from tests.city_plan import BILL, FACE, NOON, PAID, a_campaign, a_round, a_stock, person
from tests.tilling import assert_audited, at, bucket_of_code, fresh, moved, moving, voucher, vouchers

pytestmark = pytest.mark.asyncio(loop_scope="module")

SHOP, OTHER = "NOODLES", "DUMPLINGS"
ENDS = NOON + timedelta(days=7)
"""When the vouchers of "dining" run out."""
TTL_S = 60
SUSPENDED = "MERCHANT_SUSPENDED"
HOMES = pytest.mark.parametrize("is_here", [True, False], ids=["number_at_home", "number_elsewhere"])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def city(cluster: stores.Cluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[City]:
    plan = a_campaign(
        "restoring", a_round("now", NOON, a_stock("dining", quantity=999), a_stock("mall", category_id="mall"))
    )
    async with open_city(cluster, tmp_path_factory.mktemp("holds"), campaigns=[plan]) as made:
        yield made


async def held(city: City, code: str | None = None, *, shop: str = SHOP, is_here: bool = True) -> tuple[str, str]:
    """A fresh voucher and the number of a hold of it."""
    code = code or await voucher(city)
    number = await fresh(city, Scope.HOLD, shop, code, is_here=is_here)
    assert (await city.hold(shop, code, number=number, ttl_s=TTL_S)).status == 200
    return code, number


# ---------------------------------------------------------------- held


async def test_a_hold_in_full_words(city: City) -> None:
    code = await voucher(city)
    async with moving(city):
        reply = await city.hold(SHOP, code, number="words-1", order="words-order-1", ttl_s=90)
    assert reply.status == 200
    assert reply.json == {
        "hold_request_no": "words-1",
        "order_no": "words-order-1",
        "voucher_code": code,
        "stock_id": "dining",
        "state": "LOCKED",
        "bill_fen": BILL,
        "discount_fen": FACE,
        "to_pay_fen": BILL - FACE,
        "held_at": reply.json["held_at"],
        "expires_at": reply.json["expires_at"],
    }
    held_for = datetime.fromisoformat(reply.json["expires_at"]) - datetime.fromisoformat(reply.json["held_at"])
    assert timedelta(seconds=89) < held_for <= timedelta(seconds=90)


@HOMES
async def test_the_same_hold_brings_the_same_bytes_whatever_became_of_it(city: City, is_here: bool) -> None:
    code = await voucher(city)
    number = await fresh(city, Scope.HOLD, SHOP, code, is_here=is_here)
    order = await fresh(city, Scope.ORDER, SHOP, code, is_here=not is_here)
    first = await city.hold(SHOP, code, number=number, order=order)
    for become in (None, city.confirm):
        if become is not None:
            assert (await become(SHOP, number)).status == 200
        async with unchanged(city):
            again = await city.hold(SHOP, code, number=number, order=order)
            longer = await city.hold(SHOP, code, number=number, order=order, ttl_s=600)
        assert again.body == longer.body == first.body
        assert again.headers["Idempotent-Replayed"] == "true"


@HOMES
async def test_another_request_under_a_holds_number_is_a_mismatch(city: City, is_here: bool) -> None:
    code, another = await vouchers(city, 2)
    number = await fresh(city, Scope.HOLD, SHOP, code, is_here=is_here)
    assert (await city.hold(SHOP, code, number=number, order=f"order-{is_here}")).status == 200
    async with unchanged(city):
        for changed in (
            await city.hold(SHOP, code, number=number, order="mismatch-other"),
            await city.hold(SHOP, code, number=number, order=f"order-{is_here}", bill_fen=BILL + 1),
            await city.hold(SHOP, another, number=number, order=f"order-{is_here}"),
        ):
            assert_problem(changed, Code.IDEMPOTENCY_MISMATCH)
            assert changed.json["pointer"] == "hold_request_no"
    assert (await city.hold(OTHER, another, number=number)).status == 200, "another shop's numbers are its own"


@pytest.mark.parametrize("ttl_s", [9, 3_601, "60", 60.5, None])
async def test_a_hold_lasts_from_ten_seconds_to_an_hour(city: City, ttl_s: object) -> None:
    code = await voucher(city)
    async with unchanged(city):
        assert_problem(await city.hold(SHOP, code, ttl_s=ttl_s), Code.PARAM_ERROR)


@pytest.mark.parametrize("ttl_s", [10, 3_600])
async def test_the_shortest_and_the_longest_hold(city: City, ttl_s: int) -> None:
    assert (await city.hold(SHOP, await voucher(city), ttl_s=ttl_s)).status == 200


async def test_a_hold_never_outlives_its_voucher(city: City) -> None:
    code, number = await voucher(city), city.number("hold")
    with at(city, ENDS - timedelta(seconds=20)):
        reply = await city.hold(SHOP, code, number=number, ttl_s=3_600)
        assert datetime.fromisoformat(reply.json["expires_at"]) == ENDS
    with at(city, ENDS):
        async with unchanged(city):
            assert_problem(await city.confirm(SHOP, number), Code.RULE_LIMIT, "HOLD_RUN_OUT")


async def test_a_voucher_that_ends_while_it_is_looked_at_is_not_held(
    city: City, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Midnight between the look and the booking: nobody else's booking suffers either."""
    till, look = city.apps[city.redemption][TILL], city.apps[city.redemption][TILL]._look

    async def then_midnight(attempts: Sequence[Attempt]) -> None:
        await look(attempts)
        city.clock.move_to(ENDS)

    code = await voucher(city)
    with at(city, ENDS - timedelta(seconds=20)):
        monkeypatch.setattr(till, "_look", then_midnight)
        assert_problem(await city.hold(SHOP, code, ttl_s=60), Code.RULE_LIMIT, "EXPIRED")


# ---------------------------------------------------------------- confirmed


@HOMES
async def test_a_hold_becomes_a_redemption(city: City, is_here: bool) -> None:
    code = await voucher(city)
    hold_no = await fresh(city, Scope.HOLD, SHOP, code, is_here=not is_here)
    use_no = await fresh(city, Scope.USE, SHOP, code, is_here=is_here)
    lock = (await city.hold(SHOP, code, number=hold_no)).json
    async with moving(city, ISSUED=-FACE, PAYABLE=FACE):
        reply = await city.confirm(SHOP, hold_no, number=use_no)
    assert reply.status == 200
    assert reply.json == {
        "use_request_no": use_no,
        "order_no": lock["order_no"],
        "voucher_code": code,
        "stock_id": "dining",
        "state": "USED",
        "bill_fen": BILL,
        "discount_fen": FACE,
        "to_pay_fen": BILL - FACE,
        "subsidy_fen": FACE,
        "redeemed_at": reply.json["redeemed_at"],
    }
    async with unchanged(city):
        again = await city.confirm(SHOP, hold_no, number=use_no)
        assert (again.body, again.headers["Idempotent-Replayed"]) == (reply.body, "true")
        assert_problem(await city.confirm(SHOP, hold_no), Code.RULE_LIMIT, "HOLD_CONFIRMED")
        assert_problem(await city.cancel(SHOP, hold_no), Code.RULE_LIMIT, "HOLD_CONFIRMED")
        assert_problem(await city.redeem(OTHER, code), Code.USED_BY_ANOTHER_ORDER)
        assert_problem(await city.hold(OTHER, code), Code.USED_BY_ANOTHER_ORDER)
    assert (await city.refund(SHOP, use_no)).json["voucher_state"] == "EFFECTIVE"


@HOMES
async def test_a_number_that_redeemed_confirms_nothing(city: City, is_here: bool) -> None:
    [spent, code] = await vouchers(city, 2)
    use_no = await fresh(city, Scope.USE, SHOP, spent, is_here=is_here)
    assert (await city.redeem(SHOP, spent, number=use_no)).status == 200
    _, number = await held(city, code)
    async with unchanged(city):
        refused = await city.confirm(SHOP, number, number=use_no)
    assert_problem(refused, Code.IDEMPOTENCY_MISMATCH)
    assert refused.json["pointer"] == "use_request_no"
    assert (await city.confirm(SHOP, number)).status == 200


@HOMES
async def test_a_number_that_redeemed_the_voucher_before_confirms_no_hold_of_it(city: City, is_here: bool) -> None:
    code = await voucher(city)
    use_no = await fresh(city, Scope.USE, SHOP, code, is_here=is_here)
    assert (await city.redeem(SHOP, code, number=use_no)).status == 200
    assert (await city.refund(SHOP, use_no)).json["voucher_state"] == "EFFECTIVE"
    _, number = await held(city, code)
    async with unchanged(city):
        assert_problem(await city.confirm(SHOP, number, number=use_no), Code.IDEMPOTENCY_MISMATCH)
    assert (await city.confirm(SHOP, number)).status == 200


@HOMES
async def test_a_number_that_confirmed_redeems_nothing_else(city: City, is_here: bool) -> None:
    code, other = await vouchers(city, 2)
    _, number = await held(city, code)
    use_no = await fresh(city, Scope.USE, SHOP, code, is_here=is_here)
    assert (await city.confirm(SHOP, number, number=use_no)).status == 200
    _, second = await held(city, other)
    async with unchanged(city):
        assert_problem(await city.redeem(SHOP, other, number=use_no), Code.IDEMPOTENCY_MISMATCH)
        assert_problem(await city.confirm(SHOP, second, number=use_no), Code.IDEMPOTENCY_MISMATCH)


async def test_what_is_not_a_hold_cannot_be_ended(city: City) -> None:
    _, number = await held(city)
    async with unchanged(city):
        for shop, name in ((SHOP, "never-was"), (OTHER, number)):
            assert_problem(await city.confirm(shop, name), Code.RESOURCE_NOT_EXISTS)
            assert_problem(await city.cancel(shop, name), Code.RESOURCE_NOT_EXISTS)
            assert_problem(await city.get(shop, f"/v1/holds/{name}"), Code.RESOURCE_NOT_EXISTS)
    assert (await city.confirm(SHOP, number)).status == 200


async def test_a_suspended_shop_confirms_nothing_but_hears_what_it_confirmed(city: City) -> None:
    (_, done), (code, open_), fresh_one = (
        await held(city, shop="HOTPOT"),
        await held(city, shop="HOTPOT"),
        await voucher(city),
    )
    first = await city.confirm("HOTPOT", done, number="before-suspension")
    suspend = "UPDATE merchant SET suspended = $1 WHERE merchant_id = 'HOTPOT'"
    await city.database.pool.execute(suspend, True)
    try:
        late = await city.new_redemption()
        async with unchanged(city):
            refused = await city.confirm("HOTPOT", open_, service=late)
            again = await city.confirm("HOTPOT", done, number="before-suspension", service=late)
            assert_problem(await city.hold("HOTPOT", fresh_one, service=late), Code.RULE_LIMIT, SUSPENDED)
        given_up = await city.cancel("HOTPOT", open_, service=late)
    finally:
        await city.database.pool.execute(suspend, False)
    assert_problem(refused, Code.RULE_LIMIT, SUSPENDED)
    assert again.body == first.body
    assert given_up.json["state"] == "CANCELLED"
    assert (await city.redeem(SHOP, code)).status == 200


# ---------------------------------------------------------------- run out


@HOMES
async def test_a_hold_that_ran_out_is_over_at_once(city: City, is_here: bool) -> None:
    code, number = await held(city, is_here=is_here)
    use_no = await fresh(city, Scope.USE, SHOP, code, is_here=is_here)
    with moved(city, seconds=TTL_S):
        async with unchanged(city):
            assert_problem(await city.confirm(SHOP, number, number=use_no), Code.RULE_LIMIT, "HOLD_RUN_OUT")
            assert (await city.get(SHOP, f"/v1/holds/{number}")).json["state"] == "RUN_OUT"
        assert (await city.redeem(OTHER, code)).status == 200
        async with unchanged(city):
            assert_problem(await city.confirm(SHOP, number, number=use_no), Code.RULE_LIMIT, "HOLD_RUN_OUT")
        fresh_code = await voucher(city)
        assert (await city.redeem(SHOP, fresh_code, number=use_no)).status == 200, "the number did nothing: it is free"


async def test_a_hold_that_ran_out_stays_over_when_its_shop_holds_again(city: City) -> None:
    code, number = await held(city)
    with moved(city, seconds=TTL_S):
        _, second = await held(city, code)
        async with unchanged(city):
            assert_problem(await city.confirm(SHOP, number), Code.RULE_LIMIT, "HOLD_RUN_OUT")
        assert (await city.confirm(SHOP, second)).status == 200
    attempts = await city.database.pool.fetch(
        "SELECT attempt FROM hold WHERE voucher_id = $1 ORDER BY 1", city.codes.decode(code)
    )
    assert [row["attempt"] for row in attempts] == [1, 2]


# ---------------------------------------------------------------- cancelled


@HOMES
async def test_a_cancelled_hold_leaves_the_voucher_to_others(city: City, is_here: bool) -> None:
    code, number = await held(city, is_here=is_here)
    cancel_no = await fresh(city, Scope.CANCEL, SHOP, code, is_here=is_here)
    async with moving(city):
        reply = await city.cancel(SHOP, number, number=cancel_no)
    ended_at = reply.json["ended_at"]
    expected = {"cancel_request_no": cancel_no, "hold_request_no": number, "state": "CANCELLED", "ended_at": ended_at}
    assert reply.json == expected
    async with unchanged(city):
        again = await city.cancel(SHOP, number, number=cancel_no)
        assert (again.body, again.headers["Idempotent-Replayed"]) == (reply.body, "true")
        assert_problem(await city.confirm(SHOP, number), Code.RULE_LIMIT, "HOLD_CANCELLED")
    assert (await city.redeem(OTHER, code)).status == 200
    other = await city.cancel(SHOP, number)
    assert (other.json["state"], other.json["ended_at"]) == ("CANCELLED", ended_at)
    assert (await city.cancel(SHOP, number, number=cancel_no)).body == reply.body


async def test_a_cancels_number_belongs_to_its_hold(city: City) -> None:
    (_, one), (_, two) = await held(city), await held(city)
    assert (await city.cancel(SHOP, one, number="cancel-of-one")).status == 200
    async with unchanged(city):
        refused = await city.cancel(SHOP, two, number="cancel-of-one")
    assert_problem(refused, Code.IDEMPOTENCY_MISMATCH)
    assert refused.json["pointer"] == "cancel_request_no"
    assert (await city.confirm(SHOP, two)).status == 200


async def test_the_cancel_of_a_hold_that_ran_out_says_so_every_time(city: City) -> None:
    code, number = await held(city)
    found = (await city.get(SHOP, f"/v1/holds/{number}")).json
    with moved(city, seconds=TTL_S + 5):
        first = await city.cancel(SHOP, number, number="late-cancel")
        assert (first.json["state"], first.json["ended_at"]) == ("RUN_OUT", found["expires_at"])
        async with unchanged(city):
            assert (await city.cancel(SHOP, number, number="late-cancel")).body == first.body
        assert (await city.redeem(SHOP, code)).status == 200
        assert (await city.cancel(SHOP, number, number="late-cancel")).body == first.body


# ---------------------------------------------------------------- in the way of others


async def test_a_held_voucher_is_kept_from_everybody_else(city: City) -> None:
    code, number = await held(city)
    async with unchanged(city):
        for reply in (
            await city.redeem(OTHER, code),
            await city.hold(OTHER, code),
            await city.redeem(SHOP, code),
            await city.hold(SHOP, code),
        ):
            assert_problem(reply, Code.LOCKED_BY_ANOTHER_ORDER)
    assert (await city.confirm(SHOP, number)).status == 200


async def test_what_cannot_be_used_cannot_be_held(city: City) -> None:
    code, mall, low = await voucher(city), await voucher(city, "mall"), await voucher(city)
    assert (await city.redeem(SHOP, code)).status == 200
    reply = await city.claim("dining", person(77))
    async with unchanged(city):
        assert_problem(await city.hold(OTHER, code), Code.USED_BY_ANOTHER_ORDER)
        assert_problem(await city.hold(OTHER, mall), Code.RULE_LIMIT, "CATEGORY")
        assert_problem(await city.hold(OTHER, low, bill_fen=5_999), Code.RULE_LIMIT, "TRANSACTION_MINIMUM")
        assert_problem(await city.hold(OTHER, reply.json["voucher_code"]), Code.CONFIRMING)
    with at(city, ENDS):
        async with unchanged(city):
            assert_problem(await city.hold(OTHER, low), Code.RULE_LIMIT, "EXPIRED")
    await city.drain()
    async with unchanged(city, ignoring=["tc:", "lockout"]):
        assert_problem(await city.hold("HOTPOT", "A" * 26), Code.RESOURCE_NOT_EXISTS)


@HOMES
@pytest.mark.parametrize("is_cancelled", [False, True])
async def test_a_payment_holds_one_voucher_for_good(city: City, is_here: bool, is_cancelled: bool) -> None:
    code, other = await vouchers(city, 2)
    order = await fresh(city, Scope.ORDER, SHOP, code, is_here=is_here)
    number = city.number("hold")
    assert (await city.hold(SHOP, code, number=number, order=order)).status == 200
    if is_cancelled:
        assert (await city.cancel(SHOP, number)).status == 200
    async with unchanged(city):
        for reply in (await city.hold(SHOP, other, order=order), await city.redeem(SHOP, other, order=order)):
            assert_problem(reply, Code.RULE_LIMIT, "ONE_VOUCHER_PER_PAYMENT")
    assert (await city.hold(OTHER, other, order=order)).status == 200, "another shop's payments are its own"
    if is_cancelled:
        assert (await city.redeem(SHOP, code, order=order)).status == 200


async def test_a_payment_that_redeemed_holds_nothing(city: City) -> None:
    code, other = await vouchers(city, 2)
    for is_here in (True, False):
        order = await fresh(city, Scope.ORDER, SHOP, code, is_here=is_here)
        use = city.number("use")
        assert (await city.redeem(SHOP, code, number=use, order=order)).status == 200
        async with unchanged(city):
            refused = await city.hold(SHOP, other, order=order)
        assert_problem(refused, Code.RULE_LIMIT, "ONE_VOUCHER_PER_PAYMENT")
        await city.refund(SHOP, use)


async def test_numbers_of_holds_are_one_over_both_buckets(city: City) -> None:
    codes = await vouchers(city, 40)
    here = next(code for code in codes if bucket_of_code(city, code) == 0)
    there = next(code for code in codes if bucket_of_code(city, code) == 1)
    for first, second in ((here, there), (there, here)):
        for is_here in (True, False):
            number = await fresh(city, Scope.HOLD, SHOP, first, is_here=is_here)
            lock = await city.hold(SHOP, first, number=number, ttl_s=10)
            assert lock.status == 200, lock
            async with unchanged(city):
                assert_problem(await city.hold(SHOP, second, number=number), Code.IDEMPOTENCY_MISMATCH)
            assert (await city.cancel(SHOP, number)).status == 200


async def test_a_restored_voucher_can_be_held_again(city: City) -> None:
    code, number = await held(city)
    assert (await city.confirm(SHOP, number, number="restored-1")).status == 200
    assert (await city.refund(SHOP, "restored-1", refund_fen=PAID)).json["voucher_state"] == "EFFECTIVE"
    _, second = await held(city, code, shop=OTHER)
    async with unchanged(city):
        assert_problem(await city.redeem(SHOP, code), Code.LOCKED_BY_ANOTHER_ORDER)
    assert (await city.confirm(OTHER, second)).status == 200
    attempts = await city.fetchval(
        "SELECT array_agg(attempt ORDER BY attempt) FROM redemption WHERE voucher_id = $1", city.codes.decode(code)
    )
    assert attempts == [1, 2]


async def test_the_books_are_right_after_all_that(city: City) -> None:
    await assert_audited(city)
