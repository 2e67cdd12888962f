"""A Valkey Cluster as one client: each command goes to the node that owns its key.

Every node has a client and a pool of its own, so that a node in trouble takes no command of another
one with it. Nothing is sent twice but what a node turned away with MOVED, for that did nothing.
ASK is not followed: while a slot moves, a script would find some of its keys on neither side, and
what it cannot see it would grant again. Such commands fail until the slot has moved.
"""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from time import monotonic
from typing import Any, TypeVar

from redis.asyncio import Redis
from redis.asyncio.client import Pipeline
from redis.crc import key_slot
from redis.exceptions import (
    ClusterDownError,
    ConnectionError,
    MaxConnectionsError,
    MovedError,
    ReadOnlyError,
    RedisError,
    TimeoutError,
)

Address = tuple[str, int]
Key = str | bytes
Answer = TypeVar("Answer")

SLOTS = 16_384
HOPS_MAX = 3
"""How often a command that was turned away follows to another node."""
LOOK_EVERY_S = 0.1
"""A map that failed is drawn again this often at most."""
LOOK_WITHIN_S = 1.0

ANY_NODE = frozenset({"PING", "TIME", "ECHO", "CLUSTER SLOTS"})
ONE_NODE = frozenset(
    {"INFO", "CONFIG", "DBSIZE", "SCAN", "KEYS", "RANDOMKEY", "FLUSHALL", "FLUSHDB", "WAIT", "CLIENT", "SCRIPT"}
)
"""Commands that speak of one node, and would say less than they seem to. Ask each of `primaries()`."""
KEY_AFTER = {"EVAL": 3, "EVALSHA": 3, "FCALL": 3, "OBJECT": 2}
"""Where the first key stands when it does not follow the command."""


class Cluster(Redis):
    """A client for a cluster; of several keys in one command all must share a hash tag.

    `seeds` are some of its nodes; `open_node` makes the client of one. The map of slots is read before
    the first command and after every failure that may mean it is out of date.
    """

    def __init__(self, seeds: Sequence[Address], open_node: Callable[[Address], Redis]) -> None:
        super().__init__(connection_pool=open_node(seeds[0]).connection_pool)
        self._seeds = seeds
        self._open_node = open_node
        self._nodes: dict[Address, Redis] = {}
        self._known: set[Address] = set(seeds)
        self._owners: list[Address | None] = []
        self._is_stale = True
        self._looked_at = 0.0
        self._looking = asyncio.Lock()

    # ------------------------------------------------------------ where a key lives

    async def node_of(self, key: Key) -> Redis:
        """The client of the primary that owns a key."""
        await self._map()
        address = self._owners[key_slot(key.encode() if isinstance(key, str) else bytes(key))]
        if address is None:
            raise ClusterDownError("nobody serves the key's slot")
        return self._node(address)

    async def primaries(self) -> list[Redis]:
        """A client for each primary."""
        await self._map()
        return [self._node(address) for address in sorted({owner for owner in self._owners if owner})]

    def heard(self, error: BaseException) -> None:
        """Tells what went wrong with a node's answer: whoever uses `node_of` reports it."""
        if isinstance(error, MovedError) and self._owners:
            self._owners[error.slot_id] = (error.host, error.port)
            self._known.add((error.host, error.port))
        if isinstance(error, MaxConnectionsError):
            return
        if isinstance(error, _OUT_OF_DATE) or not isinstance(error, Exception):  # also when given up by its caller
            self._is_stale = True

    def _node(self, address: Address) -> Redis:
        if address not in self._nodes:
            self._nodes[address] = self._open_node(address)
        return self._nodes[address]

    # ------------------------------------------------------------ the map

    async def _map(self) -> None:
        if not self._is_stale:
            return
        async with self._looking:
            if not self._owners or monotonic() - self._looked_at > LOOK_EVERY_S:
                self._looked_at = monotonic()
                await self._draw()

    async def _draw(self) -> None:
        """Draws the map as the first node that answers sees it. Keeps the old one when none does."""
        try:
            ranges = await _first([self._look(address) for address in self._known])
        except (RedisError, OSError):
            if self._owners:
                return
            raise
        owners: list[Address | None] = [None] * SLOTS
        for first, last, owner, _ in ranges:
            owners[first : last + 1] = [owner] * (last + 1 - first)
        self._owners, self._is_stale = owners, False
        self._known = {*self._seeds, *(address for _, _, _, group in ranges for address in group)}

    async def _look(self, address: Address) -> list[tuple[int, int, Address, list[Address]]]:
        node = self._open_node(address)
        try:
            async with asyncio.timeout(LOOK_WITHIN_S):
                rows = await _run(node, "CLUSTER SLOTS")
        finally:
            await asyncio.shield(node.aclose())  # who is late is cancelled, at any moment
        read = []
        for first, last, *group in rows:
            addresses = [(_text(host) or address[0], int(port)) for host, port, *_ in group]
            read.append((int(first), int(last), addresses[0], addresses))
        return read

    # ------------------------------------------------------------ commands

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        command = str(args[0]).upper()
        if command in ANY_NODE:
            return await _first([_run(node, *args, **options) for node in await self.primaries()])
        for hop in range(1, HOPS_MAX + 1):
            node = await self.node_of(key_of(args))
            try:
                return await _run(node, *args, **options)
            except BaseException as error:
                self.heard(error)
                if hop == HOPS_MAX or not isinstance(error, MovedError):
                    raise

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> "ClusterPipeline":
        """Commands for any number of nodes, in order on each. `transaction` must be False."""
        if transaction or shard_hint:
            raise RedisError("a cluster has no transactions over nodes: pipeline(transaction=False)")
        return ClusterPipeline(self)

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        await super().aclose(close_connection_pool)
        for node in self._nodes.values():
            await node.aclose()


