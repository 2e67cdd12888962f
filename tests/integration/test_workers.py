"""`./hanquan up --cluster --workers N`: several claim workers on one port, over three primaries and three replicas."""

import asyncio
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import asyncpg
import pytest
import pytest_asyncio

from kernel.clock import SystemClock
from kernel.tokens import make_token
from kernel.valkey import is_cluster, open_valkey
from stack import cleanup
from stack.child import Child
from stack.data_folder import DataFolder
from stack.demo.client import Client, open_session
from stack.errors import StackError
from stack.examples import PARTNER, STOCK, ensure_playground
from stack.keystore import KeyStore
from stack.reach import Reach
from stack.running import Stack
from stack.services import SERVICES, with_workers
from stack.stores import Stores
from stack.valkey_cluster import NODES, SHARDS, ValkeyCluster

ROOT = Path(__file__).parents[2]
WORKERS = ("issuer", "issuer-2", "issuer-3")
CITIZENS = 240
SOME = with_workers([each for each in SERVICES if each.name in ("drain", "issuer")], "issuer", len(WORKERS))

pytestmark = [pytest.mark.timeout(240), pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    """A stack that ran before; only then was it said that it is a cluster."""
    data = tmp_path_factory.mktemp("workers") / "data"
    async with Stack(data, services=(), cluster=True) as first, open_valkey(first.valkey_url) as client:
        await client.set("{s5}:kept", first.valkey_url)
        await ensure_playground(
            first.dsn("hanquan_operator"), first.valkey_url, first.folder, first.secrets, SystemClock()
        )
    async with Stack(data, services=SOME) as running:
        yield running


async def hanquan(stack: Stack, *arguments: str) -> tuple[int, str]:
    """Runs a command on the stack: its status, and what it printed."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "stack", *arguments, "--data", str(stack.folder.path)),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    said, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, said.decode()


async def claim(stack: Stack, citizen: int) -> str:
    """A citizen's voucher code. Asks again with the same number while the answer is not known."""
    async with asyncio.timeout(60), open_session() as session:
        client = Client(session, stack.addresses["issuer"], SystemClock(), seed=citizen)
        person = make_token(bytes(32), f"citizen {citizen}")
        body = {"out_request_no": f"grab-{citizen:05}", "stock_id": STOCK, "person_token": person}
        while True:
            reply = await client.post(KeyStore(stack.folder.path).get(PARTNER), "/v1/claims", body)
            if reply.status == 200:
                return str(reply.body["voucher_code"])
            assert reply.status in (0, 503), reply
            await asyncio.sleep(0.05)


async def test_each_process_is_named_and_answers_for_itself(stack: Stack) -> None:
    run = stack.folder.read_run()
    assert run is not None
    nodes = [f"valkey-{number}" for number in range(1, NODES + 1)]
    assert [one.name for one in run.processes] == ["postgres", *nodes, "drain", *WORKERS]
    reach = Reach(stack.folder)
    assert is_cluster(reach.valkey_url) and reach.valkey_url == stack.valkey_url
    assert reach.addresses == stack.addresses and reach.addresses.keys() == {"drain", "issuer"}
    assert reach.health == stack.health and len({reach.health[name] for name in WORKERS}) == len(WORKERS)
    async with aiohttp.ClientSession() as http:
        for name in WORKERS:
            async with http.get(f"{stack.health[name]}/readyz") as response:
                assert response.status == 200
    status, said = await hanquan(stack, "status", "--json")
    told = json.loads(said)
    assert (status, {one["state"] for one in told}) == (0, {"ready"})
    assert Counter(one["role"] for one in told) == {"primary": 3, "replica": 3, "": 5}


async def test_a_city_on_a_cluster_has_two_shards_to_a_primary(stack: Stack) -> None:
    conn = await asyncpg.connect(stack.dsn("hanquan_auditor"))
    try:
        assert await conn.fetchval("SELECT shards FROM city") == SHARDS
    finally:
        await conn.close()


async def test_a_killed_worker_and_a_killed_node_leave_every_win_where_it_was(stack: Stack) -> None:
    busy = asyncio.Semaphore(12)

    async def citizen(number: int) -> str:
        async with busy:
            return await claim(stack, number)

    rush = [asyncio.create_task(citizen(number)) for number in range(CITIZENS)]
    await rush[CITIZENS // 4]
    os.kill(stack.pid("issuer-2"), signal.SIGKILL)
    await rush[CITIZENS // 2]
    os.kill(stack.pid("valkey-2"), signal.SIGKILL)
    codes = await asyncio.gather(*rush)
    assert len(set(codes)) == CITIZENS
    for name in ("issuer-2", "valkey-2"):
        await stack.wait_ready(name)
        assert stack.restarts[name] >= 1  # a worker that starts while a shard is away tries again
    assert [await claim(stack, number) for number in range(0, CITIZENS, 20)] == codes[::20]
    status, said = await hanquan(stack, "audit")
    assert status == 0, said


async def test_a_stopped_cluster_comes_back_where_it_was_with_its_data(stack: Stack) -> None:
    async with open_valkey(stack.valkey_url) as client:
        assert await client.get("{s5}:kept") == stack.valkey_url.encode()


async def test_a_folder_keeps_the_kind_of_store_it_was_made_with(stack: Stack, tmp_path: Path) -> None:
    (tmp_path / "valkey").mkdir()
    with pytest.raises(StackError, match="was made with one Valkey"):
        Stores(DataFolder(tmp_path), stack.secrets, {}, cluster=True)
    with pytest.raises(StackError, match="server of your own"):
        Stores(stack.folder, stack.secrets, {"HANQUAN_VALKEY_URL": "redis://a:1"}, cluster=True)
    own = Stores(stack.folder, stack.secrets, {"HANQUAN_VALKEY_URL": "redis+cluster://:x@a:1,b:2"})
    assert (own.replicas_acked, own.places["valkey"]) == (1, "redis+cluster://a:1,b:2")


async def test_nodes_left_by_a_killed_run_are_stopped(tmp_path: Path) -> None:
    cluster = ValkeyCluster(tmp_path, password="x")
    await cluster.prepare()
    children = [Child(program) for program in cluster.programs()]
    await asyncio.gather(*(child.ready() for child in children))
    children[0].send(signal.SIGSTOP)
    assert await cleanup.stop_leftovers(DataFolder(tmp_path)) == 1
    assert [await child.exited() for child in children] == [0] * NODES
