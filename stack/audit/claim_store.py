"""What the claim store (Valkey) says of wins, for the audit to hold against PostgreSQL."""

import asyncio
from collections import defaultdict
from collections.abc import Mapping
from time import monotonic
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from antifraud.gate import GateLimits
from issuer import keys
from issuer.stock import StockStore
from kernel.postgres import Connection
from kernel.valkey import guard
from stack.audit.room import queries

_LOOK_EVERY_S = 0.1


async def read_stock_wins(connection: Connection, valkey: Redis) -> dict[int, int]:
    """Wins by stock number: what the shards were allotted less what they have left. Units that are moved between
    shards, and edits of a quantity, change both alike.

    A round that any shard no longer holds is left out. Raises StoreDown.
    """
    shards = await connection.fetchval(queries["examined_shards"])
    store = StockStore(valkey, GateLimits())
    wins: dict[int, int] = {}
    for round_no, stock_nos in (await _stocks(connection)).items():
        if not all([await store.is_published(shard, round_no) for shard in range(shards)]):
            continue
        held = [await store.stocks(shard, stock_nos) for shard in range(shards)]
        wins |= {no: sum(part[no].allotted - part[no].left for part in held) for no in stock_nos}
    return wins


async def _stocks(connection: Connection) -> Mapping[int, list[int]]:
    rounds: dict[int, list[int]] = defaultdict(list)
    for row in await connection.fetch(queries["round_stocks"]):
        rounds[row["round_no"]].append(row["stock_no"])
    return rounds


async def read_log_ends(connection: Connection, valkey: Redis) -> dict[int, str]:
    """The last entry that each shard's log ever had, also when it was cut since. Raises StoreDown."""
    shards = await connection.fetchval(queries["examined_shards"])
    return {shard: await _log_end(valkey, keys.log_key(shard)) for shard in range(shards)}


async def _log_end(valkey: Redis, key: str) -> str:
    if not await guard(valkey.exists(key)):
        return "0-0"
    try:
        info: Any = await valkey.xinfo_stream(key)
    except ResponseError:  # gone between the two commands
        return "0-0"
    end: bytes = info["last-generated-id"]
    return end.decode()


async def wait_drained(connection: Connection, log_ends: Mapping[int, str], within_s: float) -> bool:
    """Wait until the drain has read every log up to the given entry; False when it takes too long."""
    deadline = monotonic() + within_s
    while await connection.fetch(queries["a1c_drained"], 1, list(log_ends), list(log_ends.values())):
        if monotonic() > deadline:
            return False
        await asyncio.sleep(_LOOK_EVERY_S)
    return True
