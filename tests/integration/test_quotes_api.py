"""POST /v1/quotes: the best of several vouchers, why not the others, and nothing kept of it."""

from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from issuer.campaign.model import RedeemCap
from kernel.errors import Code
from kernel.till_codes import TillSeeds, till_code, window_of
from redemption.lockout import TERMINAL_MAX
from redemption.wire import QUOTE_CODES_MAX
from tests import stores
from tests.city import CODE_KEYS, City, Reply, assert_problem, open_city, unchanged
from tests.city_plan import BILL, FACE, NOON, a_campaign, a_round, a_stock, person
from tests.tilling import at, voucher, vouchers

pytestmark = pytest.mark.asyncio(loop_scope="module")

BIG = 3_000
SHOP = "NOODLES"
PLAN = a_campaign(
    "plain",
    a_round(
        "now",
        NOON,
        a_stock("dining", quantity=99),
        a_stock("large", face_fen=BIG, quantity=99),
        a_stock("mall", category_id="mall"),
    ),
    limit=9,
)
STRICT = msgspec.structs.replace(
    a_campaign("strict", a_round("only", NOON, a_stock("alone", quantity=20)), limit=9),
    redeem_caps=(RedeemCap(period="MONTH", is_per_partner=False, face_fen_max=FACE),),
)
STRICT = msgspec.structs.replace(STRICT, offer=msgspec.structs.replace(STRICT.offer, stacks_with=("SHOP",)))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def city(cluster: stores.Cluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[City]:
    async with open_city(cluster, tmp_path_factory.mktemp("quotes"), campaigns=[PLAN, STRICT]) as made:
        yield made


def said(reply: Reply) -> dict[str, str]:
    """For each code BEST, the rule, or the problem's code; in the order sent."""
    assert reply.status == 200, reply
    return {one["voucher_code"]: _word(one) for one in reply.json["vouchers"]}


def _word(one: dict[str, Any]) -> str:
    if one["is_best"]:
        assert "problem" not in one
        return "BEST"
    assert one["problem"]["detail"] and one["problem"]["words"]
    return str(one["problem"].get("rule") or one["problem"]["code"])


async def test_the_best_of_several_and_why_not_the_others(city: City) -> None:
    small, big, mall = await voucher(city), await voucher(city, "large"), await voucher(city, "mall")
    async with unchanged(city):
        reply = await city.quote(SHOP, [small, mall, big], bill_fen=10_000)
        less = await city.quote(SHOP, [big, small], bill_fen=BILL)
        nothing = await city.quote(SHOP, [big, small], bill_fen=5_999)
    assert list(said(reply).items()) == [(small, "NOT_CHOSEN"), (mall, "CATEGORY"), (big, "BEST")]
    assert (reply.json["bill_fen"], reply.json["vouchers"][2]) == (
        10_000,
        {
            "voucher_code": big,
            "is_best": True,
            "stock_id": "large",
            "discount_fen": BIG,
            "to_pay_fen": 10_000 - BIG,
            "subsidy_fen": BIG,
        },
    )
    assert said(less) == {big: "TRANSACTION_MINIMUM", small: "BEST"}
    assert set(said(nothing).values()) == {"TRANSACTION_MINIMUM"}
    paid = await city.redeem(SHOP, big, bill_fen=10_000)
    assert paid.json["to_pay_fen"] == 10_000 - BIG, "as quoted"
    assert said(await city.quote(SHOP, [small, big], bill_fen=10_000)) == {
        small: "BEST",
        big: Code.USED_BY_ANOTHER_ORDER,
    }


async def test_of_two_alike_one_is_best_and_one_voucher_spelled_twice_is_one(city: City) -> None:
    one, two = await vouchers(city, 2)
    async with unchanged(city):
        first, again = said(await city.quote(SHOP, [one, two])), said(await city.quote(SHOP, [two, one]))
        spelled = said(await city.quote(SHOP, [one, one.lower()]))
    assert first == again
    assert sorted(first.values()) == ["BEST", "NOT_CHOSEN"]
    assert spelled == {one: "BEST", one.lower(): "BEST"}


async def test_what_cannot_be_used_is_told_and_the_rest_quoted(city: City) -> None:
    used, held, returned, good = await vouchers(city, 4)
    assert (await city.redeem(SHOP, used)).status == 200
    assert (await city.hold(SHOP, held, number="quote-held")).status == 200
    assert (await city.redeem(SHOP, returned, number="quote-use")).status == 200
    assert (await city.refund(SHOP, "quote-use", refund_fen=1)).status == 200
    confirming = (await city.claim("dining", person(1))).json["voucher_code"]
    async with unchanged(city):
        told = said(await city.quote("DUMPLINGS", [used, held, returned, confirming, good]))
        mine = said(await city.quote(SHOP, [held]))
    expected = [Code.USED_BY_ANOTHER_ORDER, Code.LOCKED_BY_ANOTHER_ORDER, Code.USED_BY_ANOTHER_ORDER, Code.CONFIRMING]
    assert list(told.values()) == [*expected, "BEST"]
    assert mine == {held: Code.LOCKED_BY_ANOTHER_ORDER}
    await city.cancel(SHOP, "quote-held")
    await city.drain()
    assert sorted(said(await city.quote(SHOP, [held, confirming])).values()) == ["BEST", "NOT_CHOSEN"]


async def test_a_voucher_that_ran_out_or_whose_person_is_at_the_cap(city: City) -> None:
    one, two = await city.claim_many("alone", [person(2)] * 2)
    with at(city, NOON + timedelta(days=7)):
        assert said(await city.quote(SHOP, [one])) == {one: "EXPIRED"}
    assert (await city.redeem(SHOP, one)).status == 200
    async with unchanged(city):
        assert said(await city.quote(SHOP, [two])) == {two: "REDEEM_CAP_MONTH"}


@pytest.mark.parametrize(
    ("other_offers", "outcome"),
    [([], "BEST"), (["SHOP"], "BEST"), (["PLATFORM"], "NOT_STACKABLE"), (["SHOP", "PLATFORM"], "NOT_STACKABLE")],
)
async def test_other_offers_stand_against_a_voucher(city: City, other_offers: Sequence[str], outcome: str) -> None:
    alone = await voucher(city, "alone")
    assert said(await city.quote(SHOP, [alone], other_offers=other_offers)) == {alone: outcome}
    plain = await voucher(city)
    assert said(await city.quote(SHOP, [plain, alone], other_offers=other_offers))[plain] in ("BEST", "NOT_CHOSEN")


async def test_ten_codes_and_no_more(city: City) -> None:
    codes = await vouchers(city, QUOTE_CODES_MAX)
    async with unchanged(city):
        told = said(await city.quote(SHOP, codes))
        for wrong in ([*codes, codes[0]], [], [""], ["A" * 65], [1]):
            assert_problem(await city.quote(SHOP, wrong), Code.PARAM_ERROR)  # type: ignore[arg-type]
        assert_problem(await city.quote(SHOP, codes, bill_fen=0), Code.PARAM_ERROR)
        assert_problem(await city.quote(SHOP, codes, other_offers=["BANK"]), Code.PARAM_ERROR)
    assert sorted(told.values()) == ["BEST", *["NOT_CHOSEN"] * (QUOTE_CODES_MAX - 1)]


async def test_codes_of_nobody_lock_the_terminal_and_old_screens_do_not(city: City) -> None:
    """Last of its shop: the terminal stays locked."""
    good = await voucher(city)
    voucher_id = city.codes.decode(good)
    assert voucher_id is not None
    old = till_code(TillSeeds(CODE_KEYS).of(voucher_id), window_of(city.clock.now()) - 10)
    wrong = [good[:-1] + letter for letter in "0123456789" if good[-1] != letter]
    for _ in range(2 * TERMINAL_MAX):
        assert said(await city.quote("HOTPOT", [old, good])) == {old: Code.RESOURCE_NOT_EXISTS, good: "BEST"}
        looked_up = await city.get("HOTPOT", f"/v1/redemptions?voucher_code={old}")
        assert_problem(looked_up, Code.RESOURCE_NOT_EXISTS)
    told = said(await city.quote("HOTPOT", [good, *wrong[: TERMINAL_MAX - 1]]))
    assert list(told.values()) == ["BEST", *[Code.RESOURCE_NOT_EXISTS] * (TERMINAL_MAX - 1)]
    fifth = await city.get("HOTPOT", f"/v1/redemptions?voucher_code={wrong[-1]}")
    assert_problem(fifth, Code.RESOURCE_NOT_EXISTS)
    async with unchanged(city):
        assert_problem(await city.quote("HOTPOT", [good]), Code.TERMINAL_LOCKED)
        assert_problem(await city.get("HOTPOT", f"/v1/redemptions?voucher_code={good}"), Code.TERMINAL_LOCKED)
    assert said(await city.quote(SHOP, [good])) == {good: "BEST"}
