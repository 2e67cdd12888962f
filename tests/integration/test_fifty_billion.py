"""50,000,000,000.00 yuan in one campaign, in vouchers of the largest face: issued, used, given back, paid, expired and
returned.

They are won in packs over HTTP, drained, and used at tills over HTTP. After each step every account holds what was
added up here, by hand; at the end the audit finds nothing. Then: no sum overflows, and what is too large stays out.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime, timedelta

import asyncpg
import pytest
import pytest_asyncio

from issuer.campaign.model import Campaign
from kernel.errors import Code
from kernel.money import AMOUNT_FEN_MAX, format_yuan
from kernel.postgres import Connection
from redemption.settlement.expire import Returned, ReturnTo, expire_over, return_unused
from redemption.settlement.settle import close_day
from stack.audit import audit_city
from tests import stores
from tests.city import City, assert_problem, open_city, unchanged
from tests.city_plan import NOON, a_campaign, a_pack, a_round, a_stock, person
from tests.settling import answered, approved_again, proposed
from tests.town import Town, assert_books

pytestmark = pytest.mark.asyncio(loop_scope="module")

FACE = 100_000_000
"""The largest there is: a million yuan."""
QUANTITIES = (50_000, 10_000)
"""Vouchers of each campaign: fifty billion yuan in one, ten in another, which treats refunds differently."""
CAMPAIGNS = len(QUANTITIES)
PACK = 20
CALL = 1_000
WHOLE = sum(QUANTITIES) * FACE
USED, BACK = 40, 8
"""Of each campaign: how many vouchers were used, and how many of those uses were refunded."""
BILL = 3 * FACE
ACCOUNT_FEN_MAX = 10**15
DAY = NOON.date()


def grand(number: int) -> Campaign:
    """A campaign of its quantity. In every other one, what is refunded goes back to the budget."""
    stock = a_stock(f"grand_{number}", quantity=QUANTITIES[number], face_fen=FACE)
    offered = a_round("r1", NOON, stock, packs=[a_pack(f"bundle_{number}", {stock.stock_id: PACK})])
    policy = "RETURN_TO_BUDGET" if number % 2 else "RESTORE"
    return a_campaign(f"grand-{number}", offered, policy=policy)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def city(cluster: stores.Cluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[City]:
    campaigns = [grand(number) for number in range(CAMPAIGNS)]
    async with open_city(cluster, tmp_path_factory.mktemp("billions"), campaigns=campaigns) as made:
        yield made


async def claim_all(city: City) -> list[list[str]]:
    """Every pack there is, drained; the codes of each campaign's vouchers."""
    codes: list[list[str]] = [[] for _ in QUANTITIES]
    for number, quantity in enumerate(QUANTITIES):
        citizens = range(number * 10_000, number * 10_000 + quantity // PACK)
        for first in range(0, len(citizens), CALL):
            claims = [
                {"out_request_no": city.number(), "stock_id": f"bundle_{number}", "person_token": person(citizen)}
                for citizen in citizens[first : first + CALL]
            ]
            reply = await city.call(city.issuer, "wechat", "POST", "/v1/claims:batch", {"claims": claims})
            won = [item["claim"]["vouchers"] for item in reply.json["results"]]
            codes[number] += [voucher["voucher_code"] for vouchers in won for voucher in vouchers]
    assert await city.drain() == sum(QUANTITIES)
    return codes


async def use(city: City, codes: Sequence[Sequence[str]]) -> None:
    """Uses some of each campaign's vouchers and refunds some of the uses."""
    shops = ("NOODLES", "DUMPLINGS")
    used = [
        (f"grand-{number}-{n:03}", code, n)
        for number, part in enumerate(codes)
        for n, code in enumerate(part[: USED * PACK : PACK])  # each of another person
    ]
    replies = await asyncio.gather(*(city.redeem(shops[n % 2], code, number=no, bill_fen=BILL) for no, code, n in used))
    assert {reply.status for reply in replies} == {200}
    backs = [(no, n) for no, _, n in used if n < BACK]
    replies = await asyncio.gather(*(city.refund(shops[n % 2], no, refund_fen=BILL - FACE) for no, n in backs))
    assert {reply.status for reply in replies} == {200}


async def holds(city: City, expected: Mapping[str, int]) -> None:
    """Every kind of account holds this much over all campaigns, and the books agree with their rows."""
    rows = await city.database.pool.fetch("SELECT kind::text, sum(balance_fen)::bigint FROM balance GROUP BY kind")
    assert {kind: fen for kind, fen in rows if fen} == {kind: fen for kind, fen in expected.items() if fen}
    async with city.database.connection() as conn:
        await assert_books(conn)


async def paid(city: City, conn: Connection, morning: datetime) -> int:
    """Settles the day for every campaign, to the bank's last answer; how many fen left the bank."""
    town = Town(conn=conn, buckets=2)
    fen = 0
    for campaign in city.campaigns.values():
        batch = await proposed(town, DAY, campaign_no=campaign.campaign_no)
        outcome = await answered(town, await approved_again(town, batch))
        fen += outcome.paid_fen
    return fen


async def test_fifty_billion_yuan_from_the_fund_to_the_fund(city: City) -> None:
    [largest, *_] = city.campaigns.values()
    assert format_yuan(await city.fetchval(_FUND, largest.campaign_no)) == "50,000,000,000.00"
    await holds(city, {"CITY_FUND": WHOLE, "BUDGET": WHOLE})

    codes = await claim_all(city)
    assert await city.fetchval("SELECT sum(s.face_value_fen) FROM voucher JOIN stock s USING (stock_no)") == WHOLE
    assert await city.fetchval("SELECT sum(amount_fen) FROM transfer WHERE kind = 'ISSUE'") == WHOLE
    await holds(city, {"CITY_FUND": WHOLE, "ISSUED": WHOLE})

    await use(city, codes)
    uses, backs = CAMPAIGNS * USED * FACE, CAMPAIGNS * BACK * FACE
    lost = sum(number % 2 for number in range(CAMPAIGNS)) * BACK * FACE
    live = WHOLE - uses + backs - lost
    owed = uses - backs
    await holds(city, {"CITY_FUND": WHOLE, "ISSUED": live, "PAYABLE": owed, "RETURNED": lost})

    async with city.database.connection("hanquan_finance") as conn:
        over = NOON + timedelta(days=30)
        assert await paid(city, conn, over) == owed
        await holds(city, {"CITY_FUND": WHOLE, "ISSUED": live, "PAID": owed, "RETURNED": lost})

        expired = await expire_over(conn, over)
        assert sum(each.voucher_count for each in expired) * FACE == live
        await holds(city, {"CITY_FUND": WHOLE, "PAID": owed, "RETURNED": WHOLE - owed})

        await close_day(conn, over.date() - timedelta(days=1), over)
        for quantity, (name, campaign) in zip(QUANTITIES, city.campaigns.items(), strict=True):
            rest = quantity * FACE - (USED - BACK) * FACE
            done = await return_unused(
                conn, campaign.campaign_no, ReturnTo.CITY_FUND, rest, "li.wei", f"end of {name}", over
            )
            assert isinstance(done, Returned), done
    await holds(city, {"CITY_FUND": owed, "PAID": owed})
    async with city.database.connection("hanquan_auditor") as conn:
        report = await audit_city(conn, city.valkey.client)
    assert report.broken == ()


# ---------------------------------------------------------------- the edge


async def test_a_bill_above_the_limit_is_refused_at_the_door(city: City) -> None:
    async with unchanged(city):
        for bill_fen in (AMOUNT_FEN_MAX + 1, 10**15, 2**63, 2**64):
            assert_problem(await city.redeem("NOODLES", "A" * 26, bill_fen=bill_fen), Code.PARAM_ERROR)
            assert_problem(await city.refund("NOODLES", "unknown-1", refund_fen=bill_fen), Code.PARAM_ERROR)


async def test_an_account_takes_its_limit_and_not_a_fen_more(city: City) -> None:
    """Ten times the largest fund, and far below what a bigint holds. What is refused books nothing."""
    async with city.database.connection() as conn:
        trial = conn.transaction()
        await trial.start()
        there = await conn.fetchval(_MOST)
        await conn.execute(_ADD, ACCOUNT_FEN_MAX - there, "as much as there is room for")
        with pytest.raises(asyncpg.CheckViolationError, match="account_"):
            async with conn.transaction():
                await conn.execute(_ADD, 1, "one fen more")
        with pytest.raises(asyncpg.CheckViolationError, match="transfer_amount_fen_check"):
            async with conn.transaction():
                await conn.execute(_ADD, ACCOUNT_FEN_MAX + 1, "more than any account holds")
        assert await conn.fetchval(_MOST) == ACCOUNT_FEN_MAX
        await assert_books(conn)
        await trial.rollback()


_FUND = "SELECT fund_fen FROM campaign WHERE campaign_no = $1"
_ADD = (
    "INSERT INTO transfer (bucket, campaign_no, kind, debit, credit, amount_fen, reference, booked_at)"
    " VALUES (0, 1, 'FUND', 'CITY_FUND', 'BUDGET', $1, $2, now())"
)
_MOST = "SELECT max(greatest(debits_fen, credits_fen)) FROM balance WHERE campaign_no = 1 AND kind = 'BUDGET'"
