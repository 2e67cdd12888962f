"""A shard that lost a round is given back all that people won there, partition by partition, and nothing else."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence

import pytest

from antifraud.gate import GateLimits
from issuer import keys
from issuer.rebuild import partitions_of
from issuer.stock import StockStore
from kernel.errors import Code
from kernel.partitions import PARTITIONS, bucket_of, partition_of, shard_of
from tests import stores
from tests.city import City, Reply, open_city
from tests.city_plan import FACE, NOON, a_campaign, a_pack, a_round, a_stock, person
from tests.limits_plan import everybody_rests
from tests.offices import drain_all

SHARDS, BUCKETS = 3, 2
"""So that neither shards nor partitions of one begin where a bucket does."""
PEOPLE = 300
QUANTITY = 2_000
CITY = a_campaign(
    "many",
    a_round(
        "noon",
        NOON,
        a_stock("dining", quantity=QUANTITY),
        a_stock("mall", category_id="mall", quantity=QUANTITY),
        packs=[a_pack("both", {"dining": 1, "mall": 2})],
    ),
    a_round("other", NOON, a_stock("other", quantity=QUANTITY)),
    limit=3,
    face_limit_fen=100 * FACE,
)
Held = Mapping[bytes, object]


@pytest.fixture
async def city(cluster: stores.Cluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[City]:
    folder = tmp_path_factory.mktemp("rebuild")
    async with open_city(cluster, folder, campaigns=[CITY], shards=SHARDS, buckets=BUCKETS) as made:
        yield made


async def claim_together(city: City, offer_id: str, people: Sequence[int]) -> Sequence[object]:
    """A claim for each under a number of their own, in one call; the answers."""
    claims = [
        {"out_request_no": f"{offer_id}-{number:06}", "stock_id": offer_id, "person_token": person(number)}
        for number in people
    ]
    reply: Reply = await city.call(city.issuer, "wechat", "POST", "/v1/claims:batch", {"claims": claims})
    results: Sequence[object] = [item.get("claim") or item["problem"]["code"] for item in reply.json["results"]]
    return results


async def remembered(city: City) -> Held:
    """What the store holds of who won what, of request numbers, and of people's face caps, by key."""
    client, held = city.valkey.client, dict[bytes, object]()
    for name in ("who", "cap"):
        async for key in client.scan_iter(match=f"{{s*}}:{name}:*", count=1_000):
            held[key] = await client.hgetall(key)
    async for key in client.scan_iter(match="{s*}:req:*", count=1_000):
        held[key] = await client.smembers(key)
    return held


async def stock_of(city: City) -> Mapping[int, tuple[int, int]]:
    """By stock: what all shards have left, and what was ever dealt out to them."""
    store = StockStore(city.valkey.client, GateLimits())
    held = [await store.stocks(shard, [1, 2, 3]) for shard in range(SHARDS)]
    return {no: (sum(one[no].left for one in held), sum(one[no].total for one in held)) for no in (1, 2, 3)}


async def test_a_round_in_many_partitions_is_rebuilt_exactly(city: City) -> None:
    """Several wins of one person, packs, and the wins of another round among them; each shard gets its own back."""
    everybody = range(PEOPLE)
    assert len({partition_of(bytes.fromhex(person(number))) for number in everybody}) > PEOPLE // 2
    claims = [("both", range(0, PEOPLE, 3)), ("dining", everybody), ("mall", range(0, PEOPLE, 2)), ("other", everybody)]
    told = [await claim_together(city, offer_id, people) for offer_id, people in claims]
    assert all(isinstance(answer, dict) for answers in told for answer in answers)
    await drain_all(city)
    before, stock = await remembered(city), await stock_of(city)

    for shard in range(SHARDS):
        held = [key async for key in city.valkey.client.scan_iter(match=f"{keys.tag(shard)}:*", count=1_000)]
        await city.valkey.client.delete(*held)
    async with asyncio.timeout(60):
        for shard in range(SHARDS):
            while await city.valkey.client.exists(keys.round_key(shard, 1), keys.round_key(shard, 2)) != 2:
                await asyncio.sleep(0.02)

    assert await remembered(city) == before
    assert await stock_of(city) == stock
    await everybody_rests(city)
    for (offer_id, people), answers in zip(claims, told, strict=True):
        assert await claim_together(city, offer_id, people) == answers
    assert (await city.claim("mall", person(PEOPLE - 1))).status == 200
    assert (await city.claim("dining", person(0))).code == Code.USER_ALREADY_CLAIMED


@pytest.mark.parametrize("shards", [1, 3, 6, 7])
def test_shards_share_the_partitions_and_each_lies_in_one_bucket(shards: int) -> None:
    """What a rebuild goes through is each partition once, on the shard where its people are."""
    seen = [(shard, partition) for shard in range(shards) for partition in range(*partitions_of(shard, shards))]
    assert [partition for _, partition in seen] == list(range(PARTITIONS))
    assert all(shard_of(partition, shards) == shard for shard, partition in seen)
    assert {bucket_of(partition, BUCKETS) for _, partition in seen} == set(range(BUCKETS))
