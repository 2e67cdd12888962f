"""POST /v1/refunds from the till's side: what comes back, where the money goes, and what is turned away."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta

import pytest
import pytest_asyncio

from kernel.errors import Code
from redemption.handlers import TILL_BYTES_MAX
from tests import stores
from tests.city import City, assert_problem, open_city, unchanged
from tests.city_plan import BILL, FUNDED, NOON, PAID, person
from tests.hostile import (
    BAD_AMOUNTS,
    BAD_NUMBERS,
    FORGERIES,
    MALFORMED,
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
    async with open_city(cluster, tmp_path_factory.mktemp("refunds")) as made:
        await add_bad_keys(made, "NOODLES")
        yield made


@dataclass(frozen=True)
class Used:
    """A voucher that was redeemed at NOODLES."""

    code: str
    number: str


async def used(city: City, stock_id: str = "dining", shop: str = "NOODLES") -> Used:
    """A fresh redemption."""
    [code] = await city.claim_many(stock_id, [person(next(PEOPLE))])
    number = city.number("use")
    assert (await city.redeem(shop, code, number=number)).status == 200
    return Used(code, number)


async def balances(city: City) -> dict[str, int]:
    """What the accounts hold, by kind, over all campaigns."""
    rows = await city.database.pool.fetch(
        "SELECT kind::text, sum(balance_fen)::bigint AS fen FROM balance GROUP BY kind"
    )
    return {row["kind"]: row["fen"] for row in rows}


def _moved(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    moved = {kind: after.get(kind, 0) - before.get(kind, 0) for kind in before | after}
    return {kind: fen for kind, fen in moved.items() if fen}


# ---------------------------------------------------------------- given back


@pytest.mark.parametrize(
    ("stock_id", "policy", "days", "state"),
    [
        ("dining", "RESTORE", 0, "EFFECTIVE"),
        ("dining", "RESTORE", 6.99, "EFFECTIVE"),
        ("dining", "RESTORE", 7, "RETURNED"),
        ("returning", "RETURN_TO_BUDGET", 0, "RETURNED"),
        ("returning", "RETURN_TO_BUDGET", 8, "RETURNED"),
    ],
)
async def test_a_refund_gives_the_voucher_back_or_its_money(
    city: City, stock_id: str, policy: str, days: float, state: str
) -> None:
    use = await used(city, stock_id)
    before = await balances(city)
    try:
        city.clock.move_to(NOON + timedelta(days=days, seconds=60 if days < 1 else 0))
        reply = await city.refund("NOODLES", use.number, number=f"back-{stock_id}-{int(days * 100)}")
    finally:
        city.clock.move_to(NOON + timedelta(seconds=60))
    assert reply.status == 200
    assert reply.json == {
        "refund_request_no": f"back-{stock_id}-{int(days * 100)}",
        "use_request_no": use.number,
        "refund_fen": PAID,
        "voucher_state": state,
        "subsidy_fen": FUNDED[policy],
        "refunded_at": reply.json["refunded_at"],
    }
    goes_to = "ISSUED" if state == "EFFECTIVE" else "RETURNED"
    assert _moved(before, await balances(city)) == {"PAYABLE": -FUNDED[policy], goes_to: FUNDED[policy]}
    again = await city.redeem("DUMPLINGS", use.code)
    if state == "EFFECTIVE":
        assert again.status == 200
    else:
        assert_problem(again, Code.USED_BY_ANOTHER_ORDER)


async def test_a_voucher_lives_again_as_often_as_it_is_given_back(city: City) -> None:
    use, shop = await used(city), "NOODLES"
    for next_shop in ("DUMPLINGS", "NOODLES", "NOODLES"):
        assert (await city.refund(shop, use.number)).status == 200
        use, shop = Used(use.code, city.number("use")), next_shop
        assert (await city.redeem(shop, use.code, number=use.number)).status == 200
        assert (await city.redeem("HOTPOT", use.code)).code == Code.USED_BY_ANOTHER_ORDER
    voucher_id = city.codes.decode(use.code)
    assert await city.fetchval("SELECT max(attempt) FROM redemption WHERE voucher_id = $1", voucher_id) == 4


async def test_the_same_request_brings_the_same_bytes_even_when_the_voucher_was_used_again(city: City) -> None:
    use = await used(city)
    first = await city.refund("NOODLES", use.number, number="replay-1")
    async with unchanged(city):
        assert (await city.refund("NOODLES", use.number, number="replay-1")).body == first.body
    await city.redeem("DUMPLINGS", use.code)
    async with unchanged(city):
        again = await city.refund("NOODLES", use.number, number="replay-1")
    assert (again.body, again.headers["Idempotent-Replayed"]) == (first.body, "true")


async def test_a_replayed_redemption_after_its_refund_redeems_nothing(city: City) -> None:
    [code] = await city.claim_many("dining", [person(next(PEOPLE))])
    first = await city.redeem("NOODLES", code, number="once-only", order="once-only")
    await city.refund("NOODLES", "once-only")
    async with unchanged(city):
        again = await city.redeem("NOODLES", code, number="once-only", order="once-only")
    assert again.body == first.body
    found = (await city.call(city.redemption, "NOODLES", "GET", "/v1/redemptions/once-only")).json
    assert (found["state"], found["refund_fen"]) == ("REFUNDED", PAID)


# ---------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("refund_fen", "rule"),
    [
        (PAID + 1, "REFUND_EXCEEDS_PAID"),
        (BILL, "REFUND_EXCEEDS_PAID"),
        (10**12, "REFUND_EXCEEDS_PAID"),
        (0, "REFUND_OF_NOTHING"),
    ],
)
async def test_more_than_was_paid_or_nothing_is_refused(city: City, refund_fen: int, rule: str) -> None:
    use = await used(city)
    async with unchanged(city):
        reply = await city.refund("NOODLES", use.number, number=f"amount-{refund_fen}", refund_fen=refund_fen)
    assert_problem(reply, Code.RULE_LIMIT, rule)
    assert reply.json["pointer"] == "refund_fen"
    assert (await city.refund("NOODLES", use.number, number=f"amount-{refund_fen}")).status == 200


async def test_a_second_refund_under_another_number_is_refused(city: City) -> None:
    use = await used(city)
    assert (await city.refund("NOODLES", use.number)).status == 200
    async with unchanged(city):
        assert_problem(await city.refund("NOODLES", use.number), Code.RULE_LIMIT, "ALREADY_REFUNDED")


async def test_other_uses_of_a_number_are_mismatches(city: City) -> None:
    use, other = await used(city), await used(city)
    assert (await city.refund("NOODLES", use.number, number="mismatch-1")).status == 200
    async with unchanged(city):
        for changed in (
            await city.refund("NOODLES", other.number, number="mismatch-1"),
            await city.refund("NOODLES", use.number, number="mismatch-1", refund_fen=PAID - 1),
        ):
            assert_problem(changed, Code.IDEMPOTENCY_MISMATCH)
            assert changed.json["pointer"] == "refund_request_no"
    assert (await city.refund("NOODLES", other.number)).status == 200


async def test_another_shops_redemption_is_as_if_it_were_not(city: City) -> None:
    use = await used(city)
    async with unchanged(city):
        for shop, number in (("DUMPLINGS", use.number), ("EMPORIUM", use.number), ("NOODLES", "never-was")):
            assert_problem(await city.refund(shop, number), Code.RESOURCE_NOT_EXISTS)


async def test_a_number_that_never_redeemed_cannot_be_refunded(city: City) -> None:
    """A number is registered before its redemption is booked; when the booking is lost, it stands alone."""
    [code] = await city.claim_many("dining", [person(next(PEOPLE))])
    await city.database.pool.execute("ALTER FUNCTION redeem_batch RENAME TO redeem_batch_away")
    try:
        broken = await city.redeem("NOODLES", code, number="alone-1", order="alone-1")
    finally:
        await city.database.pool.execute("ALTER FUNCTION redeem_batch_away RENAME TO redeem_batch")
    assert_problem(broken, Code.SYSTEM_BUSY)
    async with unchanged(city):
        assert_problem(await city.refund("NOODLES", "alone-1"), Code.RESOURCE_NOT_EXISTS)
        found = await city.call(city.redemption, "NOODLES", "GET", "/v1/redemptions/alone-1")
        assert_problem(found, Code.RESOURCE_NOT_EXISTS)
    # The retry finds out: the number is known, its redemption is not, so it is booked now.
    assert (await city.redeem("NOODLES", code, number="alone-1", order="alone-1")).status == 200
    assert (await city.refund("NOODLES", "alone-1")).status == 200


# ---------------------------------------------------------------- turned away


BAD_REFUNDS: dict[str, Flaw] = {
    **MALFORMED,
    **bad_values("refund_request_no", BAD_NUMBERS),
    **bad_values("use_request_no", BAD_NUMBERS),
    **bad_values("refund_fen", {name: value for name, value in BAD_AMOUNTS.items() if name != "zero"}),
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def good(city: City) -> Ask:
    """A good refund that the hostile ones are made from."""
    use = await used(city)
    body = {"refund_request_no": "hostile-1", "use_request_no": use.number, "refund_fen": PAID}
    return Ask("redemption", "NOODLES", "POST", "/v1/refunds", body)


@pytest.mark.parametrize("name", FORGERIES)
async def test_a_forgery_is_turned_away(city: City, good: Ask, name: str) -> None:
    async with unchanged(city):
        assert_problem(await FORGERIES[name](city, good), Code.SIGN_ERROR)


@pytest.mark.parametrize("name", BAD_REFUNDS)
async def test_a_malformed_refund_is_turned_away(city: City, good: Ask, name: str) -> None:
    async with unchanged(city):
        assert_problem(await BAD_REFUNDS[name](city, good), Code.PARAM_ERROR)


@pytest.mark.parametrize("name", too_large(0))
async def test_a_body_that_is_too_large_is_turned_away(city: City, good: Ask, name: str) -> None:
    async with unchanged(city):
        assert_problem(await too_large(TILL_BYTES_MAX)[name](city, good), Code.BODY_TOO_LARGE)


async def test_the_good_request_is_good(city: City, good: Ask) -> None:
    """The control of all tables above: without a flaw the very same request is granted."""
    assert (await good.send(city)).status == 200


# ---------------------------------------------------------------- debts (last: it closes the day)


async def test_a_shop_may_owe_the_city_only_so_much(city: City) -> None:
    """Refunds of sales of closed days make debts, to a limit: here one voucher's worth in each of two buckets."""
    uses = [await used(city, shop="HOTPOT") for _ in range(6)]
    limit_fen = FUNDED["RESTORE"]
    city.clock.move_to(NOON + timedelta(days=1))
    try:
        await _pay_out(city, limit_fen)
        replies = [await city.refund("HOTPOT", use.number) for use in uses]
        assert all(fen >= -limit_fen for fen in await _owed(city))
        async with unchanged(city, ignoring=["request_number"]):  # a till's number stays bound to its refund
            again = [await city.refund("HOTPOT", use.number, number=f"debt-{use.number}") for use in uses]
        await _may_owe(city, 1_000_000)
        later = [await city.refund("HOTPOT", use.number, number=f"debt-{use.number}") for use in uses]
    finally:
        city.clock.move_to(NOON + timedelta(seconds=60))
    given = sum(reply.status == 200 for reply in replies)
    assert 1 <= given <= 2
    for reply in (*replies, *again):
        if reply.status != 200:
            assert_problem(reply, Code.RULE_LIMIT, reply.rule)
            assert reply.rule in ("REFUND_DEBT", "ALREADY_REFUNDED")
    assert sum(reply.rule == "REFUND_DEBT" for reply in again) == len(uses) - given
    assert sum(reply.status == 200 for reply in later) == len(uses) - given


