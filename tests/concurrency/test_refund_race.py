"""Races of refunds: parts against parts, against the next till, and against the close of the day.

The controls at the end must lose.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta

import pytest
import pytest_asyncio

from kernel.errors import Code
from redemption.settlement.batch import Batch
from redemption.settlement.settle import approve, propose
from stack.audit import audit
from tests import stores
from tests.city import City, Reply, open_city
from tests.city_plan import FACE, NOON, PAID, a_campaign, a_round, a_stock
from tests.tilling import assert_audited, at, double_uses, no_lock, slow_commits, vouchers

pytestmark = pytest.mark.asyncio(loop_scope="module")

SHOP, OTHER = "NOODLES", "DUMPLINGS"
DAY = NOON.date()
PART = PAID // 5
DAYS = iter(range(7))
"""Each can be closed once; the vouchers are good for a week."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def city(cluster: stores.Cluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[City]:
    plans = [
        a_campaign("restoring", a_round("now", NOON, a_stock("dining", quantity=999))),
        a_campaign("sharing", a_round("now", NOON, a_stock("share", quantity=999)), policy="PAID_SHARE"),
    ]
    async with open_city(cluster, tmp_path_factory.mktemp("refunds"), campaigns=plans) as made:
        await slow_commits(made, "redemption", "hold", "refund")
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def services(city: City) -> tuple[str, str]:
    """Two checkout services over one ledger."""
    return city.redemption, await city.new_redemption()


def told(replies: Sequence[Reply]) -> Counter[str | None]:
    """How often each rule or code was answered; None is success."""
    return Counter(reply.rule or reply.code for reply in replies)


async def used(city: City, count: int, stock_id: str = "dining", shop: str = SHOP) -> list[tuple[str, str]]:
    """Fresh vouchers' codes, and the numbers of their redemptions."""
    uses = [(code, city.number("use")) for code in await vouchers(city, count, stock_id)]
    replies = await asyncio.gather(*(city.redeem(shop, code, number=number) for code, number in uses))
    assert told(replies) == {None: count}
    return uses


async def given_back(city: City, number: str) -> tuple[int, int]:
    """Cash and subsidy that went back of a redemption."""
    row = await city.database.pool.fetchrow(
        "SELECT sum(f.refund_fen)::bigint AS cash, sum(f.subsidy_fen)::bigint AS subsidy FROM refund f"
        " JOIN redemption r USING (bucket, voucher_id, attempt) WHERE r.use_request_no = $1",
        number,
    )
    assert row is not None
    return row["cash"] or 0, row["subsidy"] or 0


# ---------------------------------------------------------------- parts


async def parts_at_once(city: City, services: Sequence[str], number: str, tills: int = 8) -> list[Reply]:
    """A redemption's cash, asked for in fifths by more than five tills."""
    return await asyncio.gather(
        *(city.refund(SHOP, number, refund_fen=PART, service=services[n % len(services)]) for n in range(tills))
    )


@pytest.mark.parametrize("stock_id", ["dining", "share"])
async def test_parts_never_exceed_what_was_paid(city: City, services: Sequence[str], stock_id: str) -> None:
    for _, number in await used(city, 3, stock_id):
        replies = await parts_at_once(city, services, number)
        assert told(replies) == {None: 5, "ALREADY_REFUNDED": 3}
        assert await given_back(city, number) == (PAID, FACE)
        assert sum(reply.json["subsidy_fen"] for reply in replies if reply.status == 200) == FACE
        assert sorted(reply.json["voucher_state"] for reply in replies if reply.status == 200) == [
            "RETURNED",
            *["USED"] * 4,
        ]


async def test_the_same_part_from_many_connections_is_one(city: City, services: Sequence[str]) -> None:
    [(_, number)] = await used(city, 1, "share")
    replies = await asyncio.gather(
        *(city.refund(SHOP, number, number="same-part", refund_fen=PART, service=services[n % 2]) for n in range(40))
    )
    assert told(replies) == {None: 40}
    assert len({reply.body for reply in replies}) == 1
    assert sum("Idempotent-Replayed" not in reply.headers for reply in replies) == 1
    assert (await given_back(city, number))[0] == PART


async def test_one_number_with_two_bodies_at_once_gives_back_one_of_them(city: City, services: Sequence[str]) -> None:
    for n, (_, number) in enumerate(await used(city, 4, "share")):
        replies = await asyncio.gather(
            *(
                city.refund(SHOP, number, number=f"two-bodies-{n}", refund_fen=cash, service=url)
                for cash, url in zip((100, 200), services, strict=True)
            )
        )
        assert told(replies) == {None: 1, Code.IDEMPOTENCY_MISMATCH: 1}
        assert (await given_back(city, number))[0] in (100, 200)


async def test_all_at_once_and_a_part_never_both_count(city: City, services: Sequence[str]) -> None:
    """Either the voucher lives again, or a part went back and it is lost."""
    outcomes: Counter[tuple[str | None, str | None]] = Counter()
    for n, (code, number) in enumerate(await used(city, 8)):
        whole, part = await asyncio.gather(
            city.refund(SHOP, number, refund_fen=PAID, service=services[n % 2]),
            city.refund(SHOP, number, refund_fen=PART, service=services[1 - n % 2]),
        )
        outcomes[whole.rule, part.rule] += 1
        again = await city.redeem(OTHER, code)
        assert again.code == (None if whole.status == 200 else Code.USED_BY_ANOTHER_ORDER)
    assert set(outcomes) <= {(None, "ALREADY_REFUNDED"), ("REFUND_EXCEEDS_PAID", None)}, outcomes
    assert await double_uses(city) == 0


