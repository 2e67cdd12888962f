"""A primary of the claim store dies in mid-rush: what was answered is there, and nothing is there twice.

Real processes over HTTP: two claim workers, the drain, three primaries and three replicas. Clients keep
a log of what they were told; the audit and that log must agree afterwards. The control is a worker that
answers before a replica holds the win: there, an answered win can be lost.
"""

import asyncio
import signal
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import count
from random import Random

import aiohttp
import pytest
import pytest_asyncio

from issuer.keys import tag
from kernel.errors import Code
from kernel.partitions import partition_of, shard_of
from stack.audit import ClaimTold, ClientLogReport, audit_city, check_client_log
from stack.child import Child
from stack.valkey_cluster import SHARDS
from tests import stores
from tests.city import City, open_city
from tests.city_plan import NOON, a_campaign, a_round, a_stock, person

CITIZENS = 900
CLIENTS = 24
KILL_AFTER = 200
PATIENCE_S = 90.0
ROLE = "hanquan_issuer"
CITY = a_campaign("split", a_round("noon", NOON, a_stock("split", quantity=3 * CITIZENS)))
CAREFUL, CARELESS = {"HANQUAN_VALKEY_REPLICAS": "1"}, {"HANQUAN_VALKEY_REPLICAS": "0"}

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(240)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def nodes(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[stores.ValkeyNodes]:
    async with stores.valkey_cluster(tmp_path_factory.mktemp("nodes")) as running:
        yield running


@asynccontextmanager
async def over(nodes: stores.ValkeyNodes) -> AsyncIterator[stores.Valkey]:
    """The cluster as a city's claim store; it outlives the city."""
    yield nodes


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def city(
    cluster: stores.Cluster, nodes: stores.ValkeyNodes, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[City]:
    """A city of six shards on the cluster."""
    folder = tmp_path_factory.mktemp("split")
    async with open_city(cluster, folder, shards=SHARDS, valkey=over(nodes), campaigns=[CITY]) as opened:
        yield opened


@asynccontextmanager
async def running(*children: Child) -> AsyncIterator[None]:
    """Processes that are ready, and killed at the end of the block."""
    try:
        await asyncio.gather(*(child.ready() for child in children))
        yield
    finally:
        for child in children:
            child.kill()


class Crowd:
    """Citizens who ask with their own number until they are told, and a log of every answer."""

    def __init__(self, city: City, workers: Sequence[str]) -> None:
        self._city = city
        self._workers = workers
        self._random = Random(3)
        self.told: list[ClaimTold] = []

    @property
    def won(self) -> int:
        """How many wins were answered."""
        return sum(told.outcome == "GRANTED" for told in self.told)

    async def ask(self, citizen: int) -> ClaimTold:
        """One claim; its answer, or that there was none, is written down."""
        token, number, outcome, code = person(citizen), f"split-{citizen:06}", "UNKNOWN", None
        try:
            reply = await self._city.claim("split", token, number=number, service=self._random.choice(self._workers))
            outcome = reply.code or "GRANTED"
            code = reply.json["voucher_code"] if reply.status == 200 else None
        except aiohttp.ClientError:
            pass
        self.told.append(
            ClaimTold(
                outcome=outcome,
                partner_id="wechat",
                person_token=token,
                stock_id="split",
                out_request_no=number,
                voucher_code=code,
            )
        )
        return self.told[-1]

    async def ask_until_told(self, citizen: int) -> ClaimTold:
        """Sends the same request again while the answer is that nobody knows."""
        while (told := await self.ask(citizen)).is_unknown:
            await asyncio.sleep(0.1)
        return told

    async def rush(self, citizens: Sequence[int]) -> None:
        """All of them, some at a time, until each was told."""
        waiting = iter(citizens)

        async def client() -> None:
            for citizen in waiting:
                await self.ask_until_told(citizen)

        async with asyncio.timeout(PATIENCE_S):
            await asyncio.gather(*(client() for _ in range(CLIENTS)))


async def held_against_the_books(city: City, told: Sequence[ClaimTold]) -> ClientLogReport:
    """The audit must hold; what the clients were told is for the caller to judge."""
    async with city.database.connection("hanquan_auditor") as connection:
        audit = await audit_city(connection, city.valkey.client)
        assert audit.holds, [(one.id, one.shown) for one in audit.statements if one.shown]
        return await check_client_log(connection, told, city.codes)


def people_of(shard: int, how_many: int, start: int) -> list[int]:
    """Citizens whose claims this shard decides."""
    theirs = (n for n in count(start) if shard_of(partition_of(bytes.fromhex(person(n))), SHARDS) == shard)
    return [next(theirs) for _ in range(how_many)]


async def test_a_primary_killed_in_mid_rush_takes_no_answered_win_along(city: City, nodes: stores.ValkeyNodes) -> None:
    (one, first), (other, second) = (city.process("issuer", ROLE, CAREFUL) for _ in range(2))
    drain, _ = city.process("issuer.drain", ROLE, CAREFUL)
    async with running(one, other, drain):
        crowd = Crowd(city, [first, second])
        rush = asyncio.create_task(crowd.rush(range(CITIZENS)))
        while crowd.won < KILL_AFTER and not rush.done():
            await asyncio.sleep(0.005)
        victim = await nodes.owner(tag(0))
        nodes.children[victim].kill()
        await nodes.taken_over(tag(0), victim)
        await nodes.start(victim)
        await rush
        outcomes = Counter(told.outcome for told in crowd.told)
        assert outcomes.keys() <= {"GRANTED", "UNKNOWN", Code.SYSTEM_BUSY}, outcomes
        assert outcomes[Code.SYSTEM_BUSY] > 0, "nobody came while the primary was gone"
        report = await held_against_the_books(city, crowd.told)
        assert report.holds, report.shown
        assert report.acknowledged == crowd.won == CITIZENS


async def test_an_answer_before_the_replica_has_the_win_can_be_lost(city: City, nodes: stores.ValkeyNodes) -> None:
    (one, careful), (other, careless) = (city.process("issuer", ROLE, more) for more in (CAREFUL, CARELESS))
    drain, _ = city.process("issuer.drain", ROLE, CAREFUL)
    who, whom = people_of(shard=1, how_many=2, start=CITIZENS)
    async with running(one, other):
        with_wait, without = Crowd(city, [careful]), Crowd(city, [careless])
        victim = await nodes.owner(tag(1))
        replica = nodes.children[await nodes.replica(victim)]
        replica.send(signal.SIGSTOP)
        try:
            await cut_off_replicas(nodes, victim)
            assert (await without.ask(whom)).outcome == "GRANTED"
            assert (await with_wait.ask(who)).outcome == Code.SYSTEM_BUSY
            nodes.children[victim].kill()
        finally:
            replica.send(signal.SIGCONT)
        await nodes.taken_over(tag(1), victim)
        await nodes.start(victim)
        async with asyncio.timeout(PATIENCE_S):
            assert (await with_wait.ask_until_told(who)).outcome == "GRANTED"
        async with running(drain):
            assert (await held_against_the_books(city, with_wait.told)).holds
            lost = await held_against_the_books(city, without.told)
    assert lost.violations == 1
    assert "told GRANTED: not there" in lost.shown[0]


async def cut_off_replicas(nodes: stores.ValkeyNodes, primary: int) -> None:
    """What the primary writes from now on stays with it: a stopped replica does not come back."""
    client = nodes.client
    for node in await client.primaries():  # type: ignore[attr-defined]
        if node.connection_pool.connection_kwargs["port"] == nodes.cluster.nodes[primary].port:
            await node.execute_command("CLIENT KILL", "TYPE", "replica")