async def _owed(city: City) -> list[int]:
    owed = await city.database.pool.fetch(
        "SELECT sum(balance_fen)::bigint AS fen FROM balance JOIN merchant USING (merchant_no)"
        " WHERE kind = 'PAYABLE' AND merchant_id = 'HOTPOT' GROUP BY bucket"
    )
    return [row["fen"] for row in owed]


async def _may_owe(city: City, limit_fen: int) -> None:
    query = "UPDATE merchant SET refund_debt_fen_max = $1 WHERE merchant_id = 'HOTPOT'"
    await city.database.pool.execute(query, limit_fen)


async def _pay_out(city: City, limit_fen: int) -> None:
    """Closes the day and moves all that HOTPOT is owed on its way to the bank."""
    pool = city.database.pool
    for bucket in (0, 1):
        assert await pool.fetchval("SELECT close_day($1::smallint, $2, $3)", bucket, NOON.date(), city.clock.now())
    await _may_owe(city, limit_fen)
    await pool.execute(
        "INSERT INTO transfer (bucket, campaign_no, merchant_no, kind, debit, credit, amount_fen, reference, booked_at)"
        " SELECT bucket, campaign_no, merchant_no, 'SETTLE_HOLD', 'PAYABLE', 'SETTLING', balance_fen,"
        " 'test ' || campaign_no, $1 FROM balance JOIN merchant USING (merchant_no)"
        " WHERE kind = 'PAYABLE' AND merchant_id = 'HOTPOT' AND balance_fen > 0",
        city.clock.now(),
    )
