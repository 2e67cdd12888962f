"""A private Valkey Cluster in a folder: three primaries, a replica of each; durable before it answers.

async with valkey_cluster.running(folder) as cluster:
    client = open_valkey(cluster.url)
"""

import asyncio
import re
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from time import monotonic
from typing import Any

from redis.asyncio import Redis
from redis.crc import key_slot
from redis.exceptions import RedisError

from issuer.keys import tag
from kernel.cluster import SLOTS
from kernel.valkey import open_valkey
from stack.child import Child, Program
from stack.errors import StackError
from stack.ports import free_ports, is_taken
from stack.valkey_server import ValkeyServer

PRIMARIES = 3
NODES = 2 * PRIMARIES
SHARDS = 2 * PRIMARIES
"""Shards of a city on such a cluster: two to a primary, so that a later split has something to move."""
NODE_TIMEOUT_MS = 2_000
"""How long a primary is silent before its neighbours think it gone; its replica takes over a second or two later."""
HEALTHY_WITHIN_S = 60.0
LOOK_EVERY_S = 0.02

# Known to Redis 7.0 as well.
SETTINGS: Mapping[str, str] = {
    "cluster-enabled": "yes",
    "cluster-config-file": "nodes.conf",
    "cluster-node-timeout": str(NODE_TIMEOUT_MS),
    "cluster-require-full-coverage": "no",  # a lost primary stops its own shards and no others
    "cluster-allow-replica-migration": "no",
    "repl-diskless-sync-delay": "0",
    "repl-backlog-size": "64mb",
}


class ValkeyCluster:
    """Nodes `valkey-1` to `valkey-6` under `folder`: `prepare` them, run `programs()`, then `join`.

    Nodes keep their ports from run to run while they are free: each has the others' in its files.
    """

    def __init__(
        self,
        folder: Path,
        *,
        password: str,
        logs: Path | None = None,
        settings: Mapping[str, str] | None = None,
        node_timeout_ms: int = NODE_TIMEOUT_MS,
    ) -> None:
        self._password = password
        own = {"cluster-node-timeout": str(node_timeout_ms), "masterauth": password, **(settings or {})}
        names = [f"valkey-{number}" for number in range(1, NODES + 1)]
        ports = _ports([folder / name / "valkey.conf" for name in names])
        self._buses = [bus for _, bus in ports]
        self.nodes = [
            ValkeyServer(
                folder,
                password=password,
                log=(logs or folder) / f"{name}.log",
                port=port,
                settings={**SETTINGS, **own, "cluster-port": str(bus)},
                name=name,
            )
            for name, (port, bus) in zip(names, ports, strict=True)
        ]

    @staticmethod
    def was_in(folder: Path) -> bool:
        """Whether a folder holds a cluster's data."""
        return (folder / "valkey-1").exists()

    @property
    def url(self) -> str:
        """URL of the cluster with the password in it: never log it."""
        hosts = ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)
        return f"redis+cluster://:{self._password}@{hosts}/0"

    async def prepare(self) -> None:
        """Stop nodes that a killed run left here and write the configurations."""
        await asyncio.gather(*(node.prepare() for node in self.nodes))

    async def stop_leftover(self) -> bool:
        """Stop nodes that a killed run left here. Were there any? StackError if one stays."""
        return any(await asyncio.gather(*(node.stop_leftover() for node in self.nodes)))

    def programs(self) -> list[Program]:
        """What to run after `prepare`."""
        return [node.program() for node in self.nodes]

    # ------------------------------------------------------------ from nodes to a cluster

    async def join(self) -> None:
        """Make the running nodes one cluster, also again after all of them were stopped; returns when every
        slot is served and every replica follows. StackError when that takes too long."""
        async with AsyncExitStack() as exits:
            nodes = [await exits.enter_async_context(open_valkey(self._url_of(node))) for node in self.nodes]
            deadline = monotonic() + HEALTHY_WITHIN_S
            try:
                await self._found(nodes)
                while not all([await _is_healthy(node) for node in nodes]):
                    if monotonic() > deadline:
                        raise StackError("the Valkey cluster does not become healthy; see the logs of its nodes")
                    await asyncio.sleep(LOOK_EVERY_S)
            except RedisError as error:
                raise StackError(f"the Valkey cluster cannot be joined: {error}") from error

    def _url_of(self, node: ValkeyServer) -> str:
        return f"redis://:{self._password}@127.0.0.1:{node.port}/0"

    async def _found(self, nodes: Sequence[Redis]) -> None:
        infos = [await _ask(node, "CLUSTER INFO") for node in nodes]
        is_new = not any(int(info["cluster_slots_assigned"]) == SLOTS for info in infos)
        if is_new:  # also after a first start that was broken off; nodes with keys in them refuse the reset
            await asyncio.gather(*(_ask(node, "CLUSTER RESET", "HARD") for node in nodes))
            for number, ((first, last), node) in enumerate(zip(slot_ranges(), nodes[:PRIMARIES], strict=True), 1):
                await _ask(node, "CLUSTER SET-CONFIG-EPOCH", number)
                await _ask(node, "CLUSTER ADDSLOTSRANGE", first, last)
        for server, bus in zip(self.nodes[1:], self._buses[1:], strict=True):  # those who know each other lose nothing
            await _ask(nodes[0], "CLUSTER MEET", "127.0.0.1", server.port, bus)
        if is_new:
            for primary, replica in zip(nodes[:PRIMARIES], nodes[PRIMARIES:], strict=True):
                await _follow(replica, await _ask(primary, "CLUSTER MYID"))


