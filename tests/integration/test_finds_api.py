"""What a till finds again: redemptions and holds by their numbers, by payment, by voucher."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from kernel.errors import Code
from redemption.numbers import Scope
from tests import stores
from tests.city import City, assert_problem, open_city, unchanged
from tests.city_plan import FACE, NOON, PAID, a_campaign, a_round, a_stock
from tests.tilling import fresh, moved, voucher, vouchers

pytestmark = pytest.mark.asyncio(loop_scope="module")

SHOP, OTHER = "NOODLES", "DUMPLINGS"
HOMES = pytest.mark.parametrize("is_here", [True, False], ids=["number_at_home", "number_elsewhere"])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def city(cluster: stores.Cluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[City]:
    plan = a_campaign("restoring", a_round("now", NOON, a_stock("dining", quantity=99)))
    async with open_city(cluster, tmp_path_factory.mktemp("finds"), campaigns=[plan]) as made:
        yield made


@HOMES
async def test_a_payment_is_found_with_all_that_was_done_for_it(city: City, is_here: bool) -> None:
    code = await voucher(city)
    order = await fresh(city, Scope.ORDER, SHOP, code, is_here=is_here)
    lock = (await city.hold(SHOP, code, number=f"found-hold-{is_here}", order=order)).json
    path = f"/v1/redemptions?order_no={order}"
    assert (await city.get(SHOP, path)).json == {"redemptions": [], "holds": [lock]}
    await city.cancel(SHOP, lock["hold_request_no"])
    use = (await city.redeem(SHOP, code, order=order)).json
    await city.refund(SHOP, use["use_request_no"], number=f"found-back-{is_here}")
    await city.hold(SHOP, code, number=f"another-{is_here}")  # for another payment
    async with unchanged(city):
        found = (await city.get(SHOP, path)).json
        assert_problem(await city.get(OTHER, path), Code.RESOURCE_NOT_EXISTS)
    assert found["holds"] == [lock | {"state": "CANCELLED"}]
    [redemption] = found["redemptions"]
    assert redemption == (await city.get(SHOP, f"/v1/redemptions/{use['use_request_no']}")).json
    assert (redemption["order_no"], redemption["state"], redemption["refund_request_no"]) == (
        order,
        "REFUNDED",
        f"found-back-{is_here}",
    )


async def test_a_voucher_is_found_with_all_that_this_shop_did_with_it(city: City) -> None:
    code, other = await vouchers(city, 2)
    for shop in (SHOP, OTHER):
        use = f"by-code-{shop}"
        assert (await city.hold(shop, code, number=use)).status == 200
        assert (await city.confirm(shop, use, number=use)).status == 200
        assert (await city.refund(shop, use)).status == 200
        assert (await city.hold(shop, code, number=f"later-{shop}")).status == 200
        assert (await city.cancel(shop, f"later-{shop}")).status == 200
    async with unchanged(city):
        found = (await city.get(SHOP, f"/v1/redemptions?voucher_code={code}")).json
        assert_problem(await city.get("HOTPOT", f"/v1/redemptions?voucher_code={code}"), Code.RESOURCE_NOT_EXISTS)
        assert_problem(await city.get(SHOP, f"/v1/redemptions?voucher_code={other}"), Code.RESOURCE_NOT_EXISTS)
    assert [use["use_request_no"] for use in found["redemptions"]] == [f"by-code-{SHOP}"]
    assert [(hold["hold_request_no"], hold["state"]) for hold in found["holds"]] == [(f"later-{SHOP}", "CANCELLED")]


async def test_uses_of_a_voucher_come_newest_first(city: City) -> None:
    code = await voucher(city)
    for number in ("z-oldest", "m-middle", "a-newest"):
        assert (await city.redeem(SHOP, code, number=number)).status == 200
        await city.refund(SHOP, number)
    found = (await city.get(SHOP, f"/v1/redemptions?voucher_code={code}")).json
    assert [use["use_request_no"] for use in found["redemptions"]] == ["a-newest", "m-middle", "z-oldest"]


async def test_a_redemption_given_back_in_parts_tells_the_last_refund_and_the_sums(city: City) -> None:
    code = await voucher(city)
    assert (await city.redeem(SHOP, code, number="parts-use")).status == 200
    path, seen = "/v1/redemptions/parts-use", []
    for number, refund_fen in (("z-first", 1_000), ("a-second", 500), ("m-last", PAID - 1_500)):
        back = (await city.refund(SHOP, "parts-use", number=number, refund_fen=refund_fen)).json
        found = (await city.get(SHOP, path)).json
        assert found["refunded_at"] == back["refunded_at"]
        seen.append((found["state"], found["refund_request_no"], found["refund_fen"], found["subsidy_back_fen"]))
    assert seen == [
        ("PART_REFUNDED", "z-first", 1_000, FACE * 1_000 // PAID),
        ("PART_REFUNDED", "a-second", 1_500, FACE * 1_500 // PAID),
        ("REFUNDED", "m-last", PAID, FACE),
    ]


@HOMES
async def test_a_hold_is_found_in_every_state(city: City, is_here: bool) -> None:
    one, two = await vouchers(city, 2)
    states = []
    for code in (one, two):
        number = await fresh(city, Scope.HOLD, SHOP, code, is_here=is_here)
        lock = (await city.hold(SHOP, code, number=number)).json
        path = f"/v1/holds/{number}"
        assert (await city.get(SHOP, path)).json == lock
        with moved(city, seconds=60):
            states.append((await city.get(SHOP, path)).json["state"])
        await (city.confirm if code == one else city.cancel)(SHOP, number)
        async with unchanged(city):
            states.append((await city.get(SHOP, path)).json["state"])
            assert_problem(await city.get(OTHER, path), Code.RESOURCE_NOT_EXISTS)
        with moved(city, seconds=60):
            assert (await city.get(SHOP, path)).json["state"] == states[-1]
    assert states == ["RUN_OUT", "CONFIRMED", "RUN_OUT", "CANCELLED"]


async def test_what_was_refused_is_not_found(city: City) -> None:
    code = await voucher(city)
    for is_here in (True, False):
        number = await fresh(city, Scope.USE, SHOP, code, is_here=is_here)
        order = await fresh(city, Scope.ORDER, SHOP, code, is_here=is_here)
        assert (await city.redeem(SHOP, code, number=number, order=order, bill_fen=5_999)).rule is not None
        assert_problem(await city.get(SHOP, f"/v1/redemptions/{number}"), Code.RESOURCE_NOT_EXISTS)
        assert_problem(await city.get(SHOP, f"/v1/redemptions?order_no={order}"), Code.RESOURCE_NOT_EXISTS)


@pytest.mark.parametrize(
    "path",
    [
        "/v1/redemptions",
        "/v1/redemptions?order_no=abc",
        "/v1/redemptions?order_no=order-0001&voucher_code=A",
        "/v1/redemptions?voucher_code=",
        "/v1/redemptions?voucher_code=" + "A" * 65,
        "/v1/redemptions/abc",
        "/v1/holds/abc",
        "/v1/holds/" + "a" * 41,
    ],
)
async def test_a_question_that_is_not_one(city: City, path: str) -> None:
    async with unchanged(city):
        assert_problem(await city.get(SHOP, path), Code.PARAM_ERROR)
        forged = await city.call(city.redemption, SHOP, "GET", path, sign={"path": "/v1/redemptions/other1"})
        assert_problem(forged, Code.SIGN_ERROR)
