"""What a round left over, into the next: units, money, who moves which, and the audit afterwards."""

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
import pytest_asyncio

from issuer.operator import life
from issuer.operator.life import Moved, move_stock
from issuer.operator.rollover import RolledOver, RolledStock, roll_over
from issuer.operator.store import Verb
from kernel.errors import Code, Refusal
from redemption.settlement.expire import ReturnTo, expire_over, return_unused
from stack.audit import audit_city
from tests import stores
from tests.city import City, open_city, unchanged
from tests.city_plan import FACE, NOON, a_campaign, person
from tests.offices import LI, QUANTITY, WANG, a_life, drain_all, left_of, office, row_of

pytestmark = pytest.mark.asyncio(loop_scope="module")

CLAIMED = 30


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def city(cluster: stores.Cluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[City]:
    life_of = a_campaign("life", *a_life(), limit=9)
    async with open_city(cluster, tmp_path_factory.mktemp("roll"), campaigns=[life_of], shards=2) as made:
        yield made


async def roll(city: City, by: str = LI, to: str = "r2") -> RolledOver | Refusal:
    async with office(city, by) as desk:
        return await roll_over(desk, "life", "r1", to, "the week is over")


async def broken(city: City) -> tuple[str, ...]:
    """Statements of the audit that do not hold."""
    async with city.database.connection("hanquan_auditor") as conn:
        report = await audit_city(conn, city.valkey.client)
    return report.broken


async def budgets(city: City) -> dict[str, int]:
    rows = await city.database.pool.fetch("SELECT round_id, budget_fen FROM round")
    return {row["round_id"]: row["budget_fen"] for row in rows}


async def test_a_round_rolls_over_once_and_every_fen_is_told(city: City, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(CLAIMED):
        assert (await city.claim("life_r1_dining", person(n))).status == 200
    await _refused_while_it_runs_or_drains(city, monkeypatch)
    await _carries_units(city)
    await _carries_money_that_finance_returned(city)
    await _the_next_round_gives_it_out(city)


async def _refused_while_it_runs_or_drains(city: City, monkeypatch: pytest.MonkeyPatch) -> None:
    async with unchanged(city):
        assert _code(await roll(city)) == Code.STATE_CONFLICT
        assert _code(await roll(city, to="r1")) == Code.PARAM_ERROR
        assert _code(await roll(city, to="r9")) == Code.RESOURCE_NOT_EXISTS
    city.clock.move_to(NOON + timedelta(hours=9))
    monkeypatch.setattr(life, "DRAIN_WAIT_S", 0.2)
    before = await budgets(city)
    assert _code(await roll(city)) == Code.SYSTEM_BUSY
    async with office(city) as desk:
        assert _code(await move_stock(desk, "life_r1_dining", Verb.CLOSE)) == Code.SYSTEM_BUSY
    assert await budgets(city) == before
    await drain_all(city)
    async with office(city, WANG) as desk:
        closed = await move_stock(desk, "life_r1_alipay", Verb.CLOSE)
        assert closed == Moved(stock_id="life_r1_alipay", state="CLOSED", replayed=False)


async def _carries_units(city: City) -> None:
    before = await budgets(city)
    await city.database.pool.execute("UPDATE stock SET quantity = quantity + 99999 WHERE stock_id = 'life_r2_mall'")
    refusal = await roll(city)
    assert isinstance(refusal, Refusal) and refusal.rule == "BUDGET_SHORT"
    await city.database.pool.execute("UPDATE stock SET quantity = quantity - 99999 WHERE stock_id = 'life_r2_mall'")
    assert await budgets(city) == before

    rolled = await roll(city)
    carried_fen = (QUANTITY - CLAIMED + 40) * FACE
    stocks = [
        RolledStock(from_stock_id="life_r1_dining", to_stock_id="life_r2_dining", units=QUANTITY - CLAIMED),
        RolledStock(from_stock_id="life_r1_mall", to_stock_id="life_r2_mall", units=40),
        RolledStock(from_stock_id="life_r1_alipay", to_stock_id=None, units=10),
    ]
    told = RolledOver(
        rollover_no=1,
        from_round_id="r1",
        to_round_id="r2",
        carried_fen=carried_fen,
        returned_fen=0,
        stocks=stocks,
        replayed=False,
    )
    assert rolled == told
    after = await budgets(city)
    assert (after["r1"], after["r2"]) == (before["r1"] - carried_fen, before["r2"] + carried_fen)
    async with office(city) as desk:
        quantities = [(row.quantity, row.issued, row.state) for row in await desk.book.stocks(desk.now, "life")]
        assert quantities[:3] == [(CLAIMED, CLAIMED, "CLOSED"), (0, 0, "CLOSED"), (0, 0, "CLOSED")]
        assert quantities[3:] == [(QUANTITY * 2 - CLAIMED, 0, "SCHEDULED"), (80, 0, "SCHEDULED")]
        assert await left_of(desk, "life_r1_dining") == 0
    async with unchanged(city):
        again = await roll(city, WANG)
    assert isinstance(again, RolledOver)
    assert (again.rollover_no, again.replayed, again.stocks) == (1, True, stocks)
    assert await broken(city) == ()


async def _carries_money_that_finance_returned(city: City) -> None:
    before = await budgets(city)
    city.clock.move_to(NOON + timedelta(days=7, hours=2))
    async with city.database.connection("hanquan_finance") as conn:
        (expired,) = await expire_over(conn, city.clock.now(), timedelta(hours=1))
        assert expired.voucher_count == CLAIMED
        async with unchanged(city):
            replayed = await roll(city)
            assert isinstance(replayed, RolledOver) and replayed.replayed
        await return_unused(conn, 1, ReturnTo.BUDGET, CLAIMED * FACE, WANG, "expired of r1", city.clock.now())
    rolled = await roll(city)
    assert isinstance(rolled, RolledOver)
    assert (rolled.rollover_no, rolled.carried_fen, rolled.returned_fen, rolled.stocks) == (2, 0, CLAIMED * FACE, [])
    assert await budgets(city) == before | {"r2": before["r2"] + CLAIMED * FACE}
    async with unchanged(city):
        again = await roll(city)
    assert isinstance(again, RolledOver) and again.replayed
    assert await broken(city) == ()


async def _the_next_round_gives_it_out(city: City) -> None:
    async with office(city) as desk:
        quantity = (await row_of(desk, "life_r2_dining")).quantity
    city.clock.move_to(NOON + timedelta(days=8, seconds=30))
    service = await city.new_issuer()
    async with office(city) as desk:
        assert await left_of(desk, "life_r2_dining") == quantity == 2 * QUANTITY - CLAIMED
    people = [person(n) for n in range(quantity)]
    for start in range(0, quantity, 50):
        claims = [
            {"out_request_no": city.number(), "stock_id": "life_r2_dining", "person_token": who}
            for who in people[start : start + 50]
        ]
        reply = await city.call(service, "wechat", "POST", "/v1/claims:batch", {"claims": claims})
        assert {item["status"] for item in reply.json["results"]} == {200}
    assert (await city.claim("life_r2_dining", person(9_999), service=service)).code == Code.SOLD_OUT
    await drain_all(city)
    assert await broken(city) == ()


def _code(answer: object) -> Code | None:
    return answer.code if isinstance(answer, Refusal) else None