class ClusterPipeline(Pipeline):
    """Collects commands, then sends each node its own."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(cluster.connection_pool, cluster.response_callbacks, False, None)
        self._cluster = cluster

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        commands, self.command_stack = self.command_stack, []
        parts: dict[Redis, list[int]] = defaultdict(list)
        for place, (args, _) in enumerate(commands):
            parts[await self._cluster.node_of(key_of(args))].append(place)
        answers: list[Any] = [None] * len(commands)

        async def send(node: Redis, places: list[int]) -> None:
            for place, answer in zip(places, await self._send(node, [commands[i] for i in places]), strict=True):
                answers[place] = answer

        done = await asyncio.gather(*(send(*part) for part in parts.items()), return_exceptions=True)
        for error in [*done, *(answers if raise_on_error else ())]:
            if isinstance(error, BaseException):
                raise error
        return answers

    async def _send(self, node: Redis, commands: Sequence[Any]) -> list[Any]:
        pipe = node.pipeline(transaction=False)
        for args, options in commands:
            pipe.execute_command(*args, **options)
        try:
            answers = await pipe.execute(raise_on_error=False)
        except BaseException as error:
            self._cluster.heard(error)
            raise
        for place, (args, options) in enumerate(commands):
            if isinstance(answers[place], MovedError):
                self._cluster.heard(answers[place])
                answers[place] = await self._cluster.execute_command(*args, **options)
        return answers


def key_of(args: Sequence[Any]) -> Key:
    """The first key of a command. RedisError when it has none."""
    command = str(args[0]).upper()
    if command.split(" ")[0] in ONE_NODE:
        raise RedisError(f"{command} speaks of one node: ask each of primaries()")
    place = KEY_AFTER.get(command, 1)
    if command in ("XREAD", "XREADGROUP"):
        place = next(i for i, word in enumerate(args) if word in (b"STREAMS", "STREAMS")) + 1
    if len(args) <= place or not isinstance(args[place], str | bytes):
        raise RedisError(f"{command}: a cluster cannot tell whose it is")
    key: Key = args[place]
    return key


async def _run(node: Redis, *args: Any, **options: Any) -> Any:
    return await node.execute_command(*args, **options)  # type: ignore[no-untyped-call]


async def _first(attempts: Iterable[Awaitable[Answer]]) -> Answer:
    """The first that succeeds; what the last one raised when none does."""
    tasks = [asyncio.ensure_future(attempt) for attempt in attempts]
    failure: Exception = ConnectionError("no node of the cluster is known")
    try:
        for done in asyncio.as_completed(tasks):
            try:
                return await done
            except (RedisError, OSError) as error:  # TimeoutError is an OSError
                failure = error
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    raise failure


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value or "")


_OUT_OF_DATE = (ConnectionError, TimeoutError, ClusterDownError, MovedError, ReadOnlyError)