# ---------------------------------------------------------------- the next till


async def test_a_voucher_that_comes_back_goes_to_one_till(city: City, services: Sequence[str]) -> None:
    """A refund in full, while one till redeems, one holds, and the first one sends its old request again."""
    uses = await used(city, 10)

    async def race(n: int) -> tuple[Reply, Reply, Reply, Reply]:
        code, number = uses[n]
        return await asyncio.gather(
            city.refund(SHOP, number, service=services[n % 2]),
            city.redeem(OTHER, code, service=services[1 - n % 2]),
            city.hold("HOTPOT", code, number=f"next-{n:03}", service=services[n % 2]),
            city.redeem(SHOP, code, number=number, order=f"changed-{n}", service=services[1 - n % 2]),
        )

    taken = 0
    for back, redeem, hold, old in await asyncio.gather(*(race(n) for n in range(10))):
        assert back.status == 200
        assert old.code == Code.IDEMPOTENCY_MISMATCH
        lost = {Code.USED_BY_ANOTHER_ORDER, Code.LOCKED_BY_ANOTHER_ORDER}
        assert {redeem.code, hold.code} - lost <= {None}
        assert (redeem.status, hold.status) != (200, 200)
        taken += redeem.status == 200
    again = [await city.redeem(OTHER, code) for code, _ in uses]
    held = await city.fetchval("SELECT count(*) FROM hold WHERE hold_request_no LIKE 'next-%'")
    assert sum(reply.status == 200 for reply in again) == len(uses) - taken - held
    assert await double_uses(city) == 0


# ---------------------------------------------------------------- the close of the day


async def rush(city: City, services: Sequence[str]) -> int:
    """Just before midnight tills sell and give back in parts, while finance closes that day and draws up batches.
    On how many days the refunds were booked."""
    days_later = next(DAYS)
    before_midnight = NOON + timedelta(days=days_later, hours=11, minutes=58)
    with at(city, before_midnight):
        uses = await used(city, 8, "share", shop=OTHER)
        await city.database.pool.execute("UPDATE merchant SET refund_debt_fen_max = 1000000000")

        async def give_back(n: int, number: str) -> None:
            for turn, cash in enumerate((1_000, 1_500, PAID - 2_500)):
                back = await city.refund(OTHER, number, refund_fen=cash, service=services[(n + turn) % 2])
                assert back.status == 200, back

        async def sell(codes: Sequence[str]) -> None:
            for code in codes:
                assert (await city.redeem(SHOP, code, service=services[0])).status == 200

        more = await vouchers(city, 10)
        await asyncio.gather(
            finance(city, days_later), sell(more), *(give_back(n, number) for n, (_, number) in enumerate(uses))
        )
    return int(
        await city.fetchval(
            "SELECT count(DISTINCT f.booked_on) FROM refund f JOIN redemption r USING (bucket, voucher_id, attempt)"
            " WHERE r.use_request_no = ANY ($1)",
            [number for _, number in uses],
        )
    )


async def finance(city: City, days_later: int) -> None:
    """Closes a day that tills still book on, and settles both campaigns."""
    now, day = NOON + timedelta(days=days_later + 1, hours=-3), DAY + timedelta(days=days_later)
    async with city.database.connection("hanquan_finance") as conn:
        for campaign_id in ("sharing", "restoring"):
            await asyncio.sleep(0.08)
            batch = await propose(conn, city.campaigns[campaign_id].campaign_no, day, "li.wei", now)
            if isinstance(batch, Batch):
                assert isinstance(await approve(conn, batch.batch_no, "zhang.min", now), Batch)


async def test_parts_while_the_day_is_closed_and_settled(city: City, services: Sequence[str]) -> None:
    days, trials = 0, 0
    while days < 2:  # until some were booked before the close and some after: else the race was none
        assert (trials := trials + 1) <= 3
        days = await rush(city, services)
    await assert_audited(city)


# ---------------------------------------------------------------- controls (last: they break the books)


async def test_without_the_lock_the_key_still_holds(city: City, services: Sequence[str]) -> None:
    """The second guard: two refunds with one number in the row cannot both be booked."""
    replies: list[Reply] = []
    async with no_lock(city):
        for _, number in await used(city, 4, "share"):
            replies += await parts_at_once(city, services, number)
            cash, subsidy = await given_back(city, number)
            assert (cash <= PAID, subsidy <= FACE) == (True, True)
    assert told(replies)[Code.SYSTEM_BUSY] > 0, "the lock was off and nothing collided: the race was none"


async def test_control_without_the_lock_the_close_loses_refunds(city: City, services: Sequence[str]) -> None:
    async with no_lock(city):
        for _ in range(3):
            await rush(city, services)
            async with city.database.connection("hanquan_auditor") as conn:
                if (await audit(conn)).broken:
                    return
    pytest.fail("the lock was off and nothing was lost: the race was none")


async def test_control_without_lock_and_key_more_goes_back_than_was_paid(city: City, services: Sequence[str]) -> None:
    await city.database.pool.execute("ALTER TABLE refund DROP CONSTRAINT refund_pkey")
    async with no_lock(city):
        for _, number in await used(city, 8, "share"):
            await parts_at_once(city, services, number, tills=12)
            if (await given_back(city, number))[0] > PAID:
                return
    pytest.fail("nothing collided: the race was none")
