"""Refunds in parts, by all three policies: cash, subsidy, voucher and books agree to the fen."""

from collections.abc import AsyncIterator, Sequence
from datetime import date, timedelta

import msgspec
import pytest
import pytest_asyncio

from issuer.callbacks.app import make_app
from issuer.campaign.model import Campaign
from kernel.errors import Code
from redemption.numbers import Scope
from redemption.settlement.batch import Batch
from redemption.settlement.settle import approve, propose
from tests import stores
from tests.callback_world import eventually
from tests.city import City, assert_problem, open_city, unchanged
from tests.city_plan import NOON, a_campaign, a_round, a_stock
from tests.integration.test_callbacks_city import told
from tests.tilling import assert_audited, at, balances, bucket_of_code, fresh, moving, voucher, vouchers

pytestmark = pytest.mark.asyncio(loop_scope="module")

SHOP = "NOODLES"
DAY, NEXT = NOON.date(), NOON.date() + timedelta(days=1)
POLICIES = ("RESTORE", "RETURN_TO_BUDGET", "PAID_SHARE")
FACE, FUNDED = 1_777, 1_422
"""Primes among friends: no part of them comes out even. The shop bears a fifth."""
BILL = 5_003
PAID = BILL - FACE


def _plan(policy: str) -> Campaign:
    stock = a_stock(stock_of(policy), quantity=50, face_fen=FACE, funded_fen=FUNDED)
    stock = msgspec.structs.replace(stock, transaction_minimum_fen=FACE)
    return a_campaign(policy.lower().replace("_", "-"), a_round("now", NOON, stock), policy=policy, shop_bp=2_000)


