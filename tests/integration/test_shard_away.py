"""A shard that cannot be seen keeps only those waiting who want its units, and them not for long; and what a shard gave
is acted on only once a failover can no longer take it back."""

import asyncio
from collections.abc import AsyncIterator
from time import perf_counter

import pytest

from antifraud.gate import GateLimits
from issuer import keys
from issuer.moves import Fetched, Move, Moves, Wanted
from issuer.stock import PublishedRound, StockOnShard, StockStore
from kernel import scripts
from kernel.errors import Code, StoreDown
from kernel.partitions import partition_of, shard_of
from tests import stores
from tests.city import City, Reply, open_city
from tests.city_plan import NOON, a_campaign, a_round, a_stock, person

SHARDS = 2
QUANTITY = 20
PART = QUANTITY // SHARDS
CITY = a_campaign("rush", a_round("noon", NOON, a_stock("rush", quantity=QUANTITY), a_stock("rest", quantity=500)))


@pytest.fixture
async def city(cluster: stores.Cluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[City]:
    async with open_city(cluster, tmp_path_factory.mktemp("away"), campaigns=[CITY], shards=SHARDS) as made:
        yield made


def people_of(shard: int, how_many: int, start: int = 0) -> list[str]:
    """People who all live on one shard."""
    tokens = map(person, range(start, start + 50 * how_many))
    theirs = [token for token in tokens if shard_of(partition_of(bytes.fromhex(token)), SHARDS) == shard]
    return theirs[:how_many]


async def hangs(*_: object) -> None:
    """Stands in for a look at a node that was stopped: it neither answers nor refuses."""
    await asyncio.sleep(30)


async def claim_together(city: City, wanted: list[tuple[str, str]]) -> list[tuple[int, str | None]]:
    """Claims (stock, person) that reach the store in one call; status and code of each."""
    claims = [
        {"out_request_no": f"together-{who}"[:40], "stock_id": stock_id, "person_token": who}
        for stock_id, who in wanted
    ]
    reply = await city.call(city.issuer, "wechat", "POST", "/v1/claims:batch", {"claims": claims})
    return [(item["status"], item.get("problem", {}).get("code")) for item in reply.json["results"]]


async def test_a_shard_that_hangs_delays_only_who_wants_its_units(city: City, monkeypatch: pytest.MonkeyPatch) -> None:
    for who in people_of(1, PART):
        assert (await city.claim("rush", who)).status == 200
    dry = [("rush", who) for who in people_of(1, 4, 5_000)]
    open_ = [("rest", who) for who in people_of(1, 8, 7_000)]
    with monkeypatch.context() as patch:
        patch.setattr(Moves, "look", hangs)
        started = perf_counter()
        told = await claim_together(city, [*dry[:2], *open_, *dry[2:]])
        took_s = perf_counter() - started
        assert [status for status, _ in told[2:-2]] == [200] * len(open_)
        assert {code for _, code in told[:2] + told[-2:]} == {Code.SYSTEM_BUSY}
        assert took_s < 10, "a second for the look that hangs for thirty"
        # It was seen to hang: for a while nobody waits for it again.
        started = perf_counter()
        late = await asyncio.gather(*(city.claim("rush", who) for _, who in dry))
        assert perf_counter() - started < took_s - 0.3
        assert {reply.code for reply in late} == {Code.SYSTEM_BUSY}
        assert all("Retry-After" in reply.headers for reply in late)
    # Back again: what it has can be won, under the very same numbers.
    async with asyncio.timeout(30):
        while await claim_together(city, dry) != [(200, None)] * len(dry):
            await asyncio.sleep(0.1)


async def test_claims_of_open_stocks_go_on_at_their_pace_while_a_shard_hangs(
    city: City, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With somebody in each batch who finds the shard dry, nearly as at noon: nobody is told that the store failed."""
    for who in people_of(1, PART):
        assert (await city.claim("rush", who)).status == 200
    monkeypatch.setattr(Moves, "look", hangs)

    async def ask(turn: int, who: str) -> tuple[str, Reply, float]:
        await asyncio.sleep(turn * 0.02)
        stock_id, started = ("rush" if turn % 4 == 0 else "rest"), perf_counter()
        return stock_id, await city.claim(stock_id, who), perf_counter() - started

    answers = await asyncio.gather(*(ask(turn, who) for turn, who in enumerate(people_of(1, 60, 5_000))))
    for stock_id, reply, took_s in answers:
        assert reply.code == (Code.SYSTEM_BUSY if stock_id == "rush" else None)
        assert took_s < 10


# ---------------------------------------------------------------- what a shard gives


async def test_a_shard_gives_no_more_than_it_has(valkey: stores.Valkey) -> None:
    """With stages, a part of what a shard was dealt is held back. What it was dealt can be less than nothing: moved in
    and then taken back by an edit. The part of it that is held back is nothing then, and not less."""
    store = StockStore(valkey.client, GateLimits())
    now_ms = (await valkey.client.time())[0] * 1000
    stocks = {1: StockOnShard(left=10, total=-40, moved=50)}
    fields: dict[str, int | str | bytes] = {"offset_ms": 0, "stages": "0:5000,86400000:10000"}
    round_ = PublishedRound(round_no=1, opens_ms=now_ms - 1000, hash_buckets=1, fields=fields, stocks=stocks)
    assert await store.publish(0, round_)
    given = 0
    for taker in range(1, 4):
        answer: bytes = await Moves(valkey.client)._give(keys.tag(0), [1, 1, taker, 50])
        given += Move(0, taker, answer.decode()).units if answer else 0
    assert given == 10
    assert (await store.stocks(0, [1]))[1].left == 0


# ---------------------------------------------------------------- a failover between give and take


async def left_in_all(valkey: stores.Valkey) -> int:
    """Units of the stock on both shards."""
    store = StockStore(valkey.client, GateLimits())
    return sum([(await store.stocks(shard, [1]))[1].left for shard in range(SHARDS)])


async def unreplicated(valkey: stores.Valkey, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes | None]:
    """Shard 0 gives five units to shard 1, and its only replica, which is cut off, never hears of it. What that
    replica holds: a Valkey without a replica stands for both of them."""
    monkeypatch.setattr(scripts, "WAIT_MS", 50)
    store = StockStore(valkey.client, GateLimits())
    now_ms = (await valkey.client.time())[0] * 1000
    for shard, left in enumerate((QUANTITY, 0)):
        fields: dict[str, int | str | bytes] = {"offset_ms": 0, "stages": ""}
        stocks = {1: StockOnShard(left=left, total=left)}
        round_ = PublishedRound(round_no=1, opens_ms=now_ms, hash_buckets=1, fields=fields, stocks=stocks)
        assert await store.publish(shard, round_)
    held = {key: await valkey.client.dump(key) for key in (keys.round_key(0, 1), keys.stock_key(0, 1))}
    giver = Moves(valkey.client, replicas=1)
    giver._give._wait_ms = 50
    with pytest.raises(StoreDown):
        await giver._give(keys.tag(0), [1, 1, 1, 5])
    return held


async def failed_over(valkey: stores.Valkey, held: dict[str, bytes | None]) -> None:
    """The replica takes over shard 0."""
    await valkey.client.delete(keys.out_key(0, 1))
    for key, value in held.items():
        assert value is not None
        await valkey.client.restore(key, 0, value, replace=True)


async def test_units_that_no_replica_knows_are_gone_from_are_not_taken(
    valkey: stores.Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another worker finds the move and would bring it to its end. It asks the giver's replica first: else the units
    are on the taker, and, after the failover, on the giver again."""
    held = await unreplicated(valkey, monkeypatch)
    other = Moves(valkey.client, replicas=1)
    other._take._replicas = other._given._replicas = 0  # the taker's own replica is well
    with pytest.raises(StoreDown):
        await other.fetch(Wanted(1, 1, 1, 5), 1, SHARDS)
    await failed_over(valkey, held)
    assert await left_in_all(valkey) == QUANTITY


async def test_control_units_are_doubled_where_nobody_asks_the_replica(
    valkey: stores.Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = await unreplicated(valkey, monkeypatch)
    assert await Moves(valkey.client).fetch(Wanted(1, 1, 1, 5), 1, SHARDS) is Fetched.MOVED
    await failed_over(valkey, held)
    assert await left_in_all(valkey) > QUANTITY
