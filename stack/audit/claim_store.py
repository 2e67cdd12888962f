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
from issuer.stock import StockStore, guard
from kernel.postgres import Connection
from stack.audit.room import queries

_LOOK_EVERY_S = 0.1


async def read_stock_wins(connection: Connection, valkey: Redis) -> dict[int, int]:
    """Wins by stock number: the quantity less what all shards have left.

    A round that any shard no longer holds is left out. Raises StoreDown.
    """
    shards = await connection.fetchval(queries["examined_shards"])
    store = StockStore(valkey, GateLimits())
    wins: dict[int, int] = {}
    for round_no, quantities in (await _quantities(connection)).items():
        left = [await store.left(shard, round_no, list(quantities)) for shard in range(shards)]
        held = [part for part in left if part is not None]
        if held and len(held) == shards:
            wins |= {no: quantity - sum(part[no] for part in held) for no, quantity in quantities.items()}
    return wins


async def _quantities(connection: Connection) -> Mapping[int, dict[int, int]]:
    rounds: dict[int, dict[int, int]] = defaultdict(dict)
    for row in await connection.fetch(queries["stock_quantities"]):
        rounds[row["round_no"]][row["stock_no"]] = row["quantity"]
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
