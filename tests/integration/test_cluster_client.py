"""One client for one Valkey and for a cluster: every command finds its node, whatever happens to the nodes."""

import asyncio
import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from itertools import pairwise
from random import Random
from time import monotonic
from typing import Any

import pytest
import pytest_asyncio
from redis.asyncio import Redis
from redis.exceptions import RedisError

from issuer.keys import tag
from kernel.cluster import Cluster, key_of
from kernel.errors import StoreDown
from kernel.scripts import ScriptRunner, await_replicas
from kernel.valkey import is_cluster, open_valkey
from stack.valkey_cluster import SHARDS, slot_ranges
from tests import stores

NOTE = "redis.call('HSET', KEYS[1] .. ':note', ARGV[1], ARGV[2]) return ARGV[2]"
READ = "return redis.call('HGET', KEYS[1] .. ':note', ARGV[1])"
RECOVERY_S = 30.0

Ask = Callable[[str], Awaitable[Any]]
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def nodes(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[stores.ValkeyNodes]:
    async with stores.valkey_cluster(tmp_path_factory.mktemp("nodes")) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def alone(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[stores.Valkey]:
    async with stores.valkey(tmp_path_factory.mktemp("alone")) as running:
        yield running


@pytest_asyncio.fixture(params=["alone", "nodes"], loop_scope="module")
async def client(
    request: pytest.FixtureRequest, alone: stores.Valkey, nodes: stores.ValkeyNodes
) -> AsyncIterator[Redis]:
    """A client of one Valkey, or of a cluster."""
    async with open_valkey((alone if request.param == "alone" else nodes).url, connections=64) as opened:
        yield opened


def cluster_of(nodes: stores.ValkeyNodes) -> Cluster:
    assert isinstance(nodes.client, Cluster)
    return nodes.client


# ---------------------------------------------------------------- commands


async def test_every_command_of_the_services_finds_its_node(client: Redis) -> None:
    for shard in range(SHARDS):
        key = f"{tag(shard)}:all"
        await client.delete(key, f"{key}:log")
        assert await client.hset(key, mapping={"a": 1, "b": 2}) == 2
        assert await client.hget(key, "a") == b"1"
        assert await client.hmget(key, ["b", "c"]) == [b"2", None]
        assert await client.hexists(key, "b")
        assert await client.exists(key) == 1
        first = await client.xadd(f"{key}:log", {"w": shard})
        answer = await client.xread({f"{key}:log": "0-0"}, count=5, block=50)
        assert str(shard).encode() in str(answer).encode()
        assert (await client.xinfo_stream(f"{key}:log"))["last-generated-id"] == first
        assert await client.xtrim(f"{key}:log", maxlen=0, approximate=False) == 1
        assert await client.xlen(f"{key}:log") == 0
    assert await client.ping()
    seconds, _ = await client.time()
    assert seconds > 0


async def test_a_pipeline_over_all_shards_keeps_its_order(client: Redis) -> None:
    pipe = client.pipeline(transaction=False)
    for turn in range(3):
        for shard in range(SHARDS):
            await pipe.set(f"{tag(shard)}:turn", turn)  # awaited, as callers do who take a client or a pipeline
            pipe.get(f"{tag(shard)}:turn")
    answers = await pipe.execute()
    assert answers == [x for turn in range(3) for _ in range(SHARDS) for x in (True, str(turn).encode())]


async def test_what_speaks_of_one_node_is_asked_of_each(nodes: stores.ValkeyNodes) -> None:
    cluster = cluster_of(nodes)
    for command in (cluster.info, cluster.dbsize, cluster.config_get):
        with pytest.raises(RedisError, match="speaks of one node"):
            await command()
    assert [(await each.config_get("appendfsync"))["appendfsync"] for each in await cluster.primaries()] == [
        "always"
    ] * 3
    with pytest.raises(RedisError, match="transaction"):
        cluster.pipeline()
    with pytest.raises(RedisError, match="hash to the same slot"):
        await cluster.exists("{s0}:a", "{s1}:a")


async def test_each_primary_has_as_many_shards(nodes: stores.ValkeyNodes) -> None:
    assert Counter([await nodes.owner(tag(shard)) for shard in range(SHARDS)]).most_common()[0][1] == 2


# ---------------------------------------------------------------- scripts


async def test_a_script_is_loaded_where_it_is_missing(client: Redis) -> None:
    run = ScriptRunner(client, NOTE)
    for turn in (1, 2):
        assert [await run(tag(shard), ["k", shard * turn]) for shard in range(SHARDS)] == [
            str(shard * turn).encode() for shard in range(SHARDS)
        ]
        for node in await client.primaries() if isinstance(client, Cluster) else [client]:
            await node.script_flush()


async def test_what_a_script_says_is_wrong_is_no_answer(client: Redis) -> None:
    with pytest.raises(StoreDown, match="ResponseError"):
        await ScriptRunner(client, "return redis.call('NOSUCH')")(tag(0), [])


async def test_without_replicas_nobody_can_acknowledge(alone: stores.Valkey) -> None:
    with pytest.raises(StoreDown, match="0 of 1 replicas"):
        await ScriptRunner(alone.client, NOTE, replicas=1, wait_ms=20)(tag(0), ["k", 1])
    with pytest.raises(StoreDown, match="0 of 1 replicas"):
        await await_replicas(alone.client, tag(0), 1, wait_ms=20)
    await await_replicas(alone.client, tag(0), 0)


async def test_a_replay_is_not_acknowledged_before_its_win_is_on_the_replica(nodes: stores.ValkeyNodes) -> None:
    note = ScriptRunner(nodes.client, NOTE, replicas=1, wait_ms=100)
    replay = ScriptRunner(nodes.client, READ, replicas=1, wait_ms=100)
    assert await note(tag(1), ["win", 1]) == await replay(tag(1), ["win"]) == b"1"
    replica = nodes.children[await nodes.replica(await nodes.owner(tag(1)))]
    replica.send(signal.SIGSTOP)
    try:
        for run, args in ((note, ["win", 2]), (replay, ["win"])):
            with pytest.raises(StoreDown, match="0 of 1 replicas"):
                await run(tag(1), args)
        # The control: a WAIT with no write in front of it on its connection, and the replay would pass.
        async with open_valkey(nodes.url) as fresh:
            assert isinstance(fresh, Cluster)
            pipe = (await fresh.node_of(tag(1))).pipeline(transaction=False)
            pipe.execute_command("EVAL", READ, 1, tag(1), "win")
            pipe.execute_command("WAIT", 1, 100)
            assert await pipe.execute() == [b"2", 1]
    finally:
        replica.send(signal.SIGCONT)
    assert await replay(tag(1), ["win"]) == b"2"


# ---------------------------------------------------------------- whose reply is it?


async def mixed_up(client: Redis, ask: Ask) -> int:
    """How many of those who were not cancelled got somebody else's reply, while others were cancelled at any moment."""
    random, wrong = Random(5), 0
    node = await client.node_of(tag(0)) if isinstance(client, Cluster) else client
    for turn in range(15):
        await node.execute_command("CLIENT PAUSE", 8)  # type: ignore[no-untyped-call]  # replies come after the cancelling
        asking = {f"{turn}-{n}": asyncio.ensure_future(ask(f"{turn}-{n}")) for n in range(12)}
        await asyncio.sleep(random.uniform(0, 0.004))
        for task in random.sample(list(asking.values()), 6):
            task.cancel()
        await asyncio.sleep(random.uniform(0, 0.004))
        asking |= {f"{turn}-late-{n}": asyncio.ensure_future(ask(f"{turn}-late-{n}")) for n in range(6)}
        replies = await asyncio.gather(*asking.values(), return_exceptions=True)
        wrong += sum(
            reply != number.encode()
            for number, reply in zip(asking, replies, strict=True)
            if not isinstance(reply, asyncio.CancelledError)
        )
    return wrong


async def test_a_cancelled_script_leaves_its_reply_to_nobody(client: Redis) -> None:
    for replicas in (0, 1) if isinstance(client, Cluster) else (0,):
        run = ScriptRunner(client, NOTE, replicas=replicas)

        async def ask(number: str, run: ScriptRunner = run) -> Any:
            return await run(tag(0), ["cancelled", number])

        await ask("first")
        assert await mixed_up(client, ask) == 0


async def test_control_a_connection_that_is_kept_hands_on_the_reply(alone: stores.Valkey) -> None:
    async with open_valkey(alone.url, connections=64) as client:
        pool = client.connection_pool

        async def careless(number: str) -> Any:
            connection = await pool.get_connection()  # type: ignore[no-untyped-call]
            try:
                await connection.send_command("ECHO", number)
                return await connection.read_response(disconnect_on_error=False)
            finally:
                await pool.release(connection)

        assert await mixed_up(client, careless) > 0


# ---------------------------------------------------------------- nodes that fail


async def test_a_replica_that_takes_over_in_peace_is_followed_at_once(nodes: stores.ValkeyNodes) -> None:
    run = ScriptRunner(nodes.client, NOTE, replicas=1)
    await run(tag(2), ["k", "before"])
    old = await nodes.owner(tag(2))
    new = await nodes.replica(old)
    async with open_valkey(nodes.cluster.nodes[new].url) as replica:
        await replica.execute_command("CLUSTER FAILOVER")  # type: ignore[no-untyped-call]
        while (await replica.role())[0] != b"master":
            await asyncio.sleep(0.01)
    assert await nodes.client.hget(f"{tag(2)}:note", "k") == b"before"  # the old one says MOVED
    assert await asked_until_told(run, tag(2), "after") == b"after"
    assert await nodes.owner(tag(2)) == new


async def test_a_killed_primary_stops_its_own_shards_and_no_others(nodes: stores.ValkeyNodes) -> None:
    run = ScriptRunner(nodes.client, NOTE, replicas=1)
    victim = await nodes.owner(tag(0))
    others = [tag(shard) for shard in range(SHARDS) if await nodes.owner(tag(shard)) != victim]
    for each in (tag(0), *others):
        await run(each, ["k", "before"])
    recovering = asyncio.create_task(asked_until_told(ScriptRunner(nodes.client, READ), tag(0), "k"))
    nodes.children[victim].kill()
    started = monotonic()
    while not recovering.done():
        for other in others:  # a single failure here fails the test
            assert await run(other, ["k", "meanwhile"]) == b"meanwhile"
        assert await nodes.client.ping()
    assert await recovering == b"before"
    assert monotonic() - started < RECOVERY_S
    assert await nodes.owner(tag(0)) != victim
    await nodes.start(victim)
    assert await asked_until_told(run, tag(0), "after") == b"after"


async def asked_until_told(run: ScriptRunner, where: str, what: str) -> Any:
    """Asks again and again, as partners do."""
    async with asyncio.timeout(RECOVERY_S):
        while True:
            try:
                return await run(where, ["k", what] if what != "k" else ["k"])
            except StoreDown:
                await asyncio.sleep(0.05)


# ---------------------------------------------------------------- names


async def test_the_key_of_a_command_is_found() -> None:
    assert key_of(("HGET", "{s0}:a", "f")) == "{s0}:a"
    assert key_of(("EVALSHA", "0" * 40, 1, "{s0}", "x")) == "{s0}"
    assert key_of(("XREAD", b"COUNT", "1", b"STREAMS", "{s0}:log", "0-0")) == "{s0}:log"
    assert key_of(("XINFO STREAM", "{s0}:log")) == "{s0}:log"
    for nonsense in (("EVAL", "return 1", 0), ("GET",), ("SCAN", 0), ("CONFIG GET", "*")):
        with pytest.raises(RedisError):
            key_of(nonsense)


async def test_urls_say_what_is_behind_them() -> None:
    assert is_cluster("valkey+cluster://:x@a:1,b:2") and is_cluster("rediss+cluster://a:1")
    assert not is_cluster("redis://:x@a:1/0")
    for wrong in ("redis+cluster://", "redis+cluster://a", "redis+cluster://a:1,"):
        with pytest.raises(ValueError, match="host:port"):
            open_valkey(wrong)


async def test_slots_are_cut_by_the_shards_tags() -> None:
    ranges = slot_ranges()
    assert (ranges[0][0], ranges[-1][1]) == (0, 16_383)
    assert all(end + 1 == begin for (_, end), (begin, _) in pairwise(ranges))
