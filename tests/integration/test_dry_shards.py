"""Shards that have run dry: the gate still judges who claims what another shard sends, all of them may look at once,
and what one sent and nobody fetched does not stay on its way."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta

import pytest
import pytest_asyncio

from antifraud.gate import GateLimits
from issuer import keys
from issuer.claim import FLUSHES_MAX, ClaimDesk
from issuer.handlers import DESK
from issuer.moves import Fetched, Move, Moves, Wanted
from issuer.operator import life
from issuer.operator.budget import Edited, edit_budget, keep_up
from issuer.operator.rollover import RolledOver, roll_over
from issuer.publish import Publisher
from kernel.errors import Code
from kernel.partitions import partition_of, shard_of
from tests import stores
from tests.city import City, open_city
from tests.city_plan import NOON, a_campaign, a_round, a_stock, person
from tests.offices import QUANTITY, a_life, drain_all, office

pytestmark = pytest.mark.asyncio(loop_scope="module")

SHARDS = 6
PART = 10
HOUSEHOLD = GateLimits().device_household
OPEN, DRY, NONE = "open_stock", "dry_stock", "none_stock"
STOCKS = [a_stock(OPEN, quantity=PART * SHARDS), a_stock(DRY, quantity=PART * SHARDS), a_stock(NONE, quantity=SHARDS)]
CITY = a_campaign("dry", a_round("noon", NOON, *STOCKS))
LIFE = a_campaign("life", *a_life(), limit=9)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def city(cluster: stores.Cluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[City]:
    folder = tmp_path_factory.mktemp("dry")
    async with open_city(cluster, folder, campaigns=[CITY, LIFE], shards=SHARDS) as made:
        yield made


def people_of(shard: int, how_many: int, start: int) -> list[str]:
    """People who all live on one shard."""
    tokens = map(person, range(start, start + 50 * how_many))
    theirs = [token for token in tokens if shard_of(partition_of(bytes.fromhex(token)), SHARDS) == shard]
    return theirs[:how_many]


async def claim_together(
    city: City, stock_id: str, people: Sequence[str], device: str | None = None
) -> Counter[str | None]:
    """Claims that reach the store in one call for each shard: how many were told what; None for a win."""
    more = {} if device is None else {"device_token": device}
    claims = [{"out_request_no": city.number(), "stock_id": stock_id, "person_token": who, **more} for who in people]
    reply = await city.call(city.issuer, "wechat", "POST", "/v1/claims:batch", {"claims": claims})
    told = [item.get("problem", {}) for item in reply.json["results"]]
    return Counter(problem.get("rule") or problem.get("code") for problem in told)


# ---------------------------------------------------------------- the gate


@pytest.mark.parametrize(("stock_id", "start"), [(OPEN, 10_000), (DRY, 20_000)])
async def test_a_device_wins_for_one_household_also_where_the_shard_is_dry(
    city: City, stock_id: str, start: int
) -> None:
    """All claims of one call pass the gate before any of them wins. Those that find the shard dry are asked again
    once units have come, and the device must be looked at again then; and so it is in the calls after that."""
    if stock_id == DRY:
        assert await claim_together(city, DRY, people_of(3, PART, 0)) == {None: PART}
    device = f"{start:032x}"
    told = await claim_together(city, stock_id, people_of(3, 15, start), device)
    assert told == {None: HOUSEHOLD, "DEVICE_LIMIT": 15 - HOUSEHOLD}
    again = await claim_together(city, stock_id, people_of(3, 5, start + 5_000), device)
    assert again == {"DEVICE_LIMIT": 5}
    one_by_one = [await city.claim(stock_id, who, device=device) for who in people_of(3, 2, start + 8_000)]
    assert {reply.rule for reply in one_by_one} == {"DEVICE_LIMIT"}


# ---------------------------------------------------------------- all at once


async def test_all_shards_look_for_units_at_once_on_one_workers_connections(city: City) -> None:
    """Sold out for the first time, every shard's calls are looking at all other shards in the same moment. That needs
    fewer connections than a worker has, and nobody is told that the store failed."""
    desk: ClaimDesk = city.apps[city.issuer][DESK]
    crowd = [person(number) for number in range(30_000, 30_200)]
    told = await asyncio.gather(*(city.claim(NONE, who) for who in crowd))
    assert Counter(reply.code for reply in told) == {None: SHARDS, Code.SOLD_OUT: len(crowd) - SHARDS}
    moves = desk._store.moves
    looks = [moves.fetch(Wanted(1, 3, 1, 1), shard, SHARDS) for shard in range(SHARDS) for _ in range(FLUSHES_MAX)]
    assert set(await asyncio.gather(*looks)) == {Fetched.NOTHING}


# ---------------------------------------------------------------- left on its way; the last tests: time goes on


async def stranded(city: City, stock_id: str, taker: int, units: int) -> int:
    """Units of a stock on their way between two shards; whoever wanted them died. The number of its round."""
    stock_no: int = await city.fetchval("SELECT stock_no FROM stock WHERE stock_id = $1", stock_id)
    round_no: int = await city.fetchval("SELECT round_no FROM stock WHERE stock_id = $1", stock_id)
    answer: bytes = await Moves(city.valkey.client)._give(keys.tag(0), [round_no, stock_no, taker, units])
    assert Move(0, taker, answer.decode()).units >= units
    return round_no


async def test_a_budget_edit_finds_units_that_were_left_on_their_way(
    city: City, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that nobody won can be taken back, wherever it is."""
    monkeypatch.setattr(Publisher, "refresh", _nothing)
    await stranded(city, "life_r1_mall", 3, 3)
    async with office(city) as desk:
        edited = await edit_budget(desk, "life_r1_mall", 40, 0, "none of it")
    assert edited == Edited(stock_id="life_r1_mall", quantity=0, replayed=False)


async def test_the_publisher_finishes_what_was_left_on_its_way(city: City, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Publisher, "refresh", _nothing)
    round_no = await stranded(city, "life_r1_alipay", 4, 1)
    async with office(city) as desk:
        await keep_up(desk.conn, desk.store, SHARDS, round_no, desk.now)
        assert await desk.store.moves.on_the_way(round_no, SHARDS) == []


async def test_a_round_rolls_over_with_units_that_were_left_on_their_way(
    city: City, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody claims any more after the close, so no claim brings the move to its end: the operator's step does."""
    monkeypatch.setattr(Publisher, "refresh", _nothing)
    monkeypatch.setattr(life, "DRAIN_WAIT_S", 0.2)
    assert (await city.claim("life_r1_dining", person(1))).status == 200
    await drain_all(city)
    await stranded(city, "life_r1_dining", 5, 5)
    city.clock.move_to(NOON + timedelta(hours=9))
    async with office(city) as desk:
        rolled = await roll_over(desk, "life", "r1", "r2", "the week is over")
    assert isinstance(rolled, RolledOver), rolled
    assert {stock.from_stock_id: stock.units for stock in rolled.stocks}["life_r1_dining"] == QUANTITY - 1


async def _nothing(*_: object) -> None:
    """Stands in for the city's own publisher."""