def slot_ranges(shards: int = SHARDS, primaries: int = PRIMARIES) -> list[tuple[int, int]]:
    """First and last slot of each primary, so that each gets as many of the shards' hash tags: slots are
    fixed by the tags' names, and cut evenly they would give one primary four shards of six."""
    slots = sorted(key_slot(tag(shard).encode()) for shard in range(shards))
    each = shards // primaries
    cuts = [(slots[i - 1] + slots[i]) // 2 for i in range(each, each * primaries, each)]
    return list(zip([0, *(cut + 1 for cut in cuts)], [*cuts, SLOTS - 1], strict=True))


async def _follow(replica: Redis, primary_id: bytes) -> None:
    """Make a node the replica of another as soon as it has heard of it."""
    for _ in range(int(HEALTHY_WITHIN_S / LOOK_EVERY_S)):
        with suppress(RedisError):  # not known yet
            await _ask(replica, "CLUSTER REPLICATE", primary_id)
            return
        await asyncio.sleep(LOOK_EVERY_S)
    raise StackError("the nodes of the Valkey cluster do not find each other")


async def _is_healthy(node: Redis) -> bool:
    cluster = await _ask(node, "CLUSTER INFO")
    link = (await node.info("replication")).get("master_link_status", "up")
    everybody = int(cluster["cluster_known_nodes"]) == NODES and int(cluster["cluster_slots_ok"]) == SLOTS
    return cluster["cluster_state"] == "ok" and everybody and link == "up"


async def _ask(node: Redis, *command: Any) -> Any:
    return await node.execute_command(*command)  # type: ignore[no-untyped-call]


def _ports(configs: Sequence[Path]) -> list[tuple[int, int]]:
    """Ports of clients and of the other nodes, as in the last run where they are free."""
    fresh = free_ports(2 * len(configs))
    return [_last_ports(config) or (fresh.pop(), fresh.pop()) for config in configs]


def _last_ports(config: Path) -> tuple[int, int] | None:
    with suppress(OSError):
        said = dict(re.findall(r"^(port|cluster-port) (\d+)$", config.read_text(encoding="utf-8"), re.MULTILINE))
        ports = [int(said[name]) for name in ("port", "cluster-port") if name in said]
        if len(ports) == 2 and not any(is_taken(port) for port in ports):
            return ports[0], ports[1]
    return None


@asynccontextmanager
async def running(folder: Path, *, settings: Mapping[str, str] | None = None) -> AsyncIterator[ValkeyCluster]:
    """A cluster of one's own, for as long as the block lasts. The folder keeps its data."""
    cluster = ValkeyCluster(folder, password=secrets.token_hex(16), settings=settings)
    await cluster.prepare()
    children = [Child(program) for program in cluster.programs()]
    try:
        await asyncio.gather(*(child.ready() for child in children))
        await cluster.join()
        yield cluster
    finally:
        await asyncio.gather(*(child.stop() for child in children))