def stock_of(policy: str) -> str:
    """The one stock under a policy."""
    return policy.lower()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def city(cluster: stores.Cluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[City]:
    folder = tmp_path_factory.mktemp("parts")
    async with open_city(cluster, folder, campaigns=[_plan(policy) for policy in POLICIES]) as made:
        yield made


async def used(city: City, policy: str, *, shop: str = SHOP, bill_fen: int = BILL) -> tuple[str, str]:
    """A fresh voucher's code, and the number of its redemption."""
    code, number = await voucher(city, stock_of(policy)), city.number("use")
    assert (await city.redeem(shop, code, number=number, bill_fen=bill_fen)).status == 200
    return code, number


def shares(parts: Sequence[int]) -> list[int]:
    """What goes back of the subsidy with each part, in proportion to the cash; the rest with the last fen."""
    so_far = [sum(parts[: n + 1]) for n in range(len(parts))]
    back = [FUNDED if cash == PAID else FUNDED * cash // PAID for cash in so_far]
    return [now - before for now, before in zip(back, [0, *back], strict=False)]


# ---------------------------------------------------------------- parts


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(
    "parts",
    [(1, 1, 1, PAID - 3), (PAID - 1, 1), (2, 997, 1_000)],
    ids=lambda parts: "-".join(map(str, parts)),
)
async def test_parts_add_up_to_the_fen(city: City, policy: str, parts: tuple[int, ...]) -> None:
    code, number = await used(city, policy)
    goes_back = [FUNDED, *[0] * (len(parts) - 1)] if policy == "RETURN_TO_BUDGET" else shares(parts)
    replies, lost = [], 0
    for place, (cash, subsidy) in enumerate(zip(parts, goes_back, strict=True)):
        lost += subsidy
        async with moving(city, PAYABLE=-subsidy, RETURNED=subsidy):
            reply = await city.refund(SHOP, number, number=f"{number}-{place}", refund_fen=cash)
        assert (reply.status, reply.json["subsidy_fen"]) == (200, subsidy), reply
        assert reply.json["voucher_state"] == ("RETURNED" if lost == FUNDED else "USED")
        replies.append(reply)
    left = PAID - sum(parts)
    async with unchanged(city, ignoring=["callback_event"]):
        for place, reply in enumerate(replies):
            again = await city.refund(SHOP, number, number=f"{number}-{place}", refund_fen=parts[place])
            assert (again.body, again.headers["Idempotent-Replayed"]) == (reply.body, "true")
            other = await city.refund(SHOP, number, number=f"{number}-{place}", refund_fen=parts[place] + 1)
            assert_problem(other, Code.IDEMPOTENCY_MISMATCH)
        refused = await city.refund(SHOP, number, refund_fen=left + 1)
        assert_problem(refused, Code.RULE_LIMIT, "REFUND_EXCEEDS_PAID" if left else "ALREADY_REFUNDED")
        assert not left or refused.json["words"]["cashier_en"].count(f"{left / 100:.2f}") == 1, "the rest is named"
        rule = "REFUND_OF_NOTHING" if left else "ALREADY_REFUNDED"
        assert_problem(await city.refund(SHOP, number, refund_fen=0), Code.RULE_LIMIT, rule)
        assert_problem(await city.redeem("DUMPLINGS", code), Code.USED_BY_ANOTHER_ORDER)
        assert_problem(await city.hold("DUMPLINGS", code), Code.USED_BY_ANOTHER_ORDER)


@pytest.mark.parametrize(
    ("policy", "days", "state"),
    [
        ("RESTORE", 0, "EFFECTIVE"),
        ("RESTORE", 8, "RETURNED"),
        ("RETURN_TO_BUDGET", 0, "RETURNED"),
        ("PAID_SHARE", 0, "RETURNED"),
    ],
)
@pytest.mark.parametrize("bill_fen", [BILL, FACE], ids=["", "bill_of_just_the_face"])
async def test_all_at_once(city: City, policy: str, days: int, state: str, bill_fen: int) -> None:
    code, number = await used(city, policy, bill_fen=bill_fen)
    cash = bill_fen - FACE
    with at(city, city.clock.now() + timedelta(days=days)):
        kind = "ISSUED" if state == "EFFECTIVE" else "RETURNED"
        async with unchanged(city, ignoring=["callback_event"]):
            more = await city.refund(SHOP, number, refund_fen=cash + 1)
            assert_problem(more, Code.RULE_LIMIT, "REFUND_EXCEEDS_PAID")
        async with moving(city, **{"PAYABLE": -FUNDED, kind: FUNDED}):
            reply = await city.refund(SHOP, number, number=f"all-{number}", refund_fen=cash)
        assert (reply.json["voucher_state"], reply.json["subsidy_fen"], reply.json["refund_fen"]) == (
            state,
            FUNDED,
            cash,
        )
        async with unchanged(city, ignoring=["callback_event"]):
            assert (await city.refund(SHOP, number, number=f"all-{number}", refund_fen=cash)).body == reply.body
            assert_problem(await city.refund(SHOP, number, refund_fen=cash), Code.RULE_LIMIT, "ALREADY_REFUNDED")
    again = await city.redeem("DUMPLINGS", code, bill_fen=BILL)
    assert again.code == (None if state == "EFFECTIVE" else Code.USED_BY_ANOTHER_ORDER)


@pytest.mark.parametrize("is_here", [True, False], ids=["number_at_home", "number_elsewhere"])
async def test_a_refunds_number_is_one_over_both_buckets(city: City, is_here: bool) -> None:
    (code, first), (_, second) = await used(city, "PAID_SHARE"), await used(city, "PAID_SHARE")
    number = await fresh(city, Scope.REFUND, SHOP, code, is_here=is_here)
    assert (await city.refund(SHOP, first, number=number, refund_fen=10)).status == 200
    async with unchanged(city, ignoring=["callback_event"]):
        mismatch = await city.refund(SHOP, second, number=number, refund_fen=10)
        assert_problem(mismatch, Code.IDEMPOTENCY_MISMATCH)
        assert mismatch.json["pointer"] == "refund_request_no"


async def test_a_confirmed_hold_is_given_back_in_parts(city: City) -> None:
    code = await voucher(city, stock_of("RESTORE"))
    assert (await city.hold(SHOP, code, number="parts-hold", bill_fen=BILL)).status == 200
    assert (await city.confirm(SHOP, "parts-hold", number="parts-use")).status == 200
    backs = [(await city.refund(SHOP, "parts-use", refund_fen=cash)).json["subsidy_fen"] for cash in (100, PAID - 100)]
    assert backs == shares((100, PAID - 100))
    assert_problem(await city.redeem(SHOP, code, bill_fen=BILL), Code.USED_BY_ANOTHER_ORDER)


# ---------------------------------------------------------------- who hears of it


async def test_statement_flow_and_partner_tell_each_part(city: City) -> None:
    wechat = await told(city, "wechat")
    await city.serve(await make_app(city.settings("hanquan_issuer")))
    code, number = await used(city, "PAID_SHARE", shop="DUMPLINGS")
    parts = (1, 2_000, PAID - 2_001)
    backs = shares(parts)
    assert backs[0] == 0, "less than a fen: cash alone goes back"
    for place, cash in enumerate(parts):
        assert (await city.refund("DUMPLINGS", number, number=f"told-{place}", refund_fen=cash)).status == 200
    statement = (await city.get("DUMPLINGS", f"/v1/statements/{DAY}")).json
    entries = [each for each in statement["entries"] if each["use_request_no"] == number]
    assert [(each["kind"], each["bill_fen"], each["subsidy_fen"]) for each in entries] == [
        ("REDEEM", BILL, FUNDED),
        *(("REFUND", cash, -back) for cash, back in zip(parts, backs, strict=True)),
    ]
    flow = await city.database.pool.fetch(
        "SELECT refund_request_no, bill_fen, subsidy_fen FROM our_flow WHERE use_request_no = $1 AND kind = 'REFUND'"
        " AND merchant_id = 'DUMPLINGS' ORDER BY 1",
        number,
    )
    rows = [(f"told-{place}", cash, back) for place, (cash, back) in enumerate(zip(parts, backs, strict=True))]
    assert [tuple(row) for row in flow] == rows
    await eventually(lambda: sum(call.kind == "REFUNDED" for call in wechat.taken) == len(parts))
    calls = [call for call in wechat.taken if call.kind == "REFUNDED"]
    assert len({call.id for call in calls}) == len(parts)
    heard = [
        (call.voucher["refund_request_no"], call.voucher["refund_fen"], call.voucher["subsidy_fen"]) for call in calls
    ]
    assert sorted(heard) == rows
    assert {call.voucher["voucher_code"] for call in calls} == {code}


# ---------------------------------------------------------------- debts


@pytest.mark.parametrize("is_control", [False, True])
async def test_yesterday_counts_for_debts_before_it_is_closed(city: City, is_control: bool) -> None:
    """It may be closed and paid before today's refunds are. The control counts closed days only."""
    codes = await vouchers(city, 5, stock_of("RETURN_TO_BUDGET"))
    mine = next(part for b in (0, 1) if len(part := [code for code in codes if bucket_of_code(city, code) == b]) >= 3)
    uses = [f"yesterday-{is_control}-{n}" for n in range(3)]
    for code, number in zip(mine[:2], uses, strict=False):
        assert (await city.redeem("DUMPLINGS", code, number=number, bill_fen=BILL)).status == 200
    pool = city.database.pool
    room = await pool.fetchval("SELECT pg_get_functiondef('refund_room_fen'::regproc)")
    await pool.execute(
        "UPDATE merchant SET refund_debt_fen_max = $1 WHERE merchant_id = 'DUMPLINGS'", (1 + is_control) * FUNDED
    )
    with at(city, NOON + timedelta(days=1)):
        assert (await city.refund("DUMPLINGS", uses[0], refund_fen=PAID)).status == 200
        if is_control:
            counted = "r.booked_on < f.booked_on"
            assert room.count(counted) == 1
            await pool.execute(room.replace(counted, "r.booked_on < p_first_open"))
        second = await city.refund("DUMPLINGS", uses[1], refund_fen=PAID)
        await pool.execute(room)
    if is_control:
        assert second.status == 200, "the first refund was forgotten"
    else:
        assert_problem(second, Code.RULE_LIMIT, "REFUND_DEBT")
        with at(city, NOON + timedelta(days=1)):
            assert (await city.redeem("DUMPLINGS", mine[2], number=uses[2], bill_fen=BILL)).status == 200
            assert (await city.refund("DUMPLINGS", uses[2], refund_fen=PAID)).status == 200, "a sale of its own day"


# ---------------------------------------------------------------- settled sales (last: they close days)


async def settle(city: City, campaign_id: str, day: date) -> None:
    """Closes a day and has a campaign's sales of it paid out."""
    campaign_no = city.campaigns[campaign_id].campaign_no
    async with city.database.connection("hanquan_finance") as conn:
        batch = await propose(conn, campaign_no, day, "li.wei", city.clock.now())
        assert isinstance(batch, Batch), batch
        assert isinstance(await approve(conn, batch.batch_no, "zhang.min", city.clock.now()), Batch)


async def test_debts_count_the_subsidy_that_is_taken_back(city: City) -> None:
    """What a shop may owe is counted in subsidy of settled sales; cash and open sales do not count."""
    codes = await vouchers(city, 20, stock_of("PAID_SHARE"))
    mine = [code for code in codes if bucket_of_code(city, code) == bucket_of_code(city, codes[0])][:3]
    uses = [f"debt-use-{n}" for n in range(3)]
    for code, number in zip(mine[:2], uses, strict=False):
        assert (await city.redeem("HOTPOT", code, number=number, bill_fen=BILL)).status == 200
    limit = "UPDATE merchant SET refund_debt_fen_max = $1 WHERE merchant_id = 'HOTPOT'"
    with at(city, NOON + timedelta(days=1)):
        await settle(city, "paid-share", DAY)
        await city.database.pool.execute(limit, FUNDED)
        first = await city.refund("HOTPOT", uses[0], refund_fen=2_000)
        assert first.json["subsidy_fen"] == FUNDED * 2_000 // PAID
        room = FUNDED - first.json["subsidy_fen"]
        async with unchanged(city, ignoring=["request_number", "callback_event"]):
            refused = await city.refund("HOTPOT", uses[1], number="debt-back-1", refund_fen=PAID)
        assert_problem(refused, Code.RULE_LIMIT, "REFUND_DEBT")
        async with moving(city, PAYABLE=-room, RETURNED=room):
            rest = await city.refund("HOTPOT", uses[0], refund_fen=PAID - 2_000)
            assert rest.status == 200, "just what is left"
        assert (await city.refund("HOTPOT", uses[1], refund_fen=1)).json["subsidy_fen"] == 0, "cash alone is no debt"
        over = await city.refund("HOTPOT", uses[1], refund_fen=100)
        assert_problem(over, Code.RULE_LIMIT, "REFUND_DEBT")
        assert (await city.redeem("HOTPOT", mine[2], number=uses[2], bill_fen=BILL)).status == 200
        assert (await city.refund("HOTPOT", uses[2], refund_fen=PAID)).status == 200, "an open sale takes its own back"
        await city.database.pool.execute(limit, 10 * FUNDED)
        last = await city.refund("HOTPOT", uses[1], number="debt-back-2", refund_fen=PAID - 1)
        assert last.json["subsidy_fen"] == FUNDED
        statement = (await city.get("HOTPOT", f"/v1/statements/{NEXT}")).json
        assert (statement["refunded_fen"], statement["closing_fen"]) == (3 * FUNDED, -2 * FUNDED)
        yesterday = (await city.get("HOTPOT", f"/v1/statements/{DAY}")).json
        assert (yesterday["redeemed_fen"], yesterday["refunded_fen"]) == (2 * FUNDED, 0)


@pytest.mark.parametrize("policy", POLICIES)
async def test_parts_over_a_close_are_booked_on_two_days(city: City, policy: str) -> None:
    moment = NOON + timedelta(days=3 + POLICIES.index(policy))
    backs = [FUNDED, 0] if policy == "RETURN_TO_BUDGET" else shares((1_000, PAID - 1_000))
    with at(city, moment):
        code, number = await used(city, policy)
        assert (await city.refund(SHOP, number, refund_fen=1_000)).json["subsidy_fen"] == backs[0]
    with at(city, moment + timedelta(days=1)):
        if policy == "RETURN_TO_BUDGET":  # nothing is left to pay
            async with city.database.connection("hanquan_finance") as conn:
                for bucket in (0, 1):
                    await conn.fetchval("SELECT close_day($1::smallint, $2, now())", bucket, moment.date())
        else:
            await settle(city, policy.lower().replace("_", "-"), moment.date())
        await city.database.pool.execute("UPDATE merchant SET refund_debt_fen_max = 1000000")
        last = await city.refund(SHOP, number, refund_fen=PAID - 1_000)
        assert (last.json["subsidy_fen"], last.json["voucher_state"]) == (backs[1], "RETURNED")
        refunds = await city.database.pool.fetch(
            "SELECT refund_no, booked_on, credit::text AS credit FROM refund WHERE voucher_id = $1 ORDER BY 1",
            city.codes.decode(code),
        )
        assert [tuple(row) for row in refunds] == [
            (1, moment.date(), "RETURNED"),
            (2, moment.date() + timedelta(days=1), "RETURNED"),
        ]


async def test_the_books_are_right_after_all_that(city: City) -> None:
    held = await balances(city)
    assert held["RETURNED"] > 0
    await assert_audited(city)
