"""Lua scripts on the node that owns their keys, acknowledged by replicas where that is asked for."""

from collections.abc import Sequence
from hashlib import sha1
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.client import Pipeline
from redis.exceptions import MovedError, NoScriptError, RedisError

from kernel.cluster import Cluster
from kernel.errors import StoreDown

WAIT_MS = 1_000
TRIES_MAX = 3
"""Loads and redirections that one call puts up with; what was turned away did nothing, so asking again is safe."""


class ScriptRunner:
    """Runs one script whose keys all carry one hash tag, on one Valkey or on a cluster.

    With `replicas`, an answer is given only once so many replicas hold everything that was written
    under the tag until then; a failover to one of them loses nothing that was answered.
    """

    def __init__(self, client: Redis, source: str, *, replicas: int = 0, wait_ms: int = WAIT_MS) -> None:
        self._client = client
        self._source = source
        self._sha = sha1(source.encode(), usedforsecurity=False).hexdigest()
        self._replicas = replicas
        self._wait_ms = wait_ms

    async def __call__(self, tag: str, args: Sequence[Any]) -> Any:
        """The script's answer. StoreDown when the store failed or too few replicas acknowledged: what was
        done is not known, and is found out by asking again with the same request numbers."""
        for _ in range(TRIES_MAX):
            try:
                node = await _node_of(self._client, tag)
                try:
                    return await self._ask(node, tag, args)
                except NoScriptError:  # a restarted server, or a replica that took over: nothing was done
                    await node.script_load(self._source)
            except BaseException as error:
                if isinstance(self._client, Cluster):
                    self._client.heard(error)
                if isinstance(error, MovedError):
                    continue
                if isinstance(error, RedisError):
                    raise StoreDown(f"the claim store did not answer: {type(error).__name__}") from error
                raise
        raise StoreDown("the claim store is moving")

    async def _ask(self, node: Redis, tag: str, args: Sequence[Any]) -> Any:
        if not self._replicas:
            return await node.evalsha(self._sha, 1, tag, *args)
        pipe = node.pipeline(transaction=False)
        pipe.evalsha(self._sha, 1, tag, *args)
        answer, *fence = await _fenced(pipe, tag, self._replicas, self._wait_ms)
        if isinstance(answer, RedisError):
            raise answer
        _check(fence, self._replicas)
        return answer


async def await_replicas(
    client: Redis, tag: str, replicas: int, *, entry: tuple[str, str] | None = None, wait_ms: int = WAIT_MS
) -> None:
    """Returns when `replicas` replicas hold everything that was written under a tag until now; at once for 0.

    Whoever carries something out of the store (the drain) asks first, or it might carry what a failover
    takes back. `entry`, a stream and an id in it, is what was read: it must be there still, for another
    node may have taken over since. StoreDown when it is not, or when the replicas do not acknowledge.
    """
    if not replicas:
        return
    found = await _read_fenced(client, tag, replicas, wait_ms, ("XRANGE", *entry, entry[1]) if entry else ())
    if found == []:
        raise StoreDown("another node took over, and does not hold what was read")


async def read_replicated(client: Redis, tag: str, replicas: int, hash_key: str, field: str) -> bytes | None:
    """A field of a hash under a tag, as `replicas` replicas hold it: who acts on it elsewhere acts on nothing that a
    failover takes back. StoreDown when they do not acknowledge."""
    found: bytes | None = await _read_fenced(client, tag, replicas, WAIT_MS, ("HGET", hash_key, field))
    return found


async def _read_fenced(client: Redis, tag: str, replicas: int, wait_ms: int, read: tuple[str, ...]) -> Any:
    """What one command reads, once everything it can have seen is on the replicas."""
    try:
        pipe = (await _node_of(client, tag)).pipeline(transaction=False)
        if read:
            pipe.execute_command(*read)
        *found, written, acknowledged = await _fenced(pipe, tag, replicas, wait_ms)
        _check([*found, written, acknowledged], replicas)
    except BaseException as error:
        if isinstance(client, Cluster):
            client.heard(error)
        if isinstance(error, RedisError):
            raise StoreDown(f"the claim store did not answer: {type(error).__name__}") from error
        raise
    return found[0] if found else None


async def _node_of(client: Redis, tag: str) -> Redis:
    return await client.node_of(tag) if isinstance(client, Cluster) else client


async def _fenced(pipe: Pipeline, tag: str, replicas: int, wait_ms: int) -> list[Any]:
    """Runs a pipeline with a write and a WAIT behind it, in one send on one connection.

    WAIT speaks of the last write of its own connection. A replay writes nothing, and without a write
    here it would be acknowledged while the win that it repeats is still on its way to the replica.
    """
    pipe.set(f"{tag}:fence", 1)
    pipe.execute_command("WAIT", replicas, wait_ms)
    return await pipe.execute(raise_on_error=False)


def _check(fence: Sequence[Any], replicas: int) -> None:
    for answer in fence:
        if isinstance(answer, RedisError):
            raise answer
    if fence[-1] < replicas:
        raise StoreDown(f"{fence[-1]} of {replicas} replicas acknowledged in time")
