"""The locks of terminals as they stand in Valkey: read by every checkout worker, lifted by operators.

What is counted and when a terminal is locked: redemption/lockout.py.
"""

import asyncio
from typing import Any, NamedTuple

from redis.asyncio import Redis
from redis.exceptions import RedisError

from kernel.errors import StoreDown
from kernel.valkey import guard

TAG = "{tills}"
"""Of all keys of the lockout: they are few, and live on one node."""
LET_GO_KEPT_S = 3_600
RECORDS_MAX = 10_000

Scores = Any  # of redis-py: pairs of a member, in bytes, and its score


class Terminal(NamedTuple):
    """Who sends codes. Terminal 0: a merchant's key that names no terminal."""

    merchant_no: int
    terminal_no: int

    def __str__(self) -> str:
        return f"{self.merchant_no}:{self.terminal_no}"


class Locks(NamedTuple):
    """Ends of locks, and when operators let terminals go; ms since 1970."""

    locked: dict[Terminal, int]
    let_go: dict[Terminal, int]


class LetGo(NamedTuple):
    """One decision of an operator, for the record."""

    at_ms: int
    terminal: Terminal
    by: str
    was_locked: bool


async def read_locks(valkey: Redis, now_ms: int, *, within_s: float) -> Locks:
    """Who is locked now, and who was let go in the last hour. StoreDown when the store does not answer in time."""
    try:
        async with asyncio.timeout(within_s):
            locked: Scores = await valkey.zrange(f"{TAG}:locked", f"({now_ms}", "+inf", byscore=True, withscores=True)
            let_go: Scores = await valkey.zrange(f"{TAG}:let_go", 0, -1, withscores=True)
    except (RedisError, TimeoutError) as error:
        raise StoreDown(f"the locks of tills cannot be read: {type(error).__name__}") from error
    return Locks(_by_terminal(locked), _by_terminal(let_go))


async def let_go(valkey: Redis, terminal: Terminal, by: str, now_ms: int) -> bool:
    """Lifts a terminal's lock and forgets its invalid codes; was it locked? Workers follow within a second, also with
    what they held against it by themselves. Stays on record. StoreDown when the store failed: then do it again."""
    was_locked = bool(await guard(valkey.zrem(f"{TAG}:locked", str(terminal))))
    await guard(valkey.delete(f"{TAG}:bad:{terminal}"))
    await guard(valkey.zadd(f"{TAG}:let_go", {str(terminal): now_ms}))
    await guard(valkey.zremrangebyscore(f"{TAG}:let_go", "-inf", now_ms - LET_GO_KEPT_S * 1000))
    await guard(valkey.expire(f"{TAG}:let_go", LET_GO_KEPT_S))
    record: dict[Any, Any] = {"at_ms": now_ms, "terminal": str(terminal), "by": by, "was_locked": int(was_locked)}
    await guard(valkey.xadd(f"{TAG}:record", record, maxlen=RECORDS_MAX))
    return was_locked


async def read_record(valkey: Redis, limit: int) -> list[LetGo]:
    """What operators decided, the newest first. StoreDown when the store failed."""
    entries = await guard(valkey.xrevrange(f"{TAG}:record", count=limit))
    return [
        LetGo(int(one[b"at_ms"]), _terminal(one[b"terminal"]), one[b"by"].decode(), one[b"was_locked"] == b"1")
        for _, one in entries
    ]


def _by_terminal(scores: Scores) -> dict[Terminal, int]:
    return {_terminal(member): int(score) for member, score in scores}


def _terminal(text: bytes) -> Terminal:
    return Terminal(*map(int, text.split(b":")))
