"""The drain watched from outside: how old a voucher is when PostgreSQL shows it.

The drain's position is the number of the last log entry whose wins are committed, and the number of an
entry begins with the ms at which its wins were claimed. So when a look at time t finds the position moved
from a to b, what was claimed at any ms between a and b was committed by t: its lag is t less that ms,
rounded up by the pause between two looks.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple

import msgspec

import sql
from kernel.clock import SystemClock
from kernel.tasks import running
from stack.bench.schedule import rank
from stack.bench.world import World

LOOK_EVERY_S = 0.005

_queries = sql.load("drain")


class Move(NamedTuple):
    """By `seen_ms` everything claimed after `after_ms` and until `until_ms` was committed."""

    after_ms: int
    until_ms: int
    seen_ms: int


class Lag(msgspec.Struct, frozen=True, kw_only=True):
    """Of all ms at which somebody could claim."""

    p50_s: float
    p99_s: float
    max_s: float


def lag_of(moves: Sequence[Move]) -> Lag:
    """Claims come evenly within a move. All zero when nothing moved."""
    lags_ms = sorted(move.seen_ms - at for move in moves for at in range(move.after_ms + 1, move.until_ms + 1)) or [0]
    return Lag(p50_s=rank(lags_ms, 0.50) / 1000, p99_s=rank(lags_ms, 0.99) / 1000, max_s=lags_ms[-1] / 1000)


@asynccontextmanager
async def watching(world: World) -> AsyncIterator[list[Move]]:
    """The moves of the drain's position inside the block, filled in as they are seen."""
    moves: list[Move] = []
    async with running(_watch(world, moves)):
        yield moves


async def _watch(world: World, moves: list[Move]) -> None:
    clock = SystemClock()
    async with world.connection() as conn:
        after_ms = clock.now_ms()
        while True:
            position = await conn.fetchval(_queries["position"], 0)
            seen_ms, until_ms = clock.now_ms(), int(str(position or "0").partition("-")[0])
            if until_ms > after_ms:
                moves.append(Move(after_ms, until_ms, seen_ms))
                after_ms = until_ms
            await asyncio.sleep(LOOK_EVERY_S)
