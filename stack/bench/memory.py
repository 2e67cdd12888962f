"""What claims take of Valkey's memory, once their log is drained."""

from collections.abc import AsyncIterator

import msgspec
from redis.asyncio import Redis

PACE, SIGNALS = "af:pace:*", "af:signal*"
PAGE = 2_000


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes of the data that lasts, and of token buckets of the gate, which go by themselves after two minutes."""

    lasting: int
    pace: int


async def measure(valkey: Redis) -> Memory:
    """The data set as the server counts it, without connections and buffers. The log must be drained.

    Takes away what does not last, instead of waiting until it is gone: token buckets (told apart) and signals.
    """
    await _forget(valkey, SIGNALS)
    whole = await _used(valkey)
    await _forget(valkey, PACE)
    lasting = await _used(valkey)
    return Memory(lasting=lasting, pace=whole - lasting)


async def _used(valkey: Redis) -> int:
    info = await valkey.info("memory")
    passing = ("mem_clients_normal", "mem_clients_slaves", "mem_aof_buffer", "mem_replication_backlog")
    return int(info["used_memory"]) - sum(int(info.get(name, 0)) for name in passing)


async def _forget(valkey: Redis, pattern: str) -> None:
    async for keys in _pages(valkey, pattern):
        await valkey.delete(*keys)


async def _pages(valkey: Redis, pattern: str) -> AsyncIterator[list[bytes]]:
    keys = []
    async for key in valkey.scan_iter(pattern, count=PAGE):
        keys.append(key)
        if len(keys) >= PAGE:
            yield keys
            keys = []
    if keys:
        yield keys
